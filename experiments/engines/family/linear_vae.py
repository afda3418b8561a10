"""The linear VAE beside its greatest possible ELBO: the part `linear_vae` of `pca_to_vae.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.family.linear import flat_then_cosine
from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, row
from vaejax import autoencoders, models, objectives

KNOWN_MAXIMUM = 962.3835  # of 200 latents on the first 1,000 training images in the order of the original file


def run(setting: Setting) -> Result:
    """The ELBO after training by two gradients, beside its maximum, log p(x) of probabilistic PCA."""
    original = setting.first_images is not None
    images = setting.first_images if original else setting.train.images[:1000]
    latent_dim = 20 if setting.small else 200
    vae = models.linear_vae(images.shape[1:], latent_dim)
    closed_form = objectives.make_linear_elbo(vae)
    init_key, exact_key, sampled_key = jax.random.split(jax.random.key(setting.seed), 3)
    params = vae.init(init_key)
    with jax.enable_x64(True):
        in_double = jnp.asarray(images, jnp.float64)
        exact = autoencoders.pca(images, latent_dim)
        maximum = float(exact.log_likelihood(in_double).mean())
        elbo = jax.jit(lambda params: closed_form(params, exact_key, in_double)[0])
    # The ELBO depends on the data by mean and covariance only. These few points have both, so full batches are cheap.
    points = autoencoders.equivalent_examples(images)
    num_steps = setting.steps(2000 if setting.small else 4000)
    optimizer = annealed(num_steps)
    in_whitened = whitened(optimizer, images, float(exact.explained_variance[-1]))
    runs = {
        "closed-form gradient": (closed_form, in_whitened, points[None], exact_key, 1),
        "sampled gradient": (objectives.make_elbo(vae), optimizer, images, sampled_key, 100),
    }
    order = "in the order of the original files" if original else "as loaded"
    name, note = f"linear VAE, {latent_dim} latents", f"the first {len(images):,} training images {order}"
    known = KNOWN_MAXIMUM if setting.train.name == "mnist" and original else None
    rows = [row("probabilistic PCA", "mean log p(x)", maximum, "nats", known=known, note=note)]
    arrays = {"maximum": np.array(maximum)}
    for what, (objective, optimizer, x, key, batch_size) in runs.items():
        trained = fitting.train(
            f"{name}, {what}",
            objective,
            optimizer,
            params,
            key,
            x,
            num_steps=num_steps,
            batch_size=batch_size,
            snapshots_at=np.linspace(0, 1, 41),
        )
        path = []
        for step, own in sorted(trained.snapshots.items()):
            with jax.enable_x64(True):
                path.append((step, float(elbo(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), own)))))
        arrays[what.replace(" ", "_")] = np.array(path)
        note = "the ELBO itself in closed form, in double precision"
        rows.append(row(f"{name}, {what}", "ELBO", path[-1][1], "nats", known=maximum, note=note))
        rows.append(row(f"{name}, {what}", "maximum - ELBO", maximum - path[-1][1], "nats", known=0))
    return Result(rows, arrays)


def annealed(num_steps: int) -> optax.GradientTransformation:
    """Adam with long momentum, for a loss that is nearly flat along rotations of latents with similar variances.

    The stds start at 1 and fall at a steady rate for most of the run. So latents become active one after another, each
    along the axis of greatest remaining variance, and little has to be rotated afterwards.
    """

    def kind(path: Any, _: Any) -> str:
        return "std" if path[-1].key == "log_std" else "weights"

    rates = {
        "std": optax.adam(flat_then_cosine(min(5 / num_steps, 1e-2), num_steps, 0.75), b2=0.99),
        "weights": optax.adam(flat_then_cosine(5e-3, num_steps, 0.75), b1=0.99, b2=0.99),
    }
    return optax.partition(rates, lambda params: jax.tree_util.tree_map_with_path(kind, params))


def whitened(inner: optax.GradientTransformation, images: np.ndarray, ridge: float) -> optax.GradientTransformation:
    """An optimizer that moves the encoder's kernel as if the images were whitened: their covariance is its curvature.

    Args:
        inner: an optimizer whose state depends on the gradient alone and not on the parameters, such as Adam.
        images: the training images, (n, height, width).
        ridge: what is added to their variances.
    """
    variances, axes = np.linalg.eigh(np.cov(images.reshape(len(images), -1), rowvar=False))
    whitening = jnp.asarray((axes / np.sqrt(np.maximum(variances, 0) + ridge)) @ axes.T, jnp.float32)

    def change(path: Any, leaf: jax.Array) -> jax.Array:
        return whitening @ leaf if path[0].key == "encoder" and path[-1].key == "kernel" else leaf

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(jax.tree_util.tree_map_with_path(change, gradient), state, params)
        return jax.tree_util.tree_map_with_path(change, updates), state

    return optax.GradientTransformation(inner.init, update)
