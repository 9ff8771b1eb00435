"""The least time that a computation can take on a machine of given peak rates (Williams, Waterman and Patterson, 2009).

The rates come from the caller, who measured them; nothing here knows a machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgewise.records.measurements import LayerCost


@dataclass(frozen=True, kw_only=True)
class PeakRates:
    """What a machine does at most, with the threads and the precision in question.

    Attributes:
        macs_per_us: Multiply-accumulates in a microsecond, > 0.
        bytes_per_us: Bytes moved between memory and the processor in a microsecond, > 0.
    """

    macs_per_us: float
    bytes_per_us: float


def lower_bound_us(macs: float, moved_bytes: float, rates: PeakRates) -> float:
    """Return the least time in microseconds: that of the arithmetic or of the memory, whichever is longer.

    Args:
        macs: Multiply-accumulates, >= 0.
        moved_bytes: Bytes that have to be moved at least once, >= 0.
        rates: Peak rates of the machine.
    """
    return max(macs / rates.macs_per_us, moved_bytes / rates.bytes_per_us)


def layers_lower_bound_us(costs: Iterable[LayerCost], rates: PeakRates) -> float:
    """Return the sum of the layers' bounds: a bound for a runtime that runs one layer after another.

    A runtime that keeps activations in its caches between layers can be faster than this; no
    runtime is faster than `lower_bound_us` of all arithmetic and all weights.
    """
    return sum(lower_bound_us(cost.macs, cost.weight_bytes + cost.activation_bytes, rates) for cost in costs)
