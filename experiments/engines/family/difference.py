"""What sets autoencoders and VAEs apart, in measurements: `difference` of `pca_to_vae.py`.

An autoencoder, a denoising one and a VAE of the same networks, with two numbers in a code, are trained alike: from the
same parameters, on the same pixels (binarized anew for each batch), in the same order, on the same cross-entropy. The
second sees its input through noise; the third draws its code from q(z|x) and pays for KL(q(z|x) || p(z)).
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

from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders, data, evaluation, models, objectives, two_sample

LATENT_DIM = 2  # so that codes can be drawn as they are

INPUT_NOISE = 0.5  # std, of the denoising autoencoder

NUM_IMAGES = 1000  # in each set of images that is compared with another, at most

NUM_PROBED = 5000  # training images of the linear probe, at most

NUM_IMPORTANCE_SAMPLES = 500

SNAPSHOTS_AT = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the training run

NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

INTERPOLATED = ((0, 1), (2, 6), (3, 4), (7, 8))  # classes

PRIOR, FITTED = "codes from N(0, I)", "codes from a Gaussian fitted to the training codes"

DISTANCE = "energy distance to test images"


class Member(NamedTuple):
    """A trained model.

    Attributes:
        name: in the table.
        model: its functions.
        params: at the end of training.
        snapshots: `{step: params}` during training.
        train_codes: of the training images, grey: codes, or means of q(z|x).
        test_codes: of the test images.
    """

    name: str
    model: models.VAE
    params: Any
    snapshots: dict[int, Any]
    train_codes: np.ndarray
    test_codes: np.ndarray


class Sets(NamedTuple):
    """Images and noise that every model meets, chosen at random, the same for all.

    Attributes:
        test_rows: indices of the test images that samples are compared with.
        test: these.
        train: training images, as many as there are samples in a set.
        code_noise: standard normal, for each sample. (n, 2)
        distance: `images -> Distance` from these test images.
        pca: of all training images, with codes as wide.
    """

    test_rows: np.ndarray
    test: np.ndarray
    train: np.ndarray
    code_noise: np.ndarray
    distance: Callable[[Any], two_sample.Distance]
    pca: autoencoders.PCA


def run(setting: Setting) -> Result:
    """Can one generate, can one get p(x), how do the representations differ."""
    rng = np.random.default_rng(setting.seed)
    num_samples = min(NUM_IMAGES, len(setting.train.images))
    test_rows = rng.permutation(len(setting.test.images))[:NUM_IMAGES]
    test = setting.test.images[test_rows]
    sets = Sets(
        test_rows,
        test,
        setting.train.images[rng.permutation(len(setting.train.images))[:num_samples]],
        rng.normal(size=(num_samples, LATENT_DIM)).astype(np.float32),
        functools.partial(two_sample.energy_distance, y=test),
        autoencoders.pca(setting.train.images, LATENT_DIM),
    )
    members = trained_members(setting)
    parts = [
        generation(members, sets),
        densities(setting, members, sets),
        probes(setting, members, sets, rng),
        code_noise(members, sets, rng),
        interpolations(setting, members, sets),
        training_strip(setting, members, sets),
    ]
    rows = [row for part in parts for row in part.rows]
    arrays = {name: array for part in parts for name, array in part.arrays.items()}
    return Result(rows, {"names": np.array([member.name for member in members]), **arrays})


def trained_members(setting: Setting) -> list[Member]:
    """The three models, trained alike."""
    shape, small = setting.train.images.shape[1:], setting.small
    sizes = (shape, LATENT_DIM, (100, 50) if small else (500, 250), "bernoulli", "gelu")
    plain, vae = autoencoders.mlp_autoencoder(*sizes), models.mlp_vae(*sizes)
    noise = autoencoders.gaussian_noise(INPUT_NOISE)
    objective_of = {
        "autoencoder": (plain, autoencoders.make_reconstruction(plain, autoencoders.cross_entropy)),
        "denoising autoencoder": (
            plain,
            autoencoders.make_reconstruction(plain, autoencoders.cross_entropy, corrupt=noise),
        ),
        "VAE": (vae, objectives.make_elbo(vae)),
    }
    num_steps = setting.steps(3000 if small else 2500)
    members = []
    for name, (model, objective) in objective_of.items():
        init_key, fit_key = jax.random.split(jax.random.key(setting.seed))  # the same for all of them
        trained = fitting.train(
            f"{name}, 2-dimensional code",
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
        codes = [np.asarray(codes_of(model, trained.params, each.images)) for each in (setting.train, setting.test)]
        members.append(Member(name, model, trained.params, trained.snapshots, *codes))
    return members


def generation(members: list[Member], sets: Sets) -> Result:
    """Images from codes of the prior, and from codes of a Gaussian with the moments of the training codes."""
    note = f"means of p(x|z) for {len(sets.code_noise):,} codes, {len(sets.test):,} grey test images"
    floor = f"{len(sets.train):,} of them, {len(sets.test):,} test images"
    rows = [distance_row("training images, the floor", DISTANCE, sets.distance(sets.train), floor)]
    pictures = []
    for member in members:
        scale = np.linalg.cholesky(np.cov(member.train_codes, rowvar=False))
        fitted = member.train_codes.mean(axis=0) + sets.code_noise @ scale.T
        for name, codes in ((PRIOR, sets.code_noise), (FITTED, fitted.astype(np.float32))):
            images = decoded(member, codes)
            rows.append(distance_row(member.name, f"{DISTANCE}, {name}", sets.distance(images), note))
            pictures.append(images[:36])
    pictures = np.stack(pictures).reshape(len(members), 2, -1, *sets.test.shape[1:])
    return Result(rows, {"generated": pictures, "real": sets.test[:36]})


def densities(setting: Setting, members: list[Member], sets: Sets) -> Result:
    """The log-likelihood: refused by autoencoders, estimated for the VAE, exact for probabilistic PCA."""
    data_key, *keys = jax.random.split(jax.random.fold_in(jax.random.key(setting.seed), 1), 1 + len(members))
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
    """How well a linear classifier reads the class off the codes."""
    chosen = rng.permutation(len(setting.train.images))[:NUM_PROBED]
    pixels = [each.images.reshape(len(each.images), -1) for each in (setting.train, setting.test)]
    features = {member.name: (member.train_codes, member.test_codes) for member in members}
    features["PCA"] = tuple(np.asarray(sets.pca.encode(each.images)) for each in (setting.train, setting.test))
    features["pixels themselves"] = pixels
    rows = []
    for name, (train, test) in features.items():
        scale = 1.0 if name == "pixels themselves" else train[chosen].std(axis=0)
        classifier = LogisticRegression(C=0.1, tol=1e-3, max_iter=5000)
        classifier.fit(train[chosen] / scale, setting.train.labels[chosen])
        accuracy = classifier.score(test / scale, setting.test.labels)
        error = math.sqrt(accuracy * (1 - accuracy) / len(test))
        note = f"logistic regression on {train.shape[1]} numbers of {len(chosen):,} training images"
        rows.append(
            row(name, "accuracy of a linear probe", accuracy, "of test images", standard_error=error, note=note)
        )
    return Result(rows, {})


def code_noise(members: list[Member], sets: Sets, rng: np.random.Generator) -> Result:
    """Reconstruction error against noise added to the code, in stds of the codes."""
    noise = rng.normal(size=(len(sets.test), LATENT_DIM))
    rows, curves = [], []
    for member in members:
        std = member.train_codes.std(axis=0)
        for level in NOISE_LEVELS:
            codes = member.test_codes[sets.test_rows] + level * std * noise
            images = decoded(member, codes.astype(np.float32)).astype(np.float64)
            errors = ((images - sets.test) ** 2).reshape(len(images), -1).sum(axis=1)
            what = f"squared error per test image, noise of {level:g} stds of the codes on each"
            line = mean_row(member.name, what, errors, "squared pixel values")
            curves.append([line["value"], line["standard_error"]])
            if level in (0.0, 0.1, 0.5):
                rows.append(line)
    vae = members[-1]
    spread = np.asarray(posterior_std(vae.model, vae.params, sets.test)) / vae.train_codes.std(axis=0)
    spread = math.sqrt((spread**2).mean())
    rows.append(row(vae.name, "std of q(z|x), root mean square over test images", spread, "stds of the codes"))
    arrays = {
        "noise_levels": np.array(NOISE_LEVELS),
        "noise_errors": np.reshape(curves, (len(members), len(NOISE_LEVELS), 2)),
        "posterior_std": np.array(spread),
    }
    return Result(rows, arrays)


def interpolations(setting: Setting, members: list[Member], sets: Sets) -> Result:
    """Straight lines between two test images, in pixels or between their codes, and what stands in their middle.

    How far an image is from the nearest training image says whether it looks like one; but blurred ones are nearer to
    all. So the middles are held against the ends of the same lines, which the same decoder blurs.
    """
    weights = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    first_of = dict(zip(*np.unique(setting.test.labels, return_index=True), strict=True))
    pairs = [(first_of[a], first_of[b]) for a, b in INTERPOLATED if a in first_of and b in first_of]
    training_images = setting.train.images.reshape(len(setting.train.images), -1)
    half = len(sets.test_rows) // 2
    rows, pictures = [], []
    for member in [None, *members]:
        codes = setting.test.images.reshape(len(setting.test.images), -1) if member is None else member.test_codes
        lines = np.stack([(1 - weights) * codes[i] + weights * codes[j] for i, j in pairs])
        ends = codes[sets.test_rows[:half]]
        for where, chosen in (("ends", ends), ("middles", (ends + codes[sets.test_rows[half : 2 * half]]) / 2)):
            images = chosen if member is None else decoded(member, chosen).reshape(half, -1)
            distances = pairwise_distances_argmin_min(images, training_images)[1]
            what = f"distance to the nearest training image, {where} of straight lines between test images"
            name = "pixels themselves" if member is None else member.name
            rows.append(mean_row(name, what, distances, "pixel values", note=f"{half} lines"))
        pictures.append(
            (lines if member is None else decoded(member, lines)).reshape(len(pairs), 9, *sets.test[0].shape)
        )
    return Result(rows, {"interpolations": np.stack(pictures)})


def training_strip(setting: Setting, members: list[Member], sets: Sets) -> Result:
    """Codes of test images and images from codes of the prior, at the same steps of training of all three."""
    steps = sorted(members[0].snapshots)
    codes, samples, distances = [], [], []
    for member in members:
        for step in steps:
            params = member.snapshots[step]
            codes.append(np.asarray(codes_of(member.model, params, setting.test.images))[sets.test_rows])
            images = decoded(member._replace(params=params), sets.code_noise)
            samples.append(images[:9])
            distances.append([float(number) for number in sets.distance(images)])
    arrays = {"strip_codes": codes, "strip_samples": samples, "strip_distances": distances}
    arrays = {
        name: np.reshape(array, (len(members), len(steps), *np.shape(array)[1:])) for name, array in arrays.items()
    }
    return Result([], {**arrays, "strip_steps": np.array(steps), "strip_labels": setting.test.labels[sets.test_rows]})


def distance_row(model: str, what: str, distance: two_sample.Distance, note: str) -> dict[str, Any]:
    """A line of the table."""
    estimate, error = (float(number) for number in distance)
    return row(model, what, estimate, "pixel values", standard_error=error, note=note)


def codes_of(model: models.VAE, params: Any, images: np.ndarray) -> jax.Array:
    """Codes of grey images, or means of q(z|x)."""
    return evaluation.posterior_means(model, params, jnp.asarray(images))


@functools.partial(jax.jit, static_argnums=0)
def posterior_std(model: models.VAE, params: Any, images: jax.Array) -> jax.Array:
    """The std of q(z|x) of each image."""
    return jnp.sqrt(model.encode(params, images).variance)


def decoded(member: Member, codes: np.ndarray) -> np.ndarray:
    """Means of p(x|z)."""
    return np.asarray(_decode(member.model.decode, member.params, codes))


@functools.partial(jax.jit, static_argnums=0)
def _decode(decode: Callable[..., Any], params: Any, codes: jax.Array) -> jax.Array:
    return decode(params, codes).mean
