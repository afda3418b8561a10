"""Denoising autoencoders on digits, a spiral and a mixture: the parts `denoising` and `score` of `pca_to_vae.py`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax import lax

from engines.family.pca import SQUARES
from engines.family.setting import Setting, squared_errors
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders, data, distributions, models

NUM_PICTURES = 10

NOISES: dict[str, autoencoders.Corruption] = {
    "Gaussian noise of std 0.5": autoencoders.gaussian_noise(0.5),
    "half of the pixels masked": autoencoders.masking_noise(0.5),
}

SPIRAL_STD = 0.1  # of the noise; neighbouring turns of the spiral are 0.67 apart

# A mixture of three Gaussians in the plane.
WEIGHTS = np.array([0.3, 0.3, 0.4], np.float32)
MEANS = np.array([[-1.2, -0.8], [1.2, -0.8], [0.0, 1.2]], np.float32)
STDS = np.array([0.35, 0.4, 0.5], np.float32)

SIGMAS = (0.02, 0.035, 0.06, 0.11, 0.2, 0.35, 0.6, 1.0)
DRAWN_SIGMAS = (0.2, 0.02)
REQUIRED_FROM = 0.2  # the least sigma at which the score must be learned; smaller ones show where that fails
NUM_POINTS = 20_000  # at which a learned score is compared with the exact one


def digits(setting: Setting) -> Result:
    """Errors of test images after removal of two kinds of noise, by autoencoders and by linear maps; the spiral."""
    images, test = setting.train.images, setting.test.images
    hidden_size, num_steps = (256, 1500) if setting.small else (500, 1200)
    num_steps = setting.steps(num_steps)
    latent_dim = setting.latent_dim
    model = autoencoders.mlp_autoencoder(images.shape[1:], latent_dim, (hidden_size,), "bernoulli", "relu")
    init_key, fit_key, noise_key, spiral_key = jax.random.split(jax.random.key(setting.seed), 4)
    start = model.init(init_key)

    def trained(what: str, corrupt: autoencoders.Corruption | None) -> Any:
        # Cross-entropy and squared error have the same minimum: the mean of the clean image given the noisy one.
        objective = autoencoders.make_reconstruction(model, autoencoders.cross_entropy, corrupt=corrupt)
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
        run = fitting.train(what, objective, optimizer, start, fit_key, images, num_steps=num_steps, batch_size=200)
        return run.params

    reconstruct = jax.jit(lambda params, x: model.decode(params, model.encode(params, x).mean).mean)
    pca = autoencoders.pca(images, latent_dim)
    plain = trained("autoencoder without noise", None)
    expected = (test[0].size * 0.5**2, 0.5 * (test.astype(np.float64) ** 2).sum(axis=(1, 2)).mean())
    rows, arrays = [], {"clean": test[:NUM_PICTURES], "noises": np.array(list(NOISES))}
    for index, (noise, corrupt) in enumerate(NOISES.items()):
        train_key, test_key = jax.random.split(jax.random.fold_in(noise_key, index))
        noisy = corrupt(test_key, jnp.asarray(test))
        own = trained(f"denoising: {noise}", corrupt)
        cleaned = {
            "noisy image": (noisy, "untouched; known: the mean over the noise", expected[index]),
            f"PCA, k = {latent_dim}": (pca.decode(pca.encode(noisy)), "projection of the noisy image", None),
            "affine map": (
                least_squares(np.asarray(corrupt(train_key, jnp.asarray(images))), images, np.asarray(noisy)),
                "from noisy to clean training images by least squares; no bottleneck",
                None,
            ),
            "autoencoder": (reconstruct(plain, noisy), f"{latent_dim} latents; trained without noise", None),
            "denoising autoencoder": (
                reconstruct(own, noisy),
                f"the same {images[0].size}-{hidden_size}-{latent_dim} network, trained with this noise",
                None,
            ),
        }
        for name, (result, note, known) in cleaned.items():
            quantity = f"squared error to the clean test image, {noise}"
            rows.append(mean_row(name, quantity, squared_errors(result, test), SQUARES, known=known, note=note))
        arrays[f"cleaned_{index}"] = np.stack([np.asarray(part[0])[:NUM_PICTURES] for part in cleaned.values()])
    spiral_rows, spiral_arrays = spiral(setting, spiral_key)
    return Result(rows + spiral_rows, arrays | spiral_arrays)


def least_squares(noisy: np.ndarray, clean: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The best affine map from noisy to clean training images, by squared error, applied to x."""
    noisy_mean, clean_mean = noisy.mean(axis=0), clean.mean(axis=0)
    inputs, outputs, points = (
        (a - m).reshape(len(a), -1) for a, m in ((noisy, noisy_mean), (clean, clean_mean), (x, noisy_mean))
    )
    # The normal equations; pixels that are black in all training images get no weight.
    matrix = np.linalg.lstsq(inputs.T @ inputs, inputs.T @ outputs, rcond=1e-6)[0]
    return (points @ matrix).reshape(x.shape) + clean_mean


def spiral(setting: Setting, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The field of a denoising autoencoder, reconstruction minus input, beside the best for the training points."""
    points, test = (data.load("spiral", split).images for split in ("train", "test"))
    init_key, fit_key, noise_key = jax.random.split(key, 3)
    model = autoencoders.mlp_autoencoder((2,), latent_dim=32, hidden_sizes=(64,))
    corrupt = autoencoders.gaussian_noise(SPIRAL_STD)
    num_steps = setting.steps(3000)
    params = fitting.train(
        "denoising: spiral",
        autoencoders.make_reconstruction(model, corrupt=corrupt),
        optax.adam(optax.cosine_decay_schedule(1e-2, num_steps)),
        model.init(init_key),
        fit_key,
        points,
        num_steps=num_steps,
        batch_size=500,
    ).params
    noisy, grid = np.asarray(corrupt(noise_key, jnp.asarray(test))), square(1.35, 28)
    x = np.concatenate([noisy, grid])
    learned = SPIRAL_STD**2 * np.asarray(autoencoders.denoising_score(model, params, x, SPIRAL_STD))
    best = np.asarray(best_denoised(points, x, SPIRAL_STD)) - x
    quantity, unit = f"squared error to the clean test point, noise of std {SPIRAL_STD}", "squared units of x"
    errors, least = (((noisy + field[: len(test)] - test) ** 2).sum(axis=1) for field in (learned, best))
    name, note = "spiral, denoising autoencoder", "2-64-32-64-2; known: the best answer for the training points"
    untouched = ((noisy - test) ** 2).sum(axis=1)
    rows = [
        mean_row("spiral, noisy point", quantity, untouched, unit, known=2 * SPIRAL_STD**2),
        mean_row(name, quantity, errors, unit, known=float(least.mean()), note=note),
        *agreement(name, "field", learned[: len(test)], best[: len(test)]),
    ]
    arrays = {"spiral": test, "grid": grid, "learned": learned[len(test) :], "best": best[len(test) :]}
    return rows, arrays


@jax.jit
def best_denoised(points: jax.Array, x: jax.Array, std: float) -> jax.Array:
    """E[point | x] where x is one of the points plus Gaussian noise of this std: (n, 2)."""

    def mean(x: jax.Array) -> jax.Array:
        return jax.nn.softmax(-((points - x[None]) ** 2).sum(axis=1) / (2 * std**2)) @ points

    return lax.map(mean, x, batch_size=500)


def score(setting: Setting) -> Result:
    """The score of a smoothed mixture by denoising autoencoders, one for each sigma, beside the exact one."""
    model = autoencoders.mlp_autoencoder((2,), latent_dim=32, hidden_sizes=(64,))
    init_key, fit_key, test_key = jax.random.split(jax.random.key(setting.seed), 3)
    num_steps, sigmas = setting.steps(16_000), jnp.array(SIGMAS)

    def population(params: Any, key: jax.Array, x: jax.Array, *, step: Any = None) -> tuple[jax.Array, jax.Array]:
        """The sum of all objectives. Each sigma has its own parameters, so their gradients do not mix."""

        def value_of(params: Any, sigma: jax.Array) -> jax.Array:
            corrupt = autoencoders.gaussian_noise(sigma)
            return autoencoders.make_reconstruction(model, corrupt=corrupt)(params, key, x, step=step)[0]

        value = jax.vmap(value_of)(params, sigmas).sum()
        return value, lax.stop_gradient(value)

    params = fitting.train(
        f"score: {len(SIGMAS)} sigmas at once",
        population,
        optax.adam(optax.cosine_decay_schedule(1e-2, num_steps)),
        jax.vmap(model.init)(jax.random.split(init_key, len(SIGMAS))),
        fit_key,
        np.zeros((500, 2), np.float32),  # a placeholder: `prepare` draws new points in each step
        num_steps=num_steps,
        batch_size=500,
        prepare=lambda key, batch: drawn(smoothed(0.0), key, len(batch)),
    ).params
    rows, arrays = [], {"sigmas": np.array(SIGMAS), "grid": square(3.0, 21), "fine_grid": square(3.0, 81)}
    cosines, relatives, sizes = [], [], []
    for index, sigma in enumerate(SIGMAS):
        mixture, own = smoothed(sigma), jax.tree.map(lambda leaf, i=index: leaf[i], params)
        x = drawn(mixture, jax.random.fold_in(test_key, index), NUM_POINTS)
        learned, exact = compared(model, own, mixture, x, sigma)
        required = ("required: above 0.95", "required: below 0.1") if sigma >= REQUIRED_FROM else ("", "")
        of_sigma = agreement("score of a mixture", f"score, sigma = {sigma}", learned, exact, *required)
        rows += of_sigma
        for kept, line in zip((cosines, relatives), of_sigma, strict=True):
            kept.append([line["value"], line["standard_error"]])
        sizes.append(math.sqrt((np.asarray(exact, np.float64) ** 2).sum(axis=1).mean()))
        if sigma in DRAWN_SIGMAS:
            fields = compared(model, own, mixture, jnp.asarray(arrays["grid"]), sigma)
            arrays |= {
                f"{name}_{sigma}": np.asarray(field) for name, field in zip(("learned", "exact"), fields, strict=True)
            }
            arrays[f"density_{sigma}"] = np.exp(distributions.log_prob(mixture, jnp.asarray(arrays["fine_grid"])))
    arrays |= {"cosine": np.array(cosines), "relative": np.array(relatives), "size": np.array(sizes)}
    # r(x) - x is sigma^2 times the score plus the error of r, which falls more slowly with sigma.
    relative, sigmas = arrays["relative"][:, 0], arrays["sigmas"]
    arrays["typical_error"] = np.median(relative * sigmas**2 * arrays["size"])
    tenth = np.exp(np.interp(-math.log(0.1), -np.log(relative), np.log(sigmas)))
    note = f"median over the {len(SIGMAS)} sigmas; for each a 2-64-32-64-2 network that gets 500 new points a step"
    rows += [
        row("score of a mixture", "root mean squared error of r(x)", arrays["typical_error"], "units of x", note=note),
        row("score of a mixture", "sigma below which the relative error is above 10%", tenth, "units of x"),
    ]
    return Result(rows, arrays)


def square(half_side: float, count: int) -> np.ndarray:
    """Points of a square grid around the origin, (count^2, 2)."""
    side = np.linspace(-half_side, half_side, count, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def smoothed(sigma: float) -> dist.MixtureSameFamily:
    """The mixture with Gaussian noise of std sigma added to its points."""
    stds = np.broadcast_to(np.sqrt(STDS**2 + np.float32(sigma) ** 2)[:, None], MEANS.shape)
    components = dist.Normal(jnp.asarray(MEANS), jnp.asarray(stds)).to_event(1)
    return dist.MixtureSameFamily(dist.CategoricalProbs(jnp.asarray(WEIGHTS)), components)


def drawn(mixture: dist.Distribution, key: jax.Array, count: int) -> jax.Array:
    """Points of the mixture, (count, 2)."""
    with jax.numpy_rank_promotion("allow"):  # numpyro 0.22 broadcasts components over samples
        return mixture.sample(key, (count,))


@functools.partial(jax.jit, static_argnums=0)
def compared(model: models.VAE, params: Any, mixture: dist.Distribution, x: jax.Array, sigma: Any) -> list[jax.Array]:
    """The learned score at the points x and the exact one, the gradient of the mixture's log density: each (n, 2)."""
    exact = jax.vmap(jax.grad(lambda x: distributions.log_prob(mixture, x)))(x)
    return [autoencoders.denoising_score(model, params, x, sigma), exact]


def agreement(
    model: str, what: str, learned: Any, exact: Any, cosine_note: str = "", relative_note: str = ""
) -> list[dict[str, Any]]:
    """Rows: the mean cosine of two vector fields over points, and the relative error of the learned one."""
    learned, exact = np.asarray(learned, np.float64), np.asarray(exact, np.float64)
    difference, size = ((learned - exact) ** 2).sum(axis=1), (exact**2).sum(axis=1)
    cosines = (learned * exact).sum(axis=1) / np.sqrt((learned**2).sum(axis=1) * size)
    relative = math.sqrt(difference.mean() / size.mean())
    # The standard error of the root of a ratio of means, by the delta method.
    spread = (difference - relative**2 * size).std(ddof=1) / math.sqrt(len(size))
    error = spread / size.mean() / (2 * relative)
    return [
        mean_row(model, f"mean cosine of learned and exact {what}", cosines, "1", note=cosine_note),
        row(model, f"relative error of the {what}", relative, "1", standard_error=error, note=relative_note),
    ]
