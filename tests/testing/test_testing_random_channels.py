"""Random networks run and use every operator; zeroed units are zero where they are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgewise.analysis.coupling import Axis, Coupling, Group, Reader
from edgewise.errors import ContractError
from edgewise.passes.contract import signature
from edgewise.records.tensors import Outputs
from edgewise.testing.channel_images import IMAGE_STEPS
from edgewise.testing.channel_sequences import SEQUENCE_STEPS
from edgewise.testing.graphs import GraphBuilder, lstm_net, random_feeds
from edgewise.testing.random_channels import random_channels
from edgewise.testing.zeroed_units import zeroed


def run(model: ir.Model) -> Outputs:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(random_feeds(model))), strict=True))


@pytest.mark.parametrize("step", [*IMAGE_STEPS, *SEQUENCE_STEPS])
def test_every_step_alone(step: str) -> None:
    for seed in range(4):
        for array in run(random_channels(seed, steps=3, only={step})).values():
            assert np.isfinite(array).all()


def test_all_steps_together() -> None:
    seen: set[str] = set()
    for seed in range(60):
        model = random_channels(seed)
        seen |= {node.op_type for node in model.graph}
        for array in run(model).values():
            assert np.isfinite(array).all()
    assert seen >= {"Conv", "ConvTranspose", "LSTM", "GRU", "Softmax", "DepthToSpace", "Gather", "Slice", "Split"}


def test_a_seed_is_a_network() -> None:
    def text(seed: int) -> str:
        return str(ir.to_proto(random_channels(seed)))

    assert text(3) == text(3)
    assert text(3) != text(4)


def group(reader: Reader, *axes: Axis) -> Coupling:
    return Coupling((Group("g", 3, axes, (reader,), ("make",)),), ())


def product() -> ir.Model:
    b = GraphBuilder("product")
    value = b.node("MatMul", b.input("x", (2, 4)), b.constant(np.eye(4, 3, dtype=np.float32)), name="make")
    b.output(b.node("MatMul", value, b.constant(np.eye(3, dtype=np.float32)), name="read"), "y", (2, 3))
    return b.build()


def test_units_are_zero_where_they_are_read() -> None:
    model = product()
    before = signature(model)
    coupling = group(Reader("read", 0, 1, 1), Axis("make_out", 1, np.arange(3)))
    (array,) = run(zeroed(model, {"g": [0, 2]}, coupling)).values()
    np.testing.assert_array_equal(array[:, [0, 2]], 0)
    np.testing.assert_array_equal(array[:, 1], run(model)["y"][:, 1])
    assert signature(model) == before
    assert signature(zeroed(model, {}, coupling)) == before


def test_hidden_units_are_left_out_of_the_recurrent_weights() -> None:
    model = lstm_net(hidden=3)
    recurrent = next(node for node in model.graph if node.op_type == "LSTM").inputs[2]
    assert recurrent is not None
    assert recurrent.name is not None
    coupling = group(Reader("lstm", 5, 2, 2), Axis(recurrent.name, 2, np.arange(3)))
    after = zeroed(model, {"g": [1]}, coupling).graph.initializers[recurrent.name].const_value
    assert after is not None
    np.testing.assert_array_equal(after.numpy()[:, :, 1], 0)
    assert (after.numpy()[:, :, [0, 2]] != 0).all()


def test_couplings_that_do_not_fit() -> None:
    axis = Axis("make_out", 1, np.arange(3))
    with pytest.raises(ContractError, match="`nobody` is none"):
        zeroed(product(), {"g": [0]}, group(Reader("nobody", 0, 1, 1), axis))
    with pytest.raises(ContractError, match="along axis 0 of `make_out`"):
        zeroed(product(), {"g": [0]}, group(Reader("read", 0, 0, 1), axis))
    model = product()
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    with pytest.raises(ContractError, match="rank of `make_out`"):
        zeroed(model, {"g": [0]}, group(Reader("read", 0, 1, 1), axis))
    b = GraphBuilder("fed")
    weights = [b.weight(1, 12, 2), b.input("r", (1, 12, 3))]
    b.output(b.node("LSTM", b.input("x", (2, 1, 2)), *weights, name="lstm", hidden_size=3), "y")
    with pytest.raises(ContractError, match="recurrent weights of `lstm`"):
        zeroed(b.build(), {"g": [0]}, group(Reader("lstm", 5, 2, 2), Axis("r", 2, np.arange(3))))
