"""Codes of one size, by PCA, logistic PCA, deep and convolutional autoencoders and a VAE: `deep` of `pca_to_vae.py`."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.fitting import adamw
from engines.harness.rows import Result, mean_row
from vaejax import augmentation, autoencoders, data, distributions, models, objectives

NUM_PICTURES = 12

ERROR = "squared error per test image"

# Hinton & Salakhutdinov 2006, figure 2B; that of PCA, which they give as 13.87, as computed here in double precision.
KNOWN_OF_MNIST = {"PCA": 13.866, "logistic PCA": 8.01, "deep autoencoder": 3.00}


class Recipe(NamedTuple):
    """A model and how it is trained.

    Attributes:
        name: of the model.
        model: its functions.
        objective: what is maximised.
        learning_rate: of AdamW, at its height.
        num_steps: of training.
        prepare: what is done to a batch first.
        weight_decay: of AdamW.
        batch_size: images in a step.
        note: what a reader must know.
    """

    name: str
    model: models.VAE
    objective: Callable[..., Any]
    learning_rate: float
    num_steps: int
    prepare: Callable[..., Any] | None = None
    weight_decay: float = 0.0
    batch_size: int = 200
    note: str = ""


def run(setting: Setting) -> Result:
    """The squared error of test images through codes of `setting.code_size` numbers, and what the codes cost."""
    test = setting.test.images
    rows, decoded = [], []
    keys = jax.random.split(jax.random.key(setting.seed), (4, 2))

    def add(name: str, reconstructions: np.ndarray, num_parameters: int, seconds: float, note: str) -> None:
        errors = ((test.astype(np.float64) - reconstructions) ** 2).reshape(len(test), -1).sum(axis=1)
        is_known = setting.train.name == "mnist" and setting.code_size == 30
        known = KNOWN_OF_MNIST.get(name) if is_known else None
        note = "; ".join(filter(None, [f"{num_parameters:,} parameters, {seconds:.0f} s", note]))
        rows.append(mean_row(name, ERROR, errors, "squared pixel values", known=known, note=note))
        decoded.append(reconstructions[chosen])

    chosen = chosen_images(setting.test.labels)
    start = time.perf_counter()
    pca = autoencoders.pca(setting.train.images, setting.code_size)
    reconstructions = np.asarray(pca.decode(pca.encode(test)))
    add("PCA", reconstructions, pca.mean.size + pca.components.size, time.perf_counter() - start, "closed form")
    for recipe, (init_key, fit_key) in zip(recipes(setting), keys, strict=True):
        num_steps = setting.steps(recipe.num_steps)
        params = recipe.model.init(init_key)
        optimizer = adamw(recipe.learning_rate, num_steps, recipe.weight_decay)
        trained = fitting.train(
            recipe.name,
            recipe.objective,
            optimizer,
            params,
            fit_key,
            setting.train.images,
            num_steps=num_steps,
            batch_size=recipe.batch_size,
            prepare=recipe.prepare,
        )
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        reconstructions, q = reconstruct(recipe.model, trained.params, jnp.asarray(test))
        add(recipe.name, np.asarray(reconstructions), num_parameters, trained.seconds, recipe.note)
    kl = distributions.kl_divergence(q, recipe.model.prior(trained.params))  # of the last one, the VAE
    note = "of the grey test images; the others' codes are numbers of full precision, and pay for none of it"
    rows.append(mean_row(recipe.name, "rate: KL(q(z|x) || p(z)) per test image", kl, "nats", note=note))
    arrays = {"originals": test[chosen], "reconstructions": np.stack(decoded)}
    return Result(rows, arrays | {"code_size": np.array(setting.code_size)})


def recipes(setting: Setting) -> list[Recipe]:
    """What is trained. The numbers were chosen on images held out of training: of MNIST the last 5,000 of 60,000."""
    shape, code_size, small = setting.train.images.shape[1:], setting.code_size, setting.small
    hidden_sizes = (100, 50) if small else (1000, 500, 250)
    linear = autoencoders.linear_autoencoder(shape, code_size, "bernoulli")
    deep = autoencoders.mlp_autoencoder(shape, code_size, hidden_sizes, "bernoulli", "gelu")
    conv = autoencoders.conv_autoencoder(shape, code_size, (8, 16), 64 if small else 256, "bernoulli", "gelu")
    vae = models.mlp_vae(shape, code_size, (100,) if small else (500,), "bernoulli", "gelu")
    layers = "-".join(map(str, (math.prod(shape), *hidden_sizes, code_size)))
    # Without moved images and weight decay the deep one learns the training images by heart: 1.5 there, 3.2 elsewhere.
    moved = augmentation.partly(augmentation.random_affine(0.05, shape[0] / 112), 0.5)
    return [
        Recipe(
            "logistic PCA",
            linear,
            autoencoders.make_reconstruction(linear, autoencoders.cross_entropy),
            learning_rate=3e-2 if small else 2e-2,
            num_steps=2000 if small else 6000,
            note="trained by cross-entropy; its code is affine in the image, that of the known number is free",
        ),
        Recipe(
            "deep autoencoder",
            deep,
            autoencoders.make_reconstruction(deep),
            learning_rate=8e-3 if small else 2e-3,
            num_steps=3000 if small else 13_500,
            prepare=moved,
            weight_decay=5e-2,
            note=f"{layers}, half of each batch moved by small affine maps",
        ),
        Recipe(
            "convolutional autoencoder",
            conv,
            autoencoders.make_reconstruction(conv),
            learning_rate=1e-2 if small else 8e-3,
            num_steps=1000 if small else 2000,
            batch_size=100,
        ),
        Recipe(
            "VAE",
            vae,
            objectives.make_elbo(vae),
            learning_rate=1e-2 if small else 2e-3,
            num_steps=2000 if small else 9000,
            prepare=data.binarize_dynamic,
            note="mean of p(x|z) at the mean of q(z|x), of grey x; trained on binarized images, for log p(x)",
        ),
    ]


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: models.VAE, params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """What the decoder makes of the codes of x, or of the means of their distributions, and these distributions."""
    q = model.encode(params, x)
    return model.decode(params, distributions.center(q)).mean, q


def chosen_images(labels: np.ndarray) -> np.ndarray:
    """Indices of the pictures: the first image of each class, then the first of the rest."""
    first = np.unique(labels, return_index=True)[1]
    others = np.setdiff1d(np.arange(len(labels)), first)
    return np.concatenate([first, others])[:NUM_PICTURES]
