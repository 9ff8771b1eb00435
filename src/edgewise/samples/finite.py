"""What is said of samples that are no numbers."""

from __future__ import annotations

import numpy as np

from edgewise.errors import DataError
from edgewise.records.tensors import Array


def non_finite(array: Array, what: str) -> DataError:
    """Return the error that says that `what` holds NaN or infinite values."""
    nan = int(np.isnan(array).sum())
    infinite = int(np.isinf(array).sum())
    found = " and ".join(f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count)
    values = "value" if nan + infinite == 1 else "values"
    return DataError(
        f"Samples have to be finite, but {what} has {found} {values}.",
        hint="Repair or leave out this sample.",
    )
