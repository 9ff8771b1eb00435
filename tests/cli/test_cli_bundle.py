"""Bundles that come to another machine: where their proof holds, where it does not, and what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.cli.conftest import Bench, Said, process

from edgewise.analysis.integers import product_bits
from edgewise.backends import registry
from edgewise.backends.processor import is_x86
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.measure.machine import describe
from edgewise.pipeline.library import quantize
from edgewise.records.candidate import Candidate, Fuse, Quantize, RunOptions
from edgewise.testing import graphs


def int8_bundle(folder: Path, backend: str, *, default: int = 1) -> Path:
    """Write a bundle with the untouched model and an 8-bit one, as `edgewise optimize` would."""
    model = graphs.conv_net(channels=16)
    random = np.random.default_rng(0)
    samples = [random.standard_normal((3, 16, 16)).astype(np.float32) for _ in range(8)]
    entry, options = registry.get(backend), RunOptions()
    ladder = []
    for steps, graph in (((), model), ((Fuse(), Quantize()), quantize(model, samples, backend=backend))):
        candidate = Candidate(steps=steps, backend=backend, options=options)
        rung = NewRung(
            candidate=candidate,
            artifact=entry.compile(graph, options),
            certificate=None,
            certified=True,
            timing=None,
            product_bits=product_bits(graph),
        )
        ladder.append(rung)
    contract = Contract(model="model.onnx", machine=describe(backends=(backend,)), created="2026-11-22T16:00:00Z")
    write(folder, ladder, default=default, contract=contract, vectors=[graphs.random_feeds(model)])
    return folder


def seven_bits(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let this machine be one whose 8-bit sums saturate."""

    def elsewhere(*, backends: set[str]) -> object:
        machine = msgspec.structs.replace(describe(backends=backends), cpu="another processor", **changes)
        return msgspec.structs.replace(machine, exact_product_bits=dict.fromkeys(backends, 7))

    monkeypatch.setattr("edgewise.measure.machine.describe", elsewhere)


@pytest.fixture
def exact() -> None:
    """Skip where 8-bit sums saturate: no 8-bit proof can be made there."""
    if registry.get("ort").target().exact_product_bits < 8:
        pytest.skip("8-bit sums saturate on this machine, so plans take 7-bit weights.")


@pytest.mark.usefixtures("exact")
def test_a_default_that_saturates_here_is_refused(
    tmp_path: Path, edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = int8_bundle(tmp_path / "out", "ort")
    assert edgewise("bundle", "verify", bundle).code == 0
    seven_bits(monkeypatch)
    said = edgewise("bundle", "verify", bundle)
    assert said.code == 2
    assert "exact only for weights of up to 7 bits in ort, as measured, and saturate beyond" in said.out
    first, hint = said.err.splitlines()
    assert first.startswith("error: The accuracy of `ort int8")
    assert first.endswith("but on this machine they saturate: the proof does not carry over.")
    assert "`edgewise optimize`, which takes 7-bit weights" in hint
    said = edgewise("bundle", "verify", bundle, "--json")
    assert said.code == 2
    assert (json.loads(said.out)["proof"], json.loads(said.out)["passed"]) == ("saturates", True)


@pytest.mark.usefixtures("exact")
def test_another_rung_that_saturates_is_a_notice(
    tmp_path: Path, edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = int8_bundle(tmp_path / "out", "ort", default=0)
    seven_bits(monkeypatch)
    said = edgewise("bundle", "verify", bundle)
    assert (said.code, said.err) == (0, "")
    assert "the certificate of `ort int8" in said.out
    assert "`ort untouched`" not in said.out


def test_other_instructions_with_equal_sums_keep_the_proof(
    bench: object, tmp_path: Path, edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    del bench
    bundle = int8_bundle(tmp_path / "out", "ort")

    def elsewhere(*, backends: set[str]) -> object:
        return msgspec.structs.replace(describe(backends=backends), isa=("avx10_2",))

    monkeypatch.setattr("edgewise.measure.machine.describe", elsewhere)
    said = edgewise("bundle", "verify", bundle)
    assert said.code == 0
    assert "sums are exact on both, as measured: the certificate carries over up to rounding." in said.out


def test_where_nothing_can_be_measured_that_is_said(
    tmp_path: Path, edgewise: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = int8_bundle(tmp_path / "out", "ort")
    monkeypatch.setattr("edgewise.measure.machine.describe", lambda **_: describe())
    said = edgewise("bundle", "verify", bundle)
    assert said.code == 0
    assert said.out.endswith("Its 8-bit sums could not be measured here.\n")


@pytest.mark.skipif(not is_x86(), reason="ONEDNN_MAX_CPU_ISA names instruction sets of x86.")
@pytest.mark.usefixtures("exact")
def test_a_runtime_that_is_denied_dot_products_is_found_out(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = int8_bundle(tmp_path / "out", "openvino")
    result = process("bundle", "verify", bundle, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert result.returncode == 2
    assert "exact only for weights of up to 7 bits in openvino, as measured" in result.stdout
    assert "the proof does not carry over" in result.stderr


def test_a_bundle_goes_through_one_file(bench: Bench, edgewise: Callable[..., Said], tmp_path: Path) -> None:
    file, there = tmp_path / "model.tar.xz", tmp_path / "there"
    assert edgewise("bundle", "pack", bench.bundle, "--out", file).code == 0
    said = edgewise("bundle", "unpack", file, "--out", there, "--json")
    assert (said.code, json.loads(said.out)["bundle"]) == (0, str(there))
    assert edgewise("bundle", "verify", there).code == 0
    file.write_bytes(file.read_bytes()[:-8])
    said = edgewise("bundle", "unpack", file, "--out", tmp_path / "other")
    assert said.code == 2
    assert said.err.splitlines() == [
        f"error: `{file}` has to be a whole packed bundle, but it is cut off.",
        "hint: Copy the file again, or pack the bundle again with `edgewise bundle pack`.",
    ]
    assert sorted(tmp_path.iterdir()) == [file, there]


def test_a_part_of_a_bundle_says_what_is_missing(
    edgewise: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.measure.machine.describe", lambda **_: describe())
    bundle = int8_bundle(tmp_path / "out", "ort", default=0)
    said = edgewise(
        "bundle", "pack", bundle, "--out", tmp_path / "file", "--rung", "ort untouched", "--without-vectors"
    )
    assert said.code == 0
    assert said.out.splitlines()[-1].startswith("left out: ort int8")
    assert said.out.endswith(", test vectors\n")
    assert edgewise("bundle", "unpack", tmp_path / "file", "--out", tmp_path / "there").code == 0
    said = edgewise("bundle", "verify", tmp_path / "there")
    assert said.code == 0
    assert "opens" in said.out
    assert "The test vectors were left out when this bundle was packed" in said.out
    assert "no answer was compared" in said.out
    assert "Packing left out `ort int8" in said.out
    said = edgewise("bundle", "pack", bundle, "--out", tmp_path / "other", "--rung", "int4")
    assert said.code == 2
    assert "Received `int4`" in said.err
