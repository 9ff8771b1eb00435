from __future__ import annotations

import msgspec

from edgewise.records.run import Run
from edgewise.report.quantities import TIMES
from edgewise.report.text import summary

TYPICAL = """\
2.77 times faster and 3.5 times smaller; with 95 % confidence, top1 drops by at most 0.62 points.

   candidate               median   p99      speed                          size     top1 lost
   ort untouched           4.22 ms  6.18 ms  reference                      3.41 MB  0
   ort int8-mse            1.71 ms  2.53 ms  2.47x faster (2.40x to 2.54x)  941 kB   ≤ 0.41 points, certified at 95 % confidence
*  openvino int8-mse       1.52 ms  2.31 ms  2.77x faster (2.69x to 2.85x)  968 kB   ≤ 0.62 points, certified at 95 % confidence
   openvino int8-mse bf16  1.30 ms  1.97 ms  3.23x faster (3.13x to 3.33x)  968 kB   ≤ 1.34 points, not certified at 95 % confidence

top1 on 3,450 certify samples: 0.9436 before, 0.9416 after.
* is the default. 12 candidates tried in 3 min 12 s; 16 sites declined, each with its reason in the report.
note: The frequency governor cannot be read here, so clocks may have changed between rounds.
note: The energy counters of this machine are not readable; energy was not measured.

bundle  out
report  out/report.html"""  # noqa: E501 - a golden text

NOTHING_HELPED = """\
Nothing that was tried is faster than the untouched model, so that is the answer.

   candidate      median   p99      speed      size     top1 lost
*  ort untouched  4.22 ms  6.18 ms  reference  3.41 MB  0

* is the default. 3 candidates tried in 3 min 12 s."""


def test_golden_summary_of_a_typical_run(typical: Run) -> None:
    files = {"bundle": "out", "report": "out/report.html"}
    assert summary(typical, files=files).replace(TIMES, "x") == TYPICAL


def test_golden_summary_where_nothing_helped(nothing_helped: Run) -> None:
    assert summary(nothing_helped) == NOTHING_HELPED


def test_a_summary_without_labels_speaks_of_changed_answers(without_labels: Run) -> None:
    text = summary(without_labels)
    assert "answers changed" in text
    assert "≤ 0.77 %, certified at 95 % confidence" in text
    assert "not known" in text


def test_names_cannot_steer_the_terminal(hostile: Run) -> None:
    text = summary(hostile, files={"report": "out/report.html"})
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x00" not in text


def test_wide_characters_keep_the_columns_aligned(typical: Run) -> None:
    rungs = list(typical.ladder)
    wide = msgspec.structs.replace(rungs[1].candidate, backend="層層")
    rungs[1] = msgspec.structs.replace(rungs[1], candidate=wide)
    lines = summary(msgspec.structs.replace(typical, ladder=tuple(rungs))).splitlines()
    plain = next(line for line in lines if "openvino int8-mse " in line)
    # Each of the two takes two columns, so the line has two characters fewer before its numbers.
    assert next(line for line in lines if "層層" in line).index("1.71 ms") == plain.index("1.52 ms") - 2
