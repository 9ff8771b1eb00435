"""Makes OpenVINO artifacts: OpenVINO IR, so that the device needs no conversion from ONNX."""

from __future__ import annotations

import html
import re
import tempfile
from operator import contains
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgewise.backends.isolation import node_name, operator, refused_nodes
from edgewise.backends.openvino import session
from edgewise.backends.openvino.fusions import meets_wrong_fusion
from edgewise.backends.ports import input_ports, output_ports
from edgewise.backends.protocol import Artifact
from edgewise.backends.serialization import MODEL_FILE, onnx_files
from edgewise.backends.words import refused, trimmed
from edgewise.errors import EdgewiseError, OutputError, RecipeError
from edgewise.records.candidate import RunOptions
from edgewise.records.findings import Decline

_MADE_UP_NAME = re.compile(r'(?P<before><layer id="\d+" name=")(?P<name>(?P<kind>[A-Z][A-Za-z0-9]*)_\d+)"')
_WIDE = ir.DataType.UINT16, ir.DataType.INT16
_FAILED_NODE = re.compile(r"<Node\((?P<operator>[^)]*)\): (?P<name>[^>]*)>")


def compile_model(model: ir.Model, options: RunOptions, *, precisions: tuple[str, ...]) -> Artifact:
    """Return `model` as an artifact. The same model gives the same bytes.

    Args:
        model: The graph; it is not changed.
        options: How it will run.
        precisions: Values of `RunOptions.precision` that are honoured here.

    Raises:
        RecipeError: If an option cannot be honoured.
        BackendError: If OpenVINO refuses the model.
    """
    _check(options, precisions)
    inputs, outputs = input_ports(model), output_ports(model)
    converted = _converted(model)
    _check_names(converted, {port.name for port in inputs}, [port.name for port in outputs])
    if meets_wrong_fusion(model):
        converted.set_rt_info(session.DISABLE, session.SNIPPETS)  # the device opens it without our analysis
    artifact = Artifact.of(
        _ir_files(converted, _user_names(model)), backend="openvino", options=options, inputs=inputs, outputs=outputs
    )
    session.OpenVinoSession(artifact).close()
    return artifact


def why_not(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that OpenVINO's ONNX reader or its CPU plugin refuses, each with OpenVINO's reason.

    Where it is not one node's fault, one finding for the whole model. Quantization to 16 bits is refused here, because
    OpenVINO does not say that it leaves it out.
    """
    if wide := _wide_quantization(model):
        return wide
    words = _refusal(model)
    if words is None:
        return ()
    nodes = refused_nodes(model, "openvino", lambda alone: None if (said := _refusal(alone)) is None else trimmed(said))
    return nodes or _nodes_named_in(words, model) or _recurrent_nodes(words, model) or (_whole(words),)


def _wide_quantization(model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that quantize to 16 bits.

    The CPU plugin takes them out of the graph, and with them their saturation: outputs leave their range (measured with
    2026.4.1: 11.6 where 4.0 is the end). It may go with the version in which
    `tests/backends/test_backends_openvino_session.py` fails without it.
    """
    return tuple(
        Decline(
            stage="openvino",
            node=node_name(node),
            operator=operator(node),
            reason="OpenVINO leaves out quantization to 16 bits on a CPU, and values then exceed their range",
        )
        for node in model.graph.all_nodes()
        if node.op_type == "QuantizeLinear" and _is_wide(node)
    )


def _is_wide(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return any(value is not None and value.dtype in _WIDE for value in (zero, node.outputs[0]))


def _check(options: RunOptions, precisions: tuple[str, ...]) -> None:
    if options.precision not in precisions:
        raise RecipeError(
            f"Backend `openvino` computes in {' or '.join(f'`{name}`' for name in precisions)} on this machine. "
            f"Received precision `{options.precision}`.",
            hint="bf16 needs a processor with AVX512-BF16, AMX or Arm's BF16; `edgewise doctor` shows what there is.",
        )
    if options.graph_optimization != "all":
        raise RecipeError(
            f"Backend `openvino` always rewrites the graph. Received graph_optimization "
            f"`{options.graph_optimization}`.",
            hint="Backend `ort` can run a graph as it is written.",
        )
    if options.threads < 1:
        raise RecipeError(f"The number of threads has to be at least 1. Received {options.threads}.")


def _converted(model: ir.Model) -> Any:
    """Return OpenVINO's form of `model`.

    Raises:
        BackendError: If its ONNX reader refuses the model.
    """
    files = onnx_files(model)
    core = session.core()
    try:
        if len(files) == 1:
            return core.read_model(files[MODEL_FILE], b"")
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            return core.read_model(Path(folder) / MODEL_FILE)
    except Exception as error:
        raise refused(session.SAYS, "converting the model", error) from error


def _ir_files(converted: Any, keep: frozenset[str]) -> dict[str, bytes]:
    """Return the two files of OpenVINO IR, with the names in `keep`. Weights have the types that the graph has."""
    converted.set_friendly_name("model")
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path = Path(folder) / session.GRAPH_FILE
        try:
            session.runtime().save_model(converted, path, compress_to_fp16=False)
        except RuntimeError as error:  # what its streams give where the disk is full
            raise OutputError(
                f"OpenVINO has to write its files to `{folder}` first, but it could not: {error}.",
                hint="Free some space, or name another folder for temporary files with TMPDIR.",
            ) from error
        text = path.read_text(encoding="utf-8")
        weights = (path.parent / session.WEIGHTS_FILE).read_bytes()
    return {session.GRAPH_FILE: _renamed(text, keep).encode(), session.WEIGHTS_FILE: weights}


def _renamed(text: str, keep: frozenset[str]) -> str:
    """Return OpenVINO's XML with stable names for the layers that it made up, those in subgraphs included.

    The number in such a name (`Multiply_3723`) counts up in the process: equal models would get unequal files.
    """
    stable: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        name = match["name"]
        if html.unescape(name) in keep:
            return match[0]
        made = stable.setdefault(name, f"{session.MADE_UP}{match['kind']}_{len(stable)}")
        return f'{match["before"]}{made}"'

    return _MADE_UP_NAME.sub(rename, text)


def _user_names(model: ir.Model) -> frozenset[str]:
    names = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph.all_nodes():
        names.add(node.name)
        names.update(value.name for value in node.outputs)
    return frozenset(name for name in names if name)


def _check_names(converted: Any, inputs: set[str], outputs: list[str]) -> None:
    """Check that tensors are where sessions look for them: inputs by name, outputs by position.

    Raises:
        BackendError: If OpenVINO renamed, reordered or added one. It may drop inputs that nothing reads.
    """
    strange = [sorted(port.get_names()) for port in converted.inputs if not inputs.intersection(port.get_names())]
    received = [port.get_names() for port in converted.outputs]
    kept = len(received) == len(outputs) and all(map(contains, received, outputs))
    if strange or not kept:
        found = ValueError(f"inputs {strange} are not the model's, or outputs {outputs} became {received}")
        raise refused(session.SAYS, "converting the model", found)


def _refusal(model: ir.Model) -> str | None:
    """Return OpenVINO's full words where it cannot convert and compile `model`, or None where it can."""
    try:
        converted = _converted(model)
        session.core().compile_model(converted, "CPU", session.properties(RunOptions()))
    except EdgewiseError as error:
        return str(error.__cause__ or error)
    except RuntimeError as error:
        return str(error)
    return None


def _nodes_named_in(words: str, model: ir.Model) -> tuple[Decline, ...]:
    """Return the nodes that the converter's report blames, each once, with the sentence that follows it."""
    parts = list(_FAILED_NODE.finditer(words))
    known = {node_name(node): node for node in model.graph.all_nodes()}
    declines: dict[str, Decline] = {}
    for index, part in enumerate(parts):
        end = parts[index + 1].start() if index + 1 < len(parts) else len(words)
        reason = trimmed(words[part.end() : end].removeprefix("':").strip().partition("\n\n")[0])
        name = part["name"]
        kind = operator(known[name]) if name in known else part["operator"]
        declines.setdefault(name, Decline(stage="openvino", node=name, operator=kind, reason=reason))
    return tuple(declines.values())


def _recurrent_nodes(words: str, model: ir.Model) -> tuple[Decline, ...]:
    """Return the recurrent nodes with activations of their own, where OpenVINO complains of an activation.

    It names none: they are LSTMs that it has taken apart by then, and alone, with a sequence of unknown length, it
    does not take them apart.
    """
    if "Unsupported activation function" not in words:
        return ()
    return tuple(
        Decline(
            stage="openvino",
            node=node_name(node),
            operator=operator(node),
            reason=f"OpenVINO has no `{'`, `'.join(node.attributes['activations'].as_strings())}` as its activations",
        )
        for node in model.graph.all_nodes()
        if node.op_type in ("LSTM", "GRU", "RNN") and "activations" in node.attributes
    )


def _whole(words: str) -> Decline:
    return Decline(stage="openvino", node="", operator="", reason=trimmed(words))
