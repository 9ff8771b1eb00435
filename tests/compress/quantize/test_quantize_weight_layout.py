"""Which channels each weight joins, against the definition of each operator written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.compress.quantize.weight_layout import WeightLayout, largest, total


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@given(groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3), kernel=st.integers(1, 2))
def test_grouped_convolutions(operator: str, groups: int, inputs: int, outputs: int, kernel: int) -> None:
    first, second = (outputs, inputs) if operator == "Conv" else (inputs, outputs)
    shape = (groups * first, second, kernel, kernel)
    layout = WeightLayout(operator, shape, groups)  # type: ignore[arg-type]
    assert (layout.inputs, layout.outputs) == (groups * inputs, groups * outputs)
    output_index = np.broadcast_to(layout.output_index, shape)
    input_index = np.broadcast_to(layout.input_index, shape)
    for row in range(shape[0]):
        for column in range(second):
            own, other = row, (row // first) * second + column
            expected = (own, other) if operator == "Conv" else (other, own)
            assert (output_index[row, column] == expected[0]).all()
            assert (input_index[row, column] == expected[1]).all()


@pytest.mark.parametrize(("operator", "transposed"), [("MatMul", False), ("Gemm", False), ("Gemm", True)])
def test_matrices(operator: str, transposed: bool) -> None:
    layout = WeightLayout(operator, (2, 3), transposed=transposed)  # type: ignore[arg-type]
    rows, columns = np.indices((2, 3))
    outputs, inputs = (rows, columns) if transposed else (columns, rows)
    assert np.array_equal(np.broadcast_to(layout.output_index, (2, 3)), outputs)
    assert np.array_equal(np.broadcast_to(layout.input_index, (2, 3)), inputs)
    assert (layout.outputs, layout.inputs) == ((2, 3) if transposed else (3, 2))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=20))
def test_reductions_by_index(pairs: list[tuple[int, int]]) -> None:
    index = np.array([pair[0] for pair in pairs])
    values = np.array([pair[1] for pair in pairs], np.float32)
    assert largest(values, index, 5).tolist() == [
        max((abs(v) for i, v in pairs if i == k), default=0) for k in range(5)
    ]
    assert total(values, index, 5).tolist() == [sum(v for i, v in pairs if i == k) for k in range(5)]
