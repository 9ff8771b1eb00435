from __future__ import annotations

import pytest

from edgewise.compress.quantize.recipe import ACTIVATION_BITS, GROUP_SIZES, WEIGHT_BITS, Scheme
from edgewise.errors import RecipeError

EVERY = [
    *(Scheme(weight_bits=bits, activation_bits=wide) for bits in WEIGHT_BITS for wide in (*ACTIVATION_BITS, None)),
    *(Scheme(weight_bits=bits, group=group) for bits in WEIGHT_BITS for group in GROUP_SIZES),
]


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_every_name_round_trips(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w8a8", Scheme(weight_bits=8, activation_bits=8)),
        ("w4a16", Scheme(weight_bits=4, activation_bits=16)),
        ("w2", Scheme(weight_bits=2)),
        ("w4g32", Scheme(weight_bits=4, group=32)),
    ],
)
def test_names_mean_what_they_say(name: str, expected: Scheme) -> None:
    assert Scheme.parse(name) == expected
    assert str(expected) == name
    assert expected.is_weight_only == ("a" not in name)


@pytest.mark.parametrize(
    "name", ["", "int8", "a8w8", "w8a8 ", "w-8a8", "w", "w8a", "w08a8", "w8g", "W8A8", "w8a8g32", "w8.0"]
)
def test_other_names_are_errors_that_show_what_names_look_like(name: str) -> None:
    with pytest.raises(RecipeError, match=f"look like `w8a8`.*`{name}`") as caught:
        Scheme.parse(name)
    assert caught.value.hint is not None
    assert "2, 3, 4, 6 or 8 bits" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("w16a16", "2, 3, 4, 6 or 8 bits"),
        ("w1", "2, 3, 4, 6 or 8 bits"),
        ("w5a8", "2, 3, 4, 6 or 8 bits"),
        ("w8a4", "8 or 16 bits"),
        ("w4g20", "16, 32, 64, 128 or 256 input channels"),
    ],
)
def test_widths_that_do_not_exist_are_errors_that_list_those_that_do(name: str, lists: str) -> None:
    with pytest.raises(RecipeError, match=f"{lists}.*`{name}`"):
        Scheme.parse(name)


@pytest.mark.parametrize("name", ["w4g32a8", "w4g32a16"])
def test_groups_with_integer_activations_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RecipeError, match=f"none takes a scale for each group.*`{name}`") as caught:
        Scheme.parse(name)
    assert "`w4g32`" in (caught.value.hint or "")
