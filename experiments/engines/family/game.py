"""Generative adversarial networks beside VAEs with the same decoder: the part `game` of `pca_to_vae.py`.

The GANs play the minimax and the non-saturating game on two Gaussians in the plane and on scikit-learn's 8x8 digits
(whatever the dataset of the other parts). The generator is the mean of the VAE's p(x|z), with the VAE's prior. The VAE
is trained by the ELBO, on digits binarized anew for each batch. Its samples include the learned noise of p(x|z) on the
plane; on digits they are means, like the GAN's.
"""

import math
from typing import Any

import jax
import numpy as np
import optax

from engines.family.setting import Setting, distance_row
from engines.harness import fitting
from engines.harness.rows import Result, row
from vaejax import adversarial, data, distributions, models, networks, objectives, two_sample

GAMES = {"minimax": adversarial.make_minimax, "non-saturating": adversarial.make_non_saturating}
NUM_SAMPLES = 2000  # in each set on the plane; of digits, as many as there are test images
CURVE_POINTS = 200  # of a loss curve, at most


def run(setting: Setting) -> Result:
    """Losses and samples of both games on both sets of data, and why a GAN has no log p(x)."""
    keys = jax.random.split(jax.random.key(setting.seed), 4)
    plane, test = (np.asarray(data.two_gaussians(key, n)[0]) for key, n in ((keys[0], 10_000), (keys[1], NUM_SAMPLES)))
    vae = models.mlp_vae((2,), 2, (64, 64), "gaussian_shared_std", "relu")
    gan = adversarial.gan_from_vae(vae, networks.mlp(2, (64, 64), 1, "relu"))
    on_plane = compare("two Gaussians", vae, gan, keys[2], plane, test, num_steps=setting.steps(4000))
    digits, test = data.load("digits", "train+validation").images, data.load("digits", "test").images
    vae = models.mlp_vae((8, 8), 10, (128, 128), "bernoulli", "relu")
    gan = adversarial.gan_from_vae(vae, networks.mlp(64, (128, 128), 1, "relu"))
    on_digits = compare("digits", vae, gan, keys[3], digits, test, num_steps=setting.steps(6000))
    try:
        gan.encode  # noqa: B018 - the first thing that evaluation.log_likelihood needs of a model
    except AttributeError as refusal:
        refused = row("GAN", "log p(x)", math.nan, "nats", note=f"refused: {refusal}")
    return Result([*on_plane.rows, *on_digits.rows, refused], on_plane.arrays | on_digits.arrays)


def compare(
    name: str,
    vae: models.VAE,
    gan: adversarial.GAN,
    key: jax.Array,
    train: np.ndarray,
    test: np.ndarray,
    *,
    num_steps: int,
) -> Result:
    """Both games and the VAE on one set of data: losses, samples and their distances to test data."""
    init_key, vae_init_key, noise_key, latent_key, *fit_keys = jax.random.split(key, 7)
    rows = [row_of(f"training examples of {name}", train[: len(test)], test, "the floor")]
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
        rows.append(row_of(f"GAN, {kind}, {name}", samples[-1], test))
        last = history.value[-max(1, num_steps // 10) :].mean()
        note = "last tenth of the steps; known: -log 4, where D cannot tell samples from data"
        rows.append(row(f"GAN, {kind}, {name}", "V(D, G)", last, "nats", known=-math.log(4), note=note))
    grey = train.ndim > 2
    params = fitting.train(
        f"{name}: VAE",
        objectives.make_elbo(vae),
        optax.adam(1e-3),
        vae.init(vae_init_key),
        fit_keys[-1],
        train,
        num_steps=num_steps,
        batch_size=100,
        prepare=data.binarize_dynamic if grey else None,
    ).params
    z = jax.vmap(lambda key: distributions.sample(vae.prior(params), key))(jax.random.split(latent_key, len(test)))
    samples.append(np.asarray(vae.decode(params, z).mean if grey else models.sample_data(vae, params, noise_key, z)))
    rows.append(row_of(f"VAE, {name}", samples[-1], test))
    return Result(
        rows,
        {
            f"{name}: data": test[:NUM_SAMPLES],
            f"{name}: samples": np.stack(samples),
            f"{name}: losses": np.stack(losses),
            f"{name}: steps": smoothed(np.arange(1, num_steps + 1)),
        },
    )


def row_of(model: str, samples: np.ndarray, test: np.ndarray, note: str = "") -> dict[str, Any]:
    """A row of the table: the energy distance of the samples."""
    distance = two_sample.energy_distance(samples, test)
    return distance_row(model, "energy distance of samples to test data", distance, "in units of x", note)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over stretches of equal length, at most CURVE_POINTS of them; a shorter rest at the end is dropped."""
    width = -(-len(values) // CURVE_POINTS)
    return values[: len(values) // width * width].reshape(-1, width).mean(axis=1)
