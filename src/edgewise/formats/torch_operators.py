"""The ONNX operators that have a form in PyTorch, as a table. Adding one is a function and a line in `OPERATORS`.

The formulas are those of the ONNX standard from opset 13 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from edgewise.formats import torch_layers as layers
from edgewise.formats.torch_layers import Call, at_most_one_output
from edgewise.formats.torch_missing import missing
from edgewise.formats.torch_resize import resize, why_not_resize

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise missing() from error

Tensor: TypeAlias = "torch.Tensor"


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        run: Takes a call and the operands, None for those that are left out; gives one output or several.
        why_not: Returns why a node is refused, or None.
        fixed: Indices of operands that are settings rather than weights: they are never trained.
        host: Indices of operands that Python reads: they need not lie on the device.
    """

    run: Callable[..., Tensor | Sequence[Tensor]]
    why_not: Callable[[Call], str | None] = at_most_one_output
    fixed: frozenset[int] = frozenset()
    host: frozenset[int] = frozenset()


def torch_type(kind: int | ir.DataType) -> Any:
    """Return the PyTorch type of an ONNX element type."""
    data_type = ir.DataType(kind)
    if data_type == ir.DataType.BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, data_type.numpy())).dtype


def _integers(x: Tensor | None) -> list[int]:
    """Return what a tensor of shapes, axes or places holds."""
    return [] if x is None else [int(n) for n in x.reshape(-1).tolist()]


# Element by element


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return Operator(lambda _, x: function(x))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda _, x, y: function(x, y))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda _, *x: reduce(function, x))


def _mean(_: Call, *x: Tensor) -> Tensor:
    return reduce(torch.add, x) / len(x)


def _div(_: Call, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if call.get("fmod", 0) else torch.remainder(x, y)


def _clip(_: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low.reshape(()))
    return x if high is None else torch.minimum(x, high.reshape(()))


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.6732632423543772), call.get("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def _elu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, call.get("alpha", 1.0) * torch.expm1(torch.clamp(x, max=0)))


def _celu(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return torch.clamp(x, min=0) + torch.clamp(alpha * torch.expm1(torch.clamp(x, max=0) / alpha), max=0)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _thresholded(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, call.get("alpha", 0.01) * x)


def _cast(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    return x.to(torch_type(call.attributes["to"]))


# Products and sums


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    product = a @ b
    if (alpha := call.get("alpha", 1.0)) != 1:
        product = alpha * product
    if c is None:
        return product
    beta = call.get("beta", 1.0)
    return product + (c if beta == 1 else beta * c)


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        asked = list(call.get("axes", ())) or _integers(axes)
        if not asked and call.get("noop_with_empty_axes", 0):
            return x
        chosen = tuple(axis % x.dim() for axis in asked) or tuple(range(x.dim()))
        return function(x, chosen, bool(call.get("keepdims", 1)))

    return Operator(run, host=frozenset({1}))


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _best(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(call: Call, x: Tensor) -> Tensor:
        return function(x, dim=call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))

    return run


def _why_not_best(call: Call) -> str | None:
    return "it takes the last of equal ones" if call.get("select_last_index", 0) else None


def _cumulated(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    dim = _integers(axis)[0]
    x = x.flip(dim) if call.get("reverse", 0) else x
    sums = torch.cumsum(x, dim) - (x if call.get("exclusive", 0) else 0)
    return sums.flip(dim) if call.get("reverse", 0) else sums


def _einsum(call: Call, *x: Tensor) -> Tensor:
    return torch.einsum(call.attributes["equation"], *x)


# Shapes and places


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    asked = _integers(shape)
    if not call.get("allowzero", 0):
        asked = [x.shape[k] if n == 0 else n for k, n in enumerate(asked)]
    return x.reshape(asked)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis]), -1)


def _squeeze(_: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = {axis % x.dim() for axis in _integers(axes)} or {k for k, n in enumerate(x.shape) if n == 1}
    return x.reshape([n for k, n in enumerate(x.shape) if k not in chosen])


def _unsqueeze(_: Call, x: Tensor, axes: Tensor) -> Tensor:
    new = _integers(axes)
    rank = x.dim() + len(new)
    for axis in sorted(axis % rank for axis in new):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(tuple(call.get("perm", range(x.dim() - 1, -1, -1))))


def _concat(call: Call, *x: Tensor) -> Tensor:
    return torch.cat(x, dim=call.attributes["axis"])


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = call.get("axis", 0)
    if sizes is not None:
        return list(torch.split(x, _integers(sizes), dim=axis))
    whole = x.shape[axis]
    size = math.ceil(whole / call.outputs)
    return list(torch.split(x, [min(size, max(0, whole - k * size)) for k in range(call.outputs)], dim=axis))


def _slice(_: Call, x: Tensor, starts: Tensor, ends: Tensor, *more: Tensor | None) -> Tensor:
    first, last = _integers(starts), _integers(ends)
    axes = _integers(more[0]) if more and more[0] is not None else list(range(len(first)))
    steps = _integers(more[1]) if len(more) > 1 and more[1] is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, axes, steps, strict=True):
        chosen = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, chosen.start, max(0, chosen.stop - chosen.start))
            x = x if step == 1 else x[tuple([slice(None)] * (axis % x.dim()) + [slice(None, None, step)])]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.dim()
    places = torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64))


def _pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts = _integers(pads)
    chosen = _integers(axes) or list(range(x.dim()))
    half = len(amounts) // 2
    mode = call.get("mode", "constant")
    for axis, begin, end in zip(chosen, amounts[:half], amounts[half:], strict=True):
        axis %= x.dim()  # noqa: PLW2901 - the same axis, counted from the front
        if begin == end == 0:
            continue
        if mode == "constant":
            fill = 0.0 if value is None else value.reshape(()).item()
            x = functional.pad(x, [0, 0] * (x.dim() - 1 - axis) + [begin, end], value=fill)
            continue
        kept = np.arange(max(0, -begin), x.shape[axis] - max(0, -end))
        places = np.pad(kept, (max(0, begin), max(0, end)), mode=mode)
        x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _expand(_: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_integers(shape))))


def _tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_integers(repeats))


def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(tuple(x.shape)[call.get("start", 0) : call.get("end", None)], dtype=torch.int64)


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value", None)
    filled = torch.zeros(1) if value is None else torch.from_numpy(value.numpy().copy())
    return filled.reshape(-1)[0].expand(_integers(shape)).clone()


def _range(_: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else _integers(k)[0]
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.attributes["blocksize"]
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.attributes["blocksize"]
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


_EVERY: Final = frozenset(range(16))
_BUT_FIRST: Final = _EVERY - {0}


def _any(_: Call) -> None:
    """Refuse nothing."""


OPERATORS: Final[dict[str, Operator]] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": Operator(_best(torch.argmax), _why_not_best),
    "ArgMin": Operator(_best(torch.argmin), _why_not_best),
    "Asin": _unary(torch.asin),
    "Atan": _unary(torch.atan),
    "AveragePool": Operator(layers.average_pool, layers.why_not_average_pool),
    "BatchNormalization": Operator(layers.batch_norm, layers.why_not_batch_norm, frozenset({3, 4})),
    "Cast": Operator(_cast),
    "CastLike": Operator(lambda _, x, y: x.to(y.dtype), fixed=_BUT_FIRST),
    "Ceil": _unary(torch.ceil),
    "Celu": Operator(_celu),
    "Clip": Operator(_clip, fixed=_BUT_FIRST),
    "Concat": Operator(_concat),
    "ConstantOfShape": Operator(_constant_of_shape, host=_EVERY),
    "Conv": Operator(layers.conv),
    "ConvTranspose": Operator(layers.conv_transpose),
    "Cos": _unary(torch.cos),
    "CumSum": Operator(_cumulated, host=_BUT_FIRST),
    "DepthToSpace": Operator(_depth_to_space),
    "DequantizeLinear": Operator(layers.dequantize, fixed=_BUT_FIRST),
    "Div": Operator(_div),
    "Dropout": Operator(lambda _, x, *__: x, fixed=_BUT_FIRST),
    "Einsum": Operator(_einsum),
    "Elu": Operator(_elu),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": Operator(_expand, host=_BUT_FIRST),
    "Flatten": Operator(_flatten),
    "Floor": _unary(torch.floor),
    "GRU": Operator(layers.gru, layers.why_not_recurrent),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "Gelu": Operator(_gelu),
    "Gemm": Operator(_gemm),
    "GlobalAveragePool": Operator(layers.global_average),
    "GlobalMaxPool": Operator(layers.global_max),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "GroupNormalization": Operator(layers.group_norm, layers.why_not_group_norm),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": Operator(layers.instance_norm),
    "LSTM": Operator(layers.lstm, layers.why_not_recurrent),
    "LayerNormalization": Operator(layers.layer_norm),
    "LeakyRelu": Operator(_leaky_relu),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": Operator(lambda call, x: torch.log_softmax(x, dim=call.get("axis", -1))),
    "MatMul": _binary(torch.matmul),
    "Max": _variadic(torch.maximum),
    "MaxPool": Operator(layers.max_pool),
    "Mean": Operator(_mean),
    "Min": _variadic(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mod": Operator(_mod),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _binary(lambda x, slope: torch.where(x >= 0, x, slope * x)),
    "Pad": Operator(_pad, fixed=_BUT_FIRST, host=_BUT_FIRST),
    "Pow": Operator(lambda _, x, y: torch.pow(x, y).to(x.dtype), fixed=_BUT_FIRST),
    "QuantizeLinear": Operator(layers.quantize, fixed=_BUT_FIRST),
    "RMSNormalization": Operator(layers.rms_norm),
    "Range": Operator(_range, fixed=_EVERY, host=_EVERY),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep).sqrt()),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep)),
    "Relu": _unary(torch.relu),
    "Reshape": Operator(_reshape, host=_BUT_FIRST),
    "Resize": Operator(resize, why_not_resize, _BUT_FIRST, _BUT_FIRST),
    "Round": _unary(torch.round),
    "Selu": Operator(_selu),
    "Shape": Operator(_shape, fixed=_EVERY),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Size": Operator(lambda _, x: torch.tensor(x.numel()), fixed=_EVERY),
    "Slice": Operator(_slice, host=_BUT_FIRST),
    "Softmax": Operator(lambda call, x: torch.softmax(x, dim=call.get("axis", -1))),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split, _any, host=_BUT_FIRST),
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": Operator(_squeeze, host=_BUT_FIRST),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": Operator(_thresholded),
    "Tile": Operator(_tile, host=_BUT_FIRST),
    "Transpose": Operator(_transpose),
    "Trilu": Operator(_trilu, host=_BUT_FIRST),
    "Unsqueeze": Operator(_unsqueeze, host=_BUT_FIRST),
    "Where": Operator(lambda _, condition, x, y: torch.where(condition, x, y)),
    "Xor": _binary(torch.logical_xor),
}
"""By the operator's name in the standard domain."""
