# The two commands of the README are `make demo` and `make test`; each sets up what it needs in .venv.
# Another interpreter: make PYTHON=python3.12 test. Another zoo of models: make ZOO=/path bench.
# Everything that is installed is pinned by constraints.txt.
PYTHON ?= python3
VENV ?= .venv
ZOO ?= ../shared/zoo
BIN := $(VENV)/bin
PINS := constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL = $(PIP) install --constraint $(PINS) --build-constraint $(PINS)

.PHONY: help demo test test-all test-lowest lint types imports docs bench wheel format constraints constraints-lowest \
	browser clean

help:
	@echo 'make demo         the main job on the model and samples that come with the package'
	@echo 'make test         the tests, without the slow ones and without torch'
	@echo 'make test-all     every test, with every extra'
	@echo 'make test-lowest  the fast tests on the oldest versions that pyproject.toml allows'
	@echo 'make lint types imports docs   style, types, layers, and what the documents say'
	@echo 'make bench        the benchmarks, on the models of ZOO'
	@echo 'make format       puts the code into its canonical form'
	@echo 'make wheel        builds the wheel into dist/'
	@echo 'make constraints constraints-lowest   renew the pins in constraints.txt and constraints-lowest.txt'
	@echo 'make clean        removes what these targets made'

demo: $(VENV)/.demo
	$(BIN)/edgewise demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(VENV)/.test-all browser
	$(BIN)/python -m pytest -n 2

test-lowest:
	$(MAKE) VENV=$(VENV)-lowest PINS=constraints-lowest.txt test

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.lint
	$(BIN)/mypy

imports: $(VENV)/.lint
	$(BIN)/lint-imports

docs: $(VENV)/.test
	$(BIN)/python -m pytest tests/architecture/test_architecture_documents.py

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/import_time.py --zoo $(ZOO)
	$(BIN)/python benchmarks/asked_precision.py --zoo $(ZOO)
	$(BIN)/python benchmarks/in_turns.py --zoo $(ZOO)
	$(BIN)/python benchmarks/certificate.py --zoo $(ZOO)
	$(BIN)/python benchmarks/main_job.py --zoo $(ZOO)
	$(BIN)/python benchmarks/saturation.py --zoo $(ZOO)
	$(BIN)/python benchmarks/quantization.py --zoo $(ZOO)
	$(BIN)/python benchmarks/pruning.py --zoo $(ZOO)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(VENV)/.test
	$(BIN)/python -m hatchling build --target wheel

# The pins are what pip resolves today for every extra and group at once, on the oldest Python that is supported, so
# that each of them installs on newer ones, too. torch stays where it is: the plain build of another version is huge.
# What that build brings along for graphics cards is not pinned: torch itself names exact versions of it.
PINNED := $(VENV)-pins
FREEZE = $(PINNED)/bin/python -m pip freeze --all --exclude-editable --exclude setuptools \
	| sed -e 's/+cpu$$//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d'
constraints:
	rm -rf $(PINNED)
	$(MAKE) VENV=$(PINNED) $(PINNED)/.pip
	grep '^torch==' constraints.txt > $(PINNED)/torch.txt
	$(PINNED)/bin/python -m pip install --quiet --upgrade pip
	$(PINNED)/bin/python -m pip install --quiet --constraint $(PINNED)/torch.txt --editable ".[openvino,torch]" \
		--group test --group browser --group lint --group bench --group demo-model
	$(FREEZE) > $(PINNED)/pins.txt
	! grep -n -e '@' -e '://' $(PINNED)/pins.txt
	cp $(PINNED)/pins.txt constraints.txt
	rm -rf $(PINNED)

# The same with the oldest versions that pyproject.toml allows of what edgewise itself needs.
constraints-lowest:
	rm -rf $(PINNED)
	$(MAKE) VENV=$(PINNED) $(PINNED)/.pip
	$(PINNED)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*p['dependencies'], *p['optional-dependencies']['openvino'], sep='\n')" \
		| sed 's/>=/==/' > $(PINNED)/lowest.txt
	$(PINNED)/bin/python -m pip install --quiet --constraint $(PINNED)/lowest.txt --editable ".[openvino]" --group test
	$(FREEZE) > $(PINNED)/pins.txt
	! grep -n -e '@' -e '://' $(PINNED)/pins.txt
	cp $(PINNED)/pins.txt constraints-lowest.txt
	rm -rf $(PINNED)

# The report's test drives a browser, and one test emulates an older processor. Both programs are installed where that
# takes no more than Debian's packages and the right to install them; elsewhere the tests say why they are skipped.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing chromium and chromium-driver for the test of the report ...'; \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 \
			|| echo 'They could not be installed: that test will say why it is skipped.'; \
	fi
	@if command -v qemu-x86_64 >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing qemu-user for the test of an older processor ...'; \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends qemu-user; } >/dev/null 2>&1 \
			|| echo 'It could not be installed: that test will say why it is skipped.'; \
	fi

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-pins dist edgewise-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# One marker file a set of packages: installed once, and again when what is asked for changed.
$(VENV)/.pip:
	@command -v $(PYTHON) >/dev/null || { echo 'edgewise needs Python 3.11 or newer, but there is no `$(PYTHON)` here.'; \
		echo 'hint: install it, or name another one: make PYTHON=python3.12 ...'; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edgewise needs Python 3.11 or newer. Received \`$(PYTHON)\`, which is $$($(PYTHON) --version 2>&1)."; \
		echo 'hint: name a newer one: make PYTHON=python3.12 ...'; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '`$(PYTHON)` cannot make virtual environments: its modules `venv` and `ensurepip` are missing.'; \
		echo 'hint: on Debian and Ubuntu: apt-get install python3-venv'; exit 2; }
	@echo 'Setting up $(VENV): this takes a minute or two, once.'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade --constraint constraints.txt pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml $(PINS)
	$(INSTALL) --editable ".[openvino]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) --group test
	@touch $@

$(VENV)/.test-all: $(VENV)/.test
	$(INSTALL) --editable ".[openvino,torch]" --group browser
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) --group lint
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(INSTALL) --group bench
	@touch $@
