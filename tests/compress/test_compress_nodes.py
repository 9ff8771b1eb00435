from __future__ import annotations

from edgewise.compress.nodes import unused_name


def test_a_name_that_is_taken_gets_a_number() -> None:
    taken: set[str | None] = {"a", None}
    assert [unused_name(taken, name) for name in ("b", "a", "a", "b")] == ["b", "a_1", "a_2", "b_1"]
    assert taken == {None, "a", "b", "a_1", "a_2", "b_1"}
