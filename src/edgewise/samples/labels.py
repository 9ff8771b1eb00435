"""Labels that were written as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from edgewise.errors import DataError


def parse_labels(texts: Sequence[str], where: str) -> list[Any]:
    """Return labels as whole numbers where all are, else as numbers where all are, else as the texts themselves.

    Raises:
        DataError: If one is NaN or infinite.
    """
    words = [text.strip() for text in texts]
    if all(re.fullmatch(r"[+-]?[0-9]+", word) for word in words):
        return [int(word) for word in words]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return list(texts)
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise DataError(f"Labels have to be finite. Label {index} of {where} is {words[index]}.")
    return numbers
