"""What sets autoencoders and VAEs apart, in measurements: the part `difference` of `pca_to_vae.py`.

An autoencoder, a denoising autoencoder and a VAE with the same networks and two latents are trained alike: from the
same parameters, on the same pixels (binarized anew for each batch) in the same order, with the same cross-entropy. The
denoising one gets noisy inputs; the VAE samples z from q(z|x) and pays KL(q(z|x) || p(z)).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin_min

from engines.family.pca import SQUARES
from engines.family.setting import Setting, distance_row, squared_errors
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders, data, evaluation, models, objectives, two_sample

LATENT_DIM = 2  # so that latents can be drawn as they are
INPUT_NOISE = 0.5  # std, of the denoising autoencoder
NUM_IMAGES = 1000  # in each set of images that is compared with another, at most
NUM_PROBED = 5000  # training images of the linear probe, at most
NUM_IMPORTANCE_SAMPLES = 500
SNAPSHOTS_AT = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the training run
NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
INTERPOLATED = ((0, 1), (2, 6), (3, 4), (7, 8))  # classes

PRIOR, FITTED = "latents from N(0, I)", "latents from a Gaussian fitted to the training latents"
DISTANCE, PIXELS = "energy distance to test images", "pixel values"
ITSELF = "pixels themselves"  # the row of the images, beside those of the models' latents


class Member(NamedTuple):
    """A trained model.

    Attributes:
        name: in the table.
        model: its functions.
        params: at the end of training.
        snapshots: `{step: params}` during training.
        train_latents: of the grey training images, or means of q(z|x).
        test_latents: of the grey test images, likewise.
    """

    name: str
    model: models.VAE
    params: Any
    snapshots: dict[int, Any]
    train_latents: np.ndarray
    test_latents: np.ndarray


class Sets(NamedTuple):
    """Images and noise, chosen at random and the same for every model.

    Attributes:
        test_rows: indices of the test images that samples are compared with.
        test: these images.
        train: training images, as many as there are samples in a set.
        noise: standard normal, for each sample. (n, 2)
        distance: `images -> Distance` from these test images.
        pca: of all training images, with as many latents.
    """

    test_rows: np.ndarray
    test: np.ndarray
    train: np.ndarray
    noise: np.ndarray
    distance: Callable[[Any], two_sample.Distance]
    pca: autoencoders.PCA


def run(setting: Setting) -> Result:
    """Which model generates, which has p(x), and how the latents differ."""
    rng = np.random.default_rng(setting.seed)
    images = setting.train.images
    num_samples = min(NUM_IMAGES, len(images))
    test_rows = rng.permutation(len(setting.test.images))[:NUM_IMAGES]
    test = setting.test.images[test_rows]
    sets = Sets(
        test_rows,
        test,
        images[rng.permutation(len(images))[:num_samples]],
        rng.normal(size=(num_samples, LATENT_DIM)).astype(np.float32),
        functools.partial(two_sample.energy_distance, y=test),
        autoencoders.pca(images, LATENT_DIM),
    )
    members = trained_members(setting)
    parts = [
        generation(members, sets),
        densities(setting.seed, members, sets),
        probes(setting, members, sets, rng),
        latent_noise(members, sets, rng),
        interpolations(setting, members, sets),
        training_strip(setting.test, members, sets),
    ]
    rows = [row for part in parts for row in part.rows]
    arrays = {name: array for part in parts for name, array in part.arrays.items()}
    return Result(rows, {"names": np.array([member.name for member in members]), **arrays})


def keys_of(seed: int) -> jax.Array:
    """The keys of init, of training, and of log p(x)."""
    return jax.random.split(jax.random.key(seed), 3)


def trained_members(setting: Setting) -> list[Member]:
    """The three models, trained alike."""
    sizes = (setting.image_shape, LATENT_DIM, (100, 50) if setting.small else (500, 250), "bernoulli", "gelu")
    plain, vae = autoencoders.mlp_autoencoder(*sizes), models.mlp_vae(*sizes)
    noise = autoencoders.gaussian_noise(INPUT_NOISE)
    reconstruction = functools.partial(autoencoders.make_reconstruction, plain, autoencoders.cross_entropy)
    num_steps = setting.steps(3000 if setting.small else 2500)
    members = []
    for name, model, objective in (
        ("autoencoder", plain, reconstruction()),
        ("denoising autoencoder", plain, reconstruction(corrupt=noise)),
        ("VAE", vae, objectives.make_elbo(vae)),
    ):
        init_key, fit_key, _ = keys_of(setting.seed)  # the same for all of them
        trained = fitting.train(
            f"{name}, 2 latents",
            objective,
            fitting.adamw(2e-3, num_steps),
            model.init(init_key),
            fit_key,
            setting.train.images,
            num_steps=num_steps,
            batch_size=200,
            prepare=data.binarize_dynamic,
            snapshots_at=SNAPSHOTS_AT,
        )
        latents = [latents_of(model, trained.params, each.images) for each in (setting.train, setting.test)]
        members.append(Member(name, model, trained.params, trained.snapshots, *latents))
    return members


def generation(members: list[Member], sets: Sets) -> Result:
    """Images decoded from latents of the prior, and of a Gaussian with the moments of the training latents."""
    note = f"means of p(x|z) for {len(sets.noise):,} latents, {len(sets.test):,} grey test images"
    floor = f"{len(sets.train):,} of them, {len(sets.test):,} test images"
    rows = [distance_row("training images, the floor", DISTANCE, sets.distance(sets.train), PIXELS, floor)]
    pictures = []
    for member in members:
        scale = np.linalg.cholesky(np.cov(member.train_latents, rowvar=False))
        fitted = member.train_latents.mean(axis=0) + sets.noise @ scale.T
        for name, z in ((PRIOR, sets.noise), (FITTED, fitted.astype(np.float32))):
            images = decoded(member, z)
            rows.append(distance_row(member.name, f"{DISTANCE}, {name}", sets.distance(images), PIXELS, note))
            pictures.append(images[:36])
    pictures = np.stack(pictures).reshape(len(members), 2, -1, *sets.test.shape[1:])
    return Result(rows, {"generated": pictures, "real": sets.test[:36]})


def densities(seed: int, members: list[Member], sets: Sets) -> Result:
    """Log p(x): refused for autoencoders, estimated for the VAE, exact for probabilistic PCA."""
    data_key, *keys = jax.random.split(keys_of(seed)[2], 1 + len(members))
    binarized = data.binarize_dynamic(data_key, sets.test)
    rows = []
    for member, key in zip(members, keys, strict=True):
        try:
            result = evaluation.log_likelihood(
                member.model, member.params, key, binarized, num_samples=NUM_IMPORTANCE_SAMPLES
            )
        except ValueError as refusal:
            rows.append(row(member.name, "log p(x)", math.nan, "nats", note=f"refused: {refusal}"))
        else:
            note = (
                f"of {len(binarized):,} binarized test images, by importance sampling with K = "
                f"{NUM_IMPORTANCE_SAMPLES}: standard error of one image's about {result.standard_error.mean():.2g}"
            )
            rows.append(mean_row(member.name, "log p(x)", result.estimate, "nats", note=note))
    exact = sets.pca.log_likelihood(sets.test)
    note = "exact; a density of grey pixels, not to be compared with a probability of black and white ones"
    return Result([*rows, mean_row("probabilistic PCA", "log p(x)", exact, "nats", note=note)], {})


def probes(setting: Setting, members: list[Member], sets: Sets, rng: np.random.Generator) -> Result:
    """The accuracy of a linear classifier of the latents."""
    images = [each.images for each in (setting.train, setting.test)]
    chosen = rng.permutation(len(images[0]))[:NUM_PROBED]
    features = {member.name: (member.train_latents, member.test_latents) for member in members}
    features["PCA"] = tuple(np.asarray(sets.pca.encode(each)) for each in images)
    features[ITSELF] = tuple(each.reshape(len(each), -1) for each in images)
    rows = []
    for name, (train, test) in features.items():
        scale = 1.0 if name == ITSELF else train[chosen].std(axis=0)
        classifier = LogisticRegression(C=0.1, tol=1e-3, max_iter=5000)
        classifier.fit(train[chosen] / scale, setting.train.labels[chosen])
        accuracy = classifier.score(test / scale, setting.test.labels)
        error = math.sqrt(accuracy * (1 - accuracy) / len(test))
        note = f"logistic regression on {train.shape[1]} numbers of {len(chosen):,} training images"
        rows.append(
            row(name, "accuracy of a linear probe", accuracy, "of test images", standard_error=error, note=note)
        )
    return Result(rows, {})


def latent_noise(members: list[Member], sets: Sets, rng: np.random.Generator) -> Result:
    """Reconstruction error against noise added to the latents, in stds of the latents."""
    noise = rng.normal(size=(len(sets.test), LATENT_DIM))
    rows, curves = [], []
    for member in members:
        std = member.train_latents.std(axis=0)
        for level in NOISE_LEVELS:
            z = member.test_latents[sets.test_rows] + level * std * noise
            what = f"squared error per test image, noise of {level:g} stds of the latents on each"
            errors = squared_errors(decoded(member, z.astype(np.float32)), sets.test)
            line = mean_row(member.name, what, errors, SQUARES)
            curves.append([line["value"], line["standard_error"]])
            if level in (0.0, 0.1, 0.5):
                rows.append(line)
    vae = members[-1]
    spread = np.asarray(posterior_std(vae.model, vae.params, sets.test)) / vae.train_latents.std(axis=0)
    spread = math.sqrt((spread**2).mean())
    rows.append(row(vae.name, "std of q(z|x), root mean square over test images", spread, "stds of the latents"))
    arrays = {
        "noise_levels": np.array(NOISE_LEVELS),
        "noise_errors": np.reshape(curves, (len(members), len(NOISE_LEVELS), 2)),
        "posterior_std": np.array(spread),
    }
    return Result(rows, arrays)


def interpolations(setting: Setting, members: list[Member], sets: Sets) -> Result:
    """Straight lines between two test images, in pixels or between their latents, and the images in their middles.

    The distance of an image to the nearest training image measures whether it looks like one. Blurred images are nearer
    to all of them, so middles are compared with the ends of the same lines, decoded by the same decoder.
    """
    weights = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    first_of = dict(zip(*np.unique(setting.test.labels, return_index=True), strict=True))
    pairs = [(first_of[a], first_of[b]) for a, b in INTERPOLATED if a in first_of and b in first_of]
    training_images = setting.train.images.reshape(len(setting.train.images), -1)
    half = len(sets.test_rows) // 2
    rows, pictures = [], []
    for member in [None, *members]:
        z = setting.test.images.reshape(len(setting.test.images), -1) if member is None else member.test_latents
        lines = np.stack([(1 - weights) * z[i] + weights * z[j] for i, j in pairs])
        ends = z[sets.test_rows[:half]]
        for where, chosen in (("ends", ends), ("middles", (ends + z[sets.test_rows[half : 2 * half]]) / 2)):
            images = chosen if member is None else decoded(member, chosen).reshape(half, -1)
            distances = pairwise_distances_argmin_min(images, training_images)[1]
            what = f"distance to the nearest training image, {where} of straight lines between test images"
            rows.append(mean_row(member.name if member else ITSELF, what, distances, PIXELS, note=f"{half} lines"))
        images = lines if member is None else decoded(member, lines)
        pictures.append(images.reshape(len(pairs), 9, *sets.test[0].shape))
    return Result(rows, {"interpolations": np.stack(pictures)})


def training_strip(test: data.Dataset, members: list[Member], sets: Sets) -> Result:
    """Latents of test images, and images from the prior, at the same training steps of all three models."""
    steps = sorted(members[0].snapshots)
    latents, samples, distances = [], [], []
    for member in members:
        for step in steps:
            params = member.snapshots[step]
            latents.append(latents_of(member.model, params, test.images)[sets.test_rows])
            images = decoded(member._replace(params=params), sets.noise)
            samples.append(images[:9])
            distances.append([float(number) for number in sets.distance(images)])
    arrays = {"strip_codes": latents, "strip_samples": samples, "strip_distances": distances}
    arrays = {
        name: np.reshape(array, (len(members), len(steps), *np.shape(array)[1:])) for name, array in arrays.items()
    }
    return Result([], {**arrays, "strip_steps": np.array(steps), "strip_labels": test.labels[sets.test_rows]})


def latents_of(model: models.VAE, params: Any, images: np.ndarray) -> np.ndarray:
    """Latents of grey images, or means of q(z|x)."""
    return np.asarray(evaluation.posterior_means(model, params, jnp.asarray(images)))


@functools.partial(jax.jit, static_argnums=0)
def posterior_std(model: models.VAE, params: Any, images: jax.Array) -> jax.Array:
    """The std of q(z|x) of each image."""
    return jnp.sqrt(model.encode(params, images).variance)


def decoded(member: Member, z: np.ndarray) -> np.ndarray:
    """Means of p(x|z)."""
    return np.asarray(_decode(member.model.decode, member.params, z))


@functools.partial(jax.jit, static_argnums=0)
def _decode(decode: Callable[..., Any], params: Any, z: jax.Array) -> jax.Array:
    return decode(params, z).mean
