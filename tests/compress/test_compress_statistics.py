from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.compress import statistics
from edgewise.compress.statistics import collect, observe
from edgewise.errors import ContractError, DataError
from edgewise.records.tensors import Array, Feeds, Run
from edgewise.testing.graphs import conv_net, random_feeds


def identity(feeds: Feeds) -> dict[str, Array]:
    return {"y": feeds["x"]}


def samples(*arrays: Array) -> list[dict[str, Array]]:
    return [{"x": array} for array in arrays]


class TestObserve:
    def test_the_copy_gives_what_was_asked_for_and_shares_weights(self) -> None:
        model = conv_net()
        names = [node.outputs[0].name or "" for node in model.graph]
        observed = observe(model, [*names, model.graph.inputs[0].name or ""])
        assert {value.name for value in observed.graph.outputs} == set(names)
        assert len(model.graph.outputs) == 1
        weight = next(iter(model.graph.initializers))
        assert observed.graph.initializers[weight].const_value is model.graph.initializers[weight].const_value

    def test_the_outputs_stay_first_and_none_comes_twice(self) -> None:
        model = conv_net()
        name = model.graph[0].outputs[0].name or ""
        observed = observe(model, [name, name, model.graph.outputs[0].name or ""])
        assert [value.name for value in observed.graph.outputs] == [model.graph.outputs[0].name, name]

    def test_a_value_of_unknown_type_becomes_an_output_of_float32(self, ort_run: Callable[[ir.Model], Run]) -> None:
        model = conv_net()
        value = model.graph[0].outputs[0]
        value.type = None
        observed = observe(model, [value.name or ""])
        assert observed.graph.outputs[-1].dtype == ir.DataType.FLOAT
        assert value.type is None
        ort_run(observed)(random_feeds(model))

    def test_an_unknown_name_is_an_error(self) -> None:
        with pytest.raises(ContractError, match="`nowhere`"):
            observe(conv_net(), ["nowhere"])

    def test_what_it_gives_can_be_collected(self, ort_run: Callable[[ir.Model], Run]) -> None:
        model = conv_net()
        names = {node.outputs[0].name or "": 1 for node in model.graph if node.op_type == "Conv"}
        feeds = [random_feeds(model, seed=seed) for seed in range(3)]
        run = ort_run(observe(model, names))
        seen = collect(run, feeds, names)
        for name in names:
            values = np.stack([run(feed)[name] for feed in feeds])
            assert seen.tensors[name].low == values.min()
            assert seen.tensors[name].high == values.max()
            means = seen.tensors[name].channel_means
            # float32 sums of at most 256 terms, added pairwise: 8 roundings, each 2**-24 of the summed magnitudes.
            assert means is not None
            exact = values[:, 0].astype(np.float64).mean(axis=(0, 2, 3))
            assert np.abs(means - exact).max() <= 8 * 2**-24 * np.abs(values).max()


class TestCollect:
    def test_extremes_counts_and_zeros(self) -> None:
        seen = collect(
            identity, samples(np.array([[1, 0], [-3, 0]], np.float32), np.array([[7, 0], [2, 2]], np.float32)), ["y"]
        )
        tensor = seen.tensors["y"]
        assert (tensor.low, tensor.high, tensor.count, tensor.histogram.zeros, seen.samples) == (-3, 7, 8, 3, 2)
        assert tensor.channel_means is None
        assert not tensor.is_constant

    @pytest.mark.filterwarnings("error")
    def test_means_of_values_whose_sum_is_no_float32(self) -> None:
        values = np.full((1, 2, 100), 3e37, np.float32)
        means = collect(identity, samples(values), {"y": 1}).tensors["y"].channel_means
        assert means is not None
        assert means.tolist() == [float(np.float32(3e37))] * 2

    @pytest.mark.parametrize("axis", [0, 1, 2, -1])
    def test_means_along_every_axis(self, axis: int) -> None:
        arrays = [np.random.default_rng(seed).integers(-9, 9, (2, 3, 4)).astype(np.float32) for seed in range(3)]
        seen = collect(identity, samples(*arrays), {"y": axis})
        means = seen.tensors["y"].channel_means
        stacked = np.stack([np.moveaxis(array, axis, 0) for array in arrays], 1)
        assert means is not None  # whole numbers: every sum is exact
        assert means.tolist() == pytest.approx(
            stacked.reshape(len(stacked), -1).mean(axis=1, dtype=np.float64).tolist(), rel=1e-15
        )

    def test_an_input_is_read_from_the_feeds(self) -> None:
        seen = collect(lambda _: {}, samples(np.array([4, 5], np.float32)), ["x"])
        assert (seen.tensors["x"].low, seen.tensors["x"].high) == (4, 5)

    def test_a_large_tensor_is_sampled_but_its_extremes_are_exact(self) -> None:
        values = np.zeros(statistics.POSITIONS * 5 + 3, np.float32)
        values[12345], values[54321] = 8, -2
        seen = collect(identity, samples(values), {"y": 0}).tensors["y"]
        assert (seen.low, seen.high, seen.count) == (-2, 8, values.size)
        assert 0 < seen.histogram.count <= statistics.POSITIONS

    def test_sampling_moves_and_visits_all_columns(self) -> None:
        shape = (8, statistics.POSITIONS)  # eight values for each one that is read: a step of 8 would see one row in 8
        columns = np.broadcast_to(np.arange(8, dtype=np.float32), (shape[1], 8)).reshape(shape)
        seen = collect(identity, samples(columns, columns), ["y"]).tensors["y"].histogram
        expected = seen.count / 8
        present = seen.counts[seen.counts > 0]
        assert len(present) == 8
        assert np.abs(present - expected).max() <= 2

    def test_constant_and_empty_tensors(self) -> None:
        seen = collect(identity, samples(np.full(3, 2.5, np.float32), np.zeros((0, 3), np.float32)), ["y"])
        assert seen.tensors["y"].is_constant
        assert seen.tensors["y"].count == 3

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
    def test_other_real_types(self, dtype: type) -> None:
        assert collect(identity, samples(np.array([1.5, -2], dtype)), ["y"]).tensors["y"].low == -2

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
    def test_a_value_that_is_not_finite_names_tensor_and_sample(self, value: float, word: str) -> None:
        with pytest.raises(DataError, match=f"sample 1 makes .*{word} in `y`"):
            collect(identity, samples(np.zeros(2, np.float32), np.array([1, value], np.float32)), ["y"])

    def test_no_sample_is_an_error(self) -> None:
        with pytest.raises(DataError, match="at least one sample"):
            collect(identity, [], ["y"])

    def test_a_tensor_that_run_does_not_give_is_an_error(self) -> None:
        with pytest.raises(ContractError, match="`z`"):
            collect(identity, samples(np.zeros(1, np.float32)), ["z"])

    def test_integers_are_an_error(self) -> None:
        with pytest.raises(ContractError, match="int64"):
            collect(identity, samples(np.zeros(1, np.int64)), ["y"])

    def test_channels_that_change_are_an_error(self) -> None:
        with pytest.raises(ContractError, match="same number of channels"):
            collect(identity, samples(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32)), {"y": 1})

    def test_each_sample_is_read_once_and_only_when_its_turn_comes(self) -> None:
        events: list[str] = []

        def feeds() -> Iterator[Feeds]:
            for index in range(3):
                events.append(f"read {index}")
                yield {"x": np.zeros(1, np.float32)}

        def run(feed: Feeds) -> dict[str, Array]:
            events.append("run")
            return identity(feed)

        collect(run, feeds(), ["y"])
        assert events == ["read 0", "run", "read 1", "run", "read 2", "run"]

    def test_channels_are_not_asked_for(self) -> None:
        tensor = collect(identity, samples(np.ones((1, 2), np.float32)), ["y"]).tensors["y"]
        assert tensor.channel_mean_squares is None
        assert len(tensor.channel_low) == len(tensor.channel_high) == 0

    @given(
        shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
        count=st.integers(1, 4),
        axis=st.integers(0, 3),
        seed=st.integers(0, 99),
    )
    def test_channels_are_those_of_all_samples_at_once(
        self, shape: tuple[int, ...], count: int, axis: int, seed: int
    ) -> None:
        axis %= len(shape)
        # Whole numbers: every sum is exact. Large ones: their squares are no float32.
        arrays = list(np.random.default_rng(seed).integers(-9, 10, (count, *shape)).astype(np.float32) * 2.0**100)
        arrays = [array.astype(np.float32) for array in arrays]
        tensor = collect(identity, samples(*arrays), {"y": axis}).tensors["y"]
        channels = np.moveaxis(np.stack(arrays), axis + 1, 0).reshape(shape[axis], -1).astype(np.float64)
        assert tensor.channel_low.tolist() == channels.min(axis=1).tolist()
        assert tensor.channel_high.tolist() == channels.max(axis=1).tolist()
        assert tensor.channel_sums.tolist() == channels.sum(axis=1).tolist()
        assert tensor.channel_squares.tolist() == np.square(channels).sum(axis=1).tolist()
        assert (tensor.low, tensor.high) == (channels.min(), channels.max())
        mean_squares = tensor.channel_mean_squares
        assert mean_squares is not None
        assert mean_squares.tolist() == pytest.approx(np.square(channels).mean(axis=1).tolist(), rel=1e-15)

    def test_a_nan_in_one_channel_is_found(self) -> None:
        values = np.zeros((1, 3, 4), np.float32)
        values[0, 1, 2] = np.nan
        with pytest.raises(DataError, match="NaN"):
            collect(identity, samples(values), {"y": 1})
