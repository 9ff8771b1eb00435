"""A candidate: what is done to the graph, and how the result is run.

A recipe is a tuple of steps in the order in which they are applied. A new way to compress is a new step here and
one line in the table of `pipeline/build.py`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgewise.records.codec import Record

HistogramMethod: TypeAlias = Literal["min-max", "percentile", "entropy", "mse"]
RangeMethod: TypeAlias = HistogramMethod | Literal["output"]
Rounding: TypeAlias = Literal["second-order", "nearest"]
Precision: TypeAlias = Literal["fp32", "bf16"]
GraphOptimization: TypeAlias = Literal["off", "all"]


class Fuse(Record, frozen=True, kw_only=True, tag="fuse"):
    """Apply the default passes: fusion, folding, clean-up. The function stays the same."""


class Quantize(Record, frozen=True, kw_only=True, tag="quantize"):
    """Static quantization as standard QDQ ONNX.

    Attributes:
        scheme: Widths, for example `w8a8`, `w4a8`, `w4g32` (`compress/quantize/recipe.py` reads them).
        ranges: How each activation's range is chosen from the calibration samples: `output` takes, for each tensor,
            the range with the least error at the outputs of the layers that read it; the others look at the tensor.
        rounding: How weights are rounded: `second-order` lets each rounded weight be made up for by those after it.
        extra_time: Share of the 8-bit model's time that may be spent on keeping those layers in float that do the most
            damage for it.
        extra_size: Share of the bytes of weights with fewer than 8 bits that may be spent on 8 bits for those layers
            whose few bits do the most damage.
    """

    scheme: str = "w8a8"
    ranges: RangeMethod = "mse"
    rounding: Rounding = "nearest"
    extra_time: float = 0.0
    extra_size: float = 0.0


class HalveWeights(Record, frozen=True, kw_only=True, tag="halve-weights"):
    """Store weights as float16 and compute in float32: half the size, the same speed."""


class Prune(Record, frozen=True, kw_only=True, tag="prune"):
    """Remove neurons and layers with the least damage, made up for in closed form.

    Attributes:
        time: The time that is aimed at, as a share of the unpruned model's, in (0, 1).
        recovered: Whether the rest is trained on the unpruned model's answers.
    """

    time: float
    recovered: bool = False


Step: TypeAlias = Fuse | Prune | Quantize | HalveWeights


class RunOptions(Record, frozen=True, kw_only=True):
    """How a backend runs an artifact. Every field is asked for by name; nothing is left to a runtime's default.

    Attributes:
        threads: Threads of one inference, >= 1.
        precision: Type of the floating-point arithmetic. Layers that are int8 in the graph stay int8.
        graph_optimization: `off` runs the graph as it is written, `all` lets the runtime rewrite it.
    """

    threads: int = 1
    precision: Precision = "fp32"
    graph_optimization: GraphOptimization = "all"


class Candidate(Record, frozen=True, kw_only=True):
    """One way to run the user's model: steps on the graph, a backend, its options."""

    steps: tuple[Step, ...]
    backend: str
    options: RunOptions

    @property
    def is_untouched(self) -> bool:
        """Whether the graph is the user's own, without any step."""
        return not self.steps

    @property
    def pruned(self) -> Prune | None:
        """How the graph is pruned, or None where it is not."""
        return next((step for step in self.steps if isinstance(step, Prune)), None)

    @property
    def name(self) -> str:
        """A short name, unique within a run: `openvino int8-mixed5 bf16`."""
        words = [self.backend, *(_word(step) for step in self.steps if not isinstance(step, Fuse))]
        if self.is_untouched:
            words.append("untouched")
        elif len(words) == 1:
            words.append("fused")
        if self.options.precision != "fp32":
            words.append(self.options.precision)
        if self.options.graph_optimization != "all":
            words.append("as-written")
        if self.options.threads != 1:
            words.append(f"{self.options.threads}-threads")
        return " ".join(words)


def _word(step: Step) -> str:
    match step:
        case Fuse():
            return "fused"
        case Prune():
            return f"pruned{100 * step.time:.0f}{'-recovered' if step.recovered else ''}"
        case Quantize():
            return _quantize_word(step)
        case HalveWeights():
            return "fp16-weights"


def _quantize_word(step: Quantize) -> str:
    """Return what is asked for; the ranges and the rounding that lose least go without saying."""
    words = ["int8" if step.scheme == "w8a8" else step.scheme]
    if step.ranges != "output":
        words.append(step.ranges)
    if step.rounding == "nearest" and step.ranges == "output":
        words.append("output")
    if step.rounding == "second-order" and step.ranges != "output":
        words.append("second-order")
    if step.extra_time:
        words.append(f"mixed{100 * step.extra_time:g}")
    if step.extra_size:
        words.append(f"wider{100 * step.extra_size:g}")
    return "-".join(words)
