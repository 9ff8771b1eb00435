"""`edgewise run`: files, folders and standard input; one line of JSON an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Bench, Said, write_bundle

from edgewise.samples.preprocessing import Preprocessing
from edgewise.testing import graphs

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three images."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that prepares images and knows its classes."""
    preprocessing = Preprocessing(color="rgb", resize=(16, 16), scale=1 / 255, layout="NCHW")
    folder = tmp_path_factory.mktemp("reader") / "bundle"
    return write_bundle(folder, graphs.conv_net(), classes=CLASSES, preprocessing=preprocessing)


def answers(said: Said) -> list[Mapping[str, Any]]:
    """Return the lines of standard output."""
    assert said.out.endswith("\n") or not said.out
    return [json.loads(line) for line in said.out.splitlines()]


def values(answer: Mapping[str, Any]) -> object:
    """Return what the model answered, without name and time."""
    return answer["classes"], answer["outputs"]


def test_a_file_of_samples(bench: Bench, edgewise: Callable[..., Said]) -> None:
    said = edgewise("run", bench.bundle, "--input", bench.samples)
    assert (said.code, said.err) == (0, "")
    found = answers(said)
    assert [answer["input"] for answer in found] == [f"{bench.samples}[{index}]" for index in range(240)]
    assert {answer["rung"] for answer in found} == {"ort untouched"}
    assert all(answer["latency_us"] > 0 for answer in found)


def test_a_rung_by_name(bench: Bench, edgewise: Callable[..., Said]) -> None:
    said = edgewise("run", bench.bundle, "--input", bench.samples, "--rung", "ort untouched as-written")
    assert {answer["rung"] for answer in answers(said)} == {"ort untouched as-written"}


def test_images_are_prepared_and_classes_have_names(reader: Path, photos: Path, edgewise: Callable[..., Said]) -> None:
    said = edgewise("run", reader, "--input", photos / "a.png", "--input", photos)
    assert (said.code, said.err) == (0, "")
    one, *folder = answers(said)
    assert one["input"] == str(photos / "a.png")
    assert [answer["input"] for answer in folder] == [str(photos / name) for name in ("a.png", "b.png", "c.png")]
    assert values(one) == values(folder[0])
    best = one["classes"]
    assert [entry["name"] for entry in best] == [CLASSES[entry["index"]] for entry in best]
    assert sorted((entry["score"] for entry in best), reverse=True) == [entry["score"] for entry in best]


def test_paths_on_standard_input(reader: Path, photos: Path, edgewise: Callable[..., Said]) -> None:
    lines = "".join(f"{photos / name}\n" for name in ("c.png", "a.png")) + "\n" + f"{photos}\n"
    said = edgewise("run", reader, stdin=lines.encode())
    assert (said.code, said.err) == (0, "")
    found = answers(said)
    assert [Path(answer["input"]).name for answer in found[:2]] == ["c.png", "a.png"]
    assert len(found) == 5
    assert values(found[1]) == values(found[2])


def test_samples_as_json_on_standard_input(bench: Bench, edgewise: Callable[..., Said]) -> None:
    sample = np.load(bench.samples)["x"][0].tolist()
    lines = [json.dumps(sample), json.dumps({"image": sample})]
    said = edgewise("run", bench.bundle, "--input", bench.samples, "--input", "-", stdin="\n".join(lines).encode())
    assert (said.code, said.err) == (0, "")
    found = answers(said)
    assert [answer["input"] for answer in found[-2:]] == ["line 1", "line 2"]
    assert values(found[0]) == values(found[-1]) == values(found[-2])


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (b"none.npz", "The samples have to exist. There is no `none.npz`."),
        (b"[[1, 2", "Line 2 of standard input has to be a path or a sample as JSON"),
        (b"[[1, 2], [3]]", "Line 2 of standard input has to be a path or a sample as JSON"),
        (b"[1, 2]", "`line 2`, input `image` has to have the shape [1, 3, 16, 16]"),
        (b"[]", "has to have the shape"),
        (b'[["a"]]', "has to"),
        (b'{"image": null}', "has to"),
        (b'{"picture": [1]}', "nothing for `image`"),
        (b"{}", "nothing for `image`"),
        (b"[1e999]", "Line 2"),
        (b"\xff\xfe.png", "The samples have to exist"),
        (b"null", "The samples have to exist. There is no `null`."),
    ],
)
def test_a_line_that_cannot_be_answered_is_answered_by_its_error(
    line: bytes, fragment: str, bench: Bench, edgewise: Callable[..., Said]
) -> None:
    sample = json.dumps(np.zeros((3, 16, 16)).tolist()).encode()
    said = edgewise("run", bench.bundle, stdin=b"\n".join((sample, line, sample)))
    assert said.code == 2
    first, bad, last = answers(said)
    assert fragment in bad["error"]
    assert bad["hint"]
    assert values(first) == values(last)
    assert said.err == (
        "error: Every line of standard input has to be answered, but 1 could not be.\n"
        "hint: The output has a line with `error` for each of them.\n"
    )


def test_a_file_that_cannot_be_answered_ends_the_command(
    bench: Bench, edgewise: Callable[..., Said], tmp_path: Path
) -> None:
    x = np.zeros((3, 3, 16, 16), np.float32)
    x[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    said = edgewise("run", bench.bundle, "--input", tmp_path / "x.npy")
    assert said.code == 2
    assert [answer["input"] for answer in answers(said)] == [f"{tmp_path / 'x.npy'}[0]"]
    assert said.err.startswith("error: Samples have to be finite, but Sample 1 of ")


def test_no_input_is_no_error(bench: Bench, edgewise: Callable[..., Said]) -> None:
    assert edgewise("run", bench.bundle) == Said(0, "", "")


def test_state_goes_from_line_to_line(edgewise: Callable[..., Said], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "cell", graphs.recurrent_cell(), state={"new_state": "state"})
    steps = np.random.default_rng(0).standard_normal((3, 4)).round(3).tolist()
    at_once = answers(edgewise("run", bundle, stdin=json.dumps(steps).encode()))
    lines = "\n".join([json.dumps([steps[0]]), "nonsense", *(json.dumps([step]) for step in steps[1:])])
    one_by_one = answers(edgewise("run", bundle, stdin=lines.encode()))
    together = [answer["outputs"]["y"]["values"][0] for answer in one_by_one if "error" not in answer]
    # The same float32 arithmetic on the same numbers, in another order of calls.
    assert together == at_once[0]["outputs"]["y"]["values"]
