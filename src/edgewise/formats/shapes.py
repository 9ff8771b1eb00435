"""Shapes: which dimensions of a model are open, and how they are fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgewise.errors import ModelError, RecipeError
from edgewise.formats import weightless
from edgewise.formats.onnx import STANDARD_DOMAINS

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class DynamicDimension:
    """A dimension of an input that the file leaves open.

    Attributes:
        input: Name of the input.
        axis: Index of the dimension.
        name: Its name, or None where it has none.
        is_batch: Whether it is taken for the batch, which is set to 1. This is a guess: the first dimension of an
            input is taken for it, and so is every dimension of that name.
    """

    input: str
    axis: int
    name: str | None
    is_batch: bool


def dynamic_dimensions(model: ir.Model) -> tuple[DynamicDimension, ...]:
    """Return the open dimensions of the inputs, in order.

    Raises:
        ModelError: If an input has no known rank.
    """
    shapes = {_name(value): _declared(value) for value in model.graph.inputs}
    batch_names = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], str)}
    return tuple(
        DynamicDimension(name, axis, size, is_batch=axis == 0 or (size is not None and size in batch_names))
        for name, shape in shapes.items()
        for axis, size in enumerate(shape)
        if not isinstance(size, int)
    )


def require_static(model: ir.Model, shapes: Mapping[str, Shape]) -> None:
    """Check that every open dimension other than the batch is decided by `shapes`.

    Raises:
        RecipeError: If one is not; the hint has the option to give.
        ModelError: If an input has no known rank.
    """
    names = {
        size
        for value in model.graph.inputs
        if (given := shapes.get(_name(value))) is not None
        for size, decided in zip(_declared(value), given, strict=False)
        if isinstance(size, str) and decided is not None
    }
    missing: dict[str, list[DynamicDimension]] = {}
    for dimension in dynamic_dimensions(model):
        if not dimension.is_batch and dimension.input not in shapes and dimension.name not in names:
            missing.setdefault(dimension.input, []).append(dimension)
    if not missing:
        return
    inputs = {_name(value): _declared(value) for value in model.graph.inputs}
    open_ = ", ".join(f"`{name}` [{_written(inputs[name])}]" for name in missing)
    options = " ".join(f"--shape {name}={_example(inputs[name])}" for name in missing)
    raise RecipeError(
        f"Every dimension except the batch has to be known. These inputs leave some open: {open_}.",
        hint=f"Give sizes for the letters, or `?` for one that stays open: {options}",
    )


def parse_shape(text: str) -> tuple[str, Shape]:
    """Return the input's name and shape that `x=1,3,48,?` or `x=1x3x48x?` says; `?` is None and stays open.

    An input without dimensions is `x=`.

    Raises:
        RecipeError: If `text` has another form.
    """
    name, equals, rest = text.rpartition("=")
    words = [word.strip() for word in re.split(r"[,x]", rest.strip())] if rest.strip() else []
    sizes = [None if word == "?" else int(word) if re.fullmatch(r"[0-9]{1,9}", word) else -1 for word in words]
    if not equals or not name.strip() or any(size is not None and size < 1 for size in sizes):
        raise RecipeError(
            f"A shape has to be written NAME=D1,D2,... with whole numbers of at least 1, or `?` for a dimension that "
            f"stays open. Received `{text}`.",
            hint="For example --shape x=1,3,48,320 or --shape x=1x3x48x?",
        )
    return name.strip(), tuple(sizes)


def fix_shapes(model: ir.Model, shapes: Mapping[str, Shape], *, batch: int | None = 1) -> ir.Model:
    """Return a copy with the inputs' shapes fixed and the shapes of all values inferred. Weights are shared.

    Weights that lie in other files stay mapped into memory, but the copy no longer names those files.

    Dimensions of one name get one size everywhere. What is neither the batch (see `dynamic_dimensions`) nor in
    `shapes` stays open.

    Args:
        model: The model; it is not changed.
        shapes: Shape by input name; None keeps a dimension open.
        batch: Size of the batch where `shapes` does not decide it; None keeps it open.

    Raises:
        RecipeError: If there is no such input, its rank or a fixed dimension differs, one name would get two sizes,
            or the operators do not fit the shapes.
        ModelError: If an input has no known rank.
    """
    inputs = {_name(value): _declared(value) for value in model.graph.inputs}
    sizes = _sizes_by_name(inputs, shapes)
    for dimension in dynamic_dimensions(model):
        if dimension.is_batch and dimension.name is not None and batch is not None:
            kept = shapes.get(dimension.input, ())
            if dimension.axis >= len(kept):
                sizes.setdefault(dimension.name, batch)
    fixed = model.clone()
    weightless.mapped(fixed)
    for value in fixed.graph.inputs:
        name = _name(value)
        value.shape = ir.Shape(_fixed(inputs[name], shapes.get(name), sizes, batch))
    for value in fixed.graph.outputs:
        if value.shape is not None:
            value.shape = ir.Shape([_substituted(size, sizes) for size in value.shape])
    infer_shapes(fixed, strict=bool(shapes) and _infers(model))
    return fixed


def infer_shapes(model: ir.Model, *, strict: bool = False) -> None:
    """Infer shape and type of every value of `model`, in place, from those of its inputs.

    Shapes of intermediate values that the file states are forgotten first: they may be those of another batch. Where
    nothing can be inferred a value has no shape, and an output keeps the one that it had.

    Args:
        model: The model.
        strict: Whether a node that does not fit the shapes of its inputs is an error, rather than of unknown shape.

    Raises:
        RecipeError: If `strict` and a node does not fit.
    """
    declared = {value: value.shape for value in model.graph.outputs}
    _forget(model)
    try:
        proto = onnx.shape_inference.infer_shapes(
            weightless.to_proto(model), check_type=False, strict_mode=strict, data_prop=True
        )
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise RecipeError(
            f"The operators have to fit the shapes of the inputs, but: {' '.join(str(error).split())}",
            hint="Give the shapes for which the model was made with --shape.",
        ) from error
    inferred = ir.from_proto(proto)
    for own, other in zip(model.graphs(), inferred.graphs(), strict=True):
        found = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(own).items():
            if name not in found or value.const_value is not None:
                continue
            if found[name].type is not None:
                value.type = found[name].type
            if (shape := found[name].shape) is not None:
                value.shape = ir.Shape(shape.dims)
    for value, shape in declared.items():
        value.shape = _merged(value.shape, shape)


def _infers(model: ir.Model) -> bool:
    """Return whether strict inference accepts the model as it is, so that an error later is the shapes' fault."""
    try:
        infer_shapes(model.clone(), strict=True)
    except RecipeError:
        return False
    return True


def _forget(model: ir.Model) -> None:
    """Drop the shape of every value that a standard operator computes; others could not be inferred again."""
    for node in model.graph.all_nodes():
        if node.domain in STANDARD_DOMAINS:
            for value in node.outputs:
                value.shape = None


def _merged(inferred: ir.Shape | None, declared: ir.Shape | None) -> ir.Shape | None:
    """Return what was inferred, completed by what the file declares where the ranks agree."""
    if inferred is None:
        return declared
    if declared is None or len(declared) != len(inferred):
        return inferred
    return ir.Shape([
        mine if isinstance(mine, int) else stated for mine, stated in zip(inferred, declared, strict=True)
    ])  # fmt: skip


def _sizes_by_name(inputs: Mapping[str, tuple[int | str | None, ...]], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the size of every named dimension that `shapes` decides, after checking `shapes`."""
    sizes: dict[str, int] = {}
    for name, given in shapes.items():
        if name not in inputs:
            raise RecipeError(
                f"`--shape` has to name an input of the model. Received `{name}`; the inputs are "
                f"{', '.join(f'`{known}`' for known in inputs)}.",
                hint="`edgewise inspect` shows the inputs and their shapes.",
            )
        declared = inputs[name]
        clash = RecipeError(
            f"The shape of the input `{name}` has to fit [{_written(declared)}], as the file says. "
            f"Received [{_written(given)}].",
            hint="Only dimensions that the file leaves open can be set; export the model again for another shape.",
        )
        if len(declared) != len(given):
            raise clash
        for stated, size in zip(declared, given, strict=True):
            if isinstance(stated, int) and size not in {stated, None}:
                raise clash
            if isinstance(stated, str) and size is not None and sizes.setdefault(stated, size) != size:
                raise RecipeError(
                    f"The dimension `{stated}` has to have one size wherever it occurs. Received {sizes[stated]} and "
                    f"{size} (input `{name}`)."
                )
    return sizes


def _fixed(
    declared: tuple[int | str | None, ...], given: Shape | None, sizes: Mapping[str, int], batch: int | None
) -> list[int | str | None]:
    """Return one input's shape: what is given first, then the size of the dimension's name, then the batch."""
    fixed: list[int | str | None] = []
    for axis, stated in enumerate(declared):
        if isinstance(stated, int):
            fixed.append(stated)
        elif given is not None:
            size = given[axis]
            fixed.append(stated if size is None else size)
        elif isinstance(stated, str) and stated in sizes:
            fixed.append(sizes[stated])
        else:
            fixed.append(batch if axis == 0 and batch is not None else stated)
    return fixed


def _substituted(size: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | str | None:
    if isinstance(size, int):
        return size
    return size.value if size.value not in sizes else sizes[str(size.value)]


def _declared(value: ir.Value) -> tuple[int | str | None, ...]:
    if value.shape is None:
        raise ModelError(
            f"Every input has to have a known number of dimensions. `{value.name}` has none.",
            hint="Export the model with a shape for each input; dimensions may be dynamic.",
        )
    return tuple(size if isinstance(size, int) else size.value or None for size in value.shape)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _written(shape: tuple[int | str | None, ...]) -> str:
    return ", ".join("?" if size is None else str(size) for size in shape)


def _example(shape: tuple[int | str | None, ...]) -> str:
    """Return a shape for a hint: 1 for the batch, a letter for every other open dimension."""
    letters = iter("HWDTKLMN")
    return ",".join(
        str(size) if isinstance(size, int) else "1" if axis == 0 else next(letters, "N")
        for axis, size in enumerate(shape)
    )
