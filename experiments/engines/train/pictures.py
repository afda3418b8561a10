"""Draw the pictures of a run from what it saved, and from nothing else: `python experiments/plots.py runs/digits`."""

import json
import pathlib
import statistics

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from engines.harness import run_folder
from engines.harness.pictures import COLOURS, STYLE, plane, save, scatter, show, tile, two_dimensions

matplotlib.use("Agg")


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture that the run's saved arrays allow. Returns their paths."""
    with plt.rc_context(STYLE):
        figures = {"learning_curve": learning_curve(folder), "training_strip": training_strip(folder)}
        with np.load(folder / "pictures.npz") as arrays:
            figures["reconstructions"] = reconstructions(arrays, folder)
            figures["samples"] = samples(arrays, folder)
            if "ranks" in arrays:
                figures["calibration"] = calibration(arrays, folder)
            if "imputations" in arrays and arrays["originals"].ndim > 2:
                figures["imputations"] = imputations(arrays, folder)
            if "manifold" in arrays and arrays["originals"].ndim > 2:
                figures["manifold"] = manifold(arrays["manifold"], folder)
        return save(figures, folder)


# What a run may report of validation images, and what it is.
VALIDATED = {
    "validation_elbo": "ELBO, validation images",
    "validation_iwae": "importance-weighted bound, validation images",
}


def title(folder: pathlib.Path) -> str:
    """What was trained, in a few words."""
    config = json.loads((folder / "config.json").read_text())
    kind = "autoencoder" if config["posterior"] == "point" else "VAE"
    size = config["latent_dim"] + sum(config.get("upper_latent_dims", ()))
    return f"{config['model']} {kind} on {config['dataset']}, {size}-dimensional latent space"


def learning_curve(folder: pathlib.Path) -> plt.Figure:
    """The bound on training batches and on validation images, and its two parts, against steps."""
    rows = run_folder.read_metrics(folder)
    if "squared_error" in rows[0]:
        return reconstruction_curve(rows, folder)
    steps = [row["step"] for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    left.plot(steps, [row["elbo"] for row in rows], label="ELBO, training batches")
    validated = next(name for name in VALIDATED if name in rows[0])
    left.plot(steps, [row[validated] for row in rows], label=VALIDATED[validated])
    if any(abs(row["bound"] - row["elbo"]) > 1e-3 for row in rows):
        left.plot(steps, [row["bound"] for row in rows], label="what is maximised", linestyle=":")
    left.set(xlabel="step", ylabel="nats per example", title="Evidence lower bound")
    limit(left, np.array([[row["elbo"], row[validated]] for row in rows]))
    left.legend(loc="lower right")
    parts = (
        (middle, [-row["reconstruction"] for row in rows], "tab:green", "Distortion: -E log p(x|z), training"),
        (right, [row["kl"] for row in rows], "tab:red", "Rate: KL(q(z|x) || p(z)), training"),
    )
    for axes, values, colour, words in parts:
        axes.plot(steps, values, color=colour)
        axes.set(xlabel="step", ylabel="nats per example", title=words)
        limit(axes, np.array(values))
    figure.suptitle(title(folder))
    return figure


def limit(axes: plt.Axes, values: np.ndarray) -> None:
    """Leave out the first reports, of an untrained model, which would flatten all the rest."""
    shown = values[len(values) // 20 :]
    margin = 0.05 * (shown.max() - shown.min()) + 1e-3
    axes.set_ylim(shown.min() - margin, shown.max() + margin)


def reconstruction_curve(rows: list[dict], folder: pathlib.Path) -> plt.Figure:
    """An autoencoder's error, in training and on validation images without corruption, against steps."""
    config = json.loads((folder / "config.json").read_text())
    name = config["error"].replace("_", " ")
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["error"] for row in rows], label="training batches")
    axes.plot(steps, [-row["validation_bound"] for row in rows], label="validation images")
    unit = "per example" if name == "squared error" else "nats per example"
    axes.set(xlabel="step", ylabel=f"{name}, {unit}", title=title(folder), yscale="log")
    axes.legend()
    return figure


def training_strip(folder: pathlib.Path) -> plt.Figure:
    """Above, the latents of test examples coloured by label; below, samples from the prior; a column for each step."""
    snapshots = [dict(np.load(path)) for path in sorted((folder / "snapshots").glob("step_*.npz"))]
    latents, axis_names = two_dimensions([snapshot["codes"] for snapshot in snapshots])
    last = snapshots[-1]["samples"]
    is_image = last.ndim > 2
    columns = len(snapshots)
    figure, axes = plt.subplots(2, columns, figsize=(2.3 * columns, 4.8), squeeze=False, layout="constrained")
    extent = np.abs(np.concatenate(latents)).max() * 1.05
    if not is_image:  # those of an untrained model may be anywhere
        limits = [(x.min() - np.ptp(x) / 4 - 1e-6, x.max() + np.ptp(x) / 4 + 1e-6) for x in plane(last).T]
    for column, (snapshot, points) in enumerate(zip(snapshots, latents, strict=True)):
        top, bottom = axes[:, column]
        scatter(top, points, snapshot["labels"])
        top.set(xlim=(-extent, extent), ylim=(-extent, extent), title=f"step {int(snapshot['step']):,}", aspect="equal")
        top.set_xlabel(axis_names[0])
        if is_image:
            show(bottom, tile(snapshot["samples"][:9], 3))
            bottom.set_xlabel("means of p(x|z)")
        else:
            scatter(bottom, plane(snapshot["samples"]), np.zeros(0))
            bottom.set(xlim=limits[0], ylim=limits[1], xlabel="samples of p(x), x1")
    axes[0, 0].set_ylabel(axis_names[1])
    if not is_image:
        axes[1, 0].set_ylabel("x2")
    labels = snapshots[-1]["labels"]
    if len(labels):
        names = np.unique(labels)[:10]
        handles = [plt.Line2D([], [], marker="o", linestyle="", color=COLOURS(i % 10), label=str(i)) for i in names]
        figure.legend(handles=handles, title="label", loc="outside right upper")
    figure.suptitle(f"{title(folder)}: latents of test examples, and what z from the prior becomes, during training")
    return figure


def reconstructions(arrays, folder: pathlib.Path) -> plt.Figure:
    """Test examples, what the model saw of them, and what the decoder makes of their latents."""
    originals, decoded = arrays["originals"], arrays["reconstructions"]
    if originals.ndim == 2:
        return beside(originals, decoded, "test examples", "mean of p(x|z) at their latents", folder)
    seen = arrays["binarized"]
    rows = {"test image": originals, "reconstruction": decoded}
    if np.abs(seen - originals).max() > 1 / 128:  # more than levels of grey and their noise
        rows = {"test image": originals, "binarized:\nthe model's x": seen, "reconstruction": decoded}
    count = min(12, len(originals))
    figure, axes = plt.subplots(len(rows), 1, figsize=(count * 0.8, len(rows) * 0.95 + 0.3), layout="constrained")
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        show(axis, tile(images[:count], count))
        axis.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(f"{title(folder)}: reconstructions, mean of p(x|z) at the posterior mean", fontsize=8)
    return figure


def samples(arrays, folder: pathlib.Path) -> plt.Figure:
    """What the model makes of latents from the prior, beside test examples."""
    originals, drawn = arrays["originals"], arrays["samples"]
    if originals.ndim == 2:
        return beside(originals, drawn, "test examples", "samples: z from the prior, x from p(x|z)", folder)
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
    side = min(10, int(np.sqrt(len(originals))))
    conditional = json.loads((folder / "config.json").read_text()).get("condition_on") == "label"
    drawn_name = "means of p(x|z), z from the prior"
    if conditional:
        drawn_name = "means of p(x|z, label), z from the prior, by label"
    for axis, images, name in zip(axes, (originals, drawn), ("test images", drawn_name), strict=True):
        show(axis, tile(images[: side * side], side))
        axis.set_title(name)
    figure.suptitle(title(folder))
    return figure


def calibration(arrays, folder: pathlib.Path) -> plt.Figure:
    """Ranks of the latents of simulated examples among samples of q(z|x), of the units farthest from uniform."""
    ranks, p_values, num_samples = arrays["ranks"], arrays["rank_p_values"], int(arrays["num_rank_samples"])
    units = np.argsort(p_values, kind="stable")[:4]
    figure, row = plt.subplots(
        1, len(units), figsize=(2.9 * len(units) + 0.6, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    edges = np.linspace(0, num_samples + 1, 21)
    expected = len(ranks) / 20
    spread = 2.58 * np.sqrt(expected * (1 - 1 / 20))
    for axes, unit in zip(row[0], units, strict=True):
        axes.axhspan(expected - spread, expected + spread, color="tab:grey", alpha=0.3, label="99% if q(z|x) is exact")
        axes.hist(ranks[:, unit] + 0.5, edges, color="tab:blue", alpha=0.8)
        axes.set(xlabel=f"rank among {num_samples} samples", title=f"z{unit + 1}: p = {p_values[unit]:.2g}")
    row[0, 0].set_ylabel("simulated examples")
    row[0, 0].legend(fontsize=7)
    figure.suptitle(f"{title(folder)}: ranks of the true latent among samples of q(z|x)", fontsize=8)
    return figure


def imputations(arrays, folder: pathlib.Path) -> plt.Figure:
    """Test images, what is known of them, and what the model puts in the place of the rest."""
    rows = {"test image": "binarized", "observed": "observed", "imputed": "imputations"}
    count = min(12, len(arrays["originals"]))
    figure, axes = plt.subplots(len(rows), 1, figsize=(count * 0.8, len(rows) * 0.95 + 0.3), layout="constrained")
    for axis, (name, array) in zip(axes, rows.items(), strict=True):
        show(axis, tile(arrays[array][:count], count))
        axis.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(f"{title(folder)}: imputations, mean of p(x|z) at the posterior mean of the rest", fontsize=8)
    return figure


def beside(left: np.ndarray, right: np.ndarray, left_name: str, right_name: str, folder: pathlib.Path) -> plt.Figure:
    """Two clouds of points, first two coordinates, on the same axes."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
    for axis, points, name in zip(axes, (left, right), (left_name, right_name), strict=True):
        scatter(axis, plane(points), np.zeros(0))
        axis.set(title=name, xlabel="x1", ylabel="x2")
    figure.suptitle(title(folder))
    return figure


def manifold(images: np.ndarray, folder: pathlib.Path) -> plt.Figure:
    """Decoder means over the plane of two latents."""
    figure, axes = plt.subplots(figsize=(6, 6.3), layout="constrained")
    number = images.shape[1]
    picture = tile(images.reshape(-1, *images.shape[2:]), number)
    show(axes, picture)
    marked = np.unique(np.linspace(0, number - 1, 5).round())
    places = (marked + 0.5) / number * np.array(picture.shape[:2])[:, None] - 0.5
    words = [f"{statistics.NormalDist().inv_cdf((place + 0.5) / number):.1f}" for place in marked]
    axes.set_xticks(places[1], words)
    axes.set_yticks(places[0], words[::-1])
    axes.set(xlabel="z1, in equal steps of probability under the prior", ylabel="z2")
    axes.set_title(f"{title(folder)}: mean of p(x|z)")
    return figure
