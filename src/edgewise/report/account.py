"""What was done and what was declined, grouped so that hundreds of sites can be read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from edgewise.records.findings import Change, Decline
from edgewise.records.run import Run
from edgewise.report import quantities as q

_SHOWN: Final = 200
"""Sites listed in one group. A report of a model with 10,000 nodes has to open on a phone."""
_NAMED: Final = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Site:
    """One place in the graph.

    Attributes:
        node: Its name, or `the whole model`.
        operator: Its operator type, or empty.
        text: What is said of this one; empty where the group's title says all.
        who: The candidates that it concerns; empty where it concerns the run.
    """

    node: str
    operator: str
    text: str
    who: str


@dataclass(frozen=True)
class Group:
    """Sites of which the same can be said.

    Attributes:
        stage: The pass, plan or backend.
        title: What they share.
        count: How many there are.
        sites: Those that are listed.
        left_out: How many are not.
    """

    stage: str
    title: str
    count: int
    sites: tuple[Site, ...]
    left_out: int


def changes(run: Run) -> tuple[Group, ...]:
    """Return what the passes did, by pass, in the order in which they ran."""
    by_stage: defaultdict[str, list[Change]] = defaultdict(list)
    for change in run.changes:
        by_stage[change.stage].append(change)
    return tuple(
        _group(stage, _shared(change.what for change in found), [_changed(change) for change in found])
        for stage, found in by_stage.items()
    )


def declines(run: Run) -> tuple[Group, ...]:
    """Return what was not done, by reason, those that concern the whole model first, then the most frequent.

    Reasons that differ only in the names that they quote are one group; each of its sites then has its own words.
    What several candidates declined at the same node for the same reason is one site.
    """
    who: dict[Decline, list[str]] = {decline: [] for decline in run.declines}
    for outcome in run.outcomes:
        for decline in outcome.declines:
            who.setdefault(decline, []).append(outcome.candidate.name)
    by_reason: defaultdict[tuple[str, str], list[Decline]] = defaultdict(list)
    for decline in who:
        by_reason[decline.stage, _NAMED.sub("`…`", decline.reason)].append(decline)
    groups = []
    for (stage, pattern), found in by_reason.items():
        same = len({decline.reason for decline in found}) == 1
        sites = [
            Site(
                node=decline.node or "the whole model",
                operator=decline.operator,
                text="" if same else decline.reason,
                who=_who(who[decline]),
            )
            for decline in found
        ]
        whole = any(not decline.node for decline in found)
        groups.append((not whole, -len(found), _group(stage, found[0].reason if same else pattern, sites)))
    groups.sort(key=lambda entry: entry[:2])
    return tuple(group for _, _, group in groups)


def _changed(change: Change) -> Site:
    return Site(node=change.node, operator="", text=change.what, who="")


def _shared(texts: Iterable[str]) -> str:
    """Return the one text that all are, names left out, or an empty one."""
    patterns = {_NAMED.sub("`…`", text) for text in texts}
    return patterns.pop() if len(patterns) == 1 else ""


def _who(names: list[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {q.count(len(names) - 3)} more"
    return ", ".join(names)


def _group(stage: str, title: str, sites: list[Site]) -> Group:
    return Group(stage, title, len(sites), tuple(sites[:_SHOWN]), max(0, len(sites) - _SHOWN))
