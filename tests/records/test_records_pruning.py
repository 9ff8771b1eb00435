from __future__ import annotations

from edgewise.records.codec import decode, encode
from edgewise.records.pruning import GroupWidth, Pruning, PruningTrial, RemovedLayer

PRUNING = Pruning(
    groups=(
        GroupWidth(name="a", makers=("conv1",), before=16, after=8, error=0.01),
        GroupWidth(name="b", makers=("conv3", "conv4"), before=16, after=16),
    ),
    layers=(RemovedLayer(name="sum", operators="2 Conv", macs=1000),),
    macs_before=5000,
    macs_after=3000,
    parameters_before=100,
    parameters_after=60,
    trials=(PruningTrial(what="pruned", time=0.7, nsr=0.01, kl=None, flips=2, n=64),),
)


def test_only_groups_that_lost_units_were_narrowed() -> None:
    assert [group.name for group in PRUNING.narrowed] == ["a"]


def test_what_was_stored_comes_back() -> None:
    assert decode(encode(PRUNING), Pruning) == PRUNING
