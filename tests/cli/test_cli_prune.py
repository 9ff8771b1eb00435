"""`edgewise prune`: what each kind of pruning prints and writes, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from tests.cli.conftest import Place, Said, check_refused, saved
from tests.pipeline.test_pipeline_prune import blocks, feeds, macs

from edgewise.compress.quantize.reasons import read_reasons
from edgewise.formats.onnx import load, save
from edgewise.pipeline import pruning_costs
from edgewise.pipeline.library import quantize
from edgewise.pipeline.pruning import PruneResult, Weights
from edgewise.testing.graphs import GraphBuilder

GOALS: dict[str, tuple[str, ...]] = {
    "neurons": ("--neurons", "25%"),
    "layers": ("--layers", "1"),
    "weights": ("--weights", "0.6"),
    "weights-1x4": ("--weights", "0.6", "--pattern", "1x4"),
    "weights-2-4": ("--weights", "0.5", "--pattern", "2:4"),
    "latency": ("--latency", "0.6x", "--float"),
}


@pytest.fixture(autouse=True)
def _arithmetic_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra_times(_backend: str, base: ir.Model, variants: Sequence[ir.Model], *_: Any) -> list[float]:
        return [macs(variant) / macs(base) - 1 for variant in variants]

    monkeypatch.setattr(pruning_costs, "extra_times", extra_times)


@pytest.fixture
def given(tmp_path: Path) -> list[str | Path]:
    """Return a model and samples, as the command takes them, and where it is to write."""
    return arguments(tmp_path, blocks())


def arguments(folder: Path, model: ir.Model) -> list[str | Path]:
    np.savez(folder / "samples.npz", x=np.concatenate([one["x"] for one in feeds(60)]))
    saved(folder / "model.onnx", model)
    return ["prune", folder / "model.onnx", "--data", folder / "samples.npz"]


@pytest.mark.parametrize("name", GOALS)
def test_text(
    name: str, given: list[str | Path], edgewise: Callable[..., Said], golden: Callable[..., None], tmp_path: Path
) -> None:
    said = edgewise(*given, *GOALS[name])
    assert (said.code, said.err) == (0, "")
    golden(f"prune-{name}", re.sub(r"\d+(?= answers changed|% of the weights)", "#", said.out))
    assert said.out.endswith(f"\n{tmp_path / 'model_pruned.onnx'}\n")
    written = load(tmp_path / "model_pruned.onnx")
    smaller: bool = macs(written) < macs(blocks())
    assert smaller == (not name.startswith("weights"))
    assert ("Zeros make the archive" in said.out) == name.startswith("weights")
    assert ("not the model faster" in said.out) == name.startswith("weights")
    assert ("Measured time: 0." in said.out) == (name == "latency")
    assert not read_reasons(written)


def test_json(given: list[str | Path], edgewise: Callable[..., Said], tmp_path: Path) -> None:
    said = edgewise(*given, "--weights", "0.6", "--out", tmp_path / "zeros.onnx", "--json")
    assert said.code == 0, said.err
    found = msgspec.json.decode(said.out, type=PruneResult)
    assert json.loads(msgspec.json.encode(found)) == json.loads(said.out)
    assert found.asked == Weights(share=0.6)
    assert found.zeros == pytest.approx(0.6, abs=0.05)
    assert found.file == str(tmp_path / "zeros.onnx")
    assert (tmp_path / "zeros.onnx").exists()


# What is refused: each case is the arguments behind model and samples.


def only() -> ir.Model:
    """Return a model without anything that can go."""
    b = GraphBuilder("only")
    flat = b.node("Flatten", b.input("x", (1, 3, 6, 6)))
    b.output(b.node("MatMul", flat, b.weight(108, 4), name="only"), "y", (1, 4))
    return b.build()


def quantized() -> ir.Model:
    return quantize(blocks(), [one["x"][0] for one in feeds(8)], extra_time=0)


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        ((), "One of --neurons, --layers, --weights and --latency has to be given. Received 0."),
        (("--neurons", "0.5", "--layers", "1"), "has to be given. Received 2."),
        (("--neurons", "1.5"), "`--neurons` has to be above 0 and below 100 %"),
        (("--weights", "much"), "`--weights` has to be a number or a percentage. Received `much`"),
        (("--layers", "0"), "a whole number of 1 or more"),
        (("--layers", "9"), "Of this model 3 layers can go, but 9 were asked for"),
        (("--latency", "0.6"), "`--latency` has to be a ratio to the model as it is. Received `0.6`"),
        (("--latency", "1.6x"), "between 0 and 1, both excluded. Received 1.6"),
        (("--neurons", "0.5", "--pattern", "2:4"), "`--pattern` says where zeros may be, but no `--weights`"),
        (("--weights", "0.5", "--pattern", "3:7"), "The pattern has to be one of unstructured, 1x4, 2:4"),
        (("--weights", "0.8", "--pattern", "2:4"), "The pattern 2:4 sets half of the weights to zero"),
        (("--weights", "0.99"), "at most 0.95 of all weights can go"),
        (("--neurons", "0.5", "--recover", "5"), "`--recover` has to be a number with one of the units"),
        (("--neurons", "0.5", "--backend", "abacus"), "abacus"),
        (("--neurons", "0.5", "--data", "none"), "real samples: `--data none` is not enough"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    more: tuple[str, ...], fragment: str, place: Place, edgewise: Callable[..., Said]
) -> None:
    given = arguments(place.tmp, blocks())
    check_refused(lambda _: [*given, *more], fragment, place, edgewise)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [(only, "Nothing of this model can be pruned. `only`"), (quantized, "this one is quantized already")],
)
def test_models_that_cannot_be_pruned_are_refused(
    make: Callable[[], ir.Model], fragment: str, place: Place, edgewise: Callable[..., Said]
) -> None:
    given = arguments(place.tmp, make())
    check_refused(lambda _: [*given, "--neurons", "0.5"], fragment, place, edgewise)


def test_a_file_that_exists_is_kept(place: Place, edgewise: Callable[..., Said]) -> None:
    given = arguments(place.tmp, blocks())
    save(only(), place.tmp / "model_pruned.onnx")
    check_refused(lambda _: [*given, "--neurons", "0.5"], "exists.", place, edgewise)


def test_what_could_not_be_made_up_for_is_said(tmp_path: Path, edgewise: Callable[..., Said]) -> None:
    given = arguments(tmp_path, blocks())
    np.savez(tmp_path / "few.npz", x=np.concatenate([one["x"] for one in feeds(12)]))
    given[-1] = tmp_path / "few.npz"
    said = edgewise(*given, "--neurons", "0.25")
    assert said.code == 0
    assert "declined:\n" in said.out
    assert "samples: a larger ridge keeps it near its old weights" in said.out
