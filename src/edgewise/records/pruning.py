"""What pruning took from a model, and what that did: plain data for the run, the report and the command line."""

from __future__ import annotations

from typing import Literal

from edgewise.records.codec import Record


class GroupWidth(Record, frozen=True, kw_only=True):
    """How wide one group of coupled units was and is.

    Attributes:
        name: Name of the value in which the units first appear.
        makers: Nodes that make the units.
        before: Units before.
        after: Units now.
        error: Relative squared error at the outputs of the layers that read the units, after they were made up for;
            None where it was not measured.
    """

    name: str
    makers: tuple[str, ...]
    before: int
    after: int
    error: float | None = None


class RemovedLayer(Record, frozen=True, kw_only=True):
    """A stretch of layers that is gone.

    Attributes:
        name: Name of the value that it made.
        operators: Its nodes by type, as `2 Conv, 1 Relu`.
        macs: Multiply-accumulates of one inference that went with it.
        stand_in: What is in its place: nothing, or a linear map that was fitted.
    """

    name: str
    operators: str
    macs: int
    stand_in: Literal["nothing", "shift", "affine", "linear"] = "nothing"


class PruningTrial(Record, frozen=True, kw_only=True):
    """One pruned model that was measured against the whole one, without labels.

    Attributes:
        what: In words.
        time: Its time as a share of the whole model's; None where it was not timed.
        nsr: Noise-to-signal ratio at the outputs.
        kl: Divergence of the class scores in nats; None where there are none.
        flips: Samples with another decision; None where there are no decisions.
        n: Samples.
    """

    what: str
    time: float | None
    nsr: float
    kl: float | None
    flips: int | None
    n: int


class Pruning(Record, frozen=True, kw_only=True):
    """What was taken from a model.

    Attributes:
        groups: Every group of units that could be narrowed, in the order of the graph.
        layers: Layers that are gone.
        macs_before: Multiply-accumulates of one inference of the whole model.
        macs_after: The same now.
        parameters_before: Weights of the whole model.
        parameters_after: Weights now.
        trials: What was measured on the way; the last is the result.
    """

    groups: tuple[GroupWidth, ...]
    layers: tuple[RemovedLayer, ...]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    trials: tuple[PruningTrial, ...] = ()

    @property
    def narrowed(self) -> tuple[GroupWidth, ...]:
        """The groups that lost units."""
        return tuple(group for group in self.groups if group.after < group.before)
