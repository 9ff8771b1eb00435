"""Turns a run's record into exactly what the template shows: words, formatted numbers, finished charts.

The template decides nothing: whatever depends on a value is decided here or in the modules that this one joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from edgewise.errors import ContractError
from edgewise.records.run import Outcome, Run
from edgewise.records.tensors import Port
from edgewise.report import account, comparison
from edgewise.report import quantities as q
from edgewise.report.account import Group
from edgewise.report.charts import Part, stack
from edgewise.report.comparison import Cell, Line, RungLine, Tile
from edgewise.report.figures import FATES, Figure, latency_figure, pareto_figure
from edgewise.report.layers import LayerSection, layer_section
from edgewise.report.proof import ProofSection, proof_section
from edgewise.report.words import Terms, backend_name, cleaned, described, faster

_SECTIONS = (
    ("before-after", "Before and after"),
    ("latency", "Latency"),
    ("candidates-plot", "Accuracy"),
    ("ladder", "Ladder"),
    ("certificate", "Certificate"),
    ("layers", "Layers"),
    ("done", "Done"),
    ("declined", "Declined"),
    ("candidates", "Candidates"),
    ("model-data", "Model and data"),
    ("machine", "Machine"),
    ("reproduce", "Reproduce"),
)
_NOTES = ("notes", "Notes")

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CandidateLine:
    """One line of the table of candidates."""

    name: str
    what: str
    fate: str
    fate_text: str
    median: str
    speed: Cell
    size: str
    accuracy: Cell
    drop: str
    reason: str


@dataclass(frozen=True)
class SplitBar:
    """How the samples were divided: the bar, and its key (class, name, number, what for)."""

    bar: str
    keys: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows.

    Attributes:
        title: Title of the document.
        model: File name of the model.
        started: When the run started.
        took: How long it took, and what it tried.
        status: Class of the badge: `passed`, `failed` or `original`.
        status_text: The badge.
        verdict: The verdict in one line.
        what: What the default is, in words.
        sections: Id and title of every section, in order.
        touched: Whether the default is another one than the untouched model.
        before: Name of the original.
        after: Name of the default.
    """

    title: str
    model: str
    started: str
    took: str
    status: str
    status_text: str
    verdict: str
    what: str
    sections: tuple[tuple[str, str], ...]
    touched: bool
    before: str
    after: str
    tiles: tuple[Tile, ...]
    lines: tuple[Line, ...]
    latency: Figure
    pareto: Figure
    ladder: tuple[RungLine, ...]
    ladder_wide: str
    ladder_narrow: str
    proof: ProofSection
    layers: LayerSection
    changes: tuple[Group, ...]
    changes_say: str
    declines: tuple[Group, ...]
    declines_say: str
    candidates: tuple[CandidateLine, ...]
    metric: str
    lost: str
    model_facts: Facts
    data_facts: Facts
    splits: SplitBar
    machine_facts: Facts
    packages: Facts
    command: str
    notes: tuple[str, ...]
    edgewise: str
    schema: int


def page(run: Run) -> Page:
    """Return what the report of `run` shows.

    Raises:
        ContractError: If the run has no ladder, or `chosen` does not point into it.
    """
    if not 0 <= run.chosen < len(run.ladder):
        raise ContractError(
            f"A finished run has to have its default on the ladder. Received chosen={run.chosen} and "
            f"{len(run.ladder)} rungs, in the run of `{run.model.name}`."
        )
    run = cleaned(run)
    terms = Terms.of(run)
    default = run.ladder[run.chosen]
    status, status_text = _status(run)
    done, declined = account.changes(run), account.declines(run)
    ladder_wide, ladder_narrow = comparison.ladder_charts(run)
    return Page(
        title=f"{run.model.name}: edgewise report",
        model=run.model.name,
        started=_when(run.started),
        took=f"{q.plural(len(run.outcomes), 'candidate')} tried in {q.wall_clock(run.seconds)}",
        status=status,
        status_text=status_text,
        verdict=run.verdict,
        what=described(default.candidate),
        sections=(*_SECTIONS, *((_NOTES,) if run.notes else ())),
        touched=run.chosen != 0,
        before=run.ladder[0].candidate.name,
        after=default.candidate.name,
        tiles=comparison.tiles(run, terms),
        lines=comparison.lines(run, terms),
        latency=latency_figure(run),
        pareto=pareto_figure(run, terms),
        ladder=comparison.ladder(run, terms),
        ladder_wide=ladder_wide,
        ladder_narrow=ladder_narrow,
        proof=proof_section(run, terms),
        layers=layer_section(run),
        changes=done,
        changes_say=_changes_say(done),
        declines=declined,
        declines_say=_declines_say(declined),
        candidates=tuple(_candidate(outcome, terms) for outcome in run.outcomes),
        metric=run.data.metric,
        lost=terms.lost,
        model_facts=_model_facts(run),
        data_facts=_data_facts(run),
        splits=_splits(run),
        machine_facts=_machine_facts(run),
        packages=tuple(sorted(run.machine.packages.items())),
        command=run.command,
        notes=run.notes,
        edgewise=run.edgewise,
        schema=run.schema,
    )


def _when(started: str) -> str:
    """Return a time stamp for people, `2026-11-22 16:31 UTC`, or as it came where it is not ISO 8601 with a zone."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return started if moment.tzinfo is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _status(run: Run) -> tuple[str, str]:
    rung = run.ladder[run.chosen]
    if run.chosen == 0:
        return "original", "Untouched model"
    if rung.certified and rung.certificate is not None:
        return "passed", f"Certified with {q.confidence(rung.certificate.confidence)} confidence"
    return "failed", "Not certified: no samples" if run.data.synthetic else "Not certified"


def _changes_say(groups: tuple[Group, ...]) -> str:
    if not groups:
        return "No pass changed anything: the graph was left as it came."
    total = sum(group.count for group in groups)
    return f"{q.plural(total, 'change')} by {q.plural(len(groups), 'pass').replace('passs', 'passes')}, in run order."


def _declines_say(groups: tuple[Group, ...]) -> str:
    if not groups:
        return "Nothing was declined."
    total = sum(group.count for group in groups)
    return f"{q.plural(total, 'site')} left as they were, for {q.plural(len(groups), 'reason')}."


def _candidate(outcome: Outcome, terms: Terms) -> CandidateLine:
    ratio = outcome.speedup
    speed, accuracy = Cell(q.NONE), Cell(q.NONE)
    if ratio is not None:
        value, word = faster(ratio)
        short = f" {word}" if word in {"faster", "slower"} else ""
        speed = Cell(f"{value}{short}", f"{q.ratio(ratio.low)} to {q.ratio(ratio.high)}")
    if (score := outcome.accuracy) is not None:
        accuracy = Cell(terms.value(score.value), f"{terms.value(score.low)} to {terms.value(score.high)}")
    return CandidateLine(
        name=outcome.candidate.name,
        what=described(outcome.candidate),
        fate=outcome.fate if outcome.fate in FATES else "measured",
        fate_text=FATES.get(outcome.fate, outcome.fate),
        median=q.NONE if outcome.latency is None else q.duration(outcome.latency.median_us),
        speed=speed,
        size=q.NONE if outcome.size_bytes is None else q.size(outcome.size_bytes),
        accuracy=accuracy,
        drop=q.NONE if outcome.drop is None else terms.loss(outcome.drop),
        reason=outcome.reason,
    )


def _port(port: Port) -> str:
    return f"{port.name}: {port.dtype} [{', '.join(str(size) for size in port.shape)}]"


def _model_facts(run: Run) -> Facts:
    model = run.model
    ranked = sorted(model.operators.items(), key=lambda entry: (-entry[1], entry[0]))
    operators = ", ".join(f"{name} {q.TIMES} {q.count(number)}" for name, number in ranked)
    return (
        ("File", model.name),
        ("SHA-256", model.sha256),
        ("Opset", str(model.opset)),
        *(("Input", _port(port)) for port in model.inputs),
        *(("Output", _port(port)) for port in model.outputs),
        ("Multiply-accumulates", q.amount(model.macs)),
        ("Parameters", q.amount(model.parameters)),
        ("Weights", q.size(model.weight_bytes)),
        ("Activations at their peak", q.size(model.activation_peak_bytes)),
        ("Operators", operators or "none"),
    )


def _data_facts(run: Run) -> Facts:
    data = run.data
    labels = "yes" if data.labelled else "none: answers are compared with those of the original"
    return (
        ("Source", "none: synthetic samples" if data.synthetic else data.source),
        ("SHA-256", data.sha256),
        ("Samples", q.count(data.n)),
        ("Labels", labels),
        ("Metric", data.metric),
        ("Seed of the split", str(data.seed)),
    )


def _splits(run: Run) -> SplitBar:
    data = run.data
    parts = (
        ("c0", "Calibrate", data.calibrate, "statistics; no labels needed"),
        ("c1", "Select", data.select, "the search compares candidates on it"),
        ("c2", "Certify", data.certify, "the certificate; no decision of the search saw them"),
    )
    if data.synthetic:
        parts = (*parts[:2], ("c2", "Compare", data.certify, "the last comparison; no certificate"))
    bar = stack([Part(number, kind, f"{name}\n{q.plural(number, 'sample')}") for kind, name, number, _ in parts])
    return SplitBar(bar, tuple((kind, name, q.count(number), what) for kind, name, number, what in parts))


def _machine_facts(run: Run) -> Facts:
    machine = run.machine
    load = "not readable here"
    if machine.load is not None:
        load = f"{machine.load:.2f} on {q.plural(machine.cores, 'processor')}"
        if machine.load > machine.cores:
            load += ": other work was running, and the times are noisier for it"
    backends = dict.fromkeys(backend_name(outcome.candidate.backend) for outcome in run.outcomes)
    return (
        ("Processor", machine.cpu),
        ("Architecture", machine.architecture),
        ("Instruction sets", ", ".join(machine.isa) or "none that matter"),
        ("Fingerprint of these", machine.fingerprint),
        ("Logical processors", q.count(machine.cores)),
        ("Memory", q.size(machine.memory_bytes)),
        ("System", machine.system),
        ("Frequency governor", machine.governor or "not readable here"),
        ("Load when recorded", load),
        ("Python", machine.python),
        ("Runtimes tried", ", ".join(backends) or "none"),
    )
