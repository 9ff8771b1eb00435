"""The rows of the quantization benchmark, made of numbers that were not measured."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import quantization
import quantization_fidelity
from answers import Distance
from edgewise.records.certificate import Certificate
from edgewise.records.measurements import Latency
from peers.quantizers import CALIBRATION_BYTES, RIVALS, has_attention, samples_at_once
from quantization_accuracy import drop_rows
from quantization_cost import speed_rows
from quantization_fidelity import Measured, distances, fidelity_rows

ORT, PERCENTILE, ENTROPY, NNCF = (rival.name for rival in RIVALS)


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_fidelity, "ready_backends", lambda: ("ort",))


def test_the_rivals_have_names_of_their_own() -> None:
    assert len({ORT, PERCENTILE, ENTROPY, NNCF}) == 4


@pytest.mark.parametrize(
    ("count", "activation_bytes", "expected"),
    [
        (200, CALIBRATION_BYTES // 200, 200),
        (200, CALIBRATION_BYTES // 200 + 1, 100),
        (32, CALIBRATION_BYTES // 9, 8),
        (7, CALIBRATION_BYTES // 6, 1),
        (200, 2 * CALIBRATION_BYTES, 1),
        (200, 0, 200),
    ],
)
def test_samples_are_kept_in_equal_parts_that_fit_into_memory(count: int, activation_bytes: int, expected: int) -> None:
    assert samples_at_once(count, activation_bytes) == expected


@pytest.mark.parametrize(("right", "expected"), [("keys", True), ("weight", False)])
def test_attention_is_a_matrix_product_of_two_activations(right: str, expected: bool) -> None:
    x, weight = (ir.Value(name=name) for name in ("x", "weight"))
    queries, keys = (ir.node("Relu", [x]) for _ in range(2))
    product = ir.node("MatMul", [queries.outputs[0], {"keys": keys.outputs[0], "weight": weight}[right]])
    graph = ir.Graph([x], product.outputs, nodes=[queries, keys, product], opset_imports={"": 17})
    assert has_attention(ir.Model(graph, ir_version=10)) == expected


def test_each_calibration_is_compared_with_float_on_its_own_samples() -> None:
    original = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    right = Measured(np.array([0, 2]), {"tool": original[[0, 2]], "once": original[[0, 2]]})
    wrong = Measured(np.array([1, 2]), {"tool": original[[0, 2]]})
    found = distances(original, [right, wrong])
    assert list(found) == ["tool"]
    assert (found["tool"].flips, found["tool"].n) == (1, 4)
    assert found["tool"].kl > 0


def test_fidelity_is_asked_for_beside_the_best_rival() -> None:
    found = {
        "edgewise w8a8 in ort": Distance(33, 0.1, 1000),
        ORT: Distance(50, 0.3, 1000),
        NNCF: Distance(40, 0.2, 1000),
    }
    rows = fidelity_rows("net", found, "again")
    assert len(rows) == 2 * 3 + 2
    assert [row.met for row in rows] == [True] * 6 + [False, True]
    assert rows[-2].value == pytest.approx(33 / 40)
    assert (rows[-2].ask, rows[-1].ask) == ("<= 0.8", "< 1")
    assert NNCF in rows[-2].row
    assert rows[-1].value == pytest.approx(0.5)


def test_few_flips_leave_the_verdict_to_the_divergence() -> None:
    found = {"edgewise w8a8 in ort": Distance(29, 0.3, 1000), ORT: Distance(20, 0.3, 1000)}
    few, kl = fidelity_rows("net", found, "again")[-2:]
    assert (few.met, kl.met) == (True, False)
    assert "KL decides" in few.ask


def test_a_model_that_edgewise_cannot_quantize_is_a_row_that_is_missed() -> None:
    rows = fidelity_rows("net", {ORT: Distance(40, 0.1, 100)}, "again")
    assert [row.met for row in rows] == [True, True, False]
    assert rows[-1].row == "net: edgewise w8a8 in ort fails"


@pytest.mark.parametrize(("lower", "met"), [(0.005, True), (0.0051, False)])
def test_a_drop_is_missed_only_where_its_lower_bound_is_above_the_ask(lower: float, met: bool) -> None:
    proof = Certificate(
        claim="drop", metric="top1", max_drop=0.01, relative=False, passed=False, original=0.9, optimized=0.88,
        drop=0.02, lower=lower, upper=0.03, confidence=0.95, method="exact", exact=True, n=100, worse=3, better=1,
        samples_needed=None, reused=0, isa="",
    )  # fmt: skip
    shown, asked = drop_rows("net", proof, 0.5, "again")
    assert (shown.value, shown.met, asked.met) == (2.0, True, met)
    assert len(drop_rows("net", proof, None, "again")) == 1


def latency(us: float) -> Latency:
    """Return a latency that never varies."""
    return Latency(
        median_us=us, p90_us=us, p99_us=us, max_us=us, runs=12, rounds_us=(us,) * 12, quantiles_us=(us,) * 101,
        threads=1, pinned=True,
    )  # fmt: skip


@pytest.mark.parametrize(("us", "met"), [(90.0, True), (100.0, True), (101.0, False)])
def test_speed_is_asked_for_beside_the_fastest_rival(us: float, met: bool) -> None:
    rows = speed_rows("net", "ours", {"ours": latency(us), "slow": latency(150), "fast": latency(100)}, "again")
    assert [row.met for row in rows] == [True, True, True, met]
    assert "against fast" in rows[-1].row
    assert rows[-1].value == pytest.approx(100 / us)


def test_speed_without_a_rival_asks_for_nothing_and_without_us_is_missed() -> None:
    assert len(speed_rows("net", "ours", {"ours": latency(1)}, "again")) == 1
    assert [row.met for row in speed_rows("net", "ours", {"fast": latency(1)}, "again")] == [False]


def test_every_kind_of_row_can_be_measured() -> None:
    assert tuple(quantization.measurements(1, 1)) == quantization.KINDS
