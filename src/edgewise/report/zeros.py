"""What zeros in the weights are good for, in words: bytes on the way to the device, and time only where it was seen."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.records.measurements import Ratio
from edgewise.report import quantities as q
from edgewise.report.words import BACKENDS, interval


def zeros_words(archive: float, gains: Mapping[str, Ratio]) -> str:
    """Return what a share of zeros in the weights did, as full sentences.

    Args:
        archive: Bytes of the packed file, as a share of the float model's file.
        gains: How many times faster the model with zeros is than the dense one, by backend.
    """
    less = archive < 1
    made = f"Zeros in the weights make the archive {'smaller' if less else 'no smaller'} ({q.share(archive)} of float)"
    slow = [_measured(name, gain) for name, gain in gains.items() if gain.low <= 1]
    fast = [_measured(name, gain) for name, gain in gains.items() if gain.low > 1]
    sentences = [f"{made}, not the model faster on {' or '.join(slow)}." if slow else f"{made}."]
    if fast:
        sentences.append(f"The model is faster on {' and '.join(fast)}.")
    return " ".join(sentences)


def _measured(backend: str, gain: Ratio) -> str:
    return f"{BACKENDS.get(backend, backend)} ({q.ratio(gain.value)}, {interval(gain)})"
