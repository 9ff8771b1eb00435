"""What the user asked for, checked once."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.errors import RecipeError
from edgewise.records.codec import Record


class DataRequest(Record, frozen=True, kw_only=True):
    """Which samples, and how they become inputs.

    Attributes:
        samples: File, folder or `module:function`; split in three unless the three are given separately.
        calibration: Samples for statistics instead of the first split. Labels are not needed.
        select: Samples for the search instead of the second split.
        certify: Samples for the certificate instead of the third split.
        label: Name of the labels in an `.npz` file.
        settings: TOML file with a `[preprocessing]` table; by default `edgewise.toml` beside the samples, if there.
        shapes: Shapes of inputs with dynamic dimensions other than the batch; None keeps a dimension dynamic.
        state: Input that each output feeds back, by output name, for recurrent models.
        seed: Seed of the split and of every draw.
    """

    samples: str
    calibration: str | None = None
    select: str | None = None
    certify: str | None = None
    label: str | None = None
    settings: str | None = None
    shapes: dict[str, tuple[int | None, ...]] = msgspec.field(default_factory=dict)
    state: dict[str, str] = msgspec.field(default_factory=dict)
    seed: int = 0


class Goal(Record, frozen=True, kw_only=True):
    """What the result has to keep and to reach.

    Attributes:
        max_drop: Largest loss that the certificate may leave possible: points for metrics in [0, 1], else relative.
        metric: Name or `module:object`; None chooses by the labels and the model's outputs.
        max_latency_us: Median latency in microseconds that the result has to stay below, or None.
        max_size_bytes: Size of the artifact that the result has to stay below, or None.
        accept_uncertified: Whether the best rung may become the default without its certificate.
    """

    max_drop: float = 0.01
    metric: str | None = None
    max_latency_us: float | None = None
    max_size_bytes: int | None = None
    accept_uncertified: bool = False


class Effort(Record, frozen=True, kw_only=True):
    """Where to search and how long.

    Attributes:
        budget_s: Wall-clock seconds of the whole run.
        backends: Backends to try; empty stands for all that are installed.
        threads: Numbers of threads of one inference to try.
    """

    budget_s: float = 600.0
    backends: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)


class Request(Record, frozen=True, kw_only=True):
    """One call of the main job.

    Attributes:
        model: The model file.
        out: The directory for the bundle, the report and the records.
        data: Which samples.
        goal: What to keep and to reach.
        effort: Where to search and how long.
        overwrite: Whether another run's results in `out` may be replaced.
    """

    model: Path
    out: Path
    data: DataRequest
    goal: Goal = Goal()
    effort: Effort = Effort()
    overwrite: bool = False


def check(request: Request) -> None:
    """Refuse what cannot be meant.

    Raises:
        RecipeError: If a number is out of its range, or splits are given in part.
    """
    goal, effort, data = request.goal, request.effort, request.data
    if not 0 < goal.max_drop < 1:
        raise RecipeError(
            f"`--max-drop` has to be above 0 and below 100 %. Received {goal.max_drop:g}.",
            hint="Write `--max-drop 1%` (or 0.01) for one point of accuracy.",
        )
    if not effort.budget_s > 0:
        raise RecipeError(f"`--budget` has to be positive. Received {effort.budget_s:g} seconds.")
    if not effort.threads or min(effort.threads) < 1:
        raise RecipeError(f"`--threads` has to be 1 or more. Received {', '.join(map(str, effort.threads)) or 'none'}.")
    for flag, value in (("--max-latency", goal.max_latency_us), ("--max-size", goal.max_size_bytes)):
        if value is not None and not value > 0:
            raise RecipeError(f"`{flag}` has to be positive. Received {value:g}.")
    if (data.select is None) != (data.certify is None):
        raise RecipeError(
            "`--select` and `--certify` have to be given together, so that no sample is in both.",
            hint="Give both, or neither: then `--data` is split.",
        )
