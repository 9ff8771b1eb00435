"""What the command line says at the end of a run: the verdict, the ladder, where the files are. Plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgewise.records.run import Run
from edgewise.report import quantities as q
from edgewise.report.comparison import ladder
from edgewise.report.words import Terms, cleaned

_NO_FILES: Mapping[str, str] = MappingProxyType({})


def summary(run: Run, *, files: Mapping[str, str] = _NO_FILES) -> str:
    """Return the outcome of `run` in a few lines, without a line end after the last.

    Args:
        run: The finished run.
        files: What was written, by what it is: `{"report": "out/report.html"}`.
    """
    run = cleaned(run)
    terms = Terms.of(run)
    rows = [("", "candidate", "median", "p99", "speed", "size", terms.lost)]
    for line in ladder(run, terms):
        speed = f"{line.speed} ({line.speed_range})" if line.speed_range else line.speed
        if terms.synthetic and line.status != "original":
            bound = f"{line.bound} {line.bound_note}, {line.status_text.lower()}"
        elif line.status in {"passed", "failed"}:
            bound = f"{line.bound}, {line.status_text.lower()} at {line.bound_note}"
        else:
            bound = line.bound
        rows.append(("*" if line.chosen else "", line.name, line.median, line.p99, speed, line.size, bound))
    parts = [_one_line(run.verdict), "", *_table(rows), "", *_accuracy(run), _footer(run)]
    parts += [f"note: {_one_line(note)}" for note in run.notes]
    if files:
        width = max(_width(label) for label in files)
        parts += ["", *(f"{_pad(label, width)}  {path}" for label, path in files.items())]
    return "\n".join(parts)


def _accuracy(run: Run) -> list[str]:
    """Return what the original and the default reach, so that a wrong pre-processing or wrong labels are noticed."""
    proof = run.ladder[run.chosen].certificate or next((r.certificate for r in run.ladder if r.certificate), None)
    if proof is None or proof.claim == "flip-rate":
        return []
    values = f"{q.significant(proof.original, 4)} before, {q.significant(proof.optimized, 4)} after"
    return [f"{proof.metric} on {q.count(proof.n)} certify samples: {values}."]


def _footer(run: Run) -> str:
    sites = len({*run.declines, *(decline for outcome in run.outcomes for decline in outcome.declines)})
    declined = f"; {q.plural(sites, 'site')} declined, each with its reason in the report" if sites else ""
    tried = f"{q.plural(len(run.outcomes), 'candidate')} tried in {q.wall_clock(run.seconds)}"
    return f"* is the default. {tried}{declined}."


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cleaned_rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(_width(row[column]) for row in cleaned_rows) for column in range(len(cleaned_rows[0]))]
    return [
        "  ".join(_pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cleaned_rows
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return the columns that a terminal gives to `text`: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
