"""What every backend has to do.

A backend's test subclasses the kit and names itself::

    class TestOrt(BackendKit):
        backend = "ort"

A backend whose runtime is not installed is skipped, with the command that installs it.
"""

# ruff: noqa: S101 - these are tests, which ship so that backends made elsewhere can run them

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact, ArtifactSpec, Backend
from edgewise.errors import BackendError, BackendMissingError, BundleError, DataError, RecipeError
from edgewise.records.candidate import RunOptions
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Array, Feeds, Outputs
from edgewise.testing import backend_cases, graphs, tolerance
from edgewise.testing.backend_cases import EDGES, MODELS, OPERATORS, Case
from edgewise.testing.graphs import GraphBuilder, random_feeds

_DEVICE_FORBIDDEN = ("onnx", "onnx_ir", "onnxscript", "scipy", "pydantic", "torch")


class BackendKit:
    """Tests of one backend.

    Attributes:
        backend: Its key in the registry.
        model_error: Largest distance from the reference on the whole graphs of the kit.
    """

    backend: ClassVar[str]
    model_error: ClassVar[float] = float(20 * 2 * tolerance.gamma(129, tolerance.UNIT_ROUNDOFF["float32"]))
    """20 layers, each with sums of 128 terms and values of order one, whose errors add up."""

    @pytest.fixture
    def runtime(self) -> Backend:
        """The backend, or a skip that says what is missing."""
        found = registry.get(self.backend)
        try:
            found.version()
        except BackendMissingError as error:
            pytest.skip(str(error))
        return found

    # -- numbers -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", OPERATORS, ids=lambda case: case.name)
    def test_operator_agrees_with_the_reference(self, runtime: Backend, case: Case) -> None:
        """Each operator, at sizes around the powers of two, stays within the bound of its arithmetic."""
        model = case.model()
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)
        received = run(runtime, model, feeds)
        for name, reference in expected.items():
            assert received[name].shape == reference.shape
            assert received[name].dtype == reference.dtype
            assert_within(received[name], reference, _bound(case, model, feeds, name, reference))

    @pytest.mark.parametrize("name", MODELS)
    def test_whole_graph_agrees_with_the_reference(self, runtime: Backend, name: str) -> None:
        """Graphs of every kind run and agree."""
        model = MODELS[name]()
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)
        received = run(runtime, model, feeds)
        assert list(received) == [value.name for value in model.graph.outputs]
        for output, reference in expected.items():
            assert_within(received[output], reference, np.full(reference.shape, self.model_error))

    @pytest.mark.parametrize("activation", ["uint8", "int8"])
    @pytest.mark.parametrize("channels", EDGES)
    def test_int8_convolution_is_within_one_step(self, runtime: Backend, channels: int, activation: str) -> None:
        """QDQ convolutions round as the specification does, up to ties."""
        self._within_one_step(runtime, graphs.quantized_conv(channels=channels, activation=activation))

    @pytest.mark.parametrize("activation", ["uint8", "int8"])
    @pytest.mark.parametrize("features", [*EDGES, 255, 256, 257])
    def test_int8_matrix_product_is_within_one_step(self, runtime: Backend, features: int, activation: str) -> None:
        """QDQ matrix products likewise, of batches too."""
        self._within_one_step(runtime, graphs.quantized_gemm(features=features, activation=activation, batch=3))

    @pytest.mark.parametrize("opset", [13, 17, 19, 21])
    def test_int8_graphs_of_every_operator_set_run(self, runtime: Backend, opset: int) -> None:
        """The Q/DQ operators changed in operator sets 13, 19 and 21."""
        self._within_one_step(runtime, graphs.quantized_conv(opset=opset))

    def _within_one_step(self, runtime: Backend, model: ir.Model) -> None:
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)["y"]
        received = run(runtime, model, feeds)["y"]
        assert_within(received, expected, np.full(expected.shape, tolerance.one_step(1 / 16)))
        # Ties are rare: a kernel that is off by one everywhere is wrong.
        assert np.mean(received != expected) < 0.01 + 2 / expected.size

    # -- options -----------------------------------------------------------------------------------------------------

    def test_fp32_is_fp32_and_bf16_is_bf16(self, runtime: Backend) -> None:
        """A precision is what was asked for: neither silently better nor silently worse."""
        case = Case("matmul", lambda: backend_cases.matrix(16, 256, 64), 256)
        model = case.model()
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)["y"]
        fp32 = np.abs(run(runtime, model, feeds)["y"] - expected)
        bound = _bound(case, model, feeds, "y", expected)
        assert (fp32 <= bound).all()
        if "bf16" in runtime.precisions():
            bf16 = np.abs(run(runtime, model, feeds, RunOptions(precision="bf16"))["y"] - expected)
            assert (bf16 <= _bound(case, model, feeds, "y", expected, inputs="bfloat16")).all()
            # One rounding of a result to 8 bits of mantissa alone exceeds every error that float32 may have.
            assert bf16.max() > bound.max()

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_weight_only_products_keep_float_activations(self, runtime: Backend, bits: int) -> None:
        """8-bit activations, which runtimes take here unless told otherwise, exceed the bound."""
        model = graphs.weight_only_matmul(bits=bits, inner=256)
        if runtime.why_not(model):
            pytest.skip(f"`{self.backend}` does not run weight-only {bits}-bit products")
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)["y"]
        largest = float(np.abs(feeds["x"]).max()) * 256**0.5  # weights are at most 1 / sqrt(inner)
        bound = tolerance.sum_of_products(np.full(expected.shape, largest), 256)
        assert_within(run(runtime, model, feeds)["y"], expected, bound)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("block", [0, 16])
    def test_integer_weights_stay_integers(self, runtime: Backend, bits: int, block: int) -> None:
        """Weights of few bits take few bits in the artifact, and give the reference's numbers; or they are refused."""
        model = graphs.weight_only_net(channels=64, bits=bits, block=block)
        if runtime.why_not(model):
            with pytest.raises(BackendError):
                runtime.compile(model, RunOptions())
            return
        wide = graphs.weight_only_net(channels=64, bits=8, block=block)
        saved = runtime.compile(wide, RunOptions()).size_bytes - runtime.compile(model, RunOptions()).size_bytes
        weights = 64 * (64 * (9 + 1 + 4) + 9 + 10)
        assert saved >= 0.98 * weights * (8 - bits) / 8 - 512
        feeds = random_feeds(model)
        expected = run(registry.get("reference"), model, feeds)["scores"]
        # Sums of 9 x 64 terms.
        bound = np.full(expected.shape, 4.5 * self.model_error)
        assert_within(run(runtime, model, feeds)["scores"], expected, bound)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_precisions_that_are_not_honoured_are_refused(
        self, runtime: Backend, precision: Literal["fp32", "bf16"]
    ) -> None:
        """`precisions()` and `compile` agree."""
        if precision in runtime.precisions():
            runtime.compile(graphs.mlp(), RunOptions(precision=precision))
        else:
            with pytest.raises(RecipeError, match=precision):
                runtime.compile(graphs.mlp(), RunOptions(precision=precision))

    @pytest.mark.parametrize("level", ["off", "all"])
    def test_graph_optimization_is_honoured_or_refused(self, runtime: Backend, level: Literal["off", "all"]) -> None:
        """Either level gives right numbers, or is refused by its name."""
        model = graphs.conv_net()
        feeds = random_feeds(model)
        try:
            received = run(runtime, model, feeds, RunOptions(graph_optimization=level))["scores"]
        except RecipeError as error:
            assert level in error.message  # noqa: PT017 - a refusal is one of the two right answers
            return
        expected = run(registry.get("reference"), model, feeds)["scores"]
        assert_within(received, expected, np.full(expected.shape, self.model_error))

    def test_threads_are_honoured_or_refused(self, runtime: Backend) -> None:
        """Two threads give the results of one, or are refused; none are refused."""
        model = graphs.conv_net(channels=32)
        feeds = random_feeds(model)
        with pytest.raises(RecipeError, match="0"):
            runtime.compile(model, RunOptions(threads=0))
        try:
            two = run(runtime, model, feeds, RunOptions(threads=2))["scores"]
        except RecipeError as error:
            assert "2" in error.message  # noqa: PT017 - a refusal is one of the two right answers
            return
        one = run(runtime, model, feeds)["scores"]
        assert_within(two, one, np.full(one.shape, self.model_error * 3))  # sums of 9 x 32 terms

    def test_the_target_is_possible(self, runtime: Backend) -> None:
        """What the target says of itself does not contradict itself."""
        target = runtime.target()
        assert target.backend == runtime.name == self.backend
        assert target.exact_product_bits in (7, 8)
        assert target.same_range_operators <= target.quantized_operators
        assert target.float_output_operators <= target.quantized_operators
        assert target.float_types[0] == "float32"
        assert target.width_steps >= 1
        assert runtime.precisions()[0] == "fp32"

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def test_an_artifact_survives_the_disk(self, runtime: Backend, tmp_path: Path) -> None:
        """Written, its spec as JSON beside it, read back, opened: the same numbers."""
        model = graphs.two_input_net(batch="batch")
        feeds = random_feeds(model)
        artifact = runtime.compile(model, RunOptions())
        artifact.write(tmp_path)
        spec = decode(encode(artifact.spec), ArtifactSpec)
        again = Artifact.read(tmp_path, spec)
        assert again == artifact
        assert artifact.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        np.testing.assert_array_equal(runtime.open(again).run(feeds)["y"], runtime.open(artifact).run(feeds)["y"])

    def test_tampering_is_noticed(self, runtime: Backend, tmp_path: Path) -> None:
        """A changed byte, a cut and a missing file are refused."""
        artifact = runtime.compile(graphs.mlp(), RunOptions())
        for name, data in artifact.files.items():
            for damaged in (data[:-1], bytes([data[0] ^ 1]) + data[1:]):
                artifact.write(tmp_path)
                (tmp_path / name).write_bytes(damaged)
                with pytest.raises(BundleError, match=name):
                    Artifact.read(tmp_path, artifact.spec)
            artifact.write(tmp_path)
            (tmp_path / name).unlink()
            with pytest.raises(BundleError, match=name):
                Artifact.read(tmp_path, artifact.spec)

    @pytest.mark.parametrize("name", MODELS)
    def test_the_same_model_gives_the_same_bytes(self, runtime: Backend, name: str) -> None:
        """Also after other models were compiled in between."""
        first = runtime.compile(MODELS[name](), RunOptions())
        runtime.compile(graphs.conv_net(seed=1), RunOptions())
        assert runtime.compile(MODELS[name](), RunOptions()).spec == first.spec

    def test_compiling_leaves_the_model_as_it_was(self, runtime: Backend) -> None:
        """The model belongs to the caller."""
        model = graphs.conv_net()
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        runtime.compile(model, RunOptions())
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    def test_half_weights_stay_half(self, runtime: Backend) -> None:
        """Weights that are stored as float16 are float16 in the artifact: size is why they are."""
        artifact = runtime.compile(graphs.half_weights_net(), RunOptions())
        assert artifact.size_bytes < 64 * 64 * 4

    # -- errors ------------------------------------------------------------------------------------------------------

    def test_an_unknown_operator_is_named(self, runtime: Backend) -> None:
        """`why_not` names the node and its operator; `compile` fails with an error of ours."""
        model = graphs.custom_operator_net()
        declines = runtime.why_not(model)
        assert [(decline.stage, decline.node, decline.operator) for decline in declines] == [
            (self.backend, "frobnicate", "example.com::Frobnicate")
        ]
        assert declines[0].reason
        with pytest.raises(BackendError, match="Frobnicate"):
            runtime.compile(model, RunOptions())

    @pytest.mark.parametrize("name", MODELS)
    def test_what_runs_has_no_reason_not_to(self, runtime: Backend, name: str) -> None:
        """`why_not` is empty for all graphs of the kit."""
        assert runtime.why_not(MODELS[name]()) == ()

    def test_a_damaged_artifact_is_an_error_of_ours(self, runtime: Backend) -> None:
        """Whatever the runtime raises on opening."""
        artifact = runtime.compile(graphs.mlp(), RunOptions())
        for damaged in (b"", b"not a model", next(iter(artifact.files.values()))[:100]):
            files = dict.fromkeys(artifact.files, damaged)
            with pytest.raises(BackendError):
                runtime.open(Artifact(artifact.spec, files)).run(random_feeds(graphs.mlp()))

    def test_wrong_feeds_are_named(self, runtime: Backend) -> None:
        """The message has the input, what has to be and what came; the session goes on working."""
        model = graphs.two_input_net(batch="batch")
        session = runtime.open(runtime.compile(model, RunOptions()))
        good = random_feeds(model)
        left = good["left"]
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"left": left}, "`right`"),
            ({**good, "more": left}, "`more`"),
            ({"left": left, "wrong": good["right"]}, "`wrong`"),
            ({**good, "left": left.astype(np.float64)}, "`left`.*float32.*float64"),
            ({**good, "left": left[:, :4].copy()}, r"`left`.*\[batch, 6\].*\[2, 4\]"),
            ({**good, "left": left[0]}, r"`left`.*\[batch, 6\].*\[6\]"),
            ({**good, "left": np.asfortranarray(left)}, "`left`.*C-contiguous"),
            ({**good, "left": left.tolist()}, "`left`.*list"),
        ]
        for feeds, message in wrong:
            with pytest.raises(DataError, match=message):
                session.run(feeds)
        assert session.run(good)["y"].shape == (2, 5)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def test_arrays_belong_to_the_caller(self, runtime: Backend) -> None:
        """Outputs do not change in a later run, inputs never; changing an output changes nothing else."""
        b = GraphBuilder("ownership")
        x = b.input("x", (2, 3))
        b.output(b.node("Relu", x, name="relu"), "y", (2, 3))
        b.output(b.node("Identity", x, name="same"), "z", (2, 3))
        b.output(b.node("Identity", b.constant(np.ones((2, 3), np.float32)), name="fixed"), "c", (2, 3))
        model = b.build()
        session = runtime.open(runtime.compile(model, RunOptions()))
        first_input = np.full((2, 3), 5, np.float32)
        first = session.run({"x": first_input})
        kept = {name: array.copy() for name, array in first.items()}
        session.run({"x": np.full((2, 3), 7, np.float32)})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            array[:] = -1
        np.testing.assert_array_equal(first_input, 5)
        again = session.run({"x": first_input})
        for name, array in again.items():
            np.testing.assert_array_equal(array, kept[name])

    def test_read_only_arrays_can_be_fed(self, runtime: Backend) -> None:
        """Memory-mapped samples are such."""
        model = graphs.mlp()
        feeds = random_feeds(model)
        expected = run(runtime, model, feeds)["probabilities"]
        feeds["x"].flags.writeable = False
        np.testing.assert_array_equal(run(runtime, model, feeds)["probabilities"], expected)

    def test_one_session_takes_several_sizes(self, runtime: Backend) -> None:
        """Growing, shrinking, equal again."""
        model = graphs.transformer_block(batch="batch")
        session = runtime.open(runtime.compile(model, RunOptions()))
        reference = registry.get("reference")
        judge = reference.open(reference.compile(model, RunOptions()))
        for batch in (1, 3, 2, 1):
            feeds = random_feeds(model, dynamic=batch)
            expected = judge.run(feeds)["out"]
            assert_within(session.run(feeds)["out"], expected, np.full(expected.shape, self.model_error))

    @pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "uint8", "float16", "bfloat16", "float64"])
    @pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
    def test_element_types_pass_through(self, runtime: Backend, dtype: str, shape: tuple[int, ...]) -> None:
        """Inputs and outputs of every common type, scalars too."""
        b = GraphBuilder("types")
        x = b.input("x", shape, dtype)
        b.output(b.node("Unsqueeze", x, b.constant(np.array([0]))), "y", (1, *shape), dtype)
        feeds = random_feeds(b.build())
        received = run(runtime, b.build(), feeds)["y"]
        assert received.dtype == feeds["x"].dtype
        # Precision `fp32` promises no more than float32, also for float64.
        kept = np.dtype(np.float32) if dtype == "float64" else received.dtype
        np.testing.assert_array_equal(received.astype(kept), feeds["x"][np.newaxis].astype(kept))

    @pytest.mark.parametrize("rows", [0, 1])
    def test_empty_outputs_are_arrays(self, runtime: Backend, rows: int) -> None:
        """Zero detections are an answer."""
        b = GraphBuilder("empty")
        x = b.input("x", (1, 4))
        where = b.node("NonZero", b.node("Greater", x, b.constant(np.float32(1))))
        b.output(where, "indices", (2, "n"), "int64")
        feeds: dict[str, Array] = {"x": np.array([[0, 0, 0, 2 * rows]], np.float32)}
        received = run(runtime, b.build(), feeds)["indices"]
        assert received.shape == (2, rows)
        assert received.dtype == np.int64

    def test_unused_inputs_and_skipped_optional_ones(self, runtime: Backend) -> None:
        """An input that nothing reads is still fed; an optional input of a node may be left out."""
        b = GraphBuilder("optional")
        b.input("unused", (2,))
        clipped = b.node("Clip", b.input("x", (3,)), "", b.constant(np.float32(0)), name="clip")
        b.output(clipped, "y", (3,))
        feeds: dict[str, Array] = {"unused": np.zeros(2, np.float32), "x": np.array([-1, 0, 1], np.float32)}
        np.testing.assert_array_equal(run(runtime, b.build(), feeds)["y"], [-1, 0, 0])

    def test_ports_are_those_of_the_graph(self, runtime: Backend) -> None:
        """Names, types and shapes, in order."""
        session = runtime.open(runtime.compile(graphs.two_input_net(batch="n"), RunOptions()))
        assert [(port.name, port.dtype, port.shape) for port in session.inputs] == [
            ("left", "float32", ("n", 6)),
            ("right", "float32", ("n", 3)),
        ]
        assert [(port.name, port.dtype, port.shape) for port in session.outputs] == [("y", "float32", ("n", 5))]

    def test_the_profile_has_each_executed_layer_once(self, runtime: Backend) -> None:
        """Names are unique, times positive; or the backend gives none at all."""
        model = graphs.conv_net()
        layers = runtime.profile(runtime.compile(model, RunOptions()), random_feeds(model), 3)
        assert len({layer.node for layer in layers}) == len(layers)
        assert all(layer.time_us is not None and layer.time_us >= 0 for layer in layers)
        if layers:
            assert sum(cast("float", layer.time_us) for layer in layers) > 0
            assert any("Conv" in layer.operator for layer in layers)

    def test_opening_needs_no_optimizer(self, runtime: Backend) -> None:
        """On a device there is neither onnx nor onnx_ir: importing the session code must not ask for them."""
        code = (
            f"import sys; import edgewise.backends.registry as r; r.get({runtime.name!r}).version();"
            f"import edgewise.backends.{runtime.name}.session;"
            f"print(*[name for name in {_DEVICE_FORBIDDEN!r} if name in sys.modules])"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert loaded == []

    def test_specs_are_refused_with_unknown_fields(self, runtime: Backend) -> None:
        """A spec of a newer edgewise is not read as if it were understood."""
        text = encode(runtime.compile(graphs.mlp(), RunOptions()).spec)
        with pytest.raises(msgspec.ValidationError):
            decode(text.replace(b'{"backend"', b'{"new": 1, "backend"'), ArtifactSpec)


def run(backend: Backend, model: ir.Model, feeds: Feeds, options: RunOptions | None = None) -> Outputs:
    """Compile, open, run once, close."""
    session = backend.open(backend.compile(model, options or RunOptions()))
    try:
        return session.run(feeds)
    finally:
        session.close()


def assert_within(received: Array, expected: Array, bound: Array) -> None:
    """Assert that each element lies within its own bound, and say where it does not."""
    assert received.shape == expected.shape
    distance = np.abs(received.astype(np.float64) - expected.astype(np.float64))
    beyond = np.argwhere(~(distance <= bound))
    if beyond.size:
        worst = tuple(int(index) for index in beyond[0])
        pytest.fail(
            f"{len(beyond)} of {distance.size} elements are too far off. First: {worst}, received "
            f"{received[worst]}, expected {expected[worst]}, allowed {bound[worst]:.3g}"
        )


def _bound(
    case: Case,
    model: ir.Model,
    feeds: Feeds,
    output: str,
    expected: Array,
    *,
    inputs: Literal["float32", "bfloat16"] = "float32",
) -> Array:
    if case.terms < 0:
        return tolerance.approximated(expected)
    if case.terms == 0:
        # At most one addition or multiplication: each side rounds once.
        return np.asarray(2 * tolerance.UNIT_ROUNDOFF["float32"] * np.abs(expected))
    magnitudes = {name: np.abs(array) for name, array in feeds.items()}
    magnitude = run(registry.get("reference"), backend_cases.absolute(model), magnitudes)[output]
    return tolerance.sum_of_products(magnitude, case.terms, inputs=inputs)
