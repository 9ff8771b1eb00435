"""The pictures of pruning in the report."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import msgspec
import pytest

from edgewise.records.pruning import GroupWidth, Pruning, PruningTrial, RemovedLayer
from edgewise.records.run import Run
from edgewise.report.columns import Shrunk, shrunk
from edgewise.report.frame import NARROW, WIDE, Axis, Frame
from edgewise.report.html import render
from edgewise.report.pruning import pruning_figures

AXES = (Axis("x"), Axis("y"))
PRUNING = Pruning(
    groups=(
        GroupWidth(name="relu1", makers=("conv1",), before=16, after=4, error=0.0123),
        GroupWidth(name="relu2", makers=("conv2", "conv3"), before=32, after=32),
    ),
    layers=(RemovedLayer(name="sum4", operators="2 Conv, 1 Relu", macs=1_000_000),),
    macs_before=10_000_000,
    macs_after=6_000_000,
    parameters_before=1000,
    parameters_after=250,
    trials=(PruningTrial(what="pruned", time=None, nsr=0.02, kl=0.01, flips=3, n=64),),
)


def bars(svg: str) -> list[tuple[str, float]]:
    rects = ET.fromstring(svg).iter("rect")  # noqa: S314 - our own markup
    found = [(rect.get("class", ""), float(rect.get("height", ""))) for rect in rects]
    return [(kind, height) for kind, height in found if kind in {"before", "part"}]


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_bars_are_as_high_as_their_numbers(frame: Frame) -> None:
    drawn = bars(shrunk([Shrunk(16, 4, "a"), Shrunk(32, 32, "b"), Shrunk(8, 0, "c")], AXES, frame))
    assert [kind for kind, _ in drawn] == ["before", "part"] * 3
    whole = drawn[2][1]
    assert [height / whole for _, height in drawn] == pytest.approx([0.5, 0.125, 1, 1, 0.25, 0], abs=0.01)


def test_nothing_to_draw_is_an_empty_chart() -> None:
    assert bars(shrunk([], AXES, WIDE)) == []


def test_what_was_taken_in_words_and_tables() -> None:
    shown = pruning_figures(PRUNING)
    assert "60" in shown.says[0]
    assert "25" in shown.says[0]
    assert shown.says[1].startswith("On 64 calibration samples that nothing was fitted to: 3 answers changed, 2")
    assert [row.units for row in shown.groups] == ["relu1"]
    assert (shown.groups[0].before, shown.groups[0].after) == ("16", "4")
    assert shown.groups[0].error.startswith("1.2")
    assert [(row.name, row.instead) for row in shown.layers] == [("sum4", "nothing")]
    assert "1 group kept all" in shown.widths.caption[1]


def test_layers_alone() -> None:
    shown = pruning_figures(msgspec.structs.replace(PRUNING, groups=(), trials=()))
    assert shown.widths.wide is None
    assert "only whole layers" in shown.widths.caption[0]
    assert len(shown.says) == 1


def test_a_trial_without_decisions() -> None:
    trial = PruningTrial(what="pruned", time=None, nsr=0.02, kl=None, flips=None, n=1)
    shown = pruning_figures(msgspec.structs.replace(PRUNING, trials=(trial,)))
    assert shown.says[1].startswith("On 1 calibration sample that nothing was fitted to: 2")


def test_the_report_shows_it(typical: Run) -> None:
    assert "What was pruned" not in render(typical)
    page = render(msgspec.structs.replace(typical, pruning=PRUNING))
    assert "What was pruned" in page
    assert all(word in page for word in ("relu1", "sum4", "2 Conv, 1 Relu", "conv1"))
