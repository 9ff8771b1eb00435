from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import DataError
from edgewise.samples.function import SequenceSource
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import Preprocessing

MODULE = """
import numpy as np

class Items:
    labels = [0, 1, 2]
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return np.full(2, index, np.float32), index

def items():
    return Items()

def pairs():
    return [(np.ones(2), "a"), (np.zeros(2), "b")]

def generator():
    for index in range(5):
        yield {"a": np.full(3, index), "b": index}, np.int64(index)

def bare():
    for index in range(3):
        yield np.full((2, 2), index, np.uint8)

def big():
    for index in range(64):
        yield np.full(1 << 18, index, np.float32)

def nothing():
    yield from ()

def fails():
    yield np.zeros(2)
    raise KeyError("oops")

def not_finite():
    yield np.zeros(2)
    yield np.array([np.nan])

def objects():
    yield object()

def mixed():
    yield np.zeros(2), 1
    yield np.zeros(2), None

def number():
    return 3

class Space:
    inner = staticmethod(pairs)

data = [np.zeros(2)]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"samples_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


def test_a_sequence_is_used_as_it_is(module: str) -> None:
    source = open_source(f"{module}:items")
    assert (len(source), source.labels()) == (3, [0, 1, 2])
    np.testing.assert_array_equal(source[2].arrays[""], [2, 2])
    assert source[2].label == 2
    assert open_source(f"{module}:pairs").labels() == ["a", "b"]
    assert open_source(f"{module}:Space.inner").labels() == ["a", "b"]
    assert len(open_source(f"{module}:data")) == 1


def test_a_generator_is_spooled(module: str) -> None:
    source = open_source(f"{module}:generator")
    assert (len(source), source.labels()) == (5, [0, 1, 2, 3, 4])
    for index in (4, 0):
        sample = source[index]
        np.testing.assert_array_equal(sample.arrays["a"], [index] * 3)
        assert sample.arrays["b"].shape == ()
        assert sample.arrays["b"] == index
    assert open_source(f"{module}:bare").labels() is None


def test_memory_of_a_generator_stays_bounded(module: str) -> None:
    tracemalloc.start()
    source = open_source(f"{module}:big")
    total = sum(int(source[index].arrays[""][-1]) for index in range(len(source)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 63 * 64 // 2
    assert peak < 8 << 20  # one sample is 1 MiB; 64 were made


def test_fingerprints_of_functions(module: str) -> None:
    assert open_source(f"{module}:generator").fingerprint == open_source(f"{module}:generator").fingerprint
    assert open_source(f"{module}:items").fingerprint == open_source(f"{module}:items").fingerprint
    assert open_source(f"{module}:generator").fingerprint != open_source(f"{module}:bare").fingerprint


def test_the_fingerprint_of_a_sequence_follows_its_samples_and_its_module(tmp_path: Path) -> None:
    code = tmp_path / "m.py"
    code.write_text("a = 1")

    def fingerprint(*items: float) -> str:
        return SequenceSource("m:f", [np.full(2, item) for item in items], Preprocessing(), code).fingerprint

    first = fingerprint(1, 2)
    assert fingerprint(1, 2) == first
    assert fingerprint(1, 3) != first
    code.write_text("a = 2")
    assert fingerprint(1, 2) != first


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "at least one sample"),
        ("fails", "raised KeyError: 'oops'"),
        ("not_finite", "Sample 1 .*NaN"),
        ("objects", "array of numbers. It is object"),
        ("mixed", "sample 1 for example"),
        ("number", "It gave int"),
        ("absent", "has to have `absent`"),
    ],
)
def test_functions_that_do_not_fit(module: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source(f"{module}:{name}").labels()


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no module `not_there_at_all`"):
        open_source("not_there_at_all:function")


def test_a_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_samples.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="ZeroDivisionError"):
        open_source("broken_samples:x")


def test_the_label_of_a_function_cannot_be_named(module: str) -> None:
    with pytest.raises(DataError, match="come with the samples"):
        open_source(f"{module}:pairs", label="y")
