"""Zeros in the weights: what is said of their size and of their speed."""

from __future__ import annotations

from edgewise.records.measurements import Ratio
from edgewise.report.quantities import TIMES
from edgewise.report.zeros import zeros_words


def said(archive: float, gains: dict[str, Ratio]) -> str:
    return zeros_words(archive, gains).replace(TIMES, "x")


def gain(value: float, low: float, high: float) -> Ratio:
    return Ratio(value=value, low=low, high=high, confidence=0.95, rounds=30)


def test_what_is_not_faster_is_said_to_be_not_faster() -> None:
    found = said(0.084, {"ort": gain(1.001, 0.99, 1.01), "openvino": gain(0.97, 0.95, 0.99)})
    assert found == (
        "Zeros in the weights make the archive smaller (8.4 % of float), not the model faster on ONNX Runtime "
        "(1.00x, 95 % interval 0.99x to 1.01x) or OpenVINO (0.97x, 95 % interval 0.95x to 0.99x)."
    )


def test_what_is_faster_is_said_as_well() -> None:
    found = said(0.5, {"ort": gain(1.0, 0.9, 1.1), "phone": gain(1.6, 1.5, 1.7)})
    assert found.endswith(
        "not the model faster on ONNX Runtime (1.00x, 95 % interval 0.90x to 1.10x). "
        "The model is faster on phone (1.60x, 95 % interval 1.50x to 1.70x)."
    )
    assert said(0.5, {}) == "Zeros in the weights make the archive smaller (50 % of float)."
    assert said(1.0, {}) == "Zeros in the weights make the archive no smaller (100 % of float)."
