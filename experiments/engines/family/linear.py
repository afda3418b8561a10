"""Linear autoencoders beside PCA: the part `linear` of `pca_to_vae.py`."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.family.pca import ERROR, KNOWN_ERRORS, SQUARES, errors_of_pca
from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders, models, networks


class Contestant(NamedTuple):
    """A way of training a linear autoencoder.

    Attributes:
        name: in the table.
        optimizer: `num_steps -> optax transformation`.
        num_steps: of training.
        penalties: of `autoencoders.make_reconstruction`.
        corrupt_code: of `autoencoders.make_reconstruction`.
        weights: of the L2 penalty on each latent; 0 without one.
        finds_axes: whether the decoder's axes are the principal components at the optimum.
        note: for the table.
    """

    name: str
    optimizer: Callable[[int], optax.GradientTransformation]
    num_steps: int
    penalties: tuple[autoencoders.Penalty, ...] = ()
    corrupt_code: autoencoders.Corruption | None = None
    weights: float | np.ndarray = 0.0
    finds_axes: bool = False
    note: str = ""


def run(setting: Setting) -> Result:
    """Linear autoencoders trained by gradient: their errors, and whether they find PCA's subspace and axes."""
    k = 5 if setting.small else 20
    exact = autoencoders.pca(setting.train.images, k)
    # The loss depends on the data by mean and covariance only. These few points have both, so full batches are cheap.
    points = np.asarray(autoencoders.equivalent_examples(setting.train.images)) - np.asarray(exact.mean)
    model = autoencoders.linear_autoencoder(exact.mean.shape, k)
    errors = errors_of_pca(exact, jnp.asarray(setting.test.images))
    known = KNOWN_ERRORS[k] if setting.train.name == "mnist" else None
    rows = [mean_row(f"PCA, k = {k}", ERROR, errors, SQUARES, known=known)]
    axes, arrays = [exact.components], {}
    init_key, copy_key, *keys = jax.random.split(jax.random.key(setting.seed), 7)
    params = model.init(init_key)
    entered = contestants(exact)
    for index, (contestant, key) in enumerate(zip(entered, keys, strict=True)):
        num_steps = setting.steps(contestant.num_steps)
        objective = autoencoders.make_reconstruction(
            model, penalties=contestant.penalties, corrupt_code=contestant.corrupt_code
        )
        trained = fitting.train(
            f"linear autoencoder, {contestant.name}",
            objective,
            contestant.optimizer(num_steps),
            params,
            key,
            points[None],
            num_steps=num_steps,
            batch_size=1,
            snapshots_at=np.linspace(0, 1, 26),
        )
        kernels = {step: decoder_kernel(params) for step, params in trained.snapshots.items()}
        arrays[f"path_{index}"] = path = distances(kernels, exact)
        rows += rows_of(contestant, model, trained.params, path[-1], exact, setting.test.images, float(errors.mean()))
        axes.append(decoder_kernel(trained.params).reshape(exact.components.shape))
    arrays |= {"axes": np.stack(axes), "names": np.array([contestant.name for contestant in entered])}
    return Result(rows + copying(setting, copy_key), arrays)


def contestants(exact: autoencoders.PCA) -> list[Contestant]:
    """The plain loss, and four changes of it meant to find the axes; uniform L2 does not."""
    variances = np.asarray(exact.explained_variance)
    k = len(variances)
    uniform = float(variances[-1] / 6)
    rising = np.linspace(1 / k, 1, k) * float(0.75 * variances[-1])

    def fast(num_steps: int) -> optax.GradientTransformation:
        return optax.adam(flat_then_cosine(5e-3, num_steps), b1=0.95, b2=0.99)

    return [
        Contestant("plain", fast, 1200),
        Contestant("uniform L2", fast, 1200, (autoencoders.uniform_l2(uniform),), weights=uniform),
        # Long momentum: the loss is nearly flat along rotations of latents with similar variances.
        Contestant(
            "non-uniform L2",
            lambda num_steps: optax.adam(flat_then_cosine(1e-2, num_steps), b1=0.98, b2=0.99),
            5000,
            (autoencoders.nonuniform_l2(rising),),
            weights=rising,
            finds_axes=True,
        ),
        # No momentum: its rotation is not the gradient of a loss, and momentum overshoots.
        Contestant(
            "rotation augmentation",
            lambda num_steps: optax.adam(optax.cosine_decay_schedule(3e-3, num_steps), b2=0.99),
            2000,
            (autoencoders.uniform_l2(uniform), autoencoders.rotation_augmentation()),
            weights=uniform,
            finds_axes=True,
            note="beside uniform L2",
        ),
        Contestant(
            "nested dropout",
            lambda num_steps: optax.adam(flat_then_cosine(1e-2, num_steps), b2=0.99),
            3000,
            corrupt_code=autoencoders.nested_dropout(np.append(np.full(k - 1, 0.5 / k), 0.5 + 0.5 / k)),
            finds_axes=True,
            note="half of the examples keep all latents, the others a random number of them; it turns the axes slowly",
        ),
    ]


def flat_then_cosine(learning_rate: float, num_steps: int, flat: float = 0.5) -> optax.Schedule:
    """A constant rate for the fraction `flat` of the run, then a cosine to 0."""
    start = int(flat * num_steps)
    parts = [optax.constant_schedule(learning_rate), optax.cosine_decay_schedule(learning_rate, num_steps - start)]
    return optax.join_schedules(parts, [start])


def decoder_kernel(params: Any) -> np.ndarray:
    """The matrix of a linear decoder, (latent_dim, data size)."""
    return np.asarray(networks.linear_kernel(params["decoder"]["network"]))


def distances(kernels: dict[int, np.ndarray], exact: autoencoders.PCA) -> np.ndarray:
    """Step, subspace distance and axis alignment of each kernel, in double precision: (steps, 3)."""
    components = np.asarray(exact.components, np.float64).reshape(len(exact.components), -1)
    with jax.enable_x64(True):
        return np.array(
            [
                (
                    step,
                    autoencoders.subspace_distance(kernel.astype(np.float64), components),
                    autoencoders.axis_alignment(kernel.astype(np.float64), components),
                )
                for step, kernel in sorted(kernels.items())
            ]
        )


def rows_of(
    contestant: Contestant,
    model: models.VAE,
    params: Any,
    last: np.ndarray,
    exact: autoencoders.PCA,
    images: np.ndarray,
    best: float,
) -> list[dict[str, Any]]:
    """Rows for one linear autoencoder: its test error beside PCA's, and the distances of its subspace and axes."""
    name = f"linear autoencoder, {contestant.name}"
    test = images - np.asarray(exact.mean)
    errors = autoencoders.squared_error(model.decode(params, model.encode(params, test).mean), jnp.asarray(test))
    excess = 100 * (float(np.mean(np.asarray(errors, np.float64))) / best - 1)
    lost = lost_to_penalty(exact, images, contestant.weights)
    shrinks = "known: what the penalty shrinks" if np.any(contestant.weights) else ""
    return [
        mean_row(name, ERROR, errors, SQUARES, known=best, note=f"known: PCA's; {contestant.note}".rstrip("; ")),
        row(name, "excess of that error", excess, "%", known=100 * lost / best, note=shrinks),
        row(name, "subspace distance", last[1], "1", known=0),
        row(name, "axis alignment", last[2], "1", known=0 if contestant.finds_axes else None),
    ]


def lost_to_penalty(exact: autoencoders.PCA, images: np.ndarray, weights: float | np.ndarray) -> float:
    """The squared error per image that L2 of weight w adds: it shortens a component of variance v by w / v.

    Source: Kunin, Bloom, Goeva & Seed 2019, "Loss landscapes of regularized linear autoencoders".
    """
    z = np.asarray(exact.encode(images), np.float64)
    return float(((z * weights / np.asarray(exact.explained_variance)) ** 2).sum(axis=1).mean())


def copying(setting: Setting, key: jax.Array) -> list[dict[str, Any]]:
    """As many latents as pixels, from three seeds: every run copies its input, but their encoders differ."""
    train, test = (shrunk(images) for images in (setting.train.images, setting.test.images))
    height, width = train.shape[1:]
    varies = np.ptp(train, axis=0) > 0
    mean = train[:, varies].mean(axis=0)
    train, test = train[:, varies] - mean, test[:, varies] - mean
    size = train.shape[1]
    model = autoencoders.linear_autoencoder((size,), size)
    init_keys, fit_keys = jax.random.split(key, (2, 3))
    points = autoencoders.equivalent_examples(train)
    num_steps = setting.steps(3000)
    params = fitting.train_many(
        "linear autoencoders, as many latents as pixels",
        autoencoders.make_reconstruction(model),
        optax.adam(flat_then_cosine(1e-2, num_steps), b1=0.98, b2=0.99),
        jax.vmap(model.init)(init_keys),
        fit_keys,
        jnp.broadcast_to(points, (3, 1, *points.shape)),
        num_steps=num_steps,
        batch_size=1,
    ).params
    decode = jax.jit(jax.vmap(lambda own: model.decode(own, model.encode(own, test).mean).mean))
    errors = ((np.asarray(decode(params), np.float64) - test) ** 2).sum(axis=2)
    encoders, decoders = (
        np.asarray(jax.vmap(networks.linear_kernel)(params[part]["network"])) for part in ("encoder", "decoder")
    )
    name = f"linear autoencoder, as many latents as pixels, {size}"
    note = (
        f"three seeds; images shrunk to {height}x{width}, without constant pixels; their variance is "
        f"{np.var(test, axis=0, dtype=np.float64).sum():.4g}"
    )
    return [
        row(name, ERROR, errors.mean(), SQUARES, known=0, note=note),
        row(name, "|A - B| / |A| of two seeds' encoders", apart(encoders), "1", note="mean over pairs of seeds"),
        row(name, "the same for encoder times decoder", apart(encoders @ decoders), "1", known=0),
    ]


def shrunk(images: np.ndarray) -> np.ndarray:
    """Images (n, height, width) shrunk to at most 8 pixels along a side, by means over squares."""
    factor = math.ceil(max(images.shape[1:]) / 8)
    height, width = (side // factor for side in images.shape[1:])
    cut = images[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor)
    return cut.mean(axis=(2, 4))


def apart(matrices: np.ndarray) -> float:
    """Mean of |A - B| / |A| over all pairs of matrices."""
    pairs = itertools.permutations(matrices, 2)
    return float(np.mean([np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs]))
