"""What the stages of one run share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgewise.measure.metrics import Metric
from edgewise.pipeline.build import Workshop
from edgewise.pipeline.inputs import Data, LoadedModel
from edgewise.pipeline.progress import Progress
from edgewise.pipeline.propose import untouched
from edgewise.pipeline.request import Request
from edgewise.pipeline.workspace import Workspace
from edgewise.records.candidate import Candidate
from edgewise.records.machine import Machine
from edgewise.records.tensors import Feeds
from edgewise.samples.state import first_step

Clock = Callable[[], float]


@dataclass(frozen=True)
class Deadline:
    """The end of the budget.

    Attributes:
        clock: Gives seconds from any origin.
        end: When the budget is spent, on that clock.
    """

    clock: Clock
    end: float

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """Return the deadline that lies `seconds` ahead."""
        return cls(clock, clock() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self.end - self.clock())


@dataclass(frozen=True)
class Job:
    """One run of the main job: what was asked for and what it works with.

    Attributes:
        request: What the user asked for.
        model: The model.
        data: The three sets.
        metric: The metric, resolved.
        machine: This machine.
        backends: Names of the backends to try.
        workspace: Directory, records.
        workshop: Builds candidates.
        progress: Hears what is done.
        deadline: The end of the budget.
        run_id: Made when the run began; a resumed run keeps it.
    """

    request: Request
    model: LoadedModel
    data: Data
    metric: Metric
    machine: Machine
    backends: Sequence[str]
    workspace: Workspace
    workshop: Workshop
    progress: Progress
    deadline: Deadline
    run_id: str

    def timing_feeds(self, count: int = 8) -> list[Feeds]:
        """Return the inputs that are timed: one step of each of the first select samples."""
        select = self.data.select
        state = select.dataset.state
        return [first_step(select.dataset.feeds(int(index)), state) for index in select.indices[:count]]

    @cached_property
    def steps_per_sample(self) -> int:
        """How many inferences the first select sample takes: 1 unless the model is recurrent."""
        dataset = self.data.select.dataset
        fed_back = set(dataset.state.values())
        feeds = dataset.feeds(int(self.data.select.indices[0]))
        return next((len(array) for name, array in feeds.items() if name not in fed_back), 1) if fed_back else 1

    @property
    def untouched(self) -> tuple[Candidate, ...]:
        """The untouched model at every number of threads."""
        return tuple(untouched(count) for count in self.request.effort.threads)

    @property
    def bound(self) -> float:
        """The loss that candidates are held to, in the units of the metric."""
        return self.request.bound

    @property
    def label_free(self) -> bool:
        """Whether the metric compares with the untouched model's outputs instead of labels."""
        return self.metric.against == "original"
