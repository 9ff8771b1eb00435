from __future__ import annotations

import pytest

from edgewise.compress.quantize.recipe import Scheme
from edgewise.errors import RecipeError


def test_a_name_round_trips() -> None:
    assert str(Scheme.parse("w8a8")) == "w8a8"
    assert Scheme.parse("w8a8") == Scheme(weight_bits=8, activation_bits=8)


@pytest.mark.parametrize("name", ["", "int8", "w8", "a8w8", "w8a8 ", "w-8a8", "w4a8", "w8a16", "w16a16"])
def test_other_names_are_errors(name: str) -> None:
    with pytest.raises(RecipeError, match=f"`{name}`"):
        Scheme.parse(name)
