"""What was declined, as lines of text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from edgewise.records.findings import Decline

_NAMES: Final = re.compile(r"`[^`]*`")


def grouped(declines: Sequence[Decline], *, verbose: bool = False) -> str:
    """Return declines grouped by their reason; `verbose` names every node."""
    if verbose:
        return "\n".join(f"  {decline.node} ({decline.operator}): {decline.reason}" for decline in declines)
    groups: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for decline in declines:
        # The same reason for many nodes is one line, whatever names it holds.
        groups[decline.operator or decline.stage, _NAMES.sub("``", decline.reason)][decline.reason] += 1
    lines = []
    for (operator, _), reasons in sorted(groups.items(), key=lambda item: -item[1].total()):
        reason, _ = reasons.most_common(1)[0]
        others = "" if len(reasons) == 1 else ", and likewise"
        lines.append(f"  {reasons.total()}x {operator}: {reason}{others}")
    return "\n".join(lines)
