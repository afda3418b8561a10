"""log p(x) never falls under exact EM, but does under the gradients of a VAE: the part `em` of `collapse.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.collapse.setting import Setting
from engines.harness.rows import Result, row
from vaejax import autoencoders, evaluation, inference, models, objectives, training


def run(setting: Setting) -> Result:
    """One linear VAE from the same start, by exact EM and by gradients of the sampled ELBO, in double precision."""
    num_rounds = max(20, setting.steps(200))
    with jax.enable_x64(True):
        x = corpus(jax.random.key(0))
        vae = models.linear_vae(x.shape[1], 3)
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), vae.init(jax.random.key(1)))
        _, history = inference.em(vae, start, x, num_rounds)
        exact = np.asarray(history.log_likelihood)
        touching = float(np.abs(np.asarray(history.elbo) - exact).max())
        path, elbos = by_gradients(vae, start, x, num_rounds)
        known = float(autoencoders.pca(x, 3).log_likelihood(x).mean())
    falls = np.minimum(np.diff(path), 0)
    rows = [
        row("exact EM", "log p(x)", exact[-1], "nats", known=known, note=f"after {num_rounds:,} rounds"),
        row("exact EM", "largest fall of log p(x)", -np.minimum(np.diff(exact), 0).min(), "nats", known=0),
        row("exact EM", "largest |ELBO - log p(x)| after an E-step", touching, "nats", known=0),
        row("gradients", "log p(x)", path[-1], "nats", known=known, note=f"after {len(path) - 1:,} steps"),
        row("gradients", "steps in which log p(x) fell", int((falls < 0).sum()), "steps"),
        row("gradients", "largest fall of log p(x)", -falls.min(), "nats", note=f"at step {int(falls.argmin()) + 1:,}"),
    ]
    arrays = {"em": exact, "em_elbo_before": np.asarray(history.elbo_before), "gradients": path, "elbo": elbos}
    return Result(rows, arrays | {"known": np.array(known), "falls": falls})


def corpus(key: jax.Array) -> jax.Array:
    """500 points of ten numbers, driven by three factors of different strength."""
    factor_key, latent_key, noise_key = jax.random.split(key, 3)
    factors = jax.random.normal(factor_key, (3, 10)) * jnp.array([[2.0], [1.0], [0.5]])
    return jax.random.normal(latent_key, (500, 3)) @ factors + 0.5 * jax.random.normal(noise_key, (500, 10))


def by_gradients(vae: models.VAE, params, x: jax.Array, num_rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact log p(x) of all data before each step and after the last, and the ELBO of each step's batch."""
    optimizer = optax.adam(0.02)
    step = training.make_train_step(objectives.make_elbo(vae), optimizer)

    def body(carry, number):
        state, key = carry
        rows = jax.random.choice(jax.random.fold_in(key, 2 * number), len(x), (100,), replace=False)
        exact = evaluation.linear_log_likelihood(vae, state.params, x).mean()
        state, info = step(state, jax.random.fold_in(key, 2 * number + 1), x[rows])
        return (state, key), (exact, info.elbo)

    state = training.init_state(params, optimizer)
    run = jax.jit(lambda state: jax.lax.scan(body, (state, jax.random.key(2)), jnp.arange(4 * num_rounds)))
    (state, _), (path, elbos) = run(state)
    last = evaluation.linear_log_likelihood(vae, state.params, x).mean()
    return np.append(np.asarray(path), float(last)), np.asarray(elbos)
