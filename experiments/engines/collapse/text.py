"""A recurrent VAE that ignores its latents, and what makes it use them: the part `text` of `collapse.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.collapse import cures
from engines.collapse.setting import Setting
from engines.harness.rows import Result, mean_row
from vaejax import evaluation, models, sequences

SIZES = {"vocabulary_size": 30, "length": 10}

# With so small a memory and such large weights the generator is one that the model can learn.
GENERATOR = {"hidden_size": 10, "scale": 3.0}

NUM_TRAIN, NUM_OTHERS = 8000, 1000

NUM_NODES = 41  # of quadrature, in each of two dimensions, from -6 to 6
NUM_WATCHED = 50  # sequences whose posterior is computed during training


def run(setting: Setting) -> Result:
    """LSTM encoder and decoder on sequences that a known LSTM wrote, under every cure and seed."""
    generator, truth = sequences.latent_lstm(jax.random.key(0), **SIZES, **GENERATOR)
    z, x = sequences.draw(generator, truth, jax.random.key(1), NUM_TRAIN + 2 * NUM_OTHERS)
    x = np.asarray(x)
    train, validation, test = np.split(x, [NUM_TRAIN, NUM_TRAIN + NUM_OTHERS])
    vae = sequences.lstm_vae(**SIZES, latent_dim=2)
    num_steps = setting.steps(4000)
    recipe = recipe_of(num_steps)
    rows = of_generator(generator, truth, z[-NUM_OTHERS:], test)
    known = {row["quantity"]: row["value"] for row in rows}
    watched = jnp.asarray(test[:NUM_WATCHED])
    more, arrays = cures.compare(
        "text",
        setting,
        vae,
        recipe,
        cures.Splits(train, validation, test),
        vae.init,
        log_likelihood=by_quadrature,
        known=known,
        watch=lambda params: spread(vae, params, watched),
        watched_at=(0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.75, 1),
    )
    return Result(rows + more, arrays | {"known": np.array(list(known.values()))})


def recipe_of(num_steps: int) -> cures.Recipe:
    """Batches of 32, SGD as in the paper: Adam enlarges small gradients and in the end leaves a collapse by itself."""
    return cures.Recipe(
        num_steps=num_steps,
        batch_size=32,
        optimizer=optax.chain(
            optax.clip_by_global_norm(5.0), optax.sgd(optax.cosine_decay_schedule(1.0, num_steps, alpha=0.1))
        ),
        warmup_steps=max(1, num_steps // 4),
        free_bits=0.5,
        max_encoder_steps=60,
    )


def of_generator(generator: models.VAE, truth, z: jax.Array, x: np.ndarray) -> list[dict[str, Any]]:
    """The mean log p(x) of sequences that the generator wrote from z, and what they tell about z."""
    exact = evaluation.quadrature_log_likelihood(generator, truth, x, 101, bound=6.0)
    likelihood = np.asarray(exact.estimate)
    information = np.asarray(generator.decode(truth, z).log_prob(x)) - likelihood
    note = f"of {len(x):,} sequences of its own, by quadrature, off by less than {float(exact.error.max()):.1g}"
    return [
        mean_row("the generator", "log p(x)", likelihood, "nats", note=note),
        mean_row("the generator", "mutual information", information, "nats", note="E log p(x|z) / p(x)"),
    ]


def by_quadrature(vae: models.VAE, params, key: jax.Array, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x) of each example by quadrature over two latents, without noise, and by how much it may be off."""
    del key
    result = evaluation.quadrature_log_likelihood(vae, params, x, NUM_NODES, bound=6.0)
    return np.asarray(result.estimate), np.asarray(result.error)


def spread(vae: models.VAE, params, x: jax.Array) -> tuple[float, float]:
    """The spread over x of the means of p(z|x), the true posteriors, and of q(z|x): root mean squares.

    The first is zero if the decoder ignores z, the second if the encoder ignores x. These are the two axes of the
    picture in He et al. 2019.
    """
    exact = evaluation.quadrature_posterior(vae, params, x, NUM_NODES, bound=6.0).mean
    ours = evaluation.posterior_means(vae, params, x)
    model, inference = (float(jnp.linalg.norm(means.std(axis=0))) for means in (exact, ours))
    return model, inference
