"""Replaying test vectors: here, elsewhere, and where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.backends import registry
from edgewise.backends.protocol import Artifact
from edgewise.bundle.manifest import Manifest
from edgewise.bundle.read import Bundle
from edgewise.bundle.verify import Verification, verify
from edgewise.bundle.write import Contract, NewRung, write
from edgewise.errors import BackendError, BackendMissingError, BundleError
from edgewise.records.candidate import Candidate, RunOptions
from edgewise.records.codec import decode, encode
from edgewise.records.tensors import Feeds, Outputs
from edgewise.testing import graphs

Written = tuple[Path, Manifest]


def verified(written: Written) -> Verification:
    return verify(Bundle.load(written[0]), machine=written[1].machine)


def patched(fake_backend: object, run: object) -> None:
    base = type(fake_backend).session  # type: ignore[attr-defined]  # of conftest, which cannot be imported
    fake_backend.session = type("Patched", (base,), {"run": run})  # type: ignore[attr-defined]


def test_the_same_machine_gives_the_same_bits(written: Written) -> None:
    result = verified(written)
    assert result.passed
    assert result.same_isa
    assert [(check.rung, check.status, check.difference) for check in result.rungs] == [
        ("fake untouched", "identical", 0.0),
        ("fake int8-mse", "identical", 0.0),
    ]
    assert decode(encode(result), Verification) == result


def test_another_instruction_set_is_said(written: Written) -> None:
    other = msgspec.structs.replace(written[1].machine, isa=("avx2", "avx512_vnni"), cpu="another processor")
    result = verify(Bundle.load(written[0]), machine=other)
    assert not result.same_isa
    assert result.proof == "unknown"
    assert (result.proven_on, result.here) == ("a processor", "another processor")
    assert result.passed


NO_BITS: dict[str, int] = {}


@pytest.mark.parametrize(
    ("product_bits", "proven", "here", "same_isa", "proof"),
    [
        # The flags alone, as before anything was measured.
        (None, NO_BITS, NO_BITS, True, "same instructions"),
        (8, NO_BITS, NO_BITS, False, "unknown"),
        # The same flags, but settings or an emulator take instructions away.
        (8, {"fake": 8}, {"fake": 8}, True, "same instructions"),
        (8, {"fake": 8}, {"fake": 7}, True, "saturates"),
        (8, NO_BITS, {"fake": 7}, True, "saturates"),
        (8, {"fake": 8}, NO_BITS, True, "same instructions"),
        # Narrow weights, or none, are exact everywhere.
        (7, {"fake": 8}, {"fake": 7}, False, "same sums"),
        (4, {"fake": 7}, {"fake": 8}, False, "same sums"),
        (0, NO_BITS, NO_BITS, False, "same sums"),
        (8, {"fake": 8}, {"fake": 8}, False, "same sums"),
        (8, {"fake": 8}, {"other": 8}, False, "unknown"),
        (None, {"fake": 8}, {"fake": 8}, False, "unknown"),
        # An 8-bit model that was measured where it saturates: it still does, or no longer.
        (8, {"fake": 7}, {"fake": 7}, True, "same instructions"),
        (8, {"fake": 7}, {"fake": 7}, False, "unknown"),
        (8, {"fake": 7}, {"fake": 8}, False, "unknown"),
        (8, {"fake": 7}, {"fake": 8}, True, "unknown"),
    ],
)
def test_whether_the_proof_carries_over(
    *,
    tmp_path: Path,
    contract: Contract,
    make_rung: Callable[..., NewRung],
    fake_backend: object,
    feeds: list[Feeds],
    product_bits: int | None,
    proven: dict[str, int],
    here: dict[str, int],
    same_isa: bool,
    proof: str,
) -> None:
    del fake_backend
    there = msgspec.structs.replace(contract.machine, exact_product_bits=proven)
    rungs = [replace(make_rung(), product_bits=0), replace(make_rung("2.01", int8=True), product_bits=product_bits)]
    write(tmp_path, rungs, default=1, contract=replace(contract, machine=there), vectors=feeds)
    machine = msgspec.structs.replace(there, exact_product_bits=here, isa=there.isa if same_isa else ("avx512_vnni",))
    result = verify(Bundle.load(tmp_path), machine=machine)
    assert (result.same_isa, result.proof, result.exact_product_bits) == (same_isa, proof, here)
    assert [check.saturates for check in result.rungs] == [False, proof == "saturates"]
    assert result.passed  # the vectors are another question
    assert decode(encode(result), Verification) == result


def test_what_an_earlier_edgewise_wrote_says_nothing_about_its_weights(written: Written) -> None:
    manifest = json.loads(encode(written[1]))
    del manifest["machine"]["exact_product_bits"]
    for rung in manifest["ladder"]:
        del rung["product_bits"]
    assert decode(json.dumps(manifest), Manifest) == written[1]


def test_rounding_is_within_tolerance_and_more_is_not(written: Written, fake_backend: object) -> None:
    # The outputs reach 6; the float32 rung is allowed 4 x 2^-20 of that, the 8-bit rung 4 x 2^-8.
    def run(self: object, feeds: Feeds) -> Outputs:
        return {"y": feeds["x"] * self.factor * np.float32(1 + 2**-10)}  # type: ignore[attr-defined]

    patched(fake_backend, run)
    untouched, int8 = verified(written).rungs
    assert untouched.status == "differs"
    assert untouched.difference is not None
    assert untouched.difference > 100
    assert "Output `y`" in untouched.reason
    assert int8.status == "within tolerance"
    assert int8.difference is not None
    assert 0 < int8.difference < 1
    assert not verified(written).passed


@pytest.mark.parametrize("wrong", [lambda _: {}, lambda y: {"y": y * np.nan}, lambda y: {"y": y[:, :2]}])
def test_wrong_outputs_differ_without_bound(written: Written, fake_backend: object, wrong: object) -> None:
    def run(self: object, feeds: Feeds) -> Outputs:
        outputs: Outputs = wrong(feeds["x"] * self.factor)  # type: ignore[operator, attr-defined]
        return outputs

    patched(fake_backend, run)
    result = verified(written)
    assert not result.passed
    assert [(check.status, check.difference) for check in result.rungs] == [("differs", None)] * 2


def test_a_rung_that_cannot_run_leaves_the_others(written: Written, fake_backend: object) -> None:
    def run(self: object, feeds: Feeds) -> Outputs:
        if self.factor == 2:  # type: ignore[attr-defined]
            raise BackendError("The fake cannot.")
        return {"y": feeds["x"] * self.factor}  # type: ignore[attr-defined]

    patched(fake_backend, run)
    result = verified(written)
    assert not result.passed
    assert [check.status for check in result.rungs] == ["failed", "identical"]
    assert result.rungs[0].reason == "The fake cannot."


def test_damage_is_an_error_not_a_result(written: Written) -> None:
    (written[0] / written[1].ladder[1].folder / "factor").write_text("3")
    with pytest.raises(BundleError, match="changed or truncated"):
        verified(written)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_real_runtime_gives_the_same_answers_again(tmp_path: Path, contract: Contract, backend: str) -> None:
    try:
        registry.get(backend).version()
    except BackendMissingError as error:
        pytest.skip(str(error))
    model = graphs.conv_net()
    options = RunOptions()
    artifact: Artifact = registry.get(backend).compile(model, options)
    candidate = Candidate(steps=(), backend=backend, options=options)
    rung = NewRung(candidate=candidate, artifact=artifact, certificate=None, certified=True, timing=None)
    feeds = [graphs.random_feeds(model, seed=seed) for seed in range(2)]
    manifest = write(tmp_path, [rung], default=0, contract=contract, vectors=feeds)
    result = verify(Bundle.load(tmp_path), machine=contract.machine)
    assert result.passed
    assert 0 < manifest.ladder[0].tolerance["scores"] < 1e-3
