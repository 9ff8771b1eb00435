"""Distillation: the student gets closer to its teacher, pruned weights stay pruned, and nothing gets worse."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.records.tensors import Feeds
from edgewise.testing import graphs
from edgewise.testing.graphs import GraphBuilder

torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'edgewise[torch]'")

from edgewise.compress.recover.distil import Training, distil  # noqa: E402 - only where torch is

FAST = Training(batch=8)


def teacher(shape: tuple[int, ...] = (1, 3, 8, 8)) -> ir.Model:
    b = GraphBuilder("net")
    first = b.node("Relu", b.node("Conv", b.input("x", shape), b.weight(8, 3, 3, 3), name="c1", pads=[1] * 4))
    second = b.node("Add", first, b.node("Conv", first, b.weight(8, 8, 3, 3), name="c2", pads=[1] * 4), name="join")
    flat = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", second)))
    b.output(b.node("Gemm", flat, b.weight(8, 5, fan_in=1), b.weight(5, fan_in=4), name="head"), "y", (1, 5))
    return b.build()


def kernel(model: ir.Model, node: str) -> ir.Value:
    value = next(one for one in model.graph if one.name == node).inputs[1]
    assert value is not None
    return value


def damaged(model: ir.Model, *, seed: int = 1) -> ir.Model:
    """Return the model with half of the weights of `c2` at zero, and the others a little off."""
    random = np.random.default_rng(seed)
    result = model.clone()
    value = kernel(result, "c2")
    assert value.const_value is not None
    weights = value.const_value.numpy()
    noisy = weights + 0.2 * weights.std() * random.standard_normal(weights.shape)
    kept = random.random(weights.shape) < 0.5
    value.const_value = ir.tensor((noisy * kept).astype(np.float32), name=value.name)
    return result


def images(count: int, seed: int = 0) -> list[Feeds]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 3, 8, 8), dtype=np.float32)} for _ in range(count)]


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(n): v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}


def test_the_student_gets_closer_and_its_zeros_stay() -> None:
    student = damaged(teacher())
    before = weights(student)

    found = distil(student, teacher(), images(64), steps=60, held_out=images(32, 1), training=FAST)

    assert found.after < 0.5 * found.before
    assert (found.steps, found.stopped) == (60, "steps")
    again = distil(found.model, teacher(), images(8), steps=1, held_out=images(32, 1), training=FAST)
    assert again.before == pytest.approx(found.after, rel=1e-6)
    assert found.compared == ("join_out",)
    name = str(kernel(student, "c2").name)
    after = weights(found.model)
    np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
    assert not np.array_equal(after[name], before[name])
    for key, value in weights(student).items():
        np.testing.assert_array_equal(value, before[key])


def test_the_same_steps_give_the_same_model() -> None:
    student = damaged(teacher())
    first, second = (
        distil(student, teacher(), images(24), steps=5, held_out=images(8, 1), seed=3, training=FAST) for _ in range(2)
    )
    other = distil(student, teacher(), images(24), steps=5, held_out=images(8, 1), seed=4, training=FAST)

    assert first.curve == second.curve
    for key, value in weights(first.model).items():
        np.testing.assert_array_equal(weights(second.model)[key], value)
    assert other.curve != first.curve


def test_what_cannot_get_better_is_given_back() -> None:
    model = teacher()

    found = distil(model, model, images(16), steps=10, held_out=images(8, 1), training=Training(batch=4, step=0.5))

    assert found.after == found.before == 0
    for key, value in weights(model).items():
        np.testing.assert_array_equal(weights(found.model)[key], value)


def test_a_training_that_diverges_stops_and_gives_the_best_state() -> None:
    student = damaged(teacher())

    found = distil(
        student, teacher(), images(16), steps=400, held_out=images(8, 1), training=Training(batch=4, step=1e30)
    )

    assert found.stopped == "diverged"
    assert found.after <= found.before
    assert all(np.abs(value).max() < 1e3 for value in weights(found.model).values())


def test_the_time_is_kept() -> None:
    ticks = count()

    found = distil(
        damaged(teacher()),
        teacher(),
        images(16),
        seconds=50,
        held_out=images(8, 1),
        clock=lambda: float(next(ticks)),
        training=FAST,
    )

    assert found.stopped == "time"
    assert 5 < found.steps < 50
    assert found.curve[-1].seconds <= 50


def regression() -> ir.Model:
    b = GraphBuilder("net")
    hidden = b.node("Tanh", b.node("Gemm", b.input("x", (1, 6)), b.weight(6, 16, fan_in=6), name="c2"))
    b.output(b.node("Gemm", hidden, b.weight(16, 1, fan_in=16), b.weight(1, fan_in=1)), "y", (1, 1))
    return b.build()


def rows(count: int, seed: int = 0) -> list[Feeds]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 6), dtype=np.float32)} for _ in range(count)]


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_numbers_are_compared_relative_to_their_spread(features: float) -> None:
    found = distil(
        damaged(regression()),
        regression(),
        rows(64),
        steps=80,
        held_out=rows(32, 1),
        kinds={"y": "numbers"},
        training=Training(batch=16, features=features),
    )

    assert found.after < 0.5 * found.before < 5


def test_labels_join_in() -> None:
    model = teacher()
    labels = [np.array(3) for _ in range(64)]

    found = distil(
        damaged(model), model, images(64), steps=60, held_out=images(16, 1), labels=labels,
        training=Training(batch=8, labels=50.0, features=0.0),
    )  # fmt: skip
    plain = distil(damaged(model), model, images(64), steps=60, held_out=images(16, 1), training=FAST)

    assert found.curve[-1].loss > plain.curve[-1].loss  # the labels say another thing than the teacher


@pytest.mark.parametrize("augmentation", ["shift", "flip and shift"])
def test_augmented_images_are_answered_by_the_teacher(augmentation: str) -> None:
    training = Training(batch=8, augmentation=augmentation)  # type: ignore[arg-type]  # one of the words
    found = distil(damaged(teacher()), teacher(), images(16), steps=30, held_out=images(16, 1), training=training)

    assert found.after < found.before


def test_integer_weights_are_trained_where_they_are_stored() -> None:
    model = graphs.weight_only_net(bits=4)
    random = np.random.default_rng(0)
    feeds: list[Feeds] = [{"image": random.standard_normal((1, 3, 8, 8), dtype=np.float32)} for _ in range(48)]
    student = model.clone()
    stored = next(v for v in student.graph.initializers.values() if v.dtype == ir.DataType.INT4)
    assert stored.const_value is not None
    off = np.clip(
        stored.const_value.numpy().astype(int) + random.integers(-2, 3, stored.const_value.shape.numpy()), -7, 7
    )
    stored.const_value = ir.Tensor(
        off.astype(stored.const_value.numpy().dtype), dtype=ir.DataType.INT4, name=stored.name
    )

    found = distil(
        student, model, feeds[:32], steps=60, held_out=feeds[32:], training=Training(batch=8, step=0.03, features=0.0)
    )

    assert found.after < 0.7 * found.before
    changed = found.model.graph.initializers[str(stored.name)].const_value
    assert changed is not None
    assert changed.dtype == ir.DataType.INT4


def test_what_is_asked_for_has_to_make_sense() -> None:
    model = teacher()
    one = images(1)
    with pytest.raises(RecipeError, match="either by a time or by a number"):
        distil(model, model, one, held_out=one)
    with pytest.raises(RecipeError, match="either by a time or by a number"):
        distil(model, model, one, held_out=one, steps=1, seconds=1)
    with pytest.raises(RecipeError, match="more than 0"):
        distil(model, model, one, held_out=one, seconds=0)
    with pytest.raises(RecipeError, match="greater than 0"):
        distil(model, model, one, held_out=one, steps=1, training=Training(batch=0))
    with pytest.raises(DataError, match="Received 0 and 1"):
        distil(model, model, [], held_out=one, steps=1)
    with pytest.raises(DataError, match="Received 2 for 1"):
        distil(model, model, one, held_out=one, steps=1, labels=[np.array(0)] * 2)
    with pytest.raises(RecipeError, match="`abacus`"):
        distil(model, model, one, held_out=one, steps=1, device="abacus")


def test_a_model_without_weights_is_refused() -> None:
    b = GraphBuilder("net")
    b.output(b.node("Relu", b.input("x", (1, 4))), "y", (1, 4))
    feeds: list[Feeds] = [{"x": np.ones((1, 4), np.float32)}]
    with pytest.raises(ModelError, match="has to have weights"):
        distil(b.build(), b.build(), feeds, held_out=feeds, steps=1)


def test_a_model_that_gives_whole_numbers_only_is_refused() -> None:
    b = GraphBuilder("net")
    product = b.node("MatMul", b.input("x", (1, 4)), b.weight(4, 4))
    b.output(b.node("ArgMax", product, axis=1), "y", (1, 1), "int64")
    feeds: list[Feeds] = [{"x": np.ones((1, 4), np.float32)}]
    with pytest.raises(ModelError, match="real numbers"):
        distil(b.build(), b.build(), feeds, held_out=feeds, steps=1)
