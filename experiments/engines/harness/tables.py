"""Tables of text: columns of fixed width for a terminal, pipes for Markdown."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A title, and cells of text.

    Attributes:
        title: above the table.
        header: a cell for each column.
        cells: the same for each line.
    """

    title: str
    header: list[str]
    cells: list[list[str]]


def columns(lines: Sequence[Sequence[str]], left: int | None = None, indent: str = "") -> str:
    """Lines of cells as columns of fixed width, two spaces apart.

    Args:
        lines: cells of text, as many in each line; the header is the first of them.
        left: how many columns are flush left, the others are flush right; by default all are flush left.
        indent: in front of each line.

    >>> print(columns([("system", "examples/s"), ("vaejax", "4,370")], left=1))
    system  examples/s
    vaejax       4,370
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = len(widths) if left is None else left

    def padded(line: Sequence[str]) -> list[str]:
        cells = zip(line, widths, strict=True)
        return [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(cells)]

    return "\n".join((indent + "  ".join(padded(line))).rstrip() for line in lines)


def pipe_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table, with the pipes within its cells escaped."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def fixed_width(table: Table) -> str:
    """Columns of fixed width under a title; the first is flush left."""
    return f"{table.title}\n{columns([table.header, *table.cells], left=1)}"


def pipes(table: Table) -> str:
    """A Markdown table under a heading."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([f"## {table.title}", "", *map(pipe_line, (table.header, rule, *table.cells))])


def figures(number: float | None) -> str:
    """Three significant figures: 4,370 or 0.0616."""
    if number is None or not math.isfinite(number):
        return "-"
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"
