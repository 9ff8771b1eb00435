# The two commands of the README are `make demo` and `make test`; each sets up what it needs in .venv.
# Another interpreter: make PYTHON=python3.12 test. Everything installed is pinned by constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ZOO ?= ../shared/zoo

.PHONY: demo test test-all lint types imports bench

demo: $(VENV)/.demo
	$(BIN)/edgewise demo

test: $(VENV)/.test
	$(BIN)/pytest -m "not slow" -n 2

test-all: $(VENV)/.test-all
	$(BIN)/pytest -n 2

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.lint
	$(BIN)/mypy

imports: $(VENV)/.lint
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/certificate.py --zoo $(ZOO)
	$(BIN)/python benchmarks/main_job.py --zoo $(ZOO)

# One marker file a set of packages: installed once, and again when what is asked for changed.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable ".[openvino]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install --constraint constraints.txt --group test
	touch $@

$(VENV)/.test-all: $(VENV)/.test
	$(PIP) install --constraint constraints.txt --editable ".[openvino,torch]" --group test
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install --constraint constraints.txt --group lint
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install --constraint constraints.txt --group bench
	touch $@
