"""What ONNX Runtime is told, beyond what the kit can see in results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.backends.ort import session
from edgewise.backends.protocol import ArtifactSpec
from edgewise.errors import BackendError
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import decode, encode
from edgewise.testing import graphs

ORT = registry.get("ort")


def test_threads_are_set_and_stop_spinning() -> None:
    options = session.session_options(RunOptions(threads=3))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("level", "operators"),
    [("off", ["BatchNormalization", "Conv", "Relu"]), ("all", ["Conv"])],
)
def test_off_runs_the_graph_as_it_is_written(level: Any, operators: list[str]) -> None:
    model = graphs.conv_net()
    layers = ORT.profile(ORT.compile(model, RunOptions(graph_optimization=level)), graphs.random_feeds(model), 1)
    assert sorted({layer.operator for layer in layers} & {"BatchNormalization", "Conv", "Relu"}) == operators
    if level == "off":
        assert [layer.node for layer in layers] == [node.name for node in model.graph]


def test_nodes_in_a_branch_are_part_of_their_if() -> None:
    model = graphs.branching_net()
    options = RunOptions(graph_optimization="off")
    layers = ORT.profile(ORT.compile(model, options), graphs.random_feeds(model), 3)
    assert [layer.operator for layer in layers] == ["ReduceMean", "Greater", "If"]


def test_profiling_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ORT.profile(ORT.compile(graphs.mlp(), RunOptions()), graphs.random_feeds(graphs.mlp()), 1)
    assert list(tmp_path.iterdir()) == []


def test_warnings_do_not_reach_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """A weight that is also an input makes onnxruntime warn, once for each."""
    model = graphs.mlp()
    model.graph.inputs.append(next(iter(model.graph.initializers.values())))
    ORT.open(ORT.compile(model, RunOptions()))
    with pytest.raises(BackendError):
        ORT.compile(graphs.custom_operator_net(), RunOptions())
    assert ORT.why_not(graphs.custom_operator_net())
    assert capfd.readouterr().err == ""


def test_a_failure_while_running_is_ours() -> None:
    """Gather out of range is found by the kernel, not by the check of feeds."""
    b = graphs.GraphBuilder("gather")
    b.output(b.node("Gather", b.constant(np.zeros(3, np.float32)), b.input("i", (1,), "int64"), name="pick"), "y", (1,))
    running = ORT.open(ORT.compile(b.build(), RunOptions()))
    with pytest.raises(BackendError, match=r"ONNX Runtime failed at running the model.*indices"):
        running.run({"i": np.array([7])})


def test_several_unknown_operators_are_all_listed() -> None:
    b = graphs.GraphBuilder("two_unknown")
    value = b.node("Frobnicate", b.input("x", (1, 4)), name="first", domain="example.com")
    value = b.node("Relu", value, name="between")
    b.output(b.node("Unheard", value, name="second", domain="example.com"), "y", (1, 4))
    assert [decline.node for decline in ORT.why_not(b.build())] == ["first", "second"]


def test_a_type_without_a_kernel_is_listed_with_its_node() -> None:
    """Selu exists for float only: the schema allows float64, the CPU provider does not."""
    b = graphs.GraphBuilder("double")
    b.output(b.node("Selu", b.input("x", (2,), "float64"), name="selu"), "y", (2,), "float64")
    declines = ORT.why_not(b.build())
    assert [(decline.node, decline.operator) for decline in declines] == [("selu", "Selu")]


def test_one_finding_for_the_whole_model_where_no_node_is_to_blame() -> None:
    """Two values of one name: each node alone is fine."""
    model = ir.to_proto(graphs.mlp())
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    assert session.refusal(model.SerializeToString()) is not None


@pytest.mark.parametrize(
    ("model", "kernel"), [(graphs.quantized_conv, "QLinearConv"), (graphs.quantized_gemm, "QLinearMatMul")]
)
def test_quantized_operators_run_in_8_bits(model: Callable[[], ir.Model], kernel: str) -> None:
    layers = ORT.profile(ORT.compile(model(), RunOptions()), graphs.random_feeds(model()), 1)
    assert kernel in {layer.operator for layer in layers}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_weights_become_float_once(bits: int) -> None:
    model = graphs.weight_only_net(bits=bits)
    artifact = ORT.compile(model, RunOptions())
    assert artifact.spec.float_weights
    executed = {layer.operator for layer in ORT.profile(artifact, graphs.random_feeds(model), 1)}
    assert "Conv" in executed
    assert "DequantizeLinear" not in executed


def test_an_artifact_from_before_the_choice_of_float_weights_is_read() -> None:
    artifact = ORT.compile(graphs.mlp(), RunOptions())
    assert not artifact.spec.float_weights
    old = encode(artifact.spec).replace(b',"float_weights":false', b"")
    assert old != encode(artifact.spec)
    assert decode(old, ArtifactSpec) == artifact.spec


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (partial(graphs.weight_only_matmul, bits=8), True),
        (partial(graphs.weight_only_matmul, bits=4, rows=4), True),
        # Its own 4-bit kernel is the faster one.
        (partial(graphs.weight_only_matmul, bits=4, rows=1), False),
        (partial(graphs.weight_only_matmul, bits=8, rows=1), True),
        (graphs.quantized_conv, False),
        (graphs.quantized_gemm, False),
        (graphs.conv_net, False),
    ],
    ids=["8 bits", "4 bits", "4 bits, one row", "8 bits, one row", "conv", "gemm", "float"],
)
def test_float_weights_are_for_float_activations(model: Callable[[], ir.Model], expected: bool) -> None:
    assert ORT.compile(model(), RunOptions()).spec.float_weights is expected


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_float_layer_between_quantized_tensors_keeps_its_float_weights(operator: str) -> None:
    """ONNX Runtime would round them to 8 bits with one scale, though the graph says float.

    One weight is a hundred times larger than the others, which rounding like that would make zero. All that may differ
    between the graph as it is written and the optimized one is on which side of half a step a sum of float32 lies.
    """
    b = graphs.GraphBuilder("float_between")
    draw = np.random.default_rng(0)
    convolution = operator == "Conv"
    weight = draw.standard_normal((8, 8, 3, 3) if convolution else (8, 8)).astype(np.float32) / 8
    weight.flat[0] = 12.5
    shape = (1, 8, 6, 6) if convolution else (1, 8)
    one, other = np.float32(1 / 32), np.float32(1 / 16)
    options: dict[str, Any] = {"pads": [1, 1, 1, 1]} if convolution else {"transB": 1}

    def pair(value: str, step: np.float32) -> str:
        grid = (b.constant(step), b.constant(np.uint8(128)))
        return b.node("DequantizeLinear", b.node("QuantizeLinear", value, *grid), *grid)

    value = pair(b.input("x", shape), one)
    value = b.node(operator, value, b.constant(weight), b.constant(np.zeros(8, np.float32)), name="float", **options)
    b.output(pair(value, other), "y", shape)
    model = b.build()
    feeds = graphs.random_feeds(model)
    written, optimized = (
        ORT.open(ORT.compile(model, RunOptions(graph_optimization=level))).run(feeds)["y"] for level in ("off", "all")
    )
    assert np.abs(written - optimized).max() <= other
    assert np.mean(written != optimized) < 0.1
