"""Before and after: the headline, the table, and the ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgewise.records.measurements import Accuracy, ColdStart, Energy, Latency
from edgewise.records.run import Outcome, Run, Rung
from edgewise.report import quantities as q
from edgewise.report.charts import Row, bars
from edgewise.report.frame import NARROW, WIDE, Axis
from edgewise.report.words import Terms, compared, described, faster, interval


@dataclass(frozen=True)
class Tile:
    """One number of the headline.

    Attributes:
        value: The number, large.
        label: What it is, below it.
        details: Its conditions, small.
        tone: `good`, `warn` or `plain`.
    """

    value: str
    label: str
    details: tuple[str, ...]
    tone: str


@dataclass(frozen=True)
class Cell:
    """A value, and what stands small below it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the table: a quantity before and after. A missing cell is not known, or not of use."""

    name: str
    note: str
    before: Cell
    after: Cell | None
    change: Cell | None
    strong: bool = False


@dataclass(frozen=True)
class RungLine:
    """One line of the ladder.

    Attributes:
        name: The candidate.
        what: The same in words.
        status: Class of its badge: `original`, `passed`, `failed` or `untested`.
        status_text: The badge.
        chosen: Whether it is the default.
    """

    name: str
    what: str
    status: str
    status_text: str
    chosen: bool
    median: str
    p99: str
    speed: str
    speed_range: str
    speed_interval: str
    size: str
    bound: str
    bound_note: str


def outcome_of(run: Run, rung: Rung) -> Outcome | None:
    """Return what the search recorded of a rung's candidate, or None."""
    return next((outcome for outcome in run.outcomes if outcome.candidate == rung.candidate), None)


def tiles(run: Run, terms: Terms) -> tuple[Tile, ...]:
    """Return the headline: speed, latency, size, and what was lost."""
    before, after = run.ladder[0], run.ladder[run.chosen]
    latency = Tile(
        value=q.duration(after.latency.median_us),
        label="median latency",
        details=(
            f"99 % of runs within {q.duration(after.latency.p99_us)}",
            f"{q.plural(after.latency.threads, 'thread')}, {q.plural(after.latency.runs, 'run')}",
        ),
        tone="plain",
    )
    return _speed_tile(run), latency, _size_tile(before, after, untouched=run.chosen == 0), _loss_tile(run, terms)


def _speed_tile(run: Run) -> Tile:
    before, after = run.ladder[0], run.ladder[run.chosen]
    if run.chosen == 0:
        return Tile(f"1{q.TIMES}", "the speed", ("The untouched model is the answer.",), "plain")
    value, word = faster(after.speedup)
    return Tile(
        value=value,
        label=word,
        details=(
            interval(after.speedup),
            f"median {q.duration(before.latency.median_us)} → {q.duration(after.latency.median_us)}",
        ),
        tone="good" if after.speedup.low > 1 else "plain",
    )


def _size_tile(before: Rung, after: Rung, *, untouched: bool) -> Tile:
    if untouched:
        return Tile(q.size(after.size_bytes), "on disk", ("as before",), "plain")
    change = compared(before.size_bytes, after.size_bytes, "smaller", "larger")
    value, _, word = change.partition(" ")
    return Tile(
        value=value if word else q.size(after.size_bytes),
        label=word or "on disk",
        details=(f"{q.size(before.size_bytes)} → {q.size(after.size_bytes)} on disk",),
        tone="good" if word == "smaller" else "plain",
    )


def _loss_tile(run: Run, terms: Terms) -> Tile:
    rung = run.ladder[run.chosen]
    if run.chosen == 0:
        return Tile("0", terms.lost, ("The answers are those of the original.",), "plain")
    certificate = rung.certificate
    if rung.check is not None:
        details = (
            f"seen on {q.plural(rung.check.n, 'synthetic sample')}; allowed {terms.loss(rung.check.tolerance)}",
            "There were no samples: nothing was certified.",
        )
        return Tile(terms.loss(rung.check.error), terms.lost, details, "warn")
    if certificate is None:
        return Tile("unknown", terms.lost, ("No certificate was made.",), "warn")
    value, label = terms.loss(certificate.upper, "up"), terms.lost
    if terms.unit == "points":
        # The unit goes below the number, which has to fit a quarter of the page.
        value, _, unit = value.partition(" ")
        label = f"{unit} of {terms.lost}"
    value = value.removesuffix(" of answers")
    return Tile(
        value=f"≤ {value}",
        label=label,
        details=(
            f"with {q.confidence(certificate.confidence)} confidence, from {q.plural(certificate.n, 'sample')}",
            f"observed {terms.loss(certificate.drop)}; asked for ≤ {terms.loss(certificate.max_drop)}",
        ),
        tone="good" if certificate.passed else "warn",
    )


def lines(run: Run, terms: Terms) -> tuple[Line, ...]:
    """Return the table; where the untouched model is the default, `after` and `change` are None."""
    before, after = run.ladder[0], run.ladder[run.chosen]
    found = [*_latency_lines(before, after), *_resource_lines(before, after), *_accuracy_lines(run, terms)]
    if run.chosen:
        return tuple(found)
    return tuple(replace(line, after=None, change=None) for line in found)


def _less(before: float, after: float, better: str, worse: str) -> Cell | None:
    """Return the change of a quantity of which less is better, or None where a ratio has no meaning."""
    text = compared(before, after, better, worse)
    return None if text == q.NONE else Cell(text)


def _latency_lines(before: Rung, after: Rung) -> list[Line]:
    conditions = f"warm, {q.plural(after.latency.threads, 'thread')}, {_pinned(after.latency)}"
    old, new = before.latency, after.latency
    # Not the quotient of the two medians: the machine's speed drifts, and a ratio within a round does not see that.
    paired = f"median ratio of {q.plural(after.speedup.rounds, 'round')} in turns, {interval(after.speedup)}"
    change = Cell(" ".join(faster(after.speedup)), paired)
    median = Cell(q.duration(old.median_us)), Cell(q.duration(new.median_us))
    found = [Line("Latency, median", conditions, *median, change, strong=True)]
    pairs = (
        ("90 % of runs within", old.p90_us, new.p90_us),
        ("99 % of runs within", old.p99_us, new.p99_us),
        ("Slowest run", old.max_us, new.max_us),
    )
    for name, was, now in pairs:
        found.append(Line(name, "", Cell(q.duration(was)), Cell(q.duration(now)), _less(was, now, "faster", "slower")))
    rounds = f"in {q.plural(after.speedup.rounds, 'paired round')}, taken in turns"
    found.append(Line("Runs timed", rounds, Cell(q.count(old.runs)), Cell(q.count(new.runs)), None))
    return found


def _pinned(latency: Latency) -> str:
    return "pinned to its processors" if latency.pinned else "not pinned to processors"


def _resource_lines(before: Rung, after: Rung) -> list[Line]:
    old, new = before.memory, after.memory
    return [
        _size_line("Size on disk", "", before.size_bytes, after.size_bytes, strong=True),
        _size_line("Peak memory", "a fresh process that loads the model and runs it", old.peak_bytes, new.peak_bytes),
        _size_line(
            "Of it, the model's own",
            "beyond what interpreter and runtime take before it is loaded",
            old.peak_bytes - old.before_bytes,
            new.peak_bytes - new.before_bytes,
        ),
        _cold_line(before.cold_start, after.cold_start),
        _energy_line(before.energy, after.energy),
    ]


def _size_line(name: str, note: str, old: int, new: int, *, strong: bool = False) -> Line:
    return Line(name, note, Cell(q.size(old)), Cell(q.size(new)), _less(old, new, "smaller", "larger"), strong=strong)


def _cold_line(old: ColdStart, new: ColdStart) -> Line:
    before, after = (1000 * (x.import_ms + x.load_ms + x.first_run_ms) for x in (old, new))
    return Line(
        "Cold start",
        "import + load + first answer",
        Cell(q.duration(before), _cold(old)),
        Cell(q.duration(after), _cold(new)),
        _less(before, after, "faster", "slower"),
    )


def _cold(cold: ColdStart) -> str:
    return " + ".join(q.duration(1000 * part) for part in (cold.import_ms, cold.load_ms, cold.first_run_ms))


def _energy_line(old: Energy, new: Energy) -> Line:
    before, after = (Cell("not measured" if x.joules is None else q.energy(x.joules)) for x in (old, new))
    change = None
    if old.joules is not None and new.joules is not None:
        change = _less(old.joules, new.joules, "less", "more")
    return Line("Energy of one inference", "; ".join(dict.fromkeys((old.source, new.source))), before, after, change)


def _accuracy_lines(run: Run, terms: Terms) -> list[Line]:
    outcomes = [outcome_of(run, run.ladder[0]), outcome_of(run, run.ladder[run.chosen])]
    scores = [outcome.accuracy if outcome is not None else None for outcome in outcomes]
    first, second = (_score(score, terms) for score in scores)
    found = [Line(f"{run.data.metric} (select)", _conditions(scores), first, second, None)]
    certificate, check = run.ladder[run.chosen].certificate, run.ladder[run.chosen].check
    if check is not None:
        note = f"{q.plural(check.n, 'synthetic sample')} that no decision ever saw, output `{check.output}`"
        found.append(Line("Outputs off", note, Cell("0 %"), Cell(terms.loss(check.error)), Cell("not certified")))
    if certificate is None:
        return found
    note = f"certify split, {q.plural(certificate.n, 'sample')} that no decision ever saw"
    seen, bound = terms.loss(certificate.drop), terms.loss(certificate.upper, "up")
    if terms.flips:
        found.append(Line("Answers changed", note, Cell("0 %"), Cell(seen), Cell(f"at most {bound}"), strong=True))
        return found
    before, after = Cell(terms.value(certificate.original)), Cell(terms.value(certificate.optimized))
    change = Cell(f"at most {bound} lost", f"observed {seen}")
    found.append(Line(f"{certificate.metric} (certify)", note, before, after, change, strong=True))
    return found


def _conditions(scores: Sequence[Accuracy | None]) -> str:
    known = next((score for score in scores if score is not None), None)
    if known is None:
        return "no value was recorded on the select split"
    level = q.confidence(known.confidence)
    return f"select split, {q.plural(known.n, 'sample')}, {level} interval ({known.method})"


def _score(score: Accuracy | None, terms: Terms) -> Cell:
    if score is None:
        return Cell("not measured")
    return Cell(terms.value(score.value), f"{terms.value(score.low)} to {terms.value(score.high)}")


def ladder(run: Run, terms: Terms) -> tuple[RungLine, ...]:
    """Return one line for every rung, safest first."""
    return tuple(_rung_line(index, rung, run, terms) for index, rung in enumerate(run.ladder))


def _rung_line(index: int, rung: Rung, run: Run, terms: Terms) -> RungLine:
    certificate = rung.certificate
    if index == 0:
        status, text, bound, note = "original", "Original", "0", "the model as it came"
    elif rung.check is not None:
        status, text, bound = "failed", "Not certified", terms.loss(rung.check.error)
        note = f"seen on {q.plural(rung.check.n, 'synthetic sample')}"
    elif certificate is None:
        status, text, bound, note = "untested", "Not tested", "not known", ""
    else:
        status, text = ("passed", "Certified") if certificate.passed else ("failed", "Not certified")
        bound = f"≤ {terms.loss(certificate.upper, 'up').removesuffix(' of answers')}"
        note = f"{q.confidence(certificate.confidence)} confidence"
    value, word = faster(rung.speedup)
    return RungLine(
        name=rung.candidate.name,
        what=described(rung.candidate),
        status=status,
        status_text=text,
        chosen=index == run.chosen,
        median=q.duration(rung.latency.median_us),
        p99=q.duration(rung.latency.p99_us),
        speed="reference" if index == 0 else f"{value} {word}",
        speed_range="" if index == 0 else f"{q.ratio(rung.speedup.low)} to {q.ratio(rung.speedup.high)}",
        speed_interval="" if index == 0 else interval(rung.speedup),
        size=q.size(rung.size_bytes),
        bound=bound,
        bound_note=note,
    )


def ladder_charts(run: Run) -> tuple[str, str]:
    """Return the speed of every rung as bars, for wide and narrow screens."""
    rows = []
    for index, rung in enumerate(run.ladder):
        ratio = rung.speedup
        kind = "chosen" if index == run.chosen else "original" if index == 0 else "rung"
        value, word = faster(ratio)
        text = "reference" if index == 0 else f"{value} {word if len(word) < 10 else ''}".strip()
        median = f"median {q.duration(rung.latency.median_us)}"
        tip = f"{rung.candidate.name}\n{text}\n{interval(ratio)}\n{median}"
        if index == 0:
            tip = f"{rung.candidate.name}\nwhat the others are compared with\n{median}"
        rows.append(Row(rung.candidate.name, ratio.low, ratio.value, ratio.high, kind, text, tip))
    axis = Axis("times the speed of the original")
    lines = [(1.0, f"1{q.TIMES}")]
    return bars(rows, axis, lines, WIDE), bars(rows, axis, lines, NARROW)
