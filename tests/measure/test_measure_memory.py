"""Cold start and peak memory of fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgewise.errors import BackendError
from edgewise.measure.memory import cold_start_and_memory
from edgewise.measure.process import Entry
from edgewise.records.tensors import Array

Make = Callable[..., Entry]
Samples = list[dict[str, Array]]


def test_memory_that_opening_takes_is_seen_and_the_rest_is_before(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples
) -> None:
    block = 300 * 2**20
    _, small = cold_start_and_memory(fake_entry("small"), feeds, processes=1, command=fake_command)
    _, large = cold_start_and_memory(fake_entry("large", allocate=block), feeds, processes=1, command=fake_command)
    # The interpreter's own needs vary by a few pages from process to process.
    assert abs((large.peak_bytes - small.peak_bytes) - block) < 8 * 2**20
    assert abs(large.before_bytes - small.before_bytes) < 8 * 2**20
    assert small.before_bytes <= small.peak_bytes


def test_a_large_parent_does_not_count(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    ballast = bytearray(b"1") * (500 * 2**20)
    _, memory = cold_start_and_memory(fake_entry("a"), feeds, processes=1, command=fake_command)
    assert memory.peak_bytes < len(ballast) // 2


def test_the_first_run_and_the_process_that_warms_the_cache(
    fake_entry: Make, fake_command: Sequence[str], feeds: Samples, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    entry = fake_entry("a", busy_us=20_000, log=str(log), cold=True)
    cold, _ = cold_start_and_memory(entry, feeds, processes=2, command=fake_command)
    assert 20 <= cold.first_run_ms < 250  # the mean of a cold and a warm process would be above
    assert cold.load_ms > 0
    assert cold.import_ms > 0
    # Three processes of three runs each, all of them on the first sample.
    assert log.read_text().split() == ["a", "1"] * 9


def test_a_death_is_raised(fake_entry: Make, fake_command: Sequence[str], feeds: Samples) -> None:
    with pytest.raises(BackendError, match="`a`"):
        cold_start_and_memory(fake_entry("a", exit_at_run=1), feeds, command=fake_command)
