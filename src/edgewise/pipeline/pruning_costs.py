"""What changes to a model save in time, measured: those that look alike together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import onnx_ir as ir

from edgewise.analysis.target import Target
from edgewise.compress.quantize.apply import apply
from edgewise.compress.quantize.plan import observed_tensors, plan
from edgewise.compress.statistics import collect, observe
from edgewise.pipeline.judge import opened
from edgewise.pipeline.layer_times import extra_times
from edgewise.records.candidate import Quantize, RunOptions
from edgewise.records.tensors import Feeds

TIMED_TOGETHER: Final = 6
"""Variants that are open beside the whole while they are timed."""

RANGE_SAMPLES: Final = 2
"""Samples behind the ranges of models that are timed and then thrown away: no instruction depends on a range."""


@dataclass
class Stopwatch:
    """Times variants of one model against it.

    Attributes:
        model: The whole model, in float.
        target: Where both would run.
        quantized: Whether both are quantized to 8 bits first: that is how the result will run.
        options: How both run.
        feeds: Inputs.
    """

    model: ir.Model
    target: Target
    quantized: bool
    options: RunOptions
    feeds: Sequence[Feeds]

    def savings(self, looks: Sequence[object], make: Callable[[Sequence[int]], ir.Model]) -> list[float]:
        """Return what each change saves, as a share of the whole's time; negative where it takes longer.

        Changes that look alike are made all at once, and each gets an equal part of what they save together: a layer or
        two of many are within the noise of one measurement.

        Args:
            looks: What each change's time depends on.
            make: Makes the model with the changes of some indices.
        """
        alike: dict[object, list[int]] = {}
        for index, look in enumerate(looks):
            alike.setdefault(look, []).append(index)
        sets = list(alike.values())
        result = [0.0] * len(looks)
        for start in range(0, len(sets), TIMED_TOGETHER):
            part = sets[start : start + TIMED_TOGETHER]
            variants = [self._as_run(make(members)) for members in part]
            found = extra_times(self.target.backend, self._base, variants, self.options, self.feeds[0])
            for members, extra in zip(part, found, strict=True):
                for index in members:
                    result[index] = -extra / len(members)
        return result

    def time(self, model: ir.Model) -> float:
        """Return the time of one model as a share of the whole's."""
        return 1.0 + extra_times(self.target.backend, self._base, [self._as_run(model)], self.options, self.feeds[0])[0]

    @cached_property
    def _base(self) -> ir.Model:
        return self._as_run(self.model)

    def _as_run(self, model: ir.Model) -> ir.Model:
        """Return `model` as it would run: with 8-bit layers, or as it is."""
        if not self.quantized:
            return model
        names = observed_tensors(model, self.target)
        with opened(observe(model, names)) as run:
            statistics = collect(run, self.feeds[:RANGE_SAMPLES], names)
        return apply(model, plan(model, statistics, self.target, Quantize(ranges="min-max")))
