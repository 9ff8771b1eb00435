"""What was done to a graph and what was declined, each with its node and the reason: nothing is silent."""

from __future__ import annotations

from edgewise.records.codec import Record


class Change(Record, frozen=True, kw_only=True):
    """Something that was done.

    Attributes:
        stage: The pass, plan or backend that did it, for example `fold_batch_norm`.
        node: Name of the node at which it was done (its first output where it has no name).
        what: What was done, in the past tense: "folded `bn1` into the weights".
    """

    stage: str
    node: str
    what: str


class Decline(Record, frozen=True, kw_only=True):
    """Something that was not done, and why.

    Attributes:
        stage: The pass, plan or backend that declined.
        node: Name of the node (its first output where it has no name); empty when it concerns the whole model.
        operator: Its operator type, or empty.
        reason: Why, as a clause that can follow "because": "`c3` is also an output of the model".
    """

    stage: str
    node: str
    operator: str
    reason: str
