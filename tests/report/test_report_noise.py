"""The pictures of quantization noise in the report."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.records.quantization import BINS, LayerNoise, QuantizationNoise, TensorHistogram
from edgewise.records.run import Run
from edgewise.report.columns import Bins, Level, histogram, levels
from edgewise.report.frame import NARROW, WIDE, Axis
from edgewise.report.html import render
from edgewise.report.noise import TOP, noise_figures

AXES = (Axis("x"), Axis("y"))
CAUSES = ("range", "outlier-channel", "saturation", "rounding", "something new")
ANY = st.floats(allow_nan=True, allow_infinity=True)


def layer(index: int, sqnr_db: float | None) -> LayerNoise:
    cause = CAUSES[index % len(CAUSES)]
    return LayerNoise(node=f"conv{index}", operator="Conv", sqnr_db=sqnr_db, cause=cause, why=f"reason {index}")


def noise(count: int = 20) -> QuantizationNoise:
    return QuantizationNoise(
        candidate="ort int8-mse",
        samples=16,
        layers=(*(layer(index, 40.0 - index) for index in range(count)), layer(99, None)),
        histograms=(
            TensorHistogram(
                tensor="relu_out", node="conv3", start=-2.0, width=0.125, counts=tuple(range(BINS)), low=-1.0, high=4.0,
                clipped=0.0123, why="1.23% of its values lie outside",
            ),
        ),
    )  # fmt: skip


def parse(svg: str | None) -> ET.Element:
    assert svg is not None
    assert "nan" not in svg
    assert "inf" not in svg
    return ET.fromstring(svg)  # noqa: S314 - our own markup


def centres(svg: str | None) -> list[tuple[float, float]]:
    hits = [mark for mark in parse(svg).iter("circle") if mark.get("class") == "hit"]
    return [(float(hit.get("cx", "")), float(hit.get("cy", ""))) for hit in hits]


def test_every_layer_has_a_mark_in_its_order_and_more_decibels_are_higher() -> None:
    drawn = noise_figures(noise())
    places = centres(drawn.levels.wide)
    assert len(places) == 20  # the one without an error is not drawn
    assert places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    assert "1 layer without any error" in drawn.levels.caption[1]
    assert [name for _, name in drawn.legend] == ["range", "outlier channel", "saturation", "rounding", "something new"]
    assert len({kind for kind, _ in drawn.legend}) == 5


def test_the_table_has_the_worst_first() -> None:
    drawn = noise_figures(noise())
    assert len(drawn.rows) == TOP
    assert [row.node for row in drawn.rows[:2]] == ["conv19", "conv18"]
    assert drawn.rows[0].sqnr == "21.0 dB"
    assert "16 samples" in drawn.says


def test_what_the_noise_leaves_out_is_said() -> None:
    assert "weights" not in noise_figures(noise()).says
    assert "weights" in noise_figures(msgspec.structs.replace(noise(), weights=False)).says
    nothing = noise_figures(msgspec.structs.replace(noise(), layers=(layer(0, None),), histograms=()))
    assert nothing.levels.wide is None
    assert nothing.rows == ()


def test_a_histogram_tells_what_lies_outside_of_the_range() -> None:
    (drawn,) = noise_figures(noise()).histograms
    assert drawn.title == "relu_out"
    assert "1.23 % of the values lie outside" in drawn.caption[1]
    for svg in (drawn.wide, drawn.narrow):
        kinds = [shape.get("class") for shape in parse(svg).iter("rect")]
        # From -2 in steps of 1/8: eight bins lie below -1, and those from 4 on above.
        assert kinds == ["part outside"] * 8 + ["part"] * 40 + ["part outside"] * 16
        assert sum(line.get("class") == "reference" for line in parse(svg).iter("line")) == 2


@given(st.lists(ANY, max_size=5))
def test_any_levels_make_a_picture(values: list[float]) -> None:
    for frame in (WIDE, NARROW):
        parse(levels([Level(value, "c0", "tip") for value in values], AXES, frame))


@given(ANY, ANY, st.lists(st.integers(0, 10**12), max_size=BINS), ANY, ANY)
def test_any_bins_make_a_picture(start: float, width: float, counts: list[int], low: float, high: float) -> None:
    parse(histogram(Bins(start, width, tuple(counts), low, high), "tip", AXES, WIDE))


def test_the_report_holds_them(typical: Run) -> None:
    plain = render(typical)
    page = render(msgspec.structs.replace(typical, noise=noise()))
    assert "Quantization noise" in page
    assert "reason 19" in page
    assert "relu_out" in page
    assert "Quantization noise" not in plain


def test_names_from_hell_stay_text(typical: Run) -> None:
    name = "</style><script>alert(1)</script>\u202e"
    bad = msgspec.structs.replace(layer(0, 3.0), node=name, why=name, cause=name)
    found = msgspec.structs.replace(
        noise(), layers=(bad,), candidate=name,
        histograms=(msgspec.structs.replace(noise().histograms[0], tensor=name, node=name, why=name),),
    )  # fmt: skip
    page = render(msgspec.structs.replace(typical, noise=found))
    assert "<script>alert" not in page
    assert "\u202e" not in page


def test_a_record_of_a_run_before_this_one_is_drawn_as_before(typical: Run) -> None:
    fields = msgspec.to_builtins(typical)
    assert fields.pop("noise") is None
    assert render(msgspec.convert(fields, Run)) == render(typical)


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_pictures_have_words(kind: str) -> None:
    for mark in parse(getattr(noise_figures(noise()).levels, kind)).iter("g"):
        if "mark" in (mark.get("class") or ""):
            title = mark.find("title")
            assert title is not None
            assert "reason" in (title.text or "")
