"""Backward elimination: against brute force, equal units, dependent units, several readers, widths that are none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.compress.prune.fit import Moments, ridge_regression
from edgewise.compress.prune.neurons import Read, eliminate
from edgewise.errors import ContractError
from edgewise.records.tensors import Array

DRAWS = st.integers(0, 2**32 - 1)


def read(draw: np.random.Generator, rows: Array, outputs: int, per_unit: int) -> Read:
    weight = draw.standard_normal((1, outputs, rows.shape[2]))
    moments = Moments(1, rows.shape[2], outputs)
    moments.add(rows.astype(np.float32), rows @ weight[0].T, sample=0)
    summary = moments.all()
    assert summary is not None
    return Read(weight, summary, np.repeat(np.arange(rows.shape[2] // per_unit), per_unit)[None])


def mixed(draw: np.random.Generator, rows: int, columns: int) -> Array:
    return (draw.standard_normal((rows, 1, columns)) @ draw.standard_normal((columns, columns))).astype(np.float32)


def loss(reads: list[Read], gone: tuple[int, ...]) -> float:
    """Return what removing `gone` costs after compensation: each reader by a regression of its own."""
    total = 0.0
    for one in reads:
        kept = ~np.isin(one.units, gone)
        fitted = ridge_regression(one.weight, one.summary, kept, 1e-9)
        total += one.summary.error(fitted).sum() / one.summary.energy.sum()
    return total


@given(DRAWS, st.sampled_from([1, 2, 3]))
@settings(max_examples=20, deadline=None)
def test_every_step_takes_the_unit_whose_loss_costs_least(seed: int, per_unit: int) -> None:
    draw = np.random.default_rng(seed)
    reads = [read(draw, mixed(draw, 200, 5 * per_unit), outputs, per_unit) for outputs in (3, 2)]
    found = eliminate(reads, 5, ridge=1e-9)
    gone: tuple[int, ...] = ()
    for step in range(4):
        costs = {unit: loss(reads, (*gone, unit)) for unit in range(5) if unit not in gone}
        # The sums are of float32 products: two costs that differ by less than 1e-4 of the energy may change places.
        assert costs[int(found.order[step])] <= min(costs.values()) + 1e-4
        gone = (*gone, int(found.order[step]))
        assert found.errors[step + 1] == pytest.approx(loss(reads, gone), rel=1e-2, abs=1e-4)


def test_of_two_equal_units_one_goes_for_nothing() -> None:
    draw = np.random.default_rng(1)
    rows = mixed(draw, 300, 4)
    rows[:, :, 3] = rows[:, :, 1]
    found = eliminate([read(draw, rows, 6, 1)], 4, ridge=1e-8)
    assert found.order[0] in {1, 3}
    assert found.errors[1] < 1e-6
    assert found.free == 1


def test_dead_constant_and_dependent_units_are_free() -> None:
    draw = np.random.default_rng(2)
    rows = mixed(draw, 400, 6)
    rows[:, :, 0] = 0.0
    rows[:, :, 2] = 5.0
    rows[:, :, 5] = 0.5 * rows[:, :, 1] - 2.0 * rows[:, :, 4]
    found = eliminate([read(draw, rows, 6, 1)], 6, ridge=1e-7)
    assert found.free == 3
    gone = found.removed(3)
    assert {0, 2} < set(gone)
    assert len({1, 4, 5} & set(gone)) == 1


def test_it_is_near_the_best_of_all_choices() -> None:
    draw = np.random.default_rng(3)
    reads = [read(draw, mixed(draw, 300, 8), 4, 1)]
    found = eliminate(reads, 8, ridge=1e-9)
    best = min(loss(reads, gone) for gone in itertools.combinations(range(8), 4))
    worst = max(loss(reads, gone) for gone in itertools.combinations(range(8), 4))
    assert loss(reads, found.removed(4)) <= best + 0.1 * (worst - best)


def test_columns_of_no_unit_stay_and_make_up_for_others() -> None:
    draw = np.random.default_rng(4)
    rows = mixed(draw, 300, 3)
    rows[:, :, 0] = rows[:, :, 2]
    one = read(draw, rows, 4, 1)
    found = eliminate([Read(one.weight, one.summary, np.array([[0, 1, -1]]))], 2, ridge=1e-8)
    assert found.order[0] == 0
    assert found.errors[1] < 1e-6


def test_units_that_one_reader_does_not_see_cost_it_nothing() -> None:
    draw = np.random.default_rng(5)
    one = read(draw, mixed(draw, 300, 3), 4, 1)
    found = eliminate([Read(one.weight, one.summary, np.array([[0, 1, -1]]))], 3)
    assert found.order[0] == 2
    assert found.errors[1] == 0.0


def test_of_many_units_several_go_in_a_step() -> None:
    draw = np.random.default_rng(6)
    rows = draw.standard_normal((1500, 1, 1100)).astype(np.float32)
    found = eliminate([read(draw, rows, 2, 1)], 1100, least=1060)
    assert len(found.removed(1060)) == 40
    assert (np.diff(found.errors[:41]) >= 0).all()


@pytest.mark.parametrize("width", [0, 5])
def test_a_width_lies_within_the_size(width: int) -> None:
    draw = np.random.default_rng(7)
    found = eliminate([read(draw, mixed(draw, 50, 4), 2, 1)], 4)
    with pytest.raises(ContractError, match=f"from 1 to 4. Received {width}"):
        found.removed(width)
