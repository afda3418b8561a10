"""Tables of text: columns of fixed width for a terminal, pipes for Markdown."""

import math
from typing import NamedTuple


class Table(NamedTuple):
    """A title, and cells of text."""

    title: str
    header: list[str]
    cells: list[list[str]]


def figures(number: float) -> str:
    """Three significant figures: 4,370 or 0.0616."""
    if number is None or not math.isfinite(number):
        return "-"
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"


def fixed_width(table: Table) -> str:
    """Columns of fixed width under a title; the first is flush left."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.cells, strict=True)]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in (table.header, *table.cells)
    ]
    return "\n".join([table.title, *lines])


def pipes(table: Table) -> str:
    """A Markdown table under a heading."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [f"| {' | '.join(line)} |" for line in (table.header, rule, *table.cells)]
    return "\n".join([f"## {table.title}", "", *lines])
