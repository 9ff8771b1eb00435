"""Turns a runtime's exception into one of ours, with the runtime's own words cut down to what a reader can use."""

from __future__ import annotations

import re

from edgewise.errors import BackendError, EdgewiseError, ResourceError

_LONGEST = 300

_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^.*CALLBACK HAS THROWN:\s*", re.DOTALL),  # before it: the inner graph that OpenVINO was rewriting
    re.compile(r"^Exception from \S+:\s*", re.MULTILINE),
    re.compile(r"^Check '.*?' failed at \S+:\s*", re.MULTILINE),
    re.compile(r"\S*/(?:onnxruntime|src)/\S+:\d+\s+[^\n]*?\)\s+(?=[A-Z])"),
    re.compile(r"^FrontEnd API failed with \w+:\s*", re.MULTILINE),
    re.compile(r"Model wasn't fully converted\. (?:Summary|Failed operations detailed log):\s*(?:-- )?"),
    re.compile(r"Model wasn't fully converted\.\s*Summary:\s*(?:-- )?"),
    re.compile(r"To facilitate the conversion of unsupported operations.*", re.DOTALL),
)

_OUT_OF_MEMORY = re.compile(r"bad_?alloc|failed to allocate|out of memory|cannot allocate memory", re.IGNORECASE)


def trimmed(error: BaseException | str) -> str:
    """Return the words of `error` on one line, without source locations, at most 300 characters, ending in a dot."""
    text = str(error)
    for pattern in _NOISE:
        text = pattern.sub("", text)
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST].rsplit(' ', 1)[0]} ..."
    return (text or "It gave no reason").rstrip(".") + "."


def refused(says: str, doing: str, error: BaseException) -> EdgewiseError:
    """Return the error of ours for a runtime that failed.

    Args:
        says: The runtime's own name, `OpenVINO`.
        doing: What failed, as a noun: `compiling the model`.
        error: What it raised.

    Returns:
        A `ResourceError` where memory ran out, else a `BackendError`.
    """
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return ResourceError(
            f"{says} has to have enough memory for {doing}, but ran out of it: {trimmed(error)}",
            hint="Use a smaller batch or input size, or a machine with more memory.",
        )
    return BackendError(f"{says} failed at {doing}. In its own words: {trimmed(error)}")
