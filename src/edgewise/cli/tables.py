"""Plain-text tables for standard output: columns set apart by two spaces, so that they can be cut and sorted."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return rows as a table without trailing spaces.

    Args:
        headings: One for every column, or none at all.
        rows: Cells, as many in each row as there are headings.
        right: Indices of the columns that are flush right (numbers).
    """
    lines = [tuple(headings), *map(tuple, rows)] if headings else [tuple(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = []
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
