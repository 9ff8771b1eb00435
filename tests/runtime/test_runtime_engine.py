"""The engine: samples as the user has them in, answers out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgewise.backends import registry
from edgewise.bundle.read import Bundle
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.errors import BundleError, DataError, RecipeError
from edgewise.records.candidate import Candidate, RunOptions
from edgewise.records.certificate import Certificate
from edgewise.records.machine import Machine
from edgewise.records.tensors import Array
from edgewise.runtime.engine import Engine
from edgewise.samples.preprocessing import Preprocessing, apply
from edgewise.samples.source import Sample
from edgewise.testing import graphs

HERE = Machine(
    cpu="a processor",
    architecture="x86_64",
    isa=(),
    cores=1,
    memory_bytes=1,
    system="Linux",
    governor=None,
    load=None,
    python="3.11",
    packages={},
)
CONTRACT = Contract(model="model.onnx", machine=HERE, created="2026-11-22T16:00:00Z")
PROOF = Certificate(
    claim="drop",
    metric="top1",
    max_drop=0.01,
    relative=False,
    passed=True,
    original=0.9,
    optimized=0.9,
    drop=0.0,
    lower=0.0,
    upper=0.005,
    confidence=0.95,
    method="",
    exact=True,
    n=1000,
    worse=0,
    better=0,
    samples_needed=None,
    reused=0,
    isa="",
)


def bundled(
    folder: Path, model: ir.Model, contract: Contract = CONTRACT, *, proofs: Sequence[Certificate | None] = (None, None)
) -> Path:
    """Write a bundle with two rungs, which differ in whether ONNX Runtime may rewrite the graph."""
    ladder = []
    for optimization, proof in zip(("off", "all"), proofs, strict=True):
        options = RunOptions(graph_optimization="off" if optimization == "off" else "all")
        artifact = registry.get("ort").compile(model, options)
        candidate = Candidate(steps=(), backend="ort", options=options)
        ladder.append(NewRung(candidate=candidate, artifact=artifact, certificate=proof, certified=True, timing=None))
    write(folder, ladder, default=1, contract=contract, vectors=[graphs.random_feeds(model)])
    return folder


@pytest.fixture
def net(tmp_path: Path) -> tuple[Path, ir.Model]:
    model = graphs.conv_net(size=8)
    return bundled(tmp_path / "out", model), model


def image_of(model: ir.Model) -> tuple[str, Array]:
    ((name, array),) = graphs.random_feeds(model).items()
    return name, array[0].astype(np.float32)


def test_a_sample_in_any_form_gives_the_session_s_own_answer(net: tuple[Path, ir.Model]) -> None:
    folder, model = net
    name, image = image_of(model)
    expected = Bundle.load(folder).session().run({name: image[None]})
    with Engine(folder) as engine:
        for sample in (image, {name: image}, {"": image}, Sample({"": image}), image[None]):
            outputs = engine.outputs(sample)
            for key, array in expected.items():
                np.testing.assert_array_equal(outputs[key], array)


def test_an_answer_names_its_sample_its_rung_and_its_time(net: tuple[Path, ir.Model]) -> None:
    folder, model = net
    _, image = image_of(model)
    ticks = itertools.count(step=250_000)
    for rung, name in ((None, "ort untouched"), (0, "ort untouched as-written"), ("ort untouched", "ort untouched")):
        with Engine(Bundle.load(folder), rung, clock=lambda: next(ticks)) as engine:
            answer = engine.answer(image, name="a.png")
            assert engine.rung == answer.rung == name
            assert (answer.input, answer.latency_us) == ("a.png", 250.0)


def test_classes_are_named_where_they_are_known(tmp_path: Path) -> None:
    model = graphs.conv_net(size=8, classes=3)
    _, image = image_of(model)
    folder = bundled(tmp_path, model, replace(CONTRACT, classes=("cat", "dog", "cow")))
    with Engine(folder) as engine:
        (scores,) = engine.outputs(image).values()
        answer = engine.answer(image)
    assert answer.classes is not None
    assert answer.outputs == {}
    assert [entry.index for entry in answer.classes] == np.argsort(-scores[0]).tolist()
    assert [entry.name for entry in answer.classes] == [("cat", "dog", "cow")[i] for i in np.argsort(-scores[0])]
    assert answer.classes[0].score == scores.max()


def test_a_certificate_for_a_classifier_shows_that_it_is_one(net: tuple[Path, ir.Model], tmp_path: Path) -> None:
    folder, model = net
    _, image = image_of(model)
    with Engine(folder) as engine:
        plain = engine.answer(image)
    assert plain.classes is None
    (value,) = plain.outputs.values()
    assert value.shape == (1, 10)
    with Engine(bundled(tmp_path / "proven", model, proofs=(None, PROOF))) as engine:
        answer = engine.answer(image)
    assert answer.classes is not None
    assert len(answer.classes) == 5
    assert answer.classes[0].name is None


def test_the_bundle_s_pre_processing_is_applied_to_raw_samples_only(tmp_path: Path) -> None:
    model = graphs.conv_net(size=8)
    name, array = image_of(model)
    steps = Preprocessing(resize=(8, 8), scale=1 / 255)
    folder = bundled(tmp_path, model, replace(CONTRACT, preprocessing=steps))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with Engine(folder) as engine:
        expected = engine.outputs(Sample({name: apply(pixels, steps)}))
        for key, value in engine.outputs(pixels).items():
            np.testing.assert_array_equal(value, expected[key])
        engine.outputs(array)  # floating-point samples are taken as they are


def test_a_prepared_sample_is_not_prepared_again(tmp_path: Path) -> None:
    model = graphs.conv_net(size=8)
    name, _ = image_of(model)
    steps = Preprocessing(color="bgr")
    folder = bundled(tmp_path, model, replace(CONTRACT, preprocessing=steps))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with Engine(folder) as engine:
        for sample in (pixels, Sample({"": apply(pixels, steps)})):
            (scores,) = engine.outputs(sample).values()
            batch = pixels[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32, order="C")
            (expected,) = Bundle.load(folder).session().run({name: batch}).values()
            np.testing.assert_array_equal(scores, expected)


def test_a_sample_that_does_not_fit_is_named(net: tuple[Path, ir.Model]) -> None:
    with Engine(net[0]) as engine:
        with pytest.raises(DataError, match=r"`b\.png`"):
            engine.answer(np.zeros((3, 9, 9), np.float32), name="b.png")
        with pytest.raises(DataError, match="The sample"):
            engine.answer(np.full((3, 8, 8), np.nan, np.float32))
        engine.answer(np.zeros((3, 8, 8), np.float32))  # and the next one is answered


def test_what_cannot_be_opened_is_said_at_once(net: tuple[Path, ir.Model], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="folder of a bundle"):
        Engine(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="`ort untouched`"):
        Engine(net[0], "nothing")


@pytest.fixture
def recurrent(tmp_path: Path) -> tuple[Path, dict[str, str], str]:
    """Return a bundle with state, its state map, and the name of the input that is not fed back."""
    model = graphs.recurrent_cell(features=4, hidden=8)
    inputs = {value.name: value for value in model.graph.inputs}
    state = {
        str(output.name): str(name)
        for output in model.graph.outputs
        for name, value in inputs.items()
        if output.shape == value.shape and output.name is not None and name is not None
    }
    (moving,) = set(inputs) - set(state.values())
    return bundled(tmp_path, model, replace(CONTRACT, state=state)), state, str(moving)


def test_state_starts_at_zero_for_each_sample(recurrent: tuple[Path, dict[str, str], str]) -> None:
    folder, state, moving = recurrent
    steps = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    bundle = Bundle.load(folder)
    session = bundle.session()
    feeds: dict[str, Array] = {
        port.name: np.zeros([int(size) for size in port.shape], port.dtype) for port in bundle.manifest.inputs
    }
    expected: dict[str, list[Array]] = {}
    for step in steps:
        feeds[moving] = step.reshape(feeds[moving].shape)
        outputs = session.run(feeds)
        feeds |= {fed: outputs[output] for output, fed in state.items()}
        for name in set(outputs) - set(state):
            expected.setdefault(name, []).append(outputs[name])
    assert expected
    with Engine(bundle) as engine:
        for _ in range(2):
            outputs = engine.outputs({moving: steps})
            assert set(outputs) == set(expected)
            for name, values in expected.items():
                np.testing.assert_array_equal(outputs[name], np.stack(values))


def test_a_stream_carries_the_state_on(recurrent: tuple[Path, dict[str, str], str]) -> None:
    folder, _, moving = recurrent
    steps = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    with Engine(folder) as engine:
        (whole,) = engine.stream([("all", {moving: steps})])
        parts = list(engine.stream((f"part {i}", {moving: steps[i : i + 2]}) for i in (0, 2, 4)))
        again = engine.answer({moving: steps[2:4]})
    assert [part.input for part in parts] == ["part 0", "part 2", "part 4"]
    for name, value in whole.outputs.items():
        together = np.concatenate([np.asarray(part.outputs[name].values) for part in parts])
        np.testing.assert_array_equal(np.asarray(value.values), together)
        assert again.outputs[name].values != parts[1].outputs[name].values


def test_a_stream_takes_samples_as_they_come(net: tuple[Path, ir.Model]) -> None:
    folder, model = net
    _, image = image_of(model)
    taken = []

    def samples() -> Iterator[tuple[str, Array]]:
        for number in itertools.count():
            taken.append(number)
            yield str(number), image

    with Engine(folder) as engine:
        answers = engine.stream(samples())
        assert [next(answers).input for _ in range(3)] == ["0", "1", "2"]
    assert taken == [0, 1, 2]


def test_running_imports_no_optimizer(net: tuple[Path, ir.Model]) -> None:
    program = (
        "import sys, numpy\n"
        "from edgewise.runtime.engine import Engine\n"
        "Engine(sys.argv[1]).answer(numpy.zeros((3, 8, 8), 'float32'))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(net[0])], capture_output=True, check=True, text=True)
    modules = set(done.stdout.split())
    assert not modules & {"onnx", "onnx_ir", "onnxscript", "torch", "scipy", "pydantic", "PIL", "psutil", "rich"}
    folders = {name.split(".")[1] for name in modules if name.startswith("edgewise.")}
    assert folders <= {"backends", "bundle", "errors", "records", "runtime", "samples"}
