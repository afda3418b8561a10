"""One picture of a table: ours beside theirs, with bars."""

import json
import pathlib
from typing import Any

import matplotlib.pyplot as plt

from engines.harness import pictures


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Draw results.json of a folder. Returns the picture's path."""
    results = json.loads((folder / "results.json").read_text())
    if results["table"] == "certificates":
        return certificates(folder, results["rows"])
    rows, quantity = results["rows"], results["quantity"]
    with plt.rc_context(pictures.STYLE):
        figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * len(rows)))
        for place, row in enumerate(rows):
            if row["published"] is not None:
                axes.errorbar(
                    row["published"],
                    place - 0.12,
                    xerr=row["published_error"] or 0,
                    fmt="D",
                    color="black",
                    capsize=3,
                    label="published" if place == 0 else None,
                )
            axes.errorbar(
                row["ours"],
                place + 0.12,
                xerr=2 * row["standard_error"],
                fmt="o",
                color="tab:blue",
                capsize=3,
                label="ours, ± 2 standard errors" if place == 0 else None,
            )
        axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"{quantity} ({'left' if results['is_error'] else 'right'} is better)")
        axes.set_title(f"Table {results['table']}, the recipe {results['recipe']}")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / (1.2 + 0.45 * len(rows))), ncols=2, frameon=False)
        (path,) = pictures.save({"table": figure}, folder)
    return path


def certificates(folder: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    """The largest z-score of each mean gradient, and of the same one made too long, against the line between."""
    with plt.rc_context(pictures.STYLE):
        figure, axes = plt.subplots(figsize=(7, 1.3 + 0.17 * len(rows)), layout="constrained")
        places = range(len(rows))
        axes.plot([row["control_z"] for row in rows], places, "x", color="tab:grey", label="made 1.3 times as long")
        for biased, marker, label in ((False, "o", "as it is"), (True, "s", "as it is, and said to be biased")):
            own = [place for place in places if rows[place]["is_biased"] is biased]
            colour = "tab:orange" if biased else "tab:blue"
            axes.plot([rows[place]["largest_z"] for place in own], own, marker, color=colour, label=label)
        axes.axvline(5, color="black", linewidth=0.8, linestyle="--")
        names = [
            f"{row['name'].replace('_', ' ')}, {row['latents']}, {row['bound']}, {row['num_samples']}" for row in rows
        ]
        axes.set_yticks(places, names, fontsize=6)
        axes.set(xscale="log", ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlabel("largest |mean gradient - exact gradient| of a coordinate, in standard errors")
        axes.set_title("Certificates: estimator, latents, bound, K")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        (path,) = pictures.save({"certificates": figure}, folder)
    return path
