from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.analysis.target import Target
from edgewise.compress.quantize import affine, output_error, ranges
from edgewise.compress.quantize.output_error import choose_ranges
from edgewise.compress.quantize.placement import label, place
from edgewise.compress.quantize.plan import observed_tensors
from edgewise.compress.quantize.ranges import Range
from edgewise.compress.runner import Opener
from edgewise.compress.statistics import Statistics, collect, observe
from edgewise.errors import ContractError, DataError, RecipeError
from edgewise.records.tensors import Array, Feeds, Outputs, Run
from edgewise.testing.graphs import GraphBuilder, branching_net, conv_net, depthwise_net, random_feeds, two_input_net

MakeRun = Callable[[ir.Model], Run]
Values = npt.NDArray[np.float32]


@pytest.fixture
def opener(ort_run: MakeRun) -> Opener:
    @contextmanager
    def opened(model: ir.Model) -> Iterator[Run]:
        yield ort_run(model)

    return opened


def seen(model: ir.Model, target: Target, run: MakeRun, feeds: Sequence[Feeds]) -> Statistics:
    names = observed_tensors(model, target)
    return collect(run(observe(model, names)), feeds, names)


def dense(weight: Values, bias: Values | None = None, *, relu: bool = False) -> ir.Model:
    """`x` `[rows, K]` times `weight` `[K, M]`, and an activation behind it."""
    b = GraphBuilder("dense")
    operands = [b.input("x", ("rows", weight.shape[0])), b.constant(weight, "w")]
    y = b.node("Gemm", *operands, *([] if bias is None else [b.constant(bias, "b")]), name="gemm")
    b.output(b.node("Relu", y, name="relu") if relu else y, "y", ("rows", weight.shape[1]))
    return b.build()


def round_trip(x: Values, chosen: Range, dtype: str = "uint8") -> Values:
    scale, zero = affine.parameters(*chosen, dtype)
    return affine.dequantize_array(affine.quantize_array(x, scale, zero, dtype), scale, zero)


@settings(deadline=None, max_examples=100)
@given(
    values=hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    ends=st.tuples(st.floats(-1e6, 0), st.floats(0, 1e6)),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
)
def test_rounding_is_that_of_the_runtime(values: Values, ends: Range, dtype: str) -> None:
    parameters = affine.parameters(*ends, dtype)
    ours = affine.round_trip(values, *parameters, dtype)
    np.testing.assert_array_equal(ours, round_trip(values, ends, dtype))


def spiked(weight_of_spike: float, n: int = 40) -> tuple[ir.Model, list[dict[str, Array]]]:
    """A layer of normal features beside one that is 20 times as large, and that counts as `weight_of_spike` says."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((8, 4)).astype(np.float32)
    weight[0] = weight_of_spike
    x = random.standard_normal((n, 1, 8)).astype(np.float32)
    x[:, :, 0] = 20.0
    return dense(weight), [{"x": sample} for sample in x]


def test_what_the_layer_does_not_read_is_clipped(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    for weight, clipped in ((0.0, True), (1.0, False)):
        model, feeds = spiked(weight)
        statistics = seen(model, needs_output_pairs, ort_run, feeds)
        low, high = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
        # A value of 20 that nobody reads costs resolution, and one that is read costs far more where it is clipped.
        assert (high < 15) == clipped
        assert low < -1.5
        # At the tensor both look alike: the error by clipping prevails.
        tensor = statistics.tensors["x"]
        assert ranges.choose("mse", tensor.histogram, tensor.low, tensor.high)[1] > 15


def test_errors_that_a_fused_relu_cuts_off_do_not_count(
    ort_run: MakeRun, opener: Opener, needs_output_pairs: Target
) -> None:
    weight = np.zeros((8, 4), np.float32)
    weight[1:, 1:] = np.random.default_rng(5).standard_normal((7, 3))
    weight[0, 0] = 1.0  # Only the first output reads the spike ...
    bias = np.array([-1000, 0, 0, 0], np.float32)  # ... and is never positive.
    _, feeds = spiked(1.0)
    for relu, clipped in ((True, True), (False, False)):
        model = dense(weight, bias, relu=relu)
        statistics = seen(model, needs_output_pairs, ort_run, feeds)
        # The relative error of -980 is small as well: without the bias the spike would prevail.
        chosen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
        assert (chosen[1] < 15) == clipped


@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_is_better_at_the_output(
    seed: int, ort_run: MakeRun, opener: Opener, needs_output_pairs: Target
) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((8, 6)) * np.geomspace(0.01, 1, 8)[:, None]).astype(np.float32)
    x = random.standard_t(3, (30, 2, 8)).astype(np.float32)
    model, feeds = dense(weight, relu=True), [{"x": sample} for sample in x]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    chosen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds, samples=30)["x"]

    def error(one: Range) -> float:
        """The reference: everything at once, in float64."""
        truth = np.maximum(x.astype(np.float64) @ weight, 0)
        return float(np.square(np.maximum(round_trip(x, one).astype(np.float64) @ weight, 0) - truth).sum())

    tensor = statistics.tensors["x"]
    tried = ranges.candidates(tensor.histogram, tensor.low, tensor.high)
    assert chosen in tried
    # The correction of clipping is nearly nothing where all samples are tried: bins are 1 / 4096 of the range.
    assert error(chosen) <= 1.02 * min(map(error, tried))


def test_clipping_that_the_samples_do_not_show_is_taken_from_all_of_them(
    ort_run: MakeRun, opener: Opener, needs_output_pairs: Target
) -> None:
    model, _ = spiked(1.0)
    random = np.random.default_rng(9)
    x = random.uniform(-1, 1, (200, 1, 8)).astype(np.float32)
    x[100:, :, 3] = 2.0  # Every sample that is not tried.
    feeds = [{"x": sample} for sample in x]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    low, high = choose_ranges(model, needs_output_pairs, statistics, opener, feeds, samples=16)["x"]
    assert high > 1.8
    assert low > -1.001


def residual_net(*, concat: bool = False) -> ir.Model:
    """Convolutions around a sum or a Concat, pooling and a Gemm."""
    b = GraphBuilder("residual", seed=4)
    x = b.input("x", (1, 3, 8, 8))
    stem = b.node("Relu", b.node("Conv", x, b.weight(6, 3, 3, 3), pads=[1, 1, 1, 1], name="stem"), name="stem_relu")
    inner = b.node("Conv", stem, b.weight(6, 6, 3, 3), pads=[1, 1, 1, 1], name="inner")
    if concat:
        pooled = b.node("MaxPool", stem, kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="pool")
        joined = b.node("Concat", stem, pooled, inner, axis=1, name="join")
    else:
        joined = b.node("Add", stem, inner, name="join")
    last = b.node("Conv", joined, b.weight(5, 18 if concat else 6, 1, 1), name="last")
    mean = b.node("Flatten", b.node("GlobalAveragePool", last, name="mean"), name="flat")
    b.output(b.node("Gemm", mean, b.weight(4, 5), transB=1, name="head"), "y", (1, 4))
    return b.build()


NETS = {
    "sum": residual_net,
    "concat": lambda: residual_net(concat=True),
    "conv": conv_net,
    "depthwise": depthwise_net,
    "two inputs": two_input_net,
    "branches": branching_net,
}


@pytest.mark.parametrize(("target_name", "bits"), [("needs_output_pairs", 8), ("gives_float", 16)])
@pytest.mark.parametrize("net", NETS)
def test_every_site_gets_a_range_and_groups_get_one(
    net: str, target_name: str, bits: int, request: pytest.FixtureRequest, ort_run: MakeRun
) -> None:
    opener: Opener = request.getfixturevalue("opener")
    model, target = NETS[net](), request.getfixturevalue(target_name)
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    statistics = seen(model, target, ort_run, feeds)
    chosen = choose_ranges(model, target, statistics, opener, feeds, bits=bits)
    placement = place(model, target)
    assert set(chosen) == {site.value.name for site in placement.sites}
    for names, _ in placement.shared:
        assert len({chosen[name] for name in names}) == 1
    for low, high in chosen.values():
        assert low <= 0 <= high
        assert low < high
    if net == "concat":
        assert placement.shared


def test_sixteen_bits_clip_less(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    random = np.random.default_rng(1)
    x = random.laplace(size=(40, 300, 8)).astype(np.float32)
    model, feeds = dense(random.standard_normal((8, 6)).astype(np.float32)), [{"x": sample} for sample in x]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    eight = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
    sixteen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds, bits=16)["x"]
    widest = (statistics.tensors["x"].low, statistics.tensors["x"].high)
    assert eight[1] - eight[0] < 0.97 * (widest[1] - widest[0])
    # A step is 1 / 65535 of the range: no clipping beyond a bin pays.
    assert sixteen[1] - sixteen[0] == pytest.approx(widest[1] - widest[0], rel=1e-3)


class Counter:
    """Opens models in ONNX Runtime and counts."""

    def __init__(self, run: MakeRun) -> None:
        self.make, self.opened, self.left = run, 0, 0

    @contextmanager
    def __call__(self, model: ir.Model) -> Iterator[Run]:
        self.opened += 1
        yield self.make(model)
        self.left += 1


def test_readers_are_opened_once_and_samples_read_once(ort_run: MakeRun, needs_output_pairs: Target) -> None:
    model = residual_net()
    feeds = [random_feeds(model, seed=seed) for seed in range(9)]
    counter, read = Counter(ort_run), list[int]()

    def stream() -> Iterator[Feeds]:
        for index, feed in enumerate(feeds):
            read.append(index)
            yield feed

    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    chosen = choose_ranges(model, needs_output_pairs, statistics, counter, stream(), samples=3)
    assert read == [0, 1, 2]
    assert counter.opened == counter.left == 1 + len(chosen)


def test_nodes_that_are_kept_have_no_ranges(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    model = residual_net()
    feeds = [random_feeds(model)]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    first = label(next(iter(model.graph)))
    assert "x" in choose_ranges(model, needs_output_pairs, statistics, opener, feeds)
    assert "x" not in choose_ranges(model, needs_output_pairs, statistics, opener, feeds, keep=[first])


@pytest.mark.parametrize("value", [0.0, 4.5, -2.0])
def test_constant_activations(value: float, ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    model = dense(np.ones((8, 4), np.float32))
    feeds = [{"x": np.full((1, 8), value, np.float32)}] * 2
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    low, high = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
    assert (low, high) == (min(value, 0.0), max(value, 0.0))


def test_of_equally_good_ranges_the_widest(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    random = np.random.default_rng(0)
    model = dense(np.zeros((8, 4), np.float32))  # Nothing that is done to the input changes the output.
    feeds = [{"x": random.standard_normal((1, 8)).astype(np.float32)} for _ in range(5)]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    chosen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
    assert chosen == (statistics.tensors["x"].low, statistics.tensors["x"].high)


def test_one_sample(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    model = residual_net()
    feeds = [random_feeds(model)]
    chosen = choose_ranges(model, needs_output_pairs, seen(model, needs_output_pairs, ort_run, feeds), opener, feeds)
    assert len(chosen) == len(place(model, needs_output_pairs).sites)


def test_errors_too_large_for_float32_leave_everything_in(
    ort_run: MakeRun, opener: Opener, needs_output_pairs: Target
) -> None:
    model = dense(np.full((8, 4), 1e4, np.float32))
    feeds = [{"x": np.linspace(-1e33, 1e33, 8, dtype=np.float32)[None]}]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    chosen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["x"]
    assert chosen == (float(feeds[0]["x"].min()), float(feeds[0]["x"].max()))


@pytest.mark.parametrize("other", [False, True])
def test_what_floats_read_counts_at_the_tensor(
    other: bool, ort_run: MakeRun, opener: Opener, needs_output_pairs: Target
) -> None:
    # The Conv's output goes to a Sigmoid, which stays float, and to the model's outputs.
    b = GraphBuilder("float_reader", seed=2)
    y = b.node(
        "Conv", b.input("x", (1, 4, 128, 128)), b.constant(np.eye(4, dtype=np.float32)[..., None, None]), name="conv"
    )
    b.output(b.node("Sigmoid", y, name="sigmoid"), "z", (1, 4, 128, 128))
    if other:  # An 8-bit layer reads it as well, and does not care.
        b.output(b.node("Conv", y, b.constant(np.zeros((2, 4, 1, 1), np.float32)), name="zero"), "v", (1, 2, 128, 128))
    b.output(y, "y", (1, 4, 128, 128))
    model = b.build()
    random = np.random.default_rng(6)
    x = random.uniform(-1, 1, (3, 1, 4, 128, 128)).astype(np.float32)
    x[0, 0, 0, 0, :2] = -1.25, 1.25  # Two of 196,608 values: what they lose is less than what all others win.
    feeds = [{"x": sample} for sample in x]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)
    chosen = choose_ranges(model, needs_output_pairs, statistics, opener, feeds)["y"]
    values = np.stack([ort_run(model)(feed)["y"] for feed in feeds])
    tensor = statistics.tensors["y"]
    tried = ranges.candidates(tensor.histogram, tensor.low, tensor.high)

    def error(one: Range) -> float:
        return float(np.square((values - round_trip(values, one)).astype(np.float64)).sum())

    # The histogram reads every second of so many values, so that what two of them lose is known roughly.
    assert error(chosen) <= 1.05 * min(map(error, tried)) < 0.9 * error(tried[0])


@pytest.mark.parametrize(("kind", "wide"), [("uint8", "uint16"), ("int8", "int16")])
def test_the_type_follows_the_target(kind: Literal["uint8", "int8"], wide: str, needs_output_pairs: Target) -> None:
    target = replace(needs_output_pairs, activation_type=kind)
    assert output_error.integer_type(target, 8) == kind
    assert output_error.integer_type(target, 16) == wide


def test_no_sample_is_an_error(ort_run: MakeRun, opener: Opener, needs_output_pairs: Target) -> None:
    model = residual_net()
    statistics = seen(model, needs_output_pairs, ort_run, [random_feeds(model)])
    with pytest.raises(DataError, match="at least one sample"):
        choose_ranges(model, needs_output_pairs, statistics, opener, [])


def test_statistics_that_are_missing_are_an_error(opener: Opener, needs_output_pairs: Target) -> None:
    with pytest.raises(ContractError, match="`x` has none"):
        choose_ranges(residual_net(), needs_output_pairs, Statistics({}, 1), opener, [])


@pytest.mark.parametrize("bits", [4, 7, 32])
def test_other_widths_are_an_error(bits: int, opener: Opener, needs_output_pairs: Target) -> None:
    with pytest.raises(RecipeError, match=f"bits={bits}"):
        choose_ranges(residual_net(), needs_output_pairs, Statistics({}, 1), opener, [], bits=bits)


def test_a_run_that_gives_too_little_is_an_error(ort_run: MakeRun, needs_output_pairs: Target) -> None:
    model = residual_net()
    feeds = [random_feeds(model)]
    statistics = seen(model, needs_output_pairs, ort_run, feeds)

    @contextmanager
    def nothing(_model: ir.Model) -> Iterator[Run]:
        def run(_feeds: Feeds) -> Outputs:
            return {}

        yield run

    with pytest.raises(ContractError, match="did not"):
        choose_ranges(model, needs_output_pairs, statistics, nothing, feeds)
