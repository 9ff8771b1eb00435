"""Copies among the samples are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgewise.pipeline.copies import count_copies
from edgewise.pipeline.inputs import open_data
from edgewise.pipeline.request import DataRequest
from edgewise.records.tensors import Array, Port

INPUTS = (Port(name="x", dtype="float32", shape=(1, 4)),)


def _count(folder: Path, **sets: Array) -> int:
    for name, array in sets.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    paths = {name: str(folder / f"{name}.npy") for name in sets}
    request = DataRequest(samples=paths["calibration"], select=paths["select"], certify=paths["certify"])
    return count_copies(open_data(request, INPUTS)).certify


def test_samples_that_all_differ_are_no_copies(tmp_path: Path) -> None:
    a, b, c = np.arange(120.0).reshape(3, 10, 4)
    assert _count(tmp_path, calibration=a, select=b, certify=c) == 0


def test_copies_of_other_sets_and_of_their_own_are_counted(tmp_path: Path) -> None:
    a, b, c = np.arange(120.0).reshape(3, 10, 4)
    c[0] = a[3]
    c[1] = b[9]
    c[2] = c[5]
    assert _count(tmp_path, calibration=a, select=b, certify=c) == 3
