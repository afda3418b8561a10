"""VAEs whose decoder loses its noise, x = G(z) in the limit: the part `generator` of `pca_to_vae.py`.

With p(x|z) = N(G(z), std^2 I) the model has a density for every std above 0. Here the std is given and not learned,
ever smaller, for points of the plane and one latent. log p(x) is then an integral over a line, computed by quadrature;
importance sampling would fail, since q(z|x) is far from the posterior.

Let r be the distance of x from the curve of all G(z). Then log p(x) is about -r^2 / (2 std^2) - log std, which falls
without bound as std goes to 0: x = G(z) gives no density to any x off the curve. The best std is above 0: std^2 is the
mean of r^2 per lost coordinate.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import KDTree

from engines.family.setting import Setting, distance_row
from engines.harness import fitting
from engines.harness.rows import Result, mean_row
from vaejax import data, distributions, evaluation, models, objectives, two_sample

STDS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SHOWN = (0.5, 0.1, 0.01)  # with samples
NUM_TEST, NUM_SAMPLES = 500, 2000
NUM_NODES = 40_001  # of the quadrature, 0.0004 apart


def run(setting: Setting) -> Result:
    """ELBO and log p(x) of VAEs trained with each std, and of one of them with the std changed afterwards."""
    keys = jax.random.split(jax.random.key(setting.seed), 6)
    train, test, fresh = (
        data.two_gaussians(key, n)[0] for key, n in zip(keys, (10_000, NUM_TEST, NUM_SAMPLES), strict=False)
    )
    # The std is a parameter that no step changes, so that one program serves all stds.
    vae = models.mlp_vae((2,), 1, (50,), "gaussian_shared_std")
    trained = trained_with_each(setting.steps(4000), vae, keys[3], train)
    trained_with = {std: jax.tree.map(lambda leaf, i=i: leaf[i], trained) for i, std in enumerate(STDS)}
    rows, curves, elbo_key = [], [], keys[4]
    for how, params_of in (
        ("trained with it", trained_with),
        ("trained with 0.5", dict.fromkeys(STDS, trained_with[0.5])),
    ):
        for std in STDS:
            params = with_std(params_of[std], std)
            elbo = evaluation.elbo(vae, params, jax.random.clone(elbo_key), test)
            exact = evaluation.quadrature_log_likelihood(
                vae, params, test, NUM_NODES, chunk_size=1000, batch_size=NUM_TEST
            )
            note = f"by quadrature, off by less than {max(float(exact.error.max()), 1e-4):.0e}"
            pair = [
                mean_row(f"VAE, std {std:g}, {how}", "ELBO", elbo.estimate, "nats"),
                mean_row(f"VAE, std {std:g}, {how}", "log p(x)", exact.estimate, "nats", note=note),
            ]
            rows += pair
            curves.append([[row["value"], row["standard_error"]] for row in pair])
    rows.append(limit_row(vae, trained_with[0.5], np.asarray(exact.estimate, np.float64), test))
    z = jnp.linspace(-4, 4, 2001)[:, None]
    arrays = {
        "stds": np.array(STDS),
        "shown": np.array(SHOWN),
        "curves": np.reshape(curves, (2, len(STDS), 2, 2)),
        "data": np.asarray(fresh),
        "generators": np.stack([vae.decode(trained_with[std], z).mean for std in SHOWN]),
    }
    samples, note = [], f"{NUM_SAMPLES:,} points in each set"
    for std, key in zip(SHOWN, jax.random.split(keys[5], len(SHOWN)), strict=True):
        samples.append(np.asarray(sample(vae, trained_with[std], key)))
        name, what = f"VAE, std {std:g}, trained with it", "energy distance of samples to fresh points"
        rows.append(distance_row(name, what, two_sample.energy_distance(samples[-1], fresh), "length", note))
    return Result(rows, arrays | {"samples": np.stack(samples)})


def trained_with_each(num_steps: int, vae: models.VAE, key: jax.Array, x: jax.Array) -> Any:
    """Parameters of a VAE for each std, from the same start."""
    init_key, fit_key = jax.random.split(key)
    optimizer = optax.partition(
        {"learned": optax.adam(optax.cosine_decay_schedule(5e-3, num_steps)), "given": optax.set_to_zero()},
        {"encoder": "learned", "decoder": {"network": "learned", "head": "given"}, "prior": "learned"},
    )
    count = len(STDS)
    return fitting.train_many(
        f"VAEs with {count} stds",
        objectives.make_elbo(vae),
        optimizer,
        jax.vmap(with_std, (None, 0))(vae.init(init_key), jnp.array(STDS)),
        jax.random.split(fit_key, count),
        jnp.broadcast_to(x, (count, *x.shape)),
        num_steps=num_steps,
        batch_size=500,
    ).params


def with_std(params: Any, std: Any) -> Any:
    """The parameters with this std in the likelihood."""
    bound = distributions.LOG_STD_BOUND
    raw = bound * jnp.arctanh(jnp.log(std) / bound)  # the inverse of `distributions.bounded_log_std`
    return params | {"decoder": params["decoder"] | {"head": {"log_std": raw}}}


def limit_row(vae: models.VAE, params: Any, log_likelihood: np.ndarray, test: jax.Array) -> dict[str, Any]:
    """-2 std^2 log p(x) at the smallest std, beside its limit, the squared distance to the curve of all G(z)."""
    curve = np.asarray(vae.decode(params, jnp.linspace(-8, 8, NUM_NODES)[:, None]).mean)
    squares = KDTree(curve).query(np.asarray(test))[0] ** 2
    return mean_row(
        f"VAE, std {STDS[-1]:g}, trained with 0.5",
        "-2 std^2 log p(x)",
        -2 * STDS[-1] ** 2 * log_likelihood,
        "squared length",
        known=float(squares.mean()),
        note="known: mean squared distance of test points to the curve of all G(z)",
    )


@functools.partial(jax.jit, static_argnums=0)
def sample(vae: models.VAE, params: Any, key: jax.Array) -> jax.Array:
    """Samples of p(x), (NUM_SAMPLES, 2)."""
    latent_key, key = jax.random.split(key)
    return models.sample_data(vae, params, key, jax.random.normal(latent_key, (NUM_SAMPLES, 1)))
