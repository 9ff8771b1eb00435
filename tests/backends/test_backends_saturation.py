"""Where 8-bit sums saturate is found by running: natively, with instructions taken away, and in an emulator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgewise.backends import registry, saturation
from edgewise.backends.processor import exact_product_bits, features, is_x86
from edgewise.backends.saturation import LAYERS, STEP, WIDTHS, exact_sums, exactness, probe, weights, wrong_layers
from edgewise.errors import BackendError, BackendMissingError
from edgewise.records.candidate import RunOptions
from edgewise.records.tensors import Array, Feeds, Outputs, Port

QEMU = shutil.which("qemu-x86_64")
DEPTHWISE = {"depthwise_3x3", "depthwise_5x5"}
"""Both runtimes widen to 32 bits before they add in these."""

SCRIPT = Path(__file__).with_name("saturating_net.py")


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """What a process found out once must not reach the next test."""
    saturation._FOUND.clear()


def answers(command: list[str], backend: str, **environment: str) -> dict[str, Any]:
    """Return what `saturating_net.py` prints in a process of its own."""
    result = subprocess.run(
        [*command, sys.executable, str(SCRIPT), backend],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


class Imitation:
    """A backend that sums in numpy; pairs of neighbours saturate where the test says so."""

    name = "imitation"

    def __init__(self, *, pairs: bool, wrong: str = "", error: Exception | None = None) -> None:
        self.pairs, self.wrong, self.error, self.compiled = pairs, wrong, error, 0

    def compile(self, model: Any, options: RunOptions) -> Any:
        assert options.threads == 1
        self.compiled += 1
        if self.error is not None:
            raise self.error
        return model

    def open(self, model: Any) -> Any:
        return ImitationSession(self, model)


class ImitationSession:
    def __init__(self, backend: Imitation, model: Any) -> None:
        self.backend = backend
        self.constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
        self.inputs = tuple(
            Port(name=value.name, dtype="float32", shape=tuple(value.shape)) for value in model.graph.inputs
        )
        self.closed = False

    def run(self, feeds: Feeds) -> Outputs:
        return {name: self._answer(name, feeds[f"x_{name}"]) for name in LAYERS}

    def _answer(self, name: str, x: Array) -> Array:
        layer, weight = LAYERS[name], self.constants[f"weight_{name}"].astype(np.int64)
        rows = weight.T if layer.operator == "MatMul" else weight.reshape(weight.shape[0], -1)
        products = rows * int(x.flat[0])
        if self.backend.pairs:
            products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
            products = (products[:, ::2] + products[:, 1::2]).clip(-(2**15), 2**15 - 1)
        sums = products.sum(axis=1) + (40_000 if name == self.backend.wrong else 0)
        rounded = np.clip(np.rint(sums / STEP), -128, 127) * STEP
        shape = (-1, 1, 1) if layer.operator == "Conv" else (-1,)
        return np.broadcast_to(rounded.reshape(shape), layer.output).astype(np.float32)

    def close(self) -> None:
        self.closed = True


def test_pairs_that_saturate_are_found_in_every_layer_and_seven_bits_are_exact() -> None:
    backend: Any = Imitation(pairs=True)
    found = exactness(backend)
    assert (found.bits, found.measured, found.source) == (7, True, "measured")
    assert found.saturated == tuple(LAYERS)
    assert wrong_layers(backend, 7) == ()


def test_exact_sums_allow_eight_bits_and_are_asked_for_once() -> None:
    backend: Any = Imitation(pairs=False)
    assert exactness(backend) == exactness(backend) == saturation.Exactness(bits=8, measured=True)
    assert backend.compiled == 1


def test_a_layer_that_is_always_wrong_says_nothing_about_saturation() -> None:
    backend: Any = Imitation(pairs=False, wrong="conv_in_groups")
    found = exactness(backend)
    assert not found.measured
    assert "`conv_in_groups` is wrong even where no sum can saturate" in found.source
    assert found.bits == exact_product_bits(features(), x86=is_x86())


@pytest.mark.parametrize(
    "error", [BackendMissingError("It is not there."), BackendError("It refuses."), ImportError("libtbb.so")]
)
def test_a_runtime_that_cannot_run_the_probe_leaves_the_flags_and_says_so(error: Exception) -> None:
    backend: Any = Imitation(pairs=False, error=error)
    found = exactness(backend)
    assert found.bits == exact_product_bits(features(), x86=is_x86())
    assert not found.measured
    assert found.source == f"by the processor's flags: {str(error).splitlines()[0]}"


@pytest.mark.parametrize("activation_type", ["uint8", "int8"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_exact_sums_fit_the_outputs_and_a_pair_does_not_fit_sixteen_bits(bits: int, activation_type: Any) -> None:
    largest = int(np.iinfo(activation_type).max)
    for layer in LAYERS.values():
        values = weights(layer, bits).astype(np.int64)
        assert values.max() == -values.min() == 2 ** (bits - 1) - 1
        assert np.abs(exact_sums(layer, bits, activation_type)).max() < 127 * STEP
        pair = 2 * largest * int(values.max())
        if activation_type == "uint8":
            assert (pair > 2**15 - 1 + 30 * STEP) == (bits == 8)
        else:
            assert pair <= 2**15 - 1  # signed activations cannot saturate a pair


def test_the_probe_is_a_legal_model_with_known_shapes() -> None:
    proto = ir.serde.serialize_model(probe(8, "uint8"))
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in inferred.graph.output
    }
    assert shapes == {name: layer.output for name, layer in LAYERS.items()}


def test_the_reference_evaluator_sums_exactly() -> None:
    assert wrong_layers(registry.get("reference"), 8) == ()


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_the_target_says_what_was_measured(name: str) -> None:
    backend = registry.get(name)
    try:
        backend.version()
    except BackendMissingError as error:
        pytest.skip(str(error))
    found = exactness(backend, "uint8" if is_x86() else "int8")
    assert found.measured, found.reason
    target = backend.target()
    assert (target.exact_product_bits, target.exact_product_source) == (found.bits, "measured")
    assert not DEPTHWISE.intersection(found.saturated)


@pytest.mark.skipif(not is_x86(), reason="ONEDNN_MAX_CPU_ISA names instruction sets of x86.")
def test_openvino_without_dot_products_saturates_and_seven_bits_do_not() -> None:
    pytest.importorskip("openvino")
    found = answers([], "openvino", ONEDNN_MAX_CPU_ISA="AVX2")
    assert (found["bits"], found["source"]) == (7, "measured")
    assert set(found["saturated"]) == set(LAYERS) - DEPTHWISE
    # Measured: 8 bits are .034 of the largest output away from their own exact arithmetic, 7 bits .007 (a step).
    assert found["deviation"]["8"] > 3 * found["deviation"]["7"]
    assert found["sqnr_db"]["7"] > found["sqnr_db"]["8"] + 2


@pytest.mark.slow
@pytest.mark.skipif(not is_x86(), reason="An emulator of this processor's own kind is needed.")
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed: `apt-get install qemu-user` brings it.")
def test_onnx_runtime_saturates_on_a_haswell_and_seven_bits_do_not() -> None:
    assert QEMU is not None
    found = answers([QEMU, "-cpu", "Haswell"], "ort")
    # The emulator shows the flags of the processor that it runs on: asking them would have said 8 on this machine.
    assert (found["bits"], found["source"]) == (7, "measured")
    assert set(found["saturated"]) == set(LAYERS) - DEPTHWISE
    assert found["deviation"]["8"] > 0.05
    assert found["deviation"]["7"] < 1e-5
    assert found["sqnr_db"]["7"] > found["sqnr_db"]["8"] + 10
