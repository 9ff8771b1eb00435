"""Models and samples that cannot be used.

One sentence, a hint, exit code 2, nothing on standard output, nothing half-written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir
import pytest
from tests.cli.conftest import Arguments, Case, Place, Said, check_refused, images, optimize, samples, saved

from edgewise.formats.onnx import to_bytes
from edgewise.testing import graphs

CASES: Final[dict[str, tuple[Case, str]]] = {}
"""What is given, and a part of the sentence that has to come; filled by `case`."""


def case(fragment: str) -> Callable[[Case], Case]:
    """Add a case under the function's name."""

    def added(function: Case) -> Case:
        CASES[function.__name__] = (function, fragment)
        return function

    return added


# The model file


@case("The model has to exist")
def missing_model(at: Place) -> Arguments:
    return optimize(at, model=at.tmp / "none.onnx")


@case("is empty")
def empty_model(at: Place) -> Arguments:
    (at.tmp / "empty.onnx").touch()
    return optimize(at, model=at.tmp / "empty.onnx")


@case("does not begin like one")
def no_onnx(at: Place) -> Arguments:
    (at.tmp / "text.onnx").write_text("This is not a model.\n" * 20)
    return optimize(at, model=at.tmp / "text.onnx")


@case("PyTorch")
def pytorch_file(at: Place) -> Arguments:
    (at.tmp / "model.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    return ["inspect", at.tmp / "model.pt"]


@case("is a folder")
def model_is_a_folder(at: Place) -> Arguments:
    return ["inspect", at.tmp]


@case("samples rather than a model")
def samples_as_model(at: Place) -> Arguments:
    return ["inspect", at.bench.samples]


@case("it ends in the middle")
def truncated_model(at: Place) -> Arguments:
    data = at.bench.model.read_bytes()
    (at.tmp / "cut.onnx").write_bytes(data[: len(data) * 2 // 3])
    return optimize(at, model=at.tmp / "cut.onnx")


@case("weights.bin")
def missing_external_data(at: Place) -> Arguments:
    ir.save(graphs.conv_net(), at.tmp / "big.onnx", external_data="weights.bin")
    (at.tmp / "weights.bin").unlink()
    return optimize(at, model=at.tmp / "big.onnx")


@case("weights.bin")
def truncated_external_data(at: Place) -> Arguments:
    ir.save(graphs.conv_net(), at.tmp / "big.onnx", external_data="weights.bin")
    os.truncate(at.tmp / "weights.bin", 100)
    return optimize(at, model=at.tmp / "big.onnx")


@case("Frobnicate")
def custom_domain(at: Place) -> Arguments:
    model = saved(at.tmp / "custom.onnx", graphs.custom_operator_net())
    return optimize(at, model=model, data=samples(at.tmp / "x.npz", x=np.ones((40, 4), np.float32)))


@case("Frobnicate")
def unknown_operator(at: Place) -> Arguments:
    model = graphs.custom_operator_net()
    for node in model.graph:
        node.domain = ""
    (at.tmp / "unknown.onnx").write_bytes(to_bytes(model))
    return optimize(at, model=at.tmp / "unknown.onnx", data=samples(at.tmp / "x.npz", x=np.ones((40, 4), np.float32)))


@case("values that are NaN")
def nan_in_weights(at: Place) -> Arguments:
    model = graphs.conv_net()
    value = model.graph.initializers["stem_weight"]
    assert value.const_value is not None
    weights = value.const_value.numpy().copy()
    weights.flat[3] = np.nan
    value.const_value = ir.tensor(weights, name="stem_weight")
    return optimize(at, model=saved(at.tmp / "nan.onnx", model))


@case("it does not depend on its input")
def constant_output(at: Place) -> Arguments:
    model = saved(at.tmp / "constant.onnx", graphs.constant_output_net())
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    return optimize(at, model=model, data=samples(at.tmp / "x.npz", x=x))


@case("leave some open: `x` [1, 3, width]")
def dynamic_dimension(at: Place) -> Arguments:
    return ["inspect", saved(at.tmp / "dynamic.onnx", open_width())]


@case("A shape has to be written")
def unreadable_shape(at: Place) -> Arguments:
    return ["inspect", at.bench.model, "--shape", "image=1,x,16"]


@case("`--shape` has to name an input of the model. Received `picture`")
def shape_of_no_input(at: Place) -> Arguments:
    return ["inspect", at.bench.model, "--shape", "picture=1,3,16,16"]


@case("has to fit [N, 3, 16, 16]")
def shape_of_another_size(at: Place) -> Arguments:
    return ["inspect", at.bench.model, "--shape", "image=1,3,20,20"]


def open_width() -> ir.Model:
    """Return a model whose input has a width that is not known."""
    b = graphs.GraphBuilder("open_width")
    b.output(b.node("Relu", b.input("x", (1, 3, "width"))), "y", (1, 3, "width"))
    return b.build()


# The samples


@case("The samples have to exist")
def missing_samples(at: Place) -> Arguments:
    return optimize(at, data=at.tmp / "none.npz")


@case("is empty")
def empty_samples(at: Place) -> Arguments:
    (at.tmp / "empty.npz").touch()
    return optimize(at, data=at.tmp / "empty.npz")


@case("has to be an `.npz` archive")
def truncated_samples(at: Place) -> Arguments:
    (at.tmp / "cut.npz").write_bytes(at.bench.samples.read_bytes()[:5000])
    return optimize(at, data=at.tmp / "cut.npz")


@case("at least one sample")
def no_samples(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "none.npz", x=images(0), y=np.zeros(0, int)))


@case("at least")
def one_sample(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "one.npz", x=images(1), y=np.zeros(1, int)))


@case("at least one sample")
def empty_select_set(at: Place) -> Arguments:
    none = samples(at.tmp / "none.npz", x=images(0), y=np.zeros(0, int))
    return optimize(at, "--select", none, "--certify", at.bench.samples)


@case("has to have the shape [1, 3, 16, 16]")
def wrong_shape(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "wide.npz", x=np.zeros((50, 3, 16, 20), np.float32)))


@case("has to be float32")
def wrong_type(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "text.npz", x=np.full((50, 3, 16, 16), "a")))


@case("nothing for `right`")
def missing_input(at: Place) -> Arguments:
    model = saved(at.tmp / "two.onnx", graphs.two_input_net())
    return optimize(at, model=model, data=samples(at.tmp / "left.npz", left=np.ones((50, 6), np.float32)))


@case("never unpickled")
def pickled_samples(at: Place) -> Arguments:
    np.savez(at.tmp / "objects.npz", x=np.array([{"a": 1}, {"b": 2}]))
    return optimize(at, data=at.tmp / "objects.npz")


@case("finite")
def nan_in_samples(at: Place) -> Arguments:
    x = images(60)
    x[:, 0, 0, 0] = np.nan
    return optimize(at, data=samples(at.tmp / "nan.npz", x=x, y=np.zeros(60, int)))


@case("finite")
def infinite_samples(at: Place) -> Arguments:
    x = images(60)
    x[:, 0, 0, 0] = np.inf
    return optimize(at, data=samples(at.tmp / "inf.npz", x=x, y=np.zeros(60, int)))


@case("`y`")
def fewer_labels(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "few.npz", x=images(60), y=np.zeros(59, int)))


@case("10 classes")
def labels_out_of_range(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "high.npz", x=images(60), y=np.arange(60) % 11))


@case("label")
def negative_labels(at: Place) -> Arguments:
    return optimize(at, data=samples(at.tmp / "low.npz", x=images(60), y=np.arange(60) % 10 - 1))


@case("`labels`")
def missing_labels(at: Place) -> Arguments:
    return optimize(at, "--label", "labels")


@case("needs labels")
def metric_without_labels(at: Place) -> Arguments:
    return optimize(at, "--metric", "top1", data=samples(at.tmp / "bare.npz", x=images(60)))


@case("There is no module `no_such_module_here`")
def missing_function(at: Place) -> Arguments:
    return optimize(at, data="no_such_module_here:samples")


@case("edgewise.toml")
def broken_settings(at: Place) -> Arguments:
    (at.tmp / "edgewise.toml").write_text("[preprocessing\n")
    return optimize(at, "--settings", at.tmp / "edgewise.toml")


@case("none.toml")
def missing_settings(at: Place) -> Arguments:
    return optimize(at, "--settings", at.tmp / "none.toml")


@case("colour")
def unknown_setting(at: Place) -> Arguments:
    (at.tmp / "edgewise.toml").write_text('[preprocessing]\ncolour = "RGB"\n')
    return optimize(at, "--settings", at.tmp / "edgewise.toml")


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, place: Place, edgewise: Callable[..., Said]) -> None:
    check_refused(*CASES[name], place, edgewise)
