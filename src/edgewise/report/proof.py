"""The certificate in plain words, beside its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgewise.records.certificate import Certificate
from edgewise.records.run import Run, Rung
from edgewise.report import quantities as q
from edgewise.report.charts import Row, intervals
from edgewise.report.frame import NARROW, WIDE, Axis
from edgewise.report.words import Terms

_NO_LABELS: Final = (
    "There are no labels, so what is bounded is how often the answer differs from the original's. The share of right "
    "answers cannot fall by more than that."
)


@dataclass(frozen=True)
class Proof:
    """What is known about one rung's accuracy.

    Attributes:
        name: The candidate.
        chosen: Whether it is the default.
        status: `passed` or `failed`.
        status_text: The same in words.
        claim: What is proven, in one sentence.
        sentences: What was asked, seen and done, and what follows.
        warnings: What weakens it.
        numbers: Label and value of every number.
    """

    name: str
    chosen: bool
    status: str
    status_text: str
    claim: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProofSection:
    """The section of the report.

    Attributes:
        intro: What all of it means, or why there is nothing.
        chart_wide: The bounds of all rungs beside the one asked for; None where there is no certificate.
        chart_narrow: The same for narrow screens.
        proofs: One for every rung that has a certificate, the default first.
        untested: Names of the rungs without one.
    """

    intro: tuple[str, ...]
    chart_wide: str | None
    chart_narrow: str | None
    proofs: tuple[Proof, ...]
    untested: tuple[str, ...]


def proof_section(run: Run, terms: Terms) -> ProofSection:
    """Return the section about certificates."""
    pairs = [(rung, rung.certificate) for rung in run.ladder if rung.certificate is not None]
    default = run.ladder[run.chosen]
    pairs.sort(key=lambda pair: pair[0] is not default)
    untested = tuple(r.candidate.name for r in run.ladder[1:] if r.certificate is None)
    if run.data.synthetic:
        return ProofSection(tuple(_without_samples(run, terms)), None, None, (), untested)
    if not pairs:
        return ProofSection((_nothing_to_prove(run),), None, None, (), untested)
    intro = [
        f"Each bound was computed on {q.plural(run.data.certify, 'sample')} that no decision of the search ever saw."
    ]
    if run.chosen == 0:
        intro.append("The default is the untouched model, which loses nothing; what was tried is below.")
    charts = [intervals(*_chart(run, terms), frame) for frame in (WIDE, NARROW)]
    return ProofSection(
        intro=tuple(intro),
        chart_wide=charts[0],
        chart_narrow=charts[1],
        proofs=tuple(_proof(rung, certificate, run, terms) for rung, certificate in pairs),
        untested=untested,
    )


def _without_samples(run: Run, terms: Terms) -> list[str]:
    said = ["Nothing was certified: there were no samples. What holds on synthetic ones may not hold on real ones."]
    checks = [(rung.candidate.name, rung.check) for rung in run.ladder if rung.check is not None]
    said += [
        f"{name}: on {q.plural(check.n, 'synthetic sample')} that no decision of the search saw, the output "
        f"`{check.output}` is off by {terms.loss(check.error)} of its standard deviation (root mean square; "
        f"{terms.loss(check.tolerance)} allowed), and the first output decides the same on "
        f"{q.share(check.agreement)} of them."
        for name, check in checks
    ]
    if run.chosen == 0:
        said.append("The default is the untouched model, which loses nothing.")
    said.append("A few hundred unlabelled samples in `--data` would bound how often the answer changes.")
    return said


def _nothing_to_prove(run: Run) -> str:
    if run.chosen == 0:
        return "The answer is the untouched model. It gives the same answers as before, so there is nothing to prove."
    return "No certificate was made in this run: what the default loses is not bounded."


def _chart(run: Run, terms: Terms) -> tuple[list[Row], Axis, list[tuple[float, str]]]:
    rows, asked = [], 0.0
    for rung in run.ladder:
        certificate = rung.certificate
        if certificate is None:
            continue
        asked = certificate.max_drop
        level = q.confidence(certificate.confidence)
        bound = terms.loss(certificate.upper, "up")
        rows.append(
            Row(
                label=rung.candidate.name,
                low=certificate.lower,
                value=certificate.drop,
                high=certificate.upper,
                kind="passed" if certificate.passed else "failed",
                text=f"≤ {bound.removesuffix(' of answers')}",
                tip=f"{rung.candidate.name}\nobserved {terms.loss(certificate.drop)}\n"
                f"at most {bound} with {level} confidence\n"
                f"at least {terms.loss(certificate.lower, 'down')} with {level} confidence",
            )
        )
    axis = Axis(f"{terms.lost}, {terms.unit}", 100.0)
    return rows, axis, [(asked, f"asked: ≤ {terms.loss(asked)}")]


def _proof(rung: Rung, certificate: Certificate, run: Run, terms: Terms) -> Proof:
    return Proof(
        name=rung.candidate.name,
        chosen=rung is run.ladder[run.chosen],
        status="passed" if certificate.passed else "failed",
        status_text="Certified" if certificate.passed else "Not certified",
        claim=claim(certificate, terms),
        sentences=tuple(_sentences(certificate, terms)),
        warnings=tuple(_warnings(certificate, run)),
        numbers=tuple(_numbers(certificate, terms)),
    )


def claim(certificate: Certificate, terms: Terms) -> str:
    """Return what is proven, in one sentence."""
    level = q.confidence(certificate.confidence)
    bound = terms.loss(certificate.upper, "up")
    if terms.flips:
        share = bound.removesuffix(" of answers")
        proven = f"the answer changes on at most {share} of inputs like these samples"
    else:
        proven = f"{certificate.metric} drops by at most {bound} on data like these samples"
    if certificate.passed:
        return f"With {level} confidence, {proven}."
    asked = terms.loss(certificate.max_drop)
    return (
        f"The bound asked for ({asked}) was not shown. What the samples do support: with {level} confidence, {proven}."
    )


def _sentences(certificate: Certificate, terms: Terms) -> list[str]:
    level = q.confidence(certificate.confidence)
    asked, observed = terms.loss(certificate.max_drop), terms.loss(certificate.drop)
    n = q.plural(certificate.n, "certify sample")
    if terms.flips:
        share = observed.removesuffix(" of answers")
        said = [
            f"Asked for: at most {asked} may change.",
            _NO_LABELS,
            f"Seen: on {n}, {share} of the answers changed.",
        ]
    else:
        before, after = terms.value(certificate.original), terms.value(certificate.optimized)
        said = [
            f"Asked for: {certificate.metric} may drop by at most {asked}{_of_what(terms)}.",
            f"Seen: on {n}, {certificate.metric} went from {before} to {after}, an observed drop of {observed}.",
        ]
    if certificate.worse is not None and certificate.better is not None:
        said.append(
            f"Sample by sample: {count_of(certificate.worse)} right only before, "
            f"{count_of(certificate.better)} right only after; only these decide."
        )
    wrong = q.confidence(round(1 - certificate.confidence, 12))
    said.append(
        f"What {level} means: had this been done many times with fresh samples, the true loss would be above the bound "
        f"in at most {wrong} of the cases{'' if certificate.exact else ' (approximately)'}. It speaks of data that "
        "come from where these samples came from, and of nothing else."
    )
    exactness = (
        "Its level holds at every sample size."
        if certificate.exact
        else "It is a bootstrap: its level is approximate and gets better with more samples."
    )
    said.append(f"Method: {certificate.method.rstrip('.')}. {exactness}")
    if not certificate.passed:
        said.append(_needed(certificate, terms))
    return said


def count_of(samples: int) -> str:
    """Return `1 sample was`, `31 samples were`."""
    return f"{q.plural(samples, 'sample')} {'was' if samples == 1 else 'were'}"


def _of_what(terms: Terms) -> str:
    if terms.unit == "%":
        return " of the original's value"
    return "" if terms.percent else " (one point is 0.01)"


def _needed(certificate: Certificate, terms: Terms) -> str:
    asked = terms.loss(certificate.max_drop)
    if certificate.samples_needed is None:
        return f"No number of samples would show {asked} if the observed drop is the true one."
    more = max(certificate.samples_needed - certificate.n, 0)
    return (
        f"About {q.count(certificate.samples_needed)} certify samples would show {asked} if the observed drop is the "
        f"true one: {q.count(more)} more than there were."
    )


def _warnings(certificate: Certificate, run: Run) -> list[str]:
    found = []
    if certificate.reused > 0:
        found.append(
            f"These very certify samples were opened by {q.plural(certificate.reused, 'earlier run')}. Whatever was "
            "decided after looking at them weakens the confidence stated here; fresh samples restore it."
        )
    if certificate.isa != run.machine.fingerprint:
        found.append(
            f"This was proven on another instruction set ({certificate.isa}) than that of the machine below "
            f"({run.machine.fingerprint}); 8-bit results may differ between the two."
        )
    return found


def _numbers(certificate: Certificate, terms: Terms) -> list[tuple[str, str]]:
    level = q.confidence(certificate.confidence)
    rows = [
        ("Asked for: at most", terms.loss(certificate.max_drop)),
        ("Upper bound (certified)" if certificate.passed else "Upper bound", terms.loss(certificate.upper, "up")),
        ("Observed", terms.loss(certificate.drop)),
        ("Lower bound", terms.loss(certificate.lower, "down")),
        ("Confidence of each bound", level),
        ("Samples", q.count(certificate.n)),
    ]
    undefined = "not defined for this metric"
    if not terms.flips:
        rows += [
            (f"{certificate.metric} before", terms.value(certificate.original)),
            (f"{certificate.metric} after", terms.value(certificate.optimized)),
            ("Right only before", undefined if certificate.worse is None else q.count(certificate.worse)),
            ("Right only after", undefined if certificate.better is None else q.count(certificate.better)),
        ]
    rows += [
        ("Earlier runs on these samples", q.count(certificate.reused)),
        ("Instruction set", certificate.isa),
    ]
    if certificate.samples_needed is not None:
        rows.append(("Samples that would do, about", q.count(certificate.samples_needed)))
    return rows
