"""The rows of the pruning benchmark, made of numbers that were not measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pruning
import pruning_models
from edgewise.analysis.coupling import Axis, Group, Reader
from edgewise.errors import RecipeError
from edgewise.records.candidate import Candidate, Fuse, Prune, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.measurements import ColdStart, Energy, Latency, PeakMemory, Ratio
from edgewise.records.run import Rung
from pruning_int8 import Attempt, Measured, attempt_rows, fastest, precisions
from pruning_macs import Work, work_rows
from pruning_models import MOST_SHARE, Split, drop_row, failure, parted, pruned
from pruning_one_shot import by_magnitude, sizes, smallest
from pruning_rivals import HELPED, OURS, RIVAL, Accuracies, rival_rows, rival_words
from pruning_whole import comparison_row, fastest_whole
from quantized import ToolError

ATTEMPT = Attempt("pruned", 0.7, 1.25, 1.0)


def latency(us: float) -> Latency:
    """Return a latency that never varies."""
    return Latency(
        median_us=us, p90_us=us, p99_us=us, max_us=us, runs=12, rounds_us=(us,) * 12, quantiles_us=(us,) * 101,
        threads=1, pinned=True,
    )  # fmt: skip


def proof(drop: float) -> Certificate:
    """Return a drop in points, with its interval."""
    return Certificate(
        claim="drop", metric="top1", max_drop=0.01, relative=False, passed=False, original=0.9, optimized=0.88,
        drop=drop / 100, lower=drop / 100 - 0.005, upper=drop / 100 + 0.005, confidence=0.95, method="exact",
        exact=True, n=100, worse=3, better=1, samples_needed=None, reused=0, isa="",
    )  # fmt: skip


def model_of(*steps: Any) -> Candidate:
    """Return a candidate in ONNX Runtime."""
    return Candidate(steps=steps, backend="ort", options=RunOptions())


def rung(candidate: Candidate, us: float, *, certified: bool = True) -> Rung:
    """Return a step of a ladder of which only speed matters."""
    return Rung(
        candidate=candidate, certificate=None, certified=certified, latency=latency(us),
        speedup=Ratio(value=1, low=1, high=1, confidence=0.95, rounds=12),
        cold_start=ColdStart(import_ms=1, load_ms=1, first_run_ms=1), memory=PeakMemory(peak_bytes=2, before_bytes=1),
        energy=Energy(joules=None, source="none"), size_bytes=1, layers=(),
    )  # fmt: skip


UNTOUCHED = rung(model_of(), 100)
FUSED = rung(model_of(Fuse()), 80)
PRUNED = rung(model_of(Fuse(), Prune(time=0.5)), 50)


@given(st.integers(3, 6000), st.integers(1, 3000), st.integers(0, 20))
def test_what_prunes_is_never_scored(total: int, count: int, seed: int) -> None:
    used, scored = parted(total, count, seed)
    assert sorted([*used, *scored]) == list(range(total))
    assert len(used) == max(1, min(count, int(MOST_SHARE * total)))
    assert list(used) == sorted(used)
    assert list(scored) == sorted(scored)


def test_two_thousand_of_five_thousand_are_used() -> None:
    used, scored = parted(5000, pruning_models.SAMPLES)
    assert (len(used), len(scored)) == (2000, 3000)


@pytest.mark.parametrize(("count", "expected"), [(2000, 200), (250, 200), (90, 90)])
def test_calibration_takes_samples_from_all_parts(count: int, expected: int) -> None:
    samples = [{"x": np.array([index])} for index in range(count)]
    chosen = Split(SimpleNamespace(), samples, np.arange(3)).calibration  # type: ignore[arg-type]
    assert len(chosen) == expected
    assert all(any(one is other for other in samples) for one in chosen)
    assert len({int(one["x"][0]) for one in chosen}) == expected


@pytest.mark.parametrize("error", [RecipeError("nothing can be pruned."), ValueError("nothing can be pruned.")])
def test_a_model_that_cannot_be_pruned_is_a_row_that_is_missed(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def prune(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pruning_models.prune", prune)
    graph = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    with pytest.raises(ToolError, match=r"edgewise prune neurons=0\.5: .*nothing can be pruned"):
        pruned(graph, [], neurons=0.5)
    left_out: list[str] = []
    row = failure("net: pruned", ToolError("because"), "again", left_out)
    assert (row.met, row.ask, left_out) == (False, "0", ["net: pruned: because"])


@pytest.mark.parametrize(("drop", "ask", "met"), [(1.0, 1.0, True), (1.01, 1.0, False), (9.0, None, True)])
def test_the_observed_drop_decides(drop: float, ask: float | None, met: bool) -> None:
    row = drop_row("net", proof(drop), ask, "again")
    assert row.value == pytest.approx(drop)
    assert row.met == met
    assert f"({drop - 0.5:.2f} to {drop + 0.5:.2f})" in row.ask


@pytest.mark.parametrize(
    ("us", "drop", "met"), [(80.0, 1.0, True), (80.1, 1.0, False), (50.0, 1.1, False), (50.0, -0.5, True)]
)
def test_speed_counts_beside_the_fastest_whole_int8_model_within_the_drop(us: float, drop: float, met: bool) -> None:
    latencies = {"int8 in a": latency(100), "int8 in b": latency(120), "float": latency(90), "pruned": latency(us)}
    rows = attempt_rows(
        "net", [ATTEMPT], ["int8 in a", "int8 in b"], latencies, {"pruned": Measured(proof(drop), 2.0)}, command="again"
    )
    against = next(row for row in rows if "against" in row.row)
    assert against.row == "net: pruned against int8 in a"
    assert against.value == pytest.approx(100 / us)
    assert against.met == met
    assert len(rows) == 4 + 3


@pytest.mark.parametrize(("fewer", "drop", "met"), [(3.0, 0.3, True), (2.9, 0.3, False), (3.0, 0.4, False)])
def test_fewer_multiply_accumulates_can_stand_for_speed(fewer: float, drop: float, met: bool) -> None:
    attempt = Attempt("pruned", 0.5, 2.0, 0.3, fewer_macs=3.0)
    latencies = {"int8": latency(100), "pruned": latency(90)}
    rows = attempt_rows(
        "net", [attempt], ["int8"], latencies, {"pruned": Measured(proof(drop), fewer)}, command="again"
    )
    assert [row.met for row in rows if "against" in row.row] == [met]


def test_a_model_that_was_not_timed_is_never_the_fastest() -> None:
    assert fastest({"slow": latency(100), "fast": latency(50)}, ["untimed", "slow", "fast"]) == "fast"


def test_the_best_int8_model_may_compute_the_rest_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(precisions=lambda: ("bf16", "fp32"))
    monkeypatch.setattr("pruning_int8.registry.get", lambda _: backend)
    assert precisions("any") == ["fp32", "bf16"]


def test_an_attempt_that_was_not_made_or_not_timed() -> None:
    assert attempt_rows("net", [ATTEMPT], ["int8"], {}, {}, command="again") == []
    for latencies in ({"int8": latency(1)}, {"pruned": latency(1)}):
        rows = attempt_rows("net", [ATTEMPT], ["int8"], latencies, {"pruned": Measured(proof(0), 2.0)}, command="again")
        assert [row.row for row in rows if not row.met] == ["net: pruned could not be timed"]


@pytest.mark.parametrize(("fewer", "drop", "met"), [(1.25, 1.0, True), (1.24, 1.0, False), (1.25, 1.1, False)])
def test_work_counts_within_the_drop(fewer: float, drop: float, met: bool) -> None:
    work, lost = work_rows("net", Work(0.75, 1.25, 1.0), fewer, proof(drop), "again")
    assert (work.met, lost.met) == (met, drop <= 1.0)


def test_edgewise_has_to_be_above_its_rival() -> None:
    found = Accuracies(one_shot={OURS: 88.0, RIVAL: 86.5}, recovered={OURS: 90.0, RIVAL: 90.0})
    rows = rival_rows("net", found, 3000, "again")
    above = [row for row in rows if row.unit == "points"]
    assert [(row.value, row.met) for row in above] == [(1.5, True), (0.0, False)]
    assert len(rows) == 6


def test_the_rival_counts_with_the_better_training() -> None:
    found = Accuracies(recovered={OURS: 90.0, RIVAL: 89.0, HELPED: 90.5})
    above = rival_rows("net", found, 3000, "again")[-1]
    assert (above.row, above.value, above.met) == (f"net, recovered: {OURS} above {HELPED}", -0.5, False)


def test_a_rival_without_us_is_missed_and_we_without_a_rival_ask_for_nothing() -> None:
    alone = rival_rows("net", Accuracies(one_shot={OURS: 88.0}), 3000, "again")
    assert [(row.ask, row.met) for row in alone] == [("none", True)]
    without = rival_rows("net", Accuracies(recovered={RIVAL: 88.0}), 3000, "again")
    assert [row.met for row in without] == [True, False]


def test_what_the_rival_chose_is_told() -> None:
    said = {"version": "1", "chosen": "magnitude", "divergences": {"a": 1, "b": 2}, "macs": 7, "steps": 9}
    assert rival_words(said) == "version 1, magnitude of 2 tried, 7 MACs, 9 steps"
    assert rival_words({**said, "steps": None}).endswith("7 MACs")


def test_only_certified_rungs_without_pruning_are_compared_with() -> None:
    uncertified = rung(model_of(Fuse(), Fuse()), 10, certified=False)
    assert fastest_whole([UNTOUCHED, FUSED, uncertified, PRUNED]) is FUSED


@pytest.mark.parametrize(("us", "met"), [(79.0, True), (80.0, True), (81.0, False)])
def test_a_pruned_default_is_never_slower_than_not_pruning(us: float, met: bool) -> None:
    row = comparison_row("net", rung(PRUNED.candidate, us), FUSED, "again")
    assert row.value == pytest.approx(80 / us)
    assert row.met == met


def test_a_default_that_is_not_pruned_is_as_good_as_itself() -> None:
    row = comparison_row("net", FUSED, FUSED, "again")
    assert (row.value, row.met) == (1.0, True)


@pytest.mark.parametrize(("share", "expected"), [(0.5, [1, 2]), (0.25, [1]), (0.2, [])])
def test_the_smallest_units_go(share: float, expected: list[int]) -> None:
    assert smallest(np.array([3.0, 0.0, 1.0, 2.0]), share) == expected


def test_the_size_of_a_unit_is_the_sum_of_what_makes_it() -> None:
    weight = np.array([[1, -2], [3, 4], [-5, 6]], np.float32)
    bias = np.array([10, 0, -10], np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2]))
    held = {name: ir.Value(name=name, const_value=ir.tensor(data)) for name, data in (("w", weight), ("b", bias))}
    node = ir.node("Gemm", [x, held["w"], held["b"]], attributes={"transB": 1}, name="first")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=list(held.values()), opset_imports={"": 17})
    units = np.array([0, -1, 1])  # the second row belongs to no unit
    group = Group(
        name="h", size=2, axes=(Axis("w", 0, units), Axis("b", 0, units), Axis("h", 1, units)),
        readers=(Reader("second", 0, 1, 1),), makers=("first",),
    )  # fmt: skip
    assert list(sizes(ir.Model(graph, ir_version=10), group)) == [1 + 2 + 10, 5 + 6 + 10]


def two_layers(rows: int) -> ir.Model:
    """Return `y = second relu(first x)` whose hidden unit `i` has weights of size `i + 1`."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2]))
    first = np.repeat(np.arange(1, rows + 1, dtype=np.float32), 2).reshape(rows, 2)
    second = np.arange(3 * rows, dtype=np.float32).reshape(3, rows)
    held = [ir.Value(name=name, const_value=ir.tensor(data)) for name, data in (("w1", first), ("w2", second))]
    nodes = [ir.node("Gemm", [x, held[0]], attributes={"transB": 1}, name="first")]
    nodes.append(ir.node("Relu", nodes[0].outputs, name="relu"))
    nodes.append(ir.node("Gemm", [nodes[1].outputs[0], held[1]], attributes={"transB": 1}, name="second"))
    for node, width in zip(nodes, (rows, rows, 3), strict=True):
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].type, node.outputs[0].shape = x.type, ir.Shape([1, width])
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=held, opset_imports={"": 17}, name="net")
    return ir.Model(graph, ir_version=10)


def test_plain_magnitude_removes_the_smallest_units_and_makes_up_for_nothing() -> None:
    whole = two_layers(4)
    found = [
        value.const_value.numpy()
        for node in by_magnitude(whole, 0.5).graph
        for value in node.inputs
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 2
    ]
    np.testing.assert_array_equal(found[0], [[3, 3], [4, 4]])
    np.testing.assert_array_equal(found[1], [[2, 3], [6, 7], [10, 11]])


def test_plain_magnitude_needs_a_group_with_one_maker() -> None:
    graph = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="net"), ir_version=10)
    with pytest.raises(ToolError, match="single maker"):
        by_magnitude(graph, 0.5)


def test_every_kind_of_row_can_be_measured() -> None:
    assert tuple(pruning.measurements(pruning_models.QUICK, "python")) == pruning.KINDS


def test_the_size_of_archives_is_measured_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[str] = []

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    assert pruning.size(Path(), None, command="again", left_out=left_out) == []
    assert left_out == ["size: pruning_size"]


def test_without_a_zoo_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pruning.py", "--zoo", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    assert pruning.main() == 0
    assert "the zoo is absent" in capsys.readouterr().out
    assert (tmp_path / "rows.json").read_text(encoding="utf-8").strip() == "[]"
