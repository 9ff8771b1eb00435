"""What the user asked for, checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgewise.errors import RecipeError
from edgewise.records.codec import Record

NO_DATA: Final = "none"
"""What stands in place of samples where there are none. A file of that name is `./none`."""

MAX_DROP: Final = 0.01
TOLERANCE: Final = 0.1
"""Relative error of the outputs on synthetic samples, a signal-to-noise ratio of 20 dB."""


class DataRequest(Record, frozen=True, kw_only=True):
    """Which samples, and how they become inputs.

    Attributes:
        samples: File, folder or `module:function`; split in three unless the three are given separately. `none` where
            there are none: synthetic ones are drawn, and nothing is certified.
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

    @property
    def is_synthetic(self) -> bool:
        """Whether there are no samples, so that synthetic ones have to do."""
        return self.samples == NO_DATA


class Goal(Record, frozen=True, kw_only=True):
    """What the result has to keep and to reach.

    Attributes:
        max_drop: Largest loss that the certificate may leave possible: points for metrics in [0, 1], else relative.
            None stands for `MAX_DROP`.
        tolerance: Where there are no samples, in place of `max_drop`: largest relative error of any output on
            synthetic samples (`measure/fidelity.py`). None stands for `TOLERANCE`.
        metric: Name or `module:object`; None chooses by the labels and the model's outputs.
        max_latency_us: Median latency in microseconds that the result has to stay below, or None.
        max_size_bytes: Size of the artifact that the result has to stay below, or None.
        accept_uncertified: Whether the best rung may become the default without its certificate.
    """

    max_drop: float | None = None
    tolerance: float | None = None
    metric: str | None = None
    max_latency_us: float | None = None
    max_size_bytes: int | None = None
    accept_uncertified: bool = False

    def is_reduced_to(self, size_bytes: int, *, from_bytes: int) -> bool:
        """Whether a size was asked for that a model of `size_bytes` has, and one of `from_bytes` has not."""
        return self.max_size_bytes is not None and size_bytes <= self.max_size_bytes < from_bytes


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

    @property
    def bound(self) -> float:
        """The loss that candidates are held to: `tolerance` where there are no samples, else `max_drop`."""
        if self.data.is_synthetic:
            return TOLERANCE if self.goal.tolerance is None else self.goal.tolerance
        return MAX_DROP if self.goal.max_drop is None else self.goal.max_drop


def check(request: Request) -> None:
    """Refuse what cannot be meant.

    Raises:
        RecipeError: If a number is out of its range, splits are given in part, or something is asked for that needs
            samples where there are none.
    """
    goal, effort, data = request.goal, request.effort, request.data
    for flag, share, meaning in (
        ("--max-drop", goal.max_drop, "`--max-drop 1%` (or 0.01) for one point of accuracy"),
        ("--tolerance", goal.tolerance, "`--tolerance 10%` (or 0.1) for a tenth of an output's standard deviation"),
    ):
        if share is not None and not 0 < share < 1:
            raise RecipeError(
                f"`{flag}` has to be above 0 and below 100 %. Received {share:g}.", hint=f"Write {meaning}."
            )
    _check_samples(request)
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


def _check_samples(request: Request) -> None:
    """Refuse what only samples can show where there are none, and the tolerance where there are some."""
    goal, data = request.goal, request.data
    if not data.is_synthetic:
        if goal.tolerance is not None:
            raise RecipeError(
                "`--tolerance` is for `--data none`, where nothing can be certified, but samples were given.",
                hint="Say with `--max-drop` how much may be lost on the samples.",
            )
        return
    needs = {
        "--max-drop": goal.max_drop,
        "--metric": goal.metric,
        "--accept-uncertified": goal.accept_uncertified or None,
        "--calibration": data.calibration,
        "--select": data.select,
        "--certify": data.certify,
        "--label": data.label,
    }
    given = [flag for flag, value in needs.items() if value is not None]
    if given:
        raise RecipeError(
            f"`{given[0]}` needs samples, but `--data none` says that there are none: no loss can be measured.",
            hint="`--tolerance 10%` says how far the outputs may be off on synthetic samples; with unlabelled samples "
            "in `--data`, changed answers are bounded.",
        )
