"""The table of the parts of a command: in Markdown with all notes, for the terminal without them."""

import math
from collections.abc import Iterator
from typing import Any

from engines.harness import tables

HEADER = ("part", "model", "quantity", "measured", "known")


def markdown(results: dict[str, Any]) -> str:
    """All rows, part by part, each with its note."""
    lines = [warning(results), ""] if results.get("effort", 1) != 1 else []
    noted = [(*cells, row["note"]) for cells, row in zip(table(results), results["rows"], strict=True)]
    lines += map(tables.pipe_line, [(*HEADER, "note"), ("---",) * 6, *noted])
    return "\n".join(lines) + "\n"


def warning(results: dict[str, Any]) -> str:
    """What to know of a run that was cut short."""
    return (
        f"With --effort {results['effort']:g}: these are not the README's numbers, nor need they be near what is known."
    )


def terminal(results: dict[str, Any]) -> str:
    """All rows in columns of fixed width."""
    return tables.columns([HEADER, *table(results)])


def table(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Cells of text, a tuple for each row; part and model where they are new."""
    before = {"part": None, "model": None}
    for row in results["rows"]:
        part = row["part"] if row["part"] != before["part"] else ""
        model = row["model"] if part or row["model"] != before["model"] else ""
        known = "" if row["known"] is None else number(row["known"])
        unit = "" if row["unit"] in ("", "1") else f", {row['unit']}"
        yield part, model, row["quantity"] + unit, measured(row), known
        before = row


def measured(row: dict[str, Any]) -> str:
    """The value, and its standard error to two digits; the value as far as that tells, or as far as a known number."""
    if row["value"] is None:
        return "none"
    error = row["standard_error"]
    if not error:
        return number(row["value"])
    digits = max(0, 1 - math.floor(math.log10(error)))
    value = f"{row['value']:,.{digits}f}" if row["known"] is None else number(row["value"])
    return f"{value} ± {error:,.{digits}f}"


def number(value: float) -> str:
    """Six digits, or more where they stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100_000 else f"{value:.6g}"
