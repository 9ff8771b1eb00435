"""Runs as the main job would record them: typical, nothing helped, without labels, hostile names."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from edgewise.records.candidate import Candidate, Fuse, HalveWeights, Quantize, RangeMethod, RunOptions, Step
from edgewise.records.certificate import Certificate
from edgewise.records.findings import Change, Decline
from edgewise.records.machine import Machine
from edgewise.records.measurements import Accuracy, ColdStart, Energy, Latency, LayerCost, PeakMemory, Ratio
from edgewise.records.run import DataFacts, ModelFacts, Outcome, Run, Rung
from edgewise.records.tensors import Port

UNTOUCHED = Candidate(steps=(), backend="ort", options=RunOptions())
MACHINE = Machine(
    cpu="AMD EPYC 9654 96-Core Processor",
    architecture="x86_64",
    isa=("avx2", "avx512_bf16", "avx512_vnni", "fma"),
    cores=2,
    memory_bytes=8_241_000_000,
    system="Linux 6.1.0 (Debian GNU/Linux 12)",
    governor=None,
    load=0.42,
    python="3.11.7",
    packages={"edgewise": "0.1.0", "numpy": "2.4.1", "onnx": "1.22.0", "onnxruntime": "1.28.0", "openvino": "2026.1.0"},
)


def candidate(backend: str, *steps: Step, precision: str = "fp32", threads: int = 1) -> Candidate:
    options = msgspec.convert({"precision": precision, "threads": threads}, RunOptions)
    return Candidate(steps=steps, backend=backend, options=options)


def int8(backend: str, ranges: RangeMethod = "mse", precision: str = "fp32") -> Candidate:
    return candidate(backend, Fuse(), Quantize(ranges=ranges), precision=precision)


def latency(median_us: float, *, spread: float = 0.04, seed: int = 0, threads: int = 1) -> Latency:
    """A right-skewed sample: log-normal, with a few interruptions in the tail."""
    source = random.Random(f"{seed}/{median_us}")  # noqa: S311 - a fake, not a secret
    runs = [median_us * math.exp(spread * source.gauss(0, 1)) for _ in range(1200)]
    runs += [median_us * source.uniform(1.2, 1.7) for _ in range(30)] + [median_us * 3.1]
    runs.sort()
    at = [runs[round(level / 100 * (len(runs) - 1))] for level in range(101)]
    rounds = tuple(median_us * math.exp(spread / 4 * source.gauss(0, 1)) for _ in range(24))
    return Latency(
        median_us=at[50],
        p90_us=at[90],
        p99_us=at[99],
        max_us=at[100],
        runs=len(runs),
        rounds_us=rounds,
        quantiles_us=tuple(at),
        threads=threads,
        pinned=True,
    )


def ratio(value: float, width: float = 0.03) -> Ratio:
    return Ratio(value=value, low=value * (1 - width), high=value * (1 + width), confidence=0.95, rounds=24)


def accuracy(value: float, metric: str = "top1", n: int = 1250) -> Accuracy:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.0) / n)
    return Accuracy(
        metric=metric,
        value=value,
        low=max(value - half, 0),
        high=min(value + half, 1),
        confidence=0.95,
        method="Clopper-Pearson",
        n=n,
        higher_is_better=True,
    )


def certificate(*, drop: float, upper: float, max_drop: float = 0.01, **changes: Any) -> Certificate:
    made = Certificate(
        claim="drop",
        metric="top1",
        max_drop=max_drop,
        relative=False,
        passed=upper <= max_drop,
        original=0.9436,
        optimized=0.9436 - drop,
        drop=drop,
        lower=2 * drop - upper,
        upper=upper,
        confidence=0.95,
        method="betting confidence sequence (Waudby-Smith and Ramdas, 2024)",
        exact=True,
        n=3450,
        worse=31,
        better=24,
        samples_needed=None,
        reused=0,
        isa=MACHINE.fingerprint,
    )
    return msgspec.structs.replace(made, **changes)


def layers(count: int, *, timed: bool = True, weight: int = 9216) -> tuple[LayerCost, ...]:
    source = random.Random(count)  # noqa: S311 - a fake, not a secret
    kinds = ("Conv", "Relu", "Conv", "Add", "Conv", "QuantizeLinear", "MaxPool", "Reorder", "Gemm")
    return tuple(
        LayerCost(
            node=f"/layer{1 + index // 18}/layer.{index % 9}/{kinds[index % 9].lower()}{index}/{kinds[index % 9]}",
            operator=kinds[index % 9],
            macs=2_359_296 if kinds[index % 9] == "Conv" else 0,
            weight_bytes=weight * (1 + index // 36) if kinds[index % 9] == "Conv" else 0,
            activation_bytes=131_072,
            time_us=(30 if kinds[index % 9] == "Conv" else 4) * source.uniform(0.6, 1.8) if timed else None,
        )
        for index in range(count)
    )


def rung(of: Candidate, median_us: float, speed: float, size: int, proof: Certificate | None) -> Rung:
    return Rung(
        candidate=of,
        certificate=proof,
        certified=proof.passed if proof is not None else of.is_untouched,
        latency=latency(median_us, seed=7),
        speedup=ratio(speed, 0.0 if of.is_untouched else 0.03),
        cold_start=ColdStart(import_ms=112.0, load_ms=38.0 / speed, first_run_ms=median_us / 700),
        memory=PeakMemory(peak_bytes=71_000_000 + size * 3, before_bytes=66_500_000),
        energy=Energy(joules=None, source="not measurable here: no powercap counter is readable"),
        size_bytes=size,
        layers=layers(74),
    )


def outcome(of: Candidate, fate: str, reason: str, **measured: Any) -> Outcome:
    return msgspec.structs.replace(Outcome(candidate=of, fate=fate, reason=reason), **measured)


def _measured(median_us: float, top1: float, size: int) -> dict[str, Any]:
    return {
        "latency": latency(median_us, seed=3),
        "speedup": ratio(4210 / median_us),
        "accuracy": accuracy(top1),
        "drop": round(0.9440 - top1, 6),
        "size_bytes": size,
    }


def _declines(count: int) -> tuple[Decline, ...]:
    many = tuple(
        Decline(
            stage="fold_batch_norm",
            node=f"/layer{index // 20}/{index}/Conv",
            operator="Conv",
            reason=f"`/layer{index // 20}/{index}/Conv_output_0` has 2 readers",
        )
        for index in range(count)
    )
    return (
        Decline(
            stage="openvino", node="", operator="", reason="the machine has no AMX: bf16 runs on AVX-512 BF16 only"
        ),
        *many,
        Decline(stage="quantize", node="/Softmax", operator="Softmax", reason="its input has to stay in float"),
    )


def typical() -> Run:
    quick, safe, risky = int8("openvino"), int8("ort"), int8("openvino", precision="bf16")
    passed = certificate(drop=0.002029, upper=0.0061874)
    failed = certificate(drop=0.0074, upper=0.01338, samples_needed=9800, worse=66, better=40)
    ladder = (
        rung(UNTOUCHED, 4210, 1.0, 3_412_881, None),
        rung(safe, 1704, 2.47, 941_203, certificate(drop=0.000870, upper=0.0041, worse=18, better=15)),
        rung(quick, 1519, 2.77, 968_410, passed),
        rung(risky, 1302, 3.23, 968_410, failed),
    )
    outcomes = (
        outcome(UNTOUCHED, "rung", "the reference", **_measured(4210, 0.9440, 3_412_881)),
        outcome(
            candidate("ort", Fuse()),
            "measured",
            "beaten by `ort int8-mse` in both",
            **_measured(3890, 0.9440, 3_398_002),
        ),
        outcome(
            candidate("ort", Fuse(), HalveWeights()),
            "measured",
            "as slow as float",
            **_measured(3935, 0.9440, 1_704_000),
        ),
        outcome(candidate("openvino", Fuse()), "measured", "beaten in both", **_measured(3460, 0.9440, 3_440_118)),
        outcome(
            candidate("openvino", Fuse(), precision="bf16"),
            "measured",
            "beaten in both",
            **_measured(2320, 0.9432, 3_440_118),
        ),
        outcome(int8("ort", "min-max"), "measured", "beaten by `ort int8-mse`", **_measured(1721, 0.9392, 941_203)),
        outcome(
            int8("ort", "entropy"),
            "rejected",
            "drop of 2.9 points on the select split",
            **_measured(1716, 0.9152, 941_203),
        ),
        outcome(safe, "rung", "on the front", **_measured(1704, 0.9424, 941_203), declines=_declines(3)[-1:]),
        outcome(quick, "chosen", "the fastest that was certified", **_measured(1519, 0.9416, 968_410)),
        outcome(risky, "rung", "faster, but its bound was not shown", **_measured(1302, 0.9368, 968_410)),
        outcome(int8("openvino", "percentile"), "rejected", "NaN in the output on sample 12", size_bytes=968_410),
        outcome(candidate("reference"), "rejected", "11 times slower than the original in a first look"),
    )
    return Run(
        schema=1,
        edgewise="0.1.0",
        command="edgewise optimize resnet56.onnx --data cifar10_dev.npz --max-drop 1% --seed 0 --out out.bundle",
        started="2026-11-22T16:31:09Z",
        seconds=192.4,
        model=ModelFacts(
            name="resnet56.onnx",
            sha256="9f2c" * 16,
            opset=17,
            inputs=(Port(name="input", dtype="float32", shape=(1, 3, 32, 32)),),
            outputs=(Port(name="logits", dtype="float32", shape=(1, 10)),),
            operators={"Conv": 55, "Relu": 55, "Add": 27, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1},
            macs=125_485_696,
            parameters=855_770,
            weight_bytes=3_423_080,
            activation_peak_bytes=196_608,
        ),
        data=DataFacts(
            source="cifar10_dev.npz",
            sha256="41aa" * 16,
            n=5000,
            calibrate=300,
            select=1250,
            certify=3450,
            labelled=True,
            metric="top1",
            seed=0,
        ),
        machine=MACHINE,
        changes=(
            *(
                Change(stage="fold_batch_norm", node=f"/layer{i}/Conv", what=f"folded `bn{i}` into the weights")
                for i in range(55)
            ),
            Change(stage="remove_identities", node="/Identity", what="removed"),
            *(
                Change(stage="fuse_bias", node=f"/Gemm_{i}", what="took the following Add as its bias")
                for i in range(3)
            ),
        ),
        declines=_declines(14),
        outcomes=outcomes,
        ladder=ladder,
        chosen=2,
        verdict="2.77 times faster and 3.5 times smaller; with 95 % confidence, top1 drops by at most 0.62 points.",
        notes=(
            "The frequency governor cannot be read here, so clocks may have changed between rounds.",
            "The energy counters of this machine are not readable; energy was not measured.",
        ),
    )


def nothing_helped() -> Run:
    run = typical()
    ladder = (msgspec.structs.replace(run.ladder[0], layers=layers(6, timed=False)),)
    outcomes = (
        run.outcomes[0],
        outcome(
            candidate("ort", Fuse()),
            "rejected",
            "no faster: 0.99 times (0.97 to 1.02)",
            **_measured(4250, 0.9440, 3_400_000),
        ),
        outcome(int8("ort"), "rejected", "the backend has no 8-bit kernel for `LSTM`"),
    )
    return msgspec.structs.replace(
        run,
        ladder=ladder,
        chosen=0,
        outcomes=(msgspec.structs.replace(outcomes[0], fate="chosen", reason="nothing was faster"), *outcomes[1:]),
        changes=(),
        declines=(),
        notes=(),
        verdict="Nothing that was tried is faster than the untouched model, so that is the answer.",
    )


def without_labels() -> Run:
    run = typical()
    flips: dict[str, Any] = {
        "claim": "flip-rate",
        "metric": "agreement",
        "original": 1.0,
        "worse": None,
        "better": None,
    }
    good = certificate(
        drop=0.0041, upper=0.0077, optimized=0.9959, reused=2, exact=False, isa="0123456789abcdef", **flips
    )
    ladder = (run.ladder[0], msgspec.structs.replace(run.ladder[2], certificate=good), run.ladder[3])
    ladder = (*ladder[:2], msgspec.structs.replace(ladder[2], certificate=None, certified=False))
    outcomes = tuple(
        msgspec.structs.replace(x, accuracy=None, drop=None if x.drop is None else abs(x.drop)) for x in run.outcomes
    )
    data = msgspec.structs.replace(run.data, labelled=False, metric="agreement")
    return msgspec.structs.replace(
        run,
        data=data,
        ladder=ladder,
        chosen=1,
        outcomes=outcomes,
        verdict="2.77 times faster; at most 0.77 % of answers change.",
    )


HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&{{ 7*7 }}"


def hostile() -> Run:
    """Names from hell: markup, template code, control and bidi characters, 400 characters long, non-ASCII."""
    run = typical()
    names = (HOSTILE, "層" * 90, "\u202egnp.exe", "nul\x00 esc\x1b[31m", "a/" * 200, "ünïcødé ∂ 🙂", "")

    def named(costs: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
        return tuple(
            msgspec.structs.replace(x, node=names[i % len(names)], operator=HOSTILE) for i, x in enumerate(costs)
        )

    ladder = tuple(
        msgspec.structs.replace(
            x,
            layers=named(x.layers),
            candidate=x.candidate
            if x.candidate.is_untouched
            else msgspec.structs.replace(x.candidate, backend=HOSTILE),
            energy=Energy(joules=0.0042, source=HOSTILE),
        )
        for x in run.ladder
    )
    declines = tuple(
        Decline(
            stage=HOSTILE[:20],
            node=f"{names[i % 7]}{i}",
            operator=HOSTILE,
            reason=f"`{names[i % 7]}{i}` is <b>bold</b>",
        )
        for i in range(700)
    )
    relative = {
        "relative": True,
        "metric": "my_module:Łoss<i>",
        "original": 12.3456,
        "optimized": 12.5,
        "worse": None,
        "better": None,
    }
    ladder = tuple(
        x
        if x.certificate is None
        else msgspec.structs.replace(x, certificate=msgspec.structs.replace(x.certificate, **relative))
        for x in ladder
    )
    return msgspec.structs.replace(
        run,
        command=f"edgewise optimize '{HOSTILE}'",
        model=msgspec.structs.replace(run.model, name=HOSTILE, operators={HOSTILE: 3}),
        data=msgspec.structs.replace(run.data, source="サンプル/" * 20, metric="my_module:Łoss<i>"),
        machine=msgspec.structs.replace(run.machine, cpu=HOSTILE, packages={HOSTILE: "1"}, load=9.5, isa=()),
        changes=tuple(Change(stage=f"{HOSTILE}{i % 3}", node=names[i % 7], what=HOSTILE) for i in range(30)),
        declines=declines,
        outcomes=tuple(
            msgspec.structs.replace(
                x,
                reason=HOSTILE,
                fate=x.fate if i else "of an unknown kind",
                accuracy=None
                if x.accuracy is None
                else msgspec.structs.replace(
                    x.accuracy, value=12.0 + i, low=11.0, high=14.0 + i, higher_is_better=False
                ),
            )
            for i, x in enumerate(run.outcomes)
        ),
        ladder=ladder,
        verdict=HOSTILE,
        notes=names,
    )


RUNS = {"typical": typical, "nothing_helped": nothing_helped, "without_labels": without_labels, "hostile": hostile}


@pytest.fixture(scope="session", name="typical")
def _typical() -> Run:
    return typical()


@pytest.fixture(scope="session", name="nothing_helped")
def _nothing_helped() -> Run:
    return nothing_helped()


@pytest.fixture(scope="session", name="without_labels")
def _without_labels() -> Run:
    return without_labels()


@pytest.fixture(scope="session", name="hostile")
def _hostile() -> Run:
    return hostile()


@pytest.fixture(scope="session", params=list(RUNS))
def any_run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]()
