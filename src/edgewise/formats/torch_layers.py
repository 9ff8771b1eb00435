"""ONNX operators with windows, norms, gates or steps of integers, in PyTorch.

Every function here is pure in the sense of `torch.func.vmap`: it reads shapes, never data, of the tensors that it
computes with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from edgewise.formats.torch_missing import missing

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"


@dataclass(frozen=True)
class Call:
    """What an operator is told beside its operands.

    Attributes:
        opset: Version of the standard operator set.
        attributes: The node's attributes as plain Python values.
        given: For each operand whether it is there.
        outputs: How many outputs the node has.
        limits: Least and greatest whole number of a quantized output.
    """

    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[bool, ...] = ()
    outputs: int = 1
    limits: tuple[int, int] = (0, 255)

    def has(self, index: int) -> bool:
        """Return whether an operand is there."""
        return index < len(self.given) and self.given[index]

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute, or `default` where the node does not have it."""
        return self.attributes.get(name, default)


def at_most_one_output(call: Call) -> str | None:
    """Return why a node with more than its first output is refused."""
    return None if call.outputs == 1 else "only its first output is supported"


# Windows


@dataclass(frozen=True)
class _Window:
    """A window over the spatial axes: what Conv and the pools have in common."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last of a window, by axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def overhang(self, sizes: Sequence[int], *, ceil: bool) -> tuple[int, ...]:
        """Return how far the last window reaches beyond the end and its padding, by axis; 0 unless `ceil`.

        A window that would begin behind the data and its padding at the beginning does not count, as in ONNX Runtime.
        """
        if not ceil:
            return (0,) * len(self.kernel)
        found = []
        for n, reach, stride, begin, end in zip(sizes, self.reach, self.strides, self.begin, self.end, strict=True):
            count = math.ceil((n + begin + end - reach) / stride) + 1
            if (count - 1) * stride >= n + begin:
                count -= 1
            found.append(max(0, (count - 1) * stride + reach - (n + begin + end)))
        return tuple(found)


def _window(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> _Window:
    """Return the window of a node whose input has the spatial `sizes`."""
    rank = len(kernel)
    strides = tuple(call.get("strides", (1,) * rank))
    dilations = tuple(call.get("dilations", (1,) * rank))
    pads = tuple(call.get("pads", (0,) * (2 * rank)))
    automatic = call.get("auto_pad", "NOTSET")
    if automatic in {"SAME_UPPER", "SAME_LOWER"}:
        lower, upper = [], []
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
            small = total // 2
            lower.append(small if automatic == "SAME_UPPER" else total - small)
            upper.append(total - lower[-1])
        pads = (*lower, *upper)
    elif automatic == "VALID":
        pads = (0,) * (2 * rank)
    return _Window(tuple(kernel), strides, dilations, pads[:rank], pads[rank:])


def _padding(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return pads in the order of PyTorch: last axis first, beginning and end in turns."""
    return [n for pair in reversed(list(zip(begin, end, strict=True))) for n in pair]


_CONV: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: Final = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL: Final = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL: Final = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def conv(call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv: `x` `[N, C, *sizes]`, `w` `[M, C / group, *kernel]`, with 1 to 3 spatial axes."""
    window = _window(call, x.shape[2:], w.shape[2:])
    padding: tuple[int, ...] = window.begin
    if window.begin != window.end:
        x, padding = functional.pad(x, _padding(window.begin, window.end)), (0,) * len(window.kernel)
    return _CONV[w.dim() - 2](x, w, bias, window.strides, padding, window.dilations, call.get("group", 1))


def conv_transpose(call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose: `x` `[N, C, *sizes]`, `w` `[C, M / group, *kernel]`."""
    rank = w.dim() - 2
    strides = tuple(call.get("strides", (1,) * rank))
    dilations = tuple(call.get("dilations", (1,) * rank))
    more = tuple(call.get("output_padding", (0,) * rank))
    whole = _CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, call.get("group", 1), dilations)
    pads = tuple(call.get("pads", (0,) * (2 * rank)))
    automatic = call.get("auto_pad", "NOTSET")
    asked = call.get("output_shape", None)
    if asked is None and automatic in {"SAME_UPPER", "SAME_LOWER"}:
        asked = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if asked is not None:
        # The standard's formula; the half that is larger goes to the end with SAME_UPPER alone.
        total = [n + m - a for n, m, a in zip(whole.shape[2:], more, asked[-rank:], strict=True)]
        small = [n // 2 for n in total]
        large = [n - s for n, s in zip(total, small, strict=True)]
        pads = (*small, *large) if automatic == "SAME_UPPER" else (*large, *small)
    end = [m - p for m, p in zip(more, pads[rank:], strict=True)]
    result = functional.pad(whole, _padding([-p for p in pads[:rank]], end))
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def max_pool(call: Call, x: Tensor) -> Tensor:
    """MaxPool over `x` `[N, C, *sizes]`."""
    window = _window(call, x.shape[2:], call.attributes["kernel_shape"])
    over = window.overhang(x.shape[2:], ceil=bool(call.get("ceil_mode", 0)))
    if any(window.begin) or any(window.end) or any(over):
        end = [e + o for e, o in zip(window.end, over, strict=True)]
        x = functional.pad(x, _padding(window.begin, end), value=-math.inf)
    return _MAX_POOL[len(window.kernel)](x, window.kernel, window.strides, 0, window.dilations)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """AveragePool over `x` `[N, C, *sizes]`: what hangs over the padding never counts, padding only if asked."""
    window = _window(call, x.shape[2:], call.attributes["kernel_shape"])
    over = window.overhang(x.shape[2:], ceil=bool(call.get("ceil_mode", 0)))
    pool, rank = _AVERAGE_POOL[len(window.kernel)], len(window.kernel)
    if not (any(window.begin) or any(window.end) or any(over)):
        return pool(x, window.kernel, window.strides)
    end = [e + o for e, o in zip(window.end, over, strict=True)]
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        counted = functional.pad(counted, _padding(window.begin, window.end), value=1.0)
        counted = functional.pad(counted, _padding((0,) * rank, over))
    else:
        counted = functional.pad(counted, _padding(window.begin, end))
    sums = pool(functional.pad(x, _padding(window.begin, end)), window.kernel, window.strides)
    return sums / pool(counted, window.kernel, window.strides)


def why_not_average_pool(call: Call) -> str | None:
    """Return why a dilated AveragePool is refused."""
    return "its window is dilated" if any(d != 1 for d in call.get("dilations", ())) else None


def global_average(_: Call, x: Tensor) -> Tensor:
    """GlobalAveragePool over `x` `[N, C, *sizes]`."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max(_: Call, x: Tensor) -> Tensor:
    """GlobalMaxPool over `x` `[N, C, *sizes]`."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


# Norms


def _by_channel(parameter: Tensor, rank: int) -> Tensor:
    return parameter.reshape(-1, *[1] * (rank - 2))


def batch_norm(call: Call, x: Tensor, *parameters: Tensor) -> Tensor:
    """BatchNormalization with its stored statistics: scale, bias, mean and variance `[C]`."""
    scale, bias, mean, variance = parameters
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return x * _by_channel(factor, x.dim()) + _by_channel(bias - mean * factor, x.dim())


def why_not_batch_norm(call: Call) -> str | None:
    """Return why a BatchNormalization in its training form is refused."""
    return "it is in training mode" if call.get("training_mode", 0) else at_most_one_output(call)


def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """LayerNormalization over the axes from `axis` on."""
    axis = call.get("axis", -1) % x.dim()
    normal = functional.layer_norm(x, x.shape[axis:], eps=call.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization over the axes from `axis` on."""
    axes = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + call.get("epsilon", 1e-5)) * scale


def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization of each channel of each image."""
    normal = _normal(x, tuple(range(2, x.dim())), call.get("epsilon", 1e-5))
    return normal * _by_channel(scale, x.dim()) + _by_channel(bias, x.dim())


def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization with scale and bias by channel, as from opset 21 on."""
    groups = call.attributes["num_groups"]
    parts = x.reshape(x.shape[0], groups, -1)
    normal = _normal(parts, (2,), call.get("epsilon", 1e-5)).reshape(x.shape)
    return normal * _by_channel(scale, x.dim()) + _by_channel(bias, x.dim())


def why_not_group_norm(call: Call) -> str | None:
    """Return why a GroupNormalization of the older form is refused."""
    return "its form before opset 21 is deprecated" if call.opset < 21 else None


def _normal(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)


# Recurrent layers

Activation: TypeAlias = Callable[[Tensor], Tensor]


def _activations(call: Call, default: Sequence[str]) -> list[Activation]:
    """Return the activations of all directions; alpha and beta are given to those that have them, in order."""
    alphas, betas = list(call.get("activation_alpha", ())), list(call.get("activation_beta", ()))
    found: list[Activation] = []
    for name in call.get("activations", default):
        if name == "HardSigmoid":
            alpha, beta = alphas.pop(0) if alphas else 0.2, betas.pop(0) if betas else 0.5
            found.append(lambda x, alpha=alpha, beta=beta: torch.clamp(alpha * x + beta, 0, 1))  # type: ignore[misc]
        else:
            found.append({"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu}[name])
    return found


def why_not_recurrent(call: Call) -> str | None:
    """Return why a recurrent layer is refused."""
    known = {"Sigmoid", "Tanh", "Relu", "HardSigmoid"}
    if other := [name for name in call.get("activations", ()) if name not in known]:
        return f"its activation `{other[0]}` is not supported"
    if call.has(4):
        return "its sequences have lengths of their own"
    if call.has(7):
        return "it has peepholes"
    if call.get("clip", None) is not None:
        return "it clips its gates"
    return "its gates are coupled (input_forget)" if call.get("input_forget", 0) else None


def lstm(call: Call, x: Tensor, w: Tensor, r: Tensor, *more: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM: `x` `[T, N, I]` (or `[N, T, I]` with layout 1), `w` `[D, 4H, I]`, `r` `[D, 4H, H]`, gates i, o, f, c.

    Source: the formulas of the ONNX standard; peepholes are refused by the caller.
    """
    bias, _, initial_h, initial_c = (*more, *[None] * 4)[:4]
    functions = _activations(call, ["Sigmoid", "Tanh", "Tanh"] * w.shape[0])

    def run(d: int, inputs: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        gate, cell_in, cell_out = functions[3 * d : 3 * d + 3]
        hidden, cell = states
        i, o, f, c = (inputs + hidden @ r[d].T).chunk(4, dim=-1)
        cell = gate(f) * cell + gate(i) * cell_in(c)
        return [gate(o) * cell_out(cell), cell]

    biases = None if bias is None else bias[:, : bias.shape[1] // 2] + bias[:, bias.shape[1] // 2 :]
    outputs, states = _unrolled(call, x, w, biases, size=r.shape[2], initial=[initial_h, initial_c], run=run)
    return outputs, states[0], states[1]


def gru(call: Call, x: Tensor, w: Tensor, r: Tensor, *more: Tensor | None) -> tuple[Tensor, Tensor]:
    """GRU: `x` `[T, N, I]` (or `[N, T, I]` with layout 1), `w` `[D, 3H, I]`, `r` `[D, 3H, H]`, gates z, r, h."""
    bias, _, initial_h = (*more, *[None] * 3)[:3]
    functions = _activations(call, ["Sigmoid", "Tanh"] * w.shape[0])
    size, after = r.shape[2], bool(call.get("linear_before_reset", 0))
    first, second = (None, None) if bias is None else (bias[:, : 3 * size], bias[:, 3 * size :])

    def run(d: int, inputs: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        gate, candidate = functions[2 * d : 2 * d + 2]
        (hidden,) = states
        recurrent = hidden @ r[d, : 2 * size].T
        inner = None if second is None else second[d]
        recurrent = recurrent if inner is None else recurrent + inner[: 2 * size]
        z, reset = gate(inputs[..., : 2 * size] + recurrent).chunk(2, dim=-1)
        last = r[d, 2 * size :].T
        if after:
            rest = hidden @ last if inner is None else hidden @ last + inner[2 * size :]
            rest = reset * rest
        else:
            rest = (reset * hidden) @ last if inner is None else (reset * hidden) @ last + inner[2 * size :]
        return [(1 - z) * candidate(inputs[..., 2 * size :] + rest) + z * hidden]

    outputs, states = _unrolled(call, x, w, first, size=size, initial=[initial_h], run=run)
    return outputs, states[0]


def _unrolled(
    call: Call,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    size: int,
    initial: Sequence[Tensor | None],
    run: Callable[[int, Tensor, Sequence[Tensor]], list[Tensor]],
) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs `[T, D, N, H]` of all steps and the last states `[D, N, H]`, in the node's layout."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if one is None else one.transpose(0, 1) for one in initial]
    directions, lasts = [], []
    for d in range(w.shape[0]):
        # The inputs of all steps at once: one large product in place of T small ones.
        inputs = x @ w[d].T if bias is None else x @ w[d].T + bias[d]
        zero = inputs.new_zeros((x.shape[1], size))
        states = [zero if one is None else one[d] for one in initial]
        backwards = call.get("direction", "forward") == "reverse" or d == 1
        steps = range(x.shape[0] - 1, -1, -1) if backwards else range(x.shape[0])
        hidden: list[Tensor] = [zero] * x.shape[0]
        for step in steps:
            states = run(d, inputs[step], states)
            hidden[step] = states[0]
        directions.append(torch.stack(hidden))
        lasts.append(states)
    outputs = torch.stack(directions, dim=1)
    last = [torch.stack([one[k] for one in lasts]) for k in range(len(initial))]
    if batch_first:
        return outputs.permute(2, 0, 1, 3), [one.transpose(0, 1) for one in last]
    return outputs, last


# Quantization


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `exact`.

    Source: Bengio, Leonard, Courville 2013, "Estimating or Propagating Gradients Through
    Stochastic Neurons", section 4.
    """
    return exact + (rounded - exact).detach()


def on_grid(x: Tensor, scale: Tensor, zero: Tensor | float, limits: tuple[int, int]) -> Tensor:
    """Return whole numbers `clip(round(x / scale) + zero)` as floating point, with the gradient of the clip alone."""
    steps = x / scale
    return torch.clamp(straight_through(steps, torch.round(steps)) + zero, *limits)


def along(x: Tensor, scale: Tensor, call: Call) -> Tensor:
    """Return a scale or zero point such that it broadcasts over `x`: for all, by channel of `axis`, or by block."""
    if scale.numel() == 1:
        return scale.reshape(())
    axis = call.get("axis", 1) % x.dim()
    if scale.dim() == 1 and not call.get("block_size", 0):
        return scale.reshape([-1 if k == axis else 1 for k in range(x.dim())])
    return scale.repeat_interleave(call.attributes["block_size"], dim=axis).narrow(axis, 0, x.shape[axis])


def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear of whole numbers in any type, also floating point."""
    values = x.to(scale.dtype)
    if zero is not None:
        values = values - along(x, zero.to(scale.dtype), call)
    return values * along(x, scale, call)


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear; the whole numbers stay floating point, so that a gradient can pass."""
    offset = 0.0 if zero is None else along(x, zero.to(x.dtype), call)
    return on_grid(x, along(x, scale, call), offset, call.limits)
