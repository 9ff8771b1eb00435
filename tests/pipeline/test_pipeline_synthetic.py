"""Models without samples: what they are drawn from, what is refused, and what is shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.conftest import FakeMeasures, MakeTask, Task, check

from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import verify
from edgewise.cli.bundle import render
from edgewise.errors import DataError, RecipeError
from edgewise.measure.fidelity import Fidelity
from edgewise.measure.machine import describe
from edgewise.pipeline import certify as certify_module
from edgewise.pipeline.inputs import load_model
from edgewise.pipeline.synthetic import CALIBRATE, CHECK, SELECT, origin, synthetic_data, synthetic_samples
from edgewise.records.tensors import Feeds
from edgewise.report.text import summary
from edgewise.samples.preprocessing import Preprocessing
from edgewise.samples.synthetic import Choice, Field
from edgewise.testing.graphs import GraphBuilder, conv_net, mlp, recurrent_cell


def field(model: ir.Model, preprocessing: Preprocessing | None = None) -> tuple[Field, str]:
    found = origin(model, preprocessing or Preprocessing())
    (law,) = found.laws.values()
    assert isinstance(law, Field)
    return law, found.sentences[0]


def image_net(dtype: str = "float32", *, scale: float = 1.0) -> ir.Model:
    b = GraphBuilder("image")
    x = b.input("x", (1, 3, 16, 16), dtype)
    value = x if dtype == "float32" else b.node("Cast", x, to=1)
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32) / scale
    b.output(b.node("Conv", value, b.constant(weights), b.constant(np.zeros(8, np.float32))), "y")
    return b.build()


def token_net() -> ir.Model:
    b = GraphBuilder("tokens")
    embedded = b.node("Gather", b.weight(30, 8), b.input("tokens", (1, 6), "int64"))
    mask = b.node("Cast", b.node("Unsqueeze", b.input("mask", (1, 6), "int64"), b.constant(np.array([2]))), to=1)
    kept = b.node("Where", b.input("keep", (1, 6, 1), "bool"), b.node("Mul", embedded, mask), b.constant(np.float32(0)))
    b.output(b.node("MatMul", kept, b.weight(8, 4)), "y")
    return b.build()


def test_batch_normalization_tells_mean_and_scale() -> None:
    b = GraphBuilder("told")
    x = b.input("x", (1, 8, 8, 3))
    value = b.node("Transpose", x, perm=[0, 3, 1, 2])
    told = [b.constant(np.array(numbers, np.float32)) for numbers in ([1, 1, 1], [0, 0, 0], [5, 6, 7], [4, 9, 16])]
    b.output(b.node("BatchNormalization", value, *told, name="first"), "y")
    law, sentence = field(b.build())
    assert law.spread == 0
    assert law.leaves
    assert law.mean == pytest.approx([5, 6, 7], rel=1e-4)
    assert np.diag(law.mixing @ law.mixing.T) == pytest.approx([4, 9, 16], rel=0.01)
    assert (law.low < law.mean - 2 * np.array([2, 3, 4])).all()
    assert "the batch normalization `first` remembers" in sentence


def test_statistics_that_no_stationary_input_explains_are_no_certainty() -> None:
    b = GraphBuilder("odd")
    value = b.node("Conv", b.input("x", (1, 3, 8, 8)), b.constant(np.ones((6, 3, 1, 1), np.float32)))
    one, variance = b.constant(np.ones(6, np.float32)), b.constant(np.array([1, 99, 1, 99, 1, 99], np.float32))
    b.output(b.node("BatchNormalization", value, one, one, one, variance), "y")
    law, sentence = field(b.build())
    assert law.spread > 0
    assert "explains badly" in sentence


def test_settings_give_the_range_of_pixels() -> None:
    settings = Preprocessing(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    law, sentence = field(image_net(), settings)
    assert law.low == pytest.approx([-2, -1, -0.5])
    assert law.high == pytest.approx([2, 1, 0.5])
    assert law.mean == pytest.approx([-0.2, -0.1, -0.05])
    assert "pre-processing" in sentence
    law, _ = field(image_net("uint8"))
    assert (law.dtype, law.low.tolist(), law.high.tolist()) == ("uint8", [0] * 3, [255] * 3)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_without_either_the_scale_is_a_guess_and_said_to_be_one(scale: float) -> None:
    law, sentence = field(image_net(scale=scale))
    assert "a guess" in sentence
    assert law.spread > 0
    usual = field(image_net())[0].mixing * scale
    assert law.mixing @ law.mixing.T == pytest.approx(usual @ usual.T, rel=1e-5)


def test_tokens_lie_in_their_table_and_masks_hide_nothing() -> None:
    model = token_net()
    found = origin(model, Preprocessing())
    assert found.laws["tokens"] == Choice((1, 6), "int64", range(30))
    samples = synthetic_samples(model, 40)
    tokens = np.stack([sample["tokens"] for sample in samples])
    assert tokens.min() >= 0
    assert tokens.max() < 30
    assert len(np.unique(tokens)) > 20
    assert all(sample["mask"].all() and sample["keep"].all() for sample in samples)
    assert "indexes no table" in found.sentences[1]


def test_samples_are_the_same_for_the_same_seed() -> None:
    def flat(samples: list[Feeds]) -> bytes:
        return b"".join(array.tobytes() for sample in samples for array in sample.values())

    model = conv_net()
    assert flat(synthetic_samples(model, 3)) == flat(synthetic_samples(model, 3))
    assert flat(synthetic_samples(model, 3)) != flat(synthetic_samples(model, 3, seed=1))


def with_input(dtype: str, *shape: int | str) -> ir.Model:
    model = mlp()
    extra = ir.Value(name="extra", type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))), shape=ir.Shape(shape))
    model.graph.inputs.append(extra)
    return model


def test_inputs_of_unknown_meaning_are_refused() -> None:
    model = with_input("float32", 1)
    model.graph.inputs[-1].type = ir.TensorType(ir.DataType.STRING)
    with pytest.raises(DataError, match=r"`extra` is of the type str.*numbers or booleans") as caught:
        origin(model, Preprocessing())
    assert caught.value.hint == "Give samples with `--data`."
    with pytest.raises(DataError, match="`extra` means cannot be told from the graph"):
        origin(with_input("int64"), Preprocessing())
    with pytest.raises(DataError, match="fixed shape for synthetic samples") as caught:
        origin(with_input("float32", 1, "width"), Preprocessing())
    assert caught.value.hint == "Fix it with `--shape extra=...`."


def test_a_recurrent_model_gets_steps_and_begins_with_zeros(make_task: MakeTask) -> None:
    task = make_task(recurrent_cell())
    model = load_model(task.model, {})
    fed = model.facts.inputs[1]
    state = {next(port.name for port in model.facts.outputs if port.shape == fed.shape): fed.name}
    data = synthetic_data(task.request(data={"samples": "none", "state": state}).data, model)
    feeds = data.select.dataset.feeds(0)
    (fed_back,) = state.values()
    assert not feeds[fed_back].any()
    others = [array for name, array in feeds.items() if name != fed_back]
    assert all(len(array) == 16 for array in others)


def none(**goal: Any) -> dict[str, Any]:
    return {"data": {"samples": "none"}, "max_drop": None, **goal}


@pytest.mark.usefixtures("measures")
def test_the_best_within_the_tolerance_is_shipped_and_nothing_is_certified(task: Task) -> None:
    result = task.run(**none(tolerance=0.3))
    run = result.run
    chosen = run.ladder[run.chosen]
    assert "int8" in chosen.candidate.name
    assert not chosen.certified
    assert chosen.certificate is None
    assert chosen.check is not None
    assert chosen.check.passed
    assert chosen.check.n == CHECK
    assert 0 < chosen.check.error <= 0.3 == chosen.check.tolerance
    assert (run.data.calibrate, run.data.select, run.data.certify) == (CALIBRATE, SELECT, CHECK)
    assert run.data.synthetic
    assert not any(stage == "certify-set" for stage, _ in task.records())
    assert "NOTHING was certified, because there were no samples" in run.verdict
    assert any(note.startswith("Nothing was certified") for note in run.notes)
    assert any(note.startswith("Synthetic samples of") for note in run.notes)
    text = summary(run)
    assert "not certified" in text
    assert "and certified" not in text
    bundle = check(result)
    assert [rung.check for rung in bundle.manifest.ladder] == [rung.check for rung in run.ladder]
    assert not bundle.manifest.ladder[-1].certified
    assert "Nothing was certified" in render(verify(bundle, machine=describe()))
    page = (result.folder / "report.html").read_text()
    assert "Nothing was certified: there were no samples." in page
    assert "Not certified: no samples" in page
    assert "Certified with" not in page


@pytest.mark.usefixtures("measures")
def test_what_leaves_the_tolerance_is_not_in_the_bundle(task: Task) -> None:
    result = task.run(**none(tolerance=1e-4))
    assert all("int8" not in rung.candidate.name for rung in result.run.ladder)
    assert all("int8" not in name for name in Bundle.load(result.folder).rungs)
    assert all(rung.check is None or rung.check.error <= 1e-4 for rung in result.run.ladder)


@pytest.mark.usefixtures("measures")
def test_what_breaks_behind_the_search_is_not_in_the_bundle(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    # The search has seen nothing wrong: only the last comparison does.
    broken = Fidelity({"output": 0.31}, 1.0, CHECK)
    monkeypatch.setattr(certify_module, "compare", lambda _: broken)
    result = task.run(**none(tolerance=0.3))
    run = result.run
    assert (run.chosen, len(run.ladder)) == (0, 1)
    assert list(Bundle.load(result.folder).rungs) == [run.ladder[0].candidate.name]
    reasons = [outcome.reason for outcome in run.outcomes if "synthetic samples the output" in outcome.reason]
    assert reasons
    assert "off by 31 % of its standard deviation, more than the tolerance of 30 %" in reasons[0]


@pytest.mark.usefixtures("measures")
def test_a_rung_that_cannot_be_compared_is_left_out(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> Fidelity:
        raise DataError("no such thing.")

    monkeypatch.setattr(certify_module, "compare", fails)
    assert len(task.run(**none()).run.ladder) == 1


def test_a_run_is_resumed(task: Task, measures: FakeMeasures) -> None:
    first = task.run(**none(tolerance=0.3))
    groups = len(measures.groups)
    assert task.run(**none(tolerance=0.3)).run == first.run
    assert len(measures.groups) == groups


@pytest.mark.parametrize(
    ("goal", "data", "flag"),
    [
        ({"max_drop": 0.01}, {}, "--max-drop"),
        ({"metric": "top1"}, {}, "--metric"),
        ({"accept_uncertified": True}, {}, "--accept-uncertified"),
        ({}, {"calibration": "x.npz"}, "--calibration"),
        ({}, {"label": "y"}, "--label"),
    ],
)
def test_what_needs_samples_is_refused(task: Task, goal: dict[str, Any], data: dict[str, str], flag: str) -> None:
    with pytest.raises(RecipeError, match=f"`{flag}` needs samples") as caught:
        task.run(**{"max_drop": None, **goal}, data={"samples": "none", **data})
    assert "--tolerance" in (caught.value.hint or "")


def test_a_tolerance_is_for_models_without_samples(task: Task) -> None:
    with pytest.raises(RecipeError, match="`--tolerance` is for `--data none`"):
        task.run(tolerance=0.1)
    with pytest.raises(RecipeError, match="`--tolerance` has to be above 0"):
        task.run(**none(tolerance=1.5))


@pytest.mark.slow
@pytest.mark.usefixtures("measures")
def test_images_of_unknown_range_are_not_quantized(make_task: MakeTask) -> None:
    # Such a network takes pixels of 0 to 1 as well as of 0 to 255; its int8 model would be right for one of them.
    result = make_task(image_net()).run(**none(tolerance=0.9))
    assert all("int8" not in rung.candidate.name for rung in result.run.ladder)
    reasons = [outcome.reason for outcome in result.run.outcomes if "int8" in outcome.candidate.name]
    assert any("nothing tells the range of its pixels; `--settings`" in reason for reason in reasons)
