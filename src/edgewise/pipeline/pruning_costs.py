"""What narrower variants of a model save in time, measured; variants of layers that look alike are measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    _known: dict[object, float] = field(default_factory=dict, init=False, repr=False)

    def times(self, keys: Sequence[object], make: Callable[[int], ir.Model]) -> list[float]:
        """Return the time of each variant as a share of the whole's.

        Args:
            keys: What each variant's time depends on: variants with equal keys are timed once.
            make: Makes the variant with an index.
        """
        missing = [index for index, key in enumerate(keys) if key not in self._known and key not in keys[:index]]
        for start in range(0, len(missing), TIMED_TOGETHER):
            part = missing[start : start + TIMED_TOGETHER]
            found = extra_times(
                self.target.backend, self._base, [self._as_run(make(i)) for i in part], self.options, self.feeds[0]
            )
            self._known.update({keys[index]: 1.0 + extra for index, extra in zip(part, found, strict=True)})
        return [self._known[key] for key in keys]

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
