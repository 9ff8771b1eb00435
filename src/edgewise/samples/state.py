"""Recurrent models: an output of one step is an input of the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgewise.errors import DataError, RecipeError
from edgewise.records.tensors import Array, Feeds, Outputs, Run


def run_sequence(run: Run, feeds: Feeds, state: Mapping[str, str], initial: Feeds | None = None) -> Outputs:
    """Run a model over one sample, its state fed back from step to step.

    Args:
        run: Runs one step.
        feeds: What `Dataset.feeds` gives: with `state`, `[T, ...]` for every input that is not fed back, and the first
            value of those that are.
        state: Input that each output feeds back, by output name; without any, the model is simply run once.
        initial: First values that replace those of `feeds`, by input name.

    Returns:
        The outputs. With `state`: those that are not fed back, stacked along a new first axis of T.

    Raises:
        RecipeError: If the model has no such output, or its shape is not that of the input that it feeds.
        DataError: If the sample has no step.
    """
    if not state:
        return run(feeds)
    collected: dict[str, list[Array]] = {}

    def recorded(step: Feeds) -> Outputs:
        outputs = run(step)
        for name, value in outputs.items():
            if name not in state:
                collected.setdefault(name, []).append(value)
        return outputs

    for _ in steps(recorded, feeds, state, initial):
        pass
    return {name: np.stack(values) for name, values in collected.items()}


def steps(run: Run, feeds: Feeds, state: Mapping[str, str], initial: Feeds | None = None) -> Iterator[Feeds]:
    """Yield the feeds of every step of one sample, each once it has been run; arguments as in `run_sequence`.

    Without `state` there is one step, and it is not run.

    Raises:
        RecipeError: As `run_sequence`.
        DataError: As `run_sequence`.
    """
    if not state:
        yield feeds
        return
    fed_back = set(state.values())
    current = {name: np.asarray((initial or {}).get(name, feeds[name])) for name in fed_back}
    moving = {name: array for name, array in feeds.items() if name not in fed_back}
    lengths = {len(array) for array in moving.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"A sample of a model with state has to have at least one step, and as many in every input. Received "
            f"{ {name: len(array) for name, array in moving.items()} }."
        )
    for index in range(lengths.pop()):
        step = {name: np.ascontiguousarray(array[index]).reshape(array.shape[1:]) for name, array in moving.items()}
        step |= current
        outputs = run(step)
        current = {fed: _next(outputs, output, current[fed], fed) for output, fed in state.items()}
        yield step


def first_step(feeds: Feeds, state: Mapping[str, str]) -> Feeds:
    """Return the feeds of the first step of a sample, without running it; arguments as in `run_sequence`."""
    fed_back = set(state.values())
    return {
        name: array if not state or name in fed_back else np.ascontiguousarray(array[0]).reshape(array.shape[1:])
        for name, array in feeds.items()
    }


def _next(outputs: Outputs, output: str, before: Array, fed: str) -> Array:
    """Return the next value of a state."""
    if output not in outputs:
        raise RecipeError(
            f"`--state {output}={fed}` has to name an output of the model before the equals sign. The outputs are "
            f"{', '.join(f'`{name}`' for name in outputs)}.",
            hint="It is written OUTPUT=INPUT.",
        )
    value = outputs[output]
    if value.shape != before.shape or value.dtype != before.dtype:
        raise RecipeError(
            f"An output that is fed back has to have the type and shape of its input. `{output}` is {value.dtype} "
            f"{list(value.shape)}, `{fed}` is {before.dtype} {list(before.shape)}."
        )
    return np.ascontiguousarray(value).reshape(value.shape)
