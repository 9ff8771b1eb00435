from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgewise.errors import DataError, ResourceError
from edgewise.records.tensors import Array
from edgewise.samples.images import read_image
from edgewise.samples.open import open_source
from edgewise.samples.preprocessing import MeanImage, Preprocessing

X = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2], np.uint8)
Save = Callable[..., None]


def _npz(tmp_path: Path, save: Save = np.savez, **arrays: Any) -> str:
    path = tmp_path / "data.npz"
    save(path, **arrays)
    return str(path)


# ---------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_archive_gives_its_rows_and_labels(tmp_path: Path, save: Save, order: Any) -> None:
    source = open_source(_npz(tmp_path, save, x=np.asarray(X, order=order), y=Y))
    assert len(source) == 6
    assert source.labels() == [0, 1, 2, 0, 1, 2]
    for index in (0, 5, 2):
        sample = source[index]
        np.testing.assert_array_equal(sample.arrays[""], X[index])
        assert sample.arrays[""].flags.c_contiguous
        assert sample.label == Y[index]
        assert type(sample.label) is int


def test_arrays_by_input_name_and_constants(tmp_path: Path) -> None:
    source = open_source(_npz(tmp_path, a=X, b=Y, rate=np.array(16000)))
    assert source.labels() is None
    sample = source[4]
    assert set(sample.arrays) == {"a", "b", "rate"}
    assert sample.arrays["rate"] == 16000
    assert sample.arrays["b"] == 1


def test_labels_of_another_name(tmp_path: Path) -> None:
    source = open_source(_npz(tmp_path, x=X, y=Y, age=np.arange(6) / 2), label="age")
    assert source.labels() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert set(source[0].arrays) == {"", "y"}


def test_whatever_lies_beside_x_does_no_harm(tmp_path: Path) -> None:
    names, odd = np.array(["a", "b"]), np.array([{}], object)
    path = _npz(tmp_path, x=X, y=Y, names=names, odd=odd, gap=np.full(6, np.nan), few=np.zeros(2))
    source = open_source(path, Preprocessing(sample_shape=(6,)))
    assert set(source[0].arrays) == {"", "gap"}


def test_labels_that_are_arrays(tmp_path: Path) -> None:
    source = open_source(_npz(tmp_path, x=X, y=X[:, 0]))
    labels = source.labels()
    assert labels is not None
    np.testing.assert_array_equal(labels[3], X[3, 0])
    np.testing.assert_array_equal(source[3].label, X[3, 0])


def test_images_in_an_archive_are_prepared(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    source = open_source(_npz(tmp_path, x=images), Preprocessing(color="bgr", mean=(1.0,)))
    np.testing.assert_array_equal(source[2].arrays[""], images[2, ..., ::-1].transpose(2, 0, 1).astype(np.float32) - 1)


def test_a_single_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    source = open_source(str(tmp_path / "x.npy"))
    assert (len(source), source.labels()) == (6, None)
    np.testing.assert_array_equal(source[1].arrays[""], X[1])


@pytest.mark.parametrize(
    ("arrays", "label", "words"),
    [
        ({"x": X, "y": Y[:5]}, None, r"`x`.*has 6.*`y`.*has 5"),
        ({"a": X, "b": X[:2]}, None, r"has 6.*has 2"),
        ({"x": X}, "z", "no `z`; the arrays are `x`"),
        ({"y": Y}, None, "has to hold samples"),
        ({"a": np.array(1.0)}, None, "first axis"),
        ({"x": np.array(1.0)}, None, "single number"),
        ({"x": X, "y": np.array(1)}, None, "one label for each sample"),
        ({"x": X[:0]}, None, "at least one sample"),
        ({"x": np.array([{}, {}], object)}, None, "never unpickled"),
        ({"x": X, "y": np.array([None] * 6, object)}, None, "never unpickled"),
        ({"a": X, "rate": np.array(np.nan)}, None, "Constants have to be finite"),
    ],
)
def test_archives_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], label: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source(_npz(tmp_path, **arrays), label=label)


def test_a_sample_that_is_not_finite_is_named_when_it_is_read(tmp_path: Path) -> None:
    bad = X.copy()
    bad[4, 1] = [np.nan, np.inf, np.inf]
    source = open_source(_npz(tmp_path, x=bad))
    source[3]
    with pytest.raises(DataError, match=r"Sample 4 of `x` in `.*data\.npz` has 1 .*NaN and 2 .*infinite"):
        source[4]


def test_a_label_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Label 2"):
        open_source(_npz(tmp_path, x=X, y=np.array([0, 1, np.nan, 0, 0, 0]))).labels()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_archive(tmp_path: Path, save: Save) -> None:
    path = _npz(tmp_path, save, x=X, y=Y)
    os.truncate(path, 200)
    with pytest.raises(DataError, match=r"has to be an `\.npz` archive"):
        open_source(path)


def test_a_damaged_member(tmp_path: Path) -> None:
    path = Path(_npz(tmp_path, np.savez_compressed, x=np.zeros((1000, 100))))
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)
    with pytest.raises(DataError, match="has to be"):
        open_source(str(path))


def test_a_truncated_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 3)
    with pytest.raises(DataError, match="last 3 bytes are missing"):
        open_source(str(tmp_path / "x.npy"))


def test_an_array_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"hello, I am no array")
    with pytest.raises(DataError, match="has to be a NumPy array"):
        open_source(str(tmp_path / "x.npy"))


def test_no_room_to_unpack_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _npz(tmp_path, np.savez_compressed, x=X)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ResourceError, match="No space left") as caught:
        open_source(path)
    assert "TMPDIR" in (caught.value.hint or "")


def test_fingerprints_follow_the_bytes_and_the_choice_of_labels(tmp_path: Path) -> None:
    first = open_source(_npz(tmp_path, x=X, y=Y, z=Y)).fingerprint
    assert open_source(_npz(tmp_path, x=X, y=Y, z=Y)).fingerprint == first
    assert open_source(str(tmp_path / "data.npz"), label="z").fingerprint != first
    assert open_source(_npz(tmp_path, x=X, y=Y[::-1], z=Y)).fingerprint != first


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_stays_bounded_whatever_the_size(tmp_path: Path, save: Save) -> None:
    path = _npz(tmp_path, save, x=np.ones((64, 1 << 18), np.float32), y=np.zeros(64, np.int64))
    tracemalloc.start()
    source = open_source(path)
    total = sum(float(source[index].arrays[""][0]) for index in range(len(source)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64
    # One sample is 1 MiB, 64 are in the file. A block of the archive and a few copies of a sample may be in flight.
    assert peak < 8 << 20


# ---------------------------------------------------------------------------- images


def _image(path: Path, value: int, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 0)).save(path)


def _reds(folder: Path, **options: Any) -> tuple[list[int], list[Any] | None]:
    source = open_source(str(folder), **options)
    return [int(source[index].arrays[""][0, 0, 0]) for index in range(len(source))], source.labels()


def test_one_folder_for_each_class(tmp_path: Path) -> None:
    for name, value in (("dog/b.png", 3), ("cat/z.png", 1), ("cat/a.png", 2), ("empty/readme.txt", 0)):
        if name.endswith(".png"):
            _image(tmp_path / name, value)
        else:
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
    assert _reds(tmp_path) == ([2, 1, 3], [0, 0, 1])


def test_folders_that_are_numbers_are_the_labels(tmp_path: Path) -> None:
    for name, value in (("10/a.png", 1), ("2/a.png", 2)):
        _image(tmp_path / name, value)
    assert _reds(tmp_path) == ([1, 2], [10, 2])


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    for name, value in (("b.png", 1), ("a.PNG", 2), (".hidden.png", 3)):
        _image(tmp_path / name, value)
    (tmp_path / "notes.txt").touch()
    assert _reds(tmp_path) == ([2, 1], None)


def test_a_single_image(tmp_path: Path) -> None:
    _image(tmp_path / "a.png", 7)
    assert _reds(tmp_path / "a.png") == ([7], None)


@pytest.mark.parametrize(
    ("labels", "expected"), [(("3", "4"), [3, 4]), (("0.5", "4"), [0.5, 4.0]), (("cat", "4"), ["cat", "4"])]
)
def test_labels_csv(tmp_path: Path, labels: tuple[str, str], expected: list[Any]) -> None:
    _image(tmp_path / "sub" / "a.png", 1)
    _image(tmp_path / "b.png", 2)
    text = f"note,image,label\n,b.png,{labels[0]}\n,sub/a.png,{labels[1]}\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")
    assert _reds(tmp_path) == ([2, 1], expected)


def test_labels_csv_with_another_column(tmp_path: Path) -> None:
    _image(tmp_path / "a.png", 1)
    (tmp_path / "labels.csv").write_text("image,text\na.png,hello\n")
    assert _reds(tmp_path, label="text") == ([1], ["hello"])
    with pytest.raises(DataError, match=r"`image` and `label`. It has `image`, `text`") as caught:
        open_source(str(tmp_path))
    assert "--label" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\nb.png,1\n", r"Row 2 .*`b\.png`, which is not there"),
        ("image,label\na.png\n", "Row 2 .*an image and a label"),
        ("image,label\n", "at least one image"),
        ("image,label\na.png,nan\n", "Label 0"),
        ("", "It has none"),
    ],
)
def test_labels_csv_that_do_not_fit(tmp_path: Path, text: str, words: str) -> None:
    _image(tmp_path / "a.png", 1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        open_source(str(tmp_path))


def test_labels_csv_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"image,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_source(str(tmp_path))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has to hold images"):
        open_source(str(tmp_path))
    _image(tmp_path / "images" / "a.png", 1)
    with pytest.raises(DataError, match="at least two classes") as caught:
        open_source(str(tmp_path))
    assert "images" in (caught.value.hint or "")
    _image(tmp_path / "loose.png", 1)
    with pytest.raises(DataError, match="either images or one sub-folder"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"labels\.csv"):
        open_source(str(tmp_path), label="z")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="readable"):
        open_source(str(tmp_path))


def test_corrupt_images_are_named_when_they_are_read(tmp_path: Path) -> None:
    _image(tmp_path / "a.png", 1)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[:40])
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "d.png").touch()
    source = open_source(str(tmp_path))
    source[0]
    for index, name in ((1, "b"), (2, "c"), (3, "d")):
        with pytest.raises(DataError, match=rf"{name}\.png"):
            source[index]


def test_an_image_that_does_not_fit_the_mean_is_named(tmp_path: Path) -> None:
    _image(tmp_path / "a.png", 1)
    source = open_source(str(tmp_path), Preprocessing(mean_image=MeanImage.of(np.zeros((9, 9, 3)))))
    with pytest.raises(DataError, match=r"a\.png"):
        source[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 4, 3)
    assert (image == 255).all()
    np.testing.assert_array_equal(read_image(path.read_bytes()), image)


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="8 bits"):
        read_image(tmp_path / "a.png")


def test_fingerprints_of_images_follow_names_bytes_and_labels(tmp_path: Path) -> None:
    _image(tmp_path / "0" / "a.png", 1)
    _image(tmp_path / "1" / "b.png", 2)
    first = open_source(str(tmp_path)).fingerprint
    assert open_source(str(tmp_path)).fingerprint == first
    (tmp_path / "1").rename(tmp_path / "2")
    assert open_source(str(tmp_path)).fingerprint != first
    (tmp_path / "2").rename(tmp_path / "1")
    _image(tmp_path / "1" / "b.png", 3)
    assert open_source(str(tmp_path)).fingerprint != first


# ---------------------------------------------------------------------------- windows


def _csv(tmp_path: Path, text: str, **options: Any) -> tuple[list[Array], list[Any] | None]:
    path = tmp_path / "w.csv"
    path.write_bytes(text.encode())
    source = open_source(str(path), **options)
    return [source[index].arrays[""].tolist() for index in range(len(source))], source.labels()


@pytest.mark.parametrize(
    ("text", "label", "windows", "labels"),
    [
        ("1,2,3\n4,5,6\n", None, [[1, 2, 3], [4, 5, 6]], None),
        ("1,2,3\n4,5,6", "last", [[1, 2], [4, 5]], [3, 6]),
        ("a,b,label\n1,2,x\n\n4,5,y\n", None, [[1, 2], [4, 5]], ["x", "y"]),
        ("label;a\r\n7;1.5e0\r\n", None, [[1.5]], [7]),
        ("0,1,label\n1,2,3\n", None, [[1, 2]], [3]),
        ("a\tb\n1\t2\n", "b", [[1]], [2]),
        ("\ufeffa,b\n1,2\n", None, [[1, 2]], None),
        ('1,2,"x, y"\n', "last", [[1, 2]], ["x, y"]),
        ("a,b\n1,2\n", "last", [[1]], [2]),
    ],
)
def test_windows(tmp_path: Path, text: str, label: str | None, windows: Any, labels: Any) -> None:
    assert _csv(tmp_path, text, label=label) == (windows, labels)


def test_windows_are_reshaped(tmp_path: Path) -> None:
    windows, _ = _csv(tmp_path, "1,2,3,4\n", preprocessing=Preprocessing(sample_shape=(1, 2, 2)))
    assert windows == [[[[1, 2], [3, 4]]]]


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("a,b\n1,2\n1,oops\n", None, r"Row 3, column 2 \(`b`\).*`oops`"),
        ("1,2\n1,\n", None, "Row 2, column 2 .*``"),
        ("1,2\n1,nan\n", None, "Row 2 .*1 NaN value"),
        ("1,2\n1,2,3\n", None, "Row 2 has 3"),
        ("a,b\n", None, "It has no rows"),
        ("\n\n", None, "It has no rows"),
        ("a,b\n1,2\n", "c", "no `c`; the columns are `a`, `b`"),
        ("1,2\n", "c", "begins with numbers"),
        ("label\n1\n", None, "columns of values"),
        ("a,label\n1,inf\n", None, "Label 0"),
        ('1,"2\n', None, "CSV on one line"),
    ],
)
def test_windows_that_do_not_fit(tmp_path: Path, text: str, label: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        _csv(tmp_path, text, label=label)


def test_windows_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_bytes(b"1,2\n\xff,3\n")
    with pytest.raises(DataError, match=r"Row 2 .*UTF-8"):
        open_source(str(tmp_path / "w.csv"))


# ---------------------------------------------------------------------------- anything


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.npy", "x.png"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="is empty"):
        open_source(str(tmp_path / name))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no") as caught:
        open_source(str(tmp_path / "none.npz"))
    assert "package.module:function" in (caught.value.hint or "")


def test_kinds_that_are_not_known(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DataError, match=r"`\.zip` are not known"):
        open_source(str(tmp_path / "x.zip"))


def test_images_alone_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(open_source(_npz(tmp_path, x=np.zeros((2, 4, 4, 3), np.uint8)))) == 2
    open_source(str(tmp_path / "data.npz"), Preprocessing(color="bgr", scale=0.5))[1]


def test_samples_load_neither_pillow_nor_anything_of_the_optimizer() -> None:
    code = (
        "import sys, edgewise.samples.open, edgewise.samples.bind, edgewise.samples.state\n"
        "print([name for name in ('PIL', 'onnx', 'onnx_ir', 'scipy', 'torch', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
