from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewise.report import charts
from edgewise.report.charts import Curve, Part, Point, Row
from edgewise.report.frame import NARROW, WIDE, Axis, Frame

FRAME = Frame(width=200, height=140, left=50, right=0, top=0, bottom=40)
TIPS = ("a\nb", "c", "d")
POINT = Point(x=1.0, y=0.5, x_range=None, y_range=None, kind="measured", label="", tip="tip")
ROW = Row(label="name", low=0.9, value=1.0, high=1.1, kind="rung", text="1.0", tip="tip")
ANY = st.floats(allow_nan=True, allow_infinity=True)


def parse(svg: str) -> ET.Element:
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<title>.*?</title>", "", svg, flags=re.DOTALL))
    return ET.fromstring(svg)  # noqa: S314 - our own markup


def usable(*values: float) -> bool:
    return all(value == 0 or 1e-150 <= abs(value) <= 1e150 for value in values)


def marks(svg: str) -> list[ET.Element]:
    return [group for group in parse(svg).iter("g") if "mark" in group.get("class", "").split()]


def centre(mark: ET.Element) -> tuple[float, float]:
    hit = next(shape for shape in mark.iter("circle") if shape.get("class") == "hit")
    return float(hit.get("cx", "")), float(hit.get("cy", ""))


def test_a_mark_has_a_title_and_takes_the_focus() -> None:
    for mark in marks(charts.scatter([POINT], Axis("x"), Axis("y"), WIDE)):
        assert mark.get("tabindex") == "0"
        title = mark.find("title")
        assert title is not None
        assert title.text == "tip"


def test_better_is_left_and_up() -> None:
    slow, fast = replace(POINT, x=2.0, y=0.4), replace(POINT, x=1.0, y=0.6)
    (x0, y0), (x1, y1) = (centre(mark) for mark in marks(charts.scatter([slow, fast], Axis("x"), Axis("y"), FRAME)))
    assert x1 < x0
    assert y1 < y0


def test_where_less_is_better_less_is_up() -> None:
    worse, better = replace(POINT, x=2.0, y=0.6), replace(POINT, x=1.0, y=0.4)
    points = [worse, better]
    (_, y0), (_, y1) = (centre(mark) for mark in marks(charts.scatter(points, Axis("x"), Axis("y", down=True), FRAME)))
    assert y1 < y0


def test_positions_come_from_the_numbers() -> None:
    points = [replace(POINT, x=1.0, y=0.0), replace(POINT, x=2.0, y=1.0)]
    (x0, y0), (x1, y1) = (centre(mark) for mark in marks(charts.scatter(points, Axis("x"), Axis("y"), FRAME)))
    # A range of length 1 is padded by 6 % at either end; the plot is 150 wide from x = 50 and 100 high from y = 0.
    assert (x0, x1) == pytest.approx((50 + 150 * 0.06 / 1.12, 50 + 150 * 1.06 / 1.12), abs=0.051)
    assert (y0, y1) == pytest.approx((100 - 100 * 0.06 / 1.12, 100 - 100 * 1.06 / 1.12), abs=0.051)


def test_the_fates_have_different_shapes() -> None:
    fates = ("rejected", "measured", "rung", "chosen", "original")
    shapes = [charts.swatch(fate, line=False).replace(fate, "") for fate in fates]
    assert len(set(shapes)) == len(fates)


def test_the_front_is_a_staircase() -> None:
    assert charts.staircase([(0, 9), (5, 4), (7, 1)]) == [(0, 9), (5, 9), (5, 4), (7, 4), (7, 1)]
    points = [replace(POINT, x=1.0, y=0.1, front=True), replace(POINT, x=2.0, y=0.2, front=True)]
    assert 'class="front"' in charts.scatter(points, Axis("x"), Axis("y"), FRAME)
    assert 'class="front"' not in charts.scatter(points[:1], Axis("x"), Axis("y"), FRAME)


def test_a_distribution_marks_its_quantiles() -> None:
    curve = Curve("chosen", tuple(float(level) for level in range(100, 201)), TIPS)
    found = [centre(mark) for mark in marks(charts.distribution([curve], Axis("t"), FRAME))]
    assert [y for _, y in found] == pytest.approx([50.0, 10.0, 1.0], abs=0.051)
    # 100 to 200, padded by 6 at either end, on 150 pixels from x = 50.
    assert [x for x, _ in found] == pytest.approx([50 + 150 * (v - 94) / 112 for v in (150, 190, 199)], abs=0.051)


def test_a_far_outlier_does_not_take_up_the_axis() -> None:
    values = [*(float(level) for level in range(100, 200)), 90_000.0]
    svg = charts.distribution([Curve("chosen", tuple(values), TIPS)], Axis("t"), FRAME)
    middle, _, last = (centre(mark)[0] for mark in marks(svg))
    assert last - middle > 30
    line = next(parse(svg).iter("polyline")).get("points", "")
    assert all(float(pair.split(",")[0]) <= FRAME.width for pair in line.split())


@pytest.mark.parametrize("quantiles", [(), (3.0,), (0.0, 1.0), (-1.0, 2.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_distribution_that_cannot_be_drawn_is_left_out(quantiles: tuple[float, ...]) -> None:
    assert not marks(charts.distribution([Curve("chosen", quantiles, TIPS)], Axis("t"), FRAME))


def test_equal_quantiles_are_a_vertical_line() -> None:
    svg = charts.distribution([Curve("chosen", (5.0,) * 101, TIPS)], Axis("t"), FRAME)
    assert len({x for x, _ in map(centre, marks(svg))}) == 1


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY), max_size=6))
def test_a_scatter_plot_draws_whatever_numbers_come(values: list[tuple[float, float, float, float]]) -> None:
    points = [replace(POINT, x=x, y=y, x_range=(a, b), y_range=(b, a), front=True) for x, y, a, b in values]
    drawable = sum(x > 0 and usable(x, y) for x, y, _, _ in values)
    for frame in (WIDE, NARROW):
        assert len(marks(charts.scatter(points, Axis("x"), Axis("y"), frame))) == drawable


@pytest.mark.parametrize("chart", [charts.intervals, charts.bars])
@given(values=st.lists(st.tuples(ANY, ANY, ANY), max_size=5), line=st.floats(min_value=-1e9, max_value=1e9))
@example(values=[], line=5e-324)
def test_rows_draw_whatever_numbers_come(
    chart: Callable[..., str], values: list[tuple[float, float, float]], line: float
) -> None:
    rows = [replace(ROW, low=low, value=value, high=high) for low, value, high in values]
    drawable = sum(usable(*triple) for triple in values)
    assert len(marks(chart(rows, Axis("x"), [(line, "asked")], WIDE))) == drawable


def test_a_bar_is_as_long_as_its_value() -> None:
    rows = [ROW, replace(ROW, value=2.0, low=2.0, high=2.0)]
    svg = charts.bars(rows, Axis("x"), [(1.0, "one")], WIDE)
    one, two = (float(bar.get("width", "")) for bar in parse(svg).iter("rect"))
    assert two == pytest.approx(2 * one, abs=0.151)


def test_a_stack_divides_its_width() -> None:
    parts = [Part(1.0, "c0", "a"), Part(3.0, "c1", "b"), Part(0.0, "c2", "none"), Part(math.nan, "c3", "none")]
    found = [float(shape.get("x", "")) for shape in parse(charts.stack(parts, width=100)).iter("rect")]
    assert found == [0.0, 25.0]
    assert not marks(charts.stack([]))


def test_a_meter_is_held_to_its_length() -> None:
    for fraction, width in ((-1.0, "0"), (0.5, "50"), (7.0, "100"), (math.nan, "0")):
        assert [shape.get("width") for shape in parse(charts.meter(fraction)).iter("rect")] == ["100", width]


def test_texts_are_escaped() -> None:
    evil = "<script>&\"'"
    svg = charts.scatter([replace(POINT, label=evil, tip=evil, kind='"><x')], Axis(evil), Axis(evil), WIDE)
    svg += charts.bars([replace(ROW, label=evil, text=evil, tip=evil)], Axis(evil), [(1.0, evil)], WIDE)
    assert "<script" not in svg
    assert "<x" not in svg
    parse(f"<div>{svg}</div>")


def test_no_ids_and_no_styles() -> None:
    svg = charts.scatter([POINT], Axis("x"), Axis("y"), WIDE) + charts.bars([ROW], Axis("x"), [], WIDE)
    assert " id=" not in svg
    assert " style=" not in svg


def test_long_names_lose_their_middle() -> None:
    assert charts.shortened("abcdefghij", 10) == "abcdefghij"
    assert charts.shortened("abcdefghijk", 7) == "abc…ijk"
    assert len(charts.shortened("abcdefghijk", 0)) == 4
