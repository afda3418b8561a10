"""The implicit cousin: `game` of `pca_to_vae.py`, generative adversarial networks beside VAEs with the same decoder.

On two Gaussians in the plane and on scikit-learn's digits (8x8, whatever the other parts work on) a GAN plays the
minimax game and the non-saturating one. G is the mean of the VAE's p(x|z), with the VAE's prior; the VAE is trained by
the ELBO. On the plane its samples have the learned noise of p(x|z), on the digits (binarized anew for each batch, as
the Bernoulli likelihood wants) they are means, as the GAN's are.
"""

import math
from typing import Any

import jax
import numpy as np
import optax

from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, row
from vaejax import adversarial, data, distributions, models, networks, objectives, two_sample

GAMES = {"minimax": adversarial.make_minimax, "non-saturating": adversarial.make_non_saturating}

NUM_SAMPLES = 2000  # in each set on the plane; of digits, as many as there are test images

DISTANCE = "energy distance of samples to test data"

CURVE_POINTS = 200  # of the losses, each the mean of as many steps


def run(setting: Setting) -> Result:
    """Losses and samples of both games on both sets of data, and why log p(x) cannot be had."""
    keys = jax.random.split(jax.random.key(setting.seed), 4)
    plane, test = (np.asarray(data.two_gaussians(key, n)[0]) for key, n in ((keys[0], 10_000), (keys[1], NUM_SAMPLES)))
    vae = models.mlp_vae((2,), 2, (64, 64), "gaussian_shared_std", "relu")
    gan = adversarial.gan_from_vae(vae, networks.mlp(2, (64, 64), 1, "relu"))
    on_plane = compare(setting, "two Gaussians", vae, gan, keys[2], plane, test, num_steps=setting.steps(4000))
    digits, test = data.load("digits", "train+validation").images, data.load("digits", "test").images
    vae = models.mlp_vae((8, 8), 10, (128, 128), "bernoulli", "relu")
    gan = adversarial.gan_from_vae(vae, networks.mlp(64, (128, 128), 1, "relu"))
    on_digits = compare(setting, "digits", vae, gan, keys[3], digits, test, num_steps=setting.steps(6000))
    try:
        gan.encode  # noqa: B018 - what evaluation.log_likelihood asks a model for first
    except AttributeError as refusal:
        refused = row("GAN", "log p(x)", math.nan, "nats", note=f"refused: {refusal}")
    return Result([*on_plane.rows, *on_digits.rows, refused], on_plane.arrays | on_digits.arrays)


def compare(
    setting: Setting,
    name: str,
    vae: models.VAE,
    gan: adversarial.GAN,
    key: jax.Array,
    train: np.ndarray,
    test: np.ndarray,
    *,
    num_steps: int,
) -> Result:
    """Both games and the VAE on one set: distances of samples to test data, losses and samples."""
    init_key, vae_init_key, noise_key, code_key, *fit_keys = jax.random.split(key, 7)
    floor = two_sample.energy_distance(train[: len(test)], test)
    rows = [distance_row(f"training examples of {name}", floor, "the floor")]
    params = gan.init(init_key)
    samples, losses = [], []
    for (kind, make), fit_key in zip(GAMES.items(), fit_keys, strict=False):
        fit_key, sample_key = jax.random.split(fit_key)
        optimizer = adversarial.two_optimizers(optax.adam(5e-4, b1=0.5), optax.adam(1e-3, b1=0.5))
        trained = fitting.train(
            f"{name}: {kind}", make(gan), optimizer, params, fit_key, train, num_steps=num_steps, batch_size=100
        )
        history = trained.history
        losses.append(np.stack([smoothed(history.discriminator_loss), smoothed(history.generator_loss)]))
        samples.append(np.asarray(adversarial.sample(gan, trained.params, sample_key, len(test))))
        rows.append(distance_row(f"GAN, {kind}, {name}", two_sample.energy_distance(samples[-1], test)))
        last = history.value[-max(1, num_steps // 10) :].mean()
        note = "last tenth of the steps; known: -log 4, where D cannot tell samples from data"
        rows.append(row(f"GAN, {kind}, {name}", "V(D, G)", last, "nats", known=-math.log(4), note=note))
    grey = train.ndim > 2
    trained = fitting.train(
        f"{name}: VAE",
        objectives.make_elbo(vae),
        optax.adam(1e-3),
        vae.init(vae_init_key),
        fit_keys[-1],
        train,
        num_steps=num_steps,
        batch_size=100,
        prepare=data.binarize_dynamic if grey else None,
    )
    code_keys = jax.random.split(code_key, len(test))
    codes = jax.vmap(lambda key: distributions.sample(vae.prior(trained.params), key))(code_keys)
    p = vae.decode(trained.params, codes)
    samples.append(np.asarray(p.mean if grey else distributions.sample(p, noise_key)))
    rows.append(distance_row(f"VAE, {name}", two_sample.energy_distance(samples[-1], test)))
    return Result(
        rows,
        {
            f"{name}: data": test[:NUM_SAMPLES],
            f"{name}: samples": np.stack(samples),
            f"{name}: losses": np.stack(losses),
            f"{name}: steps": smoothed(np.arange(1, num_steps + 1)),
        },
    )


def distance_row(model: str, distance: two_sample.Distance, note: str = "") -> dict[str, Any]:
    """A line of the table."""
    estimate, error = (float(number) for number in distance)
    return row(model, DISTANCE, estimate, "in units of x", standard_error=error, note=note)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over stretches of equal length, at most CURVE_POINTS of them; what is left over at the end is dropped."""
    width = -(-len(values) // CURVE_POINTS)
    return values[: len(values) // width * width].reshape(-1, width).mean(axis=1)
