"""What a measuring process and its parent say to each other: one JSON line a message, one reply a request."""

from __future__ import annotations

from typing import TypeAlias

from edgewise.backends.protocol import ArtifactSpec
from edgewise.records.codec import Record


class Load(Record, frozen=True, kw_only=True, tag="load"):
    """Open the artifact and run it once.

    Attributes:
        folder: Folder of the artifact.
        spec: What must be known to open it.
        feeds: File with the packed feeds.
    """

    folder: str
    spec: ArtifactSpec
    feeds: str


class Warm(Record, frozen=True, kw_only=True, tag="warm"):
    """Run until the speed no longer changes, for at most `limit_ns`."""

    limit_ns: int


class Turn(Record, frozen=True, kw_only=True, tag="turn"):
    """Run for a while and time each run.

    Attributes:
        untimed_ns: Run this long first without timing: the caches hold what ran before.
        slice_ns: Then time runs until this much time has passed; at least one.
    """

    untimed_ns: int
    slice_ns: int


Request: TypeAlias = Load | Warm | Turn


class Loaded(Record, frozen=True, kw_only=True, tag="loaded"):
    """The artifact is open and ran once.

    Attributes:
        import_ns: Importing the session code and the runtime.
        load_ns: Opening the artifact.
        first_run_ns: The first inference.
        before_bytes: Peak resident memory before opening.
        peak_bytes: Peak resident memory after the first inference.
        pinned: Whether the process stays on the cores it was given.
    """

    import_ns: int
    load_ns: int
    first_run_ns: int
    before_bytes: int
    peak_bytes: int
    pinned: bool


class Warmed(Record, frozen=True, kw_only=True, tag="warmed"):
    """The speed settled, or the limit was reached; `median_ns` is the median of the last window of runs."""

    median_ns: float
    runs: int
    stable: bool


class Times(Record, frozen=True, kw_only=True, tag="times"):
    """One turn.

    Attributes:
        durations_ns: Duration of each timed run, in order.
        runs: Number of runs, the untimed ones included.
        peak_bytes: Peak resident memory so far.
        waited_ns: Time for which it waited for this turn, once it was warm.
        waiting_used_ns: Processor time that it used meanwhile: next to none, unless threads spin.
    """

    durations_ns: tuple[int, ...]
    runs: int
    peak_bytes: int
    waited_ns: int
    waiting_used_ns: int


class Failed(Record, frozen=True, kw_only=True, tag="failed"):
    """An error of edgewise: `kind` is the name of its class."""

    kind: str
    message: str
    hint: str | None


Reply: TypeAlias = Loaded | Warmed | Times | Failed
