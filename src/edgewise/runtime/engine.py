"""A bundle at work: pre-processing, inference, state, and an answer that means something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from edgewise.bundle.read import Bundle
from edgewise.records.tensors import Array, Feeds, Outputs
from edgewise.runtime.answers import Answer, best_classes, class_scores, output_value
from edgewise.samples.bind import feeds_of
from edgewise.samples.preprocessing import prepare
from edgewise.samples.source import Sample
from edgewise.samples.state import run_sequence

Input: TypeAlias = Sample | Array | Mapping[str, Array]

_CLASSIFYING: Final = frozenset({"top1", "top5", "accuracy"})
"""Metrics under which a bundle's certificates show that its output is class scores."""


class Engine:
    """Answers samples with one rung of a bundle. One thread at a time.

        with Engine("out") as engine:
            print(engine.answer(image))

    A sample is an array, or arrays by input name, as the user has them: the bundle's pre-processing is applied. A
    `Sample`, as `samples.open_source` yields them, is taken as already prepared. Neither has a batch axis; with state
    the first axis is time.

    Everything that can be allocated or can fail early does so here, not when answering.

    Args:
        bundle: The bundle or its folder.
        rung: Name or position of the rung; None for the bundle's default.
        clock: Nanoseconds, for the latency of answers.

    Raises:
        BundleError: If the bundle is missing, damaged or too new.
        RecipeError: If there is no such rung.
        BackendMissingError: If the rung's runtime is not installed.
        BackendError: If the runtime refuses the model.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        rung: str | int | None = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._manifest = opened.manifest
        self._rung = opened.rung(rung).name
        self._session = opened.session(rung)
        self._clock = clock
        self._state: Feeds | None = None
        certificates = (step.certificate for step in opened.manifest.ladder)
        self._classifies = any(proof is not None and proof.metric in _CLASSIFYING for proof in certificates)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rung(self) -> str:
        """Name of the rung that answers."""
        return self._rung

    def answer(self, sample: Input, *, name: str = "", carry: bool = False) -> Answer:
        """Return the answer to one sample.

        Args:
            sample: See the class.
            name: What to call it, in the answer and in messages.
            carry: Whether a model with state goes on from the sample that was answered last with `carry`, rather than
                from zeros. A sample that is refused leaves the state as it was.

        Raises:
            DataError: If it does not fit the model.
            BackendError: If the runtime fails.
        """
        answer, state = self._answer(sample, name, self._state if carry else None)
        if carry:
            self._state = state
        return answer

    def stream(self, samples: Iterable[tuple[str, Input]]) -> Iterator[Answer]:
        """Yield the answer to each named sample as it comes; a model with state carries it from one to the next.

        Raises:
            DataError: As `answer`; the stream has then ended.
            BackendError: As `answer`.
        """
        state: Feeds | None = None
        for name, sample in samples:
            answer, state = self._answer(sample, name, state)
            yield answer

    def outputs(self, sample: Input, *, name: str = "") -> Outputs:
        """Return the model's outputs for one sample as arrays; arguments and errors as in `answer`."""
        return self._run(self._feeds(sample, name), None)[0]

    def close(self) -> None:
        """Free what the runtime holds."""
        self._session.close()

    def _answer(self, sample: Input, name: str, state: Feeds | None) -> tuple[Answer, Feeds]:
        feeds = self._feeds(sample, name)
        begin = self._clock()
        outputs, state_after = self._run(feeds, state)
        latency_us = (self._clock() - begin) / 1e3
        names = self._manifest.classes
        scores = class_scores(outputs, names, classifies=self._classifies)
        answer = Answer(
            input=name,
            rung=self._rung,
            latency_us=latency_us,
            classes=None if scores is None else best_classes(scores, names),
            outputs={key: output_value(array) for key, array in outputs.items()} if scores is None else {},
        )
        return answer, state_after

    def _feeds(self, sample: Input, name: str) -> dict[str, Array]:
        where = f"`{name}`" if name else "The sample"
        return feeds_of(self._prepared(sample), self._manifest.inputs, state=self._manifest.state, where=where)

    def _prepared(self, sample: Input) -> Sample:
        if isinstance(sample, Sample):
            return sample
        arrays = dict(sample) if isinstance(sample, Mapping) else {"": sample}
        if (steps := self._manifest.preprocessing) is not None:
            arrays = {key: prepare(array, steps) for key, array in arrays.items()}
        return Sample(arrays)

    def _run(self, feeds: Feeds, state: Feeds | None) -> tuple[Outputs, Feeds]:
        """Return the outputs, and the state after the last step."""
        fed_back = self._manifest.state
        last: Outputs = {}

        def run(step: Feeds) -> Outputs:
            nonlocal last
            last = self._session.run(step)
            return last

        outputs = run_sequence(run, feeds, fed_back, state)
        return outputs, {fed: last[output] for output, fed in fed_back.items()}
