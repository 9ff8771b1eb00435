"""What can be taken from a model: its parts, and for each the ways to treat it. Measures nothing."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import onnx_ir as ir

from edgewise.analysis.coupling import Coupling, Group, couple
from edgewise.analysis.values import label, with_inferred_shapes
from edgewise.compress.prune.regions import Region, find_regions
from edgewise.records.pruning import RemovedLayer

WIDTHS: Final = (0.75, 0.5, 0.25)
"""Shares of a group's units that are kept by its options, each rounded up to a step of the target."""

MOST_TOGETHER: Final = 16
"""Most combinations of the groups inside of one block: with more groups all take the same share."""


@dataclass(frozen=True)
class Choice:
    """One way to treat a part of a model.

    Attributes:
        widths: Units that stay, by group; groups that are not named keep all.
        dropped: Name of the region that goes as a whole, if one does.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    dropped: str | None = None


@dataclass
class Parts:
    """The parts of one model that can go or become narrower.

    Attributes:
        model: The fused float model.
        step: Channel counts are fast at multiples of this number.
    """

    model: ir.Model
    step: int

    @cached_property
    def coupling(self) -> Coupling:
        """What can be removed from the model."""
        return couple(self.model)

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """The groups of units, by name."""
        return {group.name: group for group in self.coupling.groups}

    @cached_property
    def regions(self) -> Mapping[str, Region]:
        """Residual branches that can go, and stretches of layers elsewhere, none inside of another, by name."""
        found: dict[str, Region] = {}
        taken: set[str] = set()
        outputs = {value.name for value in self.model.graph.outputs}
        for region in sorted(find_regions(self.model).found, key=lambda one: (one.kind != "branch", len(one.nodes))):
            # An output of the model is what it is asked for: nothing stands in for it.
            if region.can_drop and region.exit not in outputs and not taken & set(region.nodes):
                found[region.name] = region
                taken |= set(region.nodes)
        return found

    @cached_property
    def items(self) -> tuple[tuple[Choice, ...], ...]:
        """The parts of the model, and for each the ways to treat it, beginning with leaving it as it is."""
        inside: dict[str, list[Group]] = {name: [] for name in self.regions}
        alone: list[Group] = []
        for group in self.coupling.groups:
            nodes = {*group.makers, *(reader.node for reader in group.readers)}
            home = next((name for name, region in self.regions.items() if nodes <= set(region.nodes)), None)
            (alone if home is None else inside[home]).append(group)
        items = [tuple(self._narrowed([group])) for group in alone]
        for name, groups in inside.items():
            gone = [Choice(dropped=name)] if self._keeps_widths(self.regions[name]) else []
            items.append((*self._narrowed(groups), *gone))
        return tuple(item for item in items if len(item) > 1)

    def _keeps_widths(self, region: Region) -> bool:
        """Whether entry and exit of a region have the same units: else one of them could become narrower alone."""
        ends = [
            {group.name for group in self.coupling.groups if any(axis.value == value for axis in group.axes)}
            for value in (region.entry, region.exit)
        ]
        return ends[0] == ends[1]

    def _narrowed(self, groups: Sequence[Group]) -> Iterator[Choice]:
        """Yield the combinations of widths of a few groups, all of full width first."""
        kept = [(group.size, *widths_of(group.size, self.step)) for group in groups]
        if math.prod(map(len, kept)) > MOST_TOGETHER:
            longest = max(map(len, kept))
            rows = [[sizes[min(rank, len(sizes) - 1)] for sizes in kept] for rank in range(longest)]
        else:
            rows = [list(row) for row in itertools.product(*kept)]
        for row in rows:
            pairs = zip(groups, row, strict=True)
            yield Choice({group.name: width for group, width in pairs if width < group.size})

    def look_of(self, choice: Choice) -> object:
        """Return what the time of a choice depends on: operators and shapes of everything that it touches."""
        parts: list[object] = [choice.dropped is not None, tuple(sorted(choice.widths.values()))]
        nodes = set(self.regions[choice.dropped].nodes) if choice.dropped else set()
        for name in choice.widths:
            group = self.groups[name]
            nodes |= {*group.makers, *(reader.node for reader in group.readers)}
        shapes = [
            (node.op_type, *(tuple(value.shape or ()) for value in (*node.inputs, *node.outputs) if value is not None))
            for node in self._shaped
            if label(node) in nodes
        ]
        return (*parts, tuple(sorted(map(str, shapes))))

    @cached_property
    def _shaped(self) -> Sequence[ir.Node]:
        return list(with_inferred_shapes(self.model).graph)

    def removed_layer(self, name: str) -> RemovedLayer:
        """Return what goes with a region, as a record."""
        region = self.regions[name]
        inside = Counter(node.op_type for node in self.model.graph if label(node) in set(region.nodes))
        operators = ", ".join(f"{count} {operator}" for operator, count in inside.most_common())
        return RemovedLayer(name=name, operators=operators, macs=region.macs)


def merged(choices: Sequence[Choice]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the widths by group, and the regions that go."""
    widths = {name: width for choice in choices for name, width in choice.widths.items()}
    return widths, tuple(choice.dropped for choice in choices if choice.dropped)


def widths_of(size: int, step: int) -> tuple[int, ...]:
    """Return the widths to try for a group, each smaller than the one before: multiples of a step.

    Args:
        size: Units of the group.
        step: Channel counts are fast at multiples of this number. It is halved until it fits into the group four times:
            what the finer steps bring in time is measured.
    """
    while step > 1 and size < 4 * step:
        step //= 2
    found = {max(step, round(size * share / step) * step) for share in WIDTHS}
    return tuple(sorted((width for width in found if 0 < width < size), reverse=True))


def is_stream(group: Group, model: ir.Model) -> bool:
    """Whether units are read and then added to again, as the channels of a residual stream are."""
    producers = {label(node): node for node in model.graph}
    makers, waiting, seen = set(group.makers), [producers[reader.node] for reader in group.readers], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if label(node) in makers:
            return True
        waiting.extend(usage.node for value in node.outputs for usage in value.uses())
    return False
