"""A row of a published table beside ours: numbers, a verdict, and the table in Markdown and for a terminal."""

import math
from typing import Any

from engines.harness import rows, tables
from engines.reproduce.published import CERTAIN, VARIANCE, Row, Table

HEADER = ["row", "theirs", "ours", "verdict", "K", "steps", "share", "minutes"]


def of_row(table: Table, row: Row, runs: list[dict[str, Any]], *, comparable: bool = True) -> dict[str, Any]:
    """What results.json holds of a row, from the runs of its seeds.

    Args:
        table: whose row it is.
        row: the published one.
        runs: what each run left in result.json.
        comparable: whether they are of the row's own dataset.
    """
    values = [run["value"] for run in runs]
    mean, error = rows.mean_and_error(values)
    of_seeds = len(runs) > 1
    over = f"{runs[0]['num_examples']:,} {runs[0].get('unit', 'examples')}"
    error = float(error) if of_seeds else runs[0]["error"]
    shares = [run["share"] for run in runs if run["share"] is not None]
    judged = verdict(table, row, float(mean), error)
    if row.published is not None and table.quantity == VARIANCE and min(shares) < 0.99:  # it rises during training
        judged = "fewer steps"
    return {
        "row": row.name,
        "published": row.published,
        "published_error": row.published_error,
        "certainty": row.certainty,
        "source": row.source,
        "ours": float(mean),
        "standard_error": error,
        "error_over": f"{len(runs)} seeds" if of_seeds else over,
        "num_samples": runs[0]["num_samples"],
        "steps": round(sum(run["steps"] for run in runs) / len(runs)),
        "share": sum(shares) / len(shares) if shares else None,
        "seconds": sum(run["train_seconds"] for run in runs),
        "words": runs[0]["words"],
        "note": runs[0].get("note", ""),
        "verdict": judged if comparable else "another dataset",
    }


def verdict(table: Table, row: Row, ours: float, error: float) -> str:
    """Passed: better than theirs by more than two standard errors; reached: within them; short: worse."""
    if row.published is None:
        return "none is published"
    if row.certainty not in CERTAIN:
        return "theirs is not verified"
    margin = 2 * math.hypot(error if math.isfinite(error) else 0.0, row.published_error or 0.0)
    margin += 1e-6 * abs(row.published)  # of an exact number, the digits that are written down
    better = row.published - ours if table.is_error else ours - row.published
    if better > margin:
        return "better than the exact number, which is a mistake" if row.certainty == "D" else "passed"
    return "reached" if better >= -margin else "short"


def cells(found: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    ours = f"{number(found['ours'])} ± {number(found['standard_error'])} ({found['error_over']})"
    return [
        found["row"],
        theirs(found),
        f"{ours}, {found['note']}" if found["note"] else ours,
        found["verdict"],
        f"{found['num_samples']:,}" if found["num_samples"] else "-",
        f"{found['steps']:,}",
        "-" if found["share"] is None else f"{found['share']:.1%}",
        f"{found['seconds'] / 60:.1f}",
    ]


def theirs(found: dict[str, Any]) -> str:
    """The published number, with its error if it has one, and its certainty."""
    if found["published"] is None:
        return "-"
    error = "" if found["published_error"] is None else f" ± {number(found['published_error'])}"
    return f"{number(found['published'])}{error} ({found['certainty']})"


def number(value: float) -> str:
    """Two decimals, or of less than a tenth three figures."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def line(found: dict[str, Any]) -> str:
    """A row in words, as soon as it is done."""
    ours = f"{number(found['ours'])} ± {number(found['standard_error'])} over {found['error_over']}"
    return f"{found['row']}: {ours}; published {theirs(found)}: {found['verdict']}"


def terminal(results: dict[str, Any]) -> str:
    """Columns of fixed width."""
    return tables.columns([HEADER, *map(cells, results["rows"])], left=1)


def markdown(results: dict[str, Any]) -> str:
    """A table, and under it where theirs was read and how ours was trained."""
    title = f"{results['table']}: {results['quantity']}, the recipe {results['recipe']}"
    table = tables.pipes(tables.Table(title, HEADER, [cells(found) for found in results["rows"]]))
    sources = sorted({f"{found['source']} (certainty {found['certainty']})" for found in results["rows"]})
    ways = sorted({found["words"] for found in results["rows"]})
    notes = [
        "The errors of ours are standard errors over what stands in brackets.",
        *(f"Theirs: {source}." for source in sources),
        *(f"Ours: {words}." for words in ways),
        "Reached: within two standard errors of both; passed: better by more. A was read in the primary source, B is "
        "quoted by a reproduction, C is from memory and not verified, D is exact and derived here.",
    ]
    return table + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
