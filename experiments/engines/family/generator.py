"""Can a VAE use a deterministic x = G(z)? `generator` of `pca_to_vae.py`.

With p(x|z) = N(G(z), std^2 I) the log-likelihood exists for every std above 0. Here the std is not learned but given,
ever smaller, for points of the plane and a code of one number, so that log p(x) is an integral over a line, computed by
quadrature; importance sampling would fail, for q(z|x) is no longer near the posterior. Where r is the distance from x
to the curve of all G(z), log p(x) is about -r^2 / (2 std^2) - log std, and falls without bound as std does: in the
limit, with x = G(z), the model gives no density to any x off the curve. Best is std^2 = the mean of r^2 per coordinate
that is lost, and not std = 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import KDTree

from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import data, distributions, evaluation, models, objectives, two_sample

STDS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)

SHOWN = (0.5, 0.1, 0.01)  # with samples

NUM_TEST = 500

NUM_SAMPLES = 2000

NUM_NODES = 40_001  # of the quadrature, 0.0004 apart


def run(setting: Setting) -> Result:
    """ELBO and log p(x) of VAEs trained with each std, and of one of them with the std changed afterwards."""
    keys = jax.random.split(jax.random.key(setting.seed), 6)
    train, test, fresh = (
        data.two_gaussians(key, n)[0] for key, n in zip(keys, (10_000, NUM_TEST, NUM_SAMPLES), strict=False)
    )
    # The likelihood's one std is a parameter here, so that one program serves all of them; but no step changes it.
    vae = models.mlp_vae((2,), 1, (50,), "gaussian_shared_std")
    trained = trained_with_each(setting, vae, keys[3], train)
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
    codes = jnp.linspace(-4, 4, 2001)[:, None]
    arrays = {
        "stds": np.array(STDS),
        "shown": np.array(SHOWN),
        "curves": np.reshape(curves, (2, len(STDS), 2, 2)),
        "data": np.asarray(fresh),
        "generators": np.stack([vae.decode(trained_with[std], codes).mean for std in SHOWN]),
    }
    samples = []
    for std, key in zip(SHOWN, jax.random.split(keys[5], len(SHOWN)), strict=True):
        samples.append(np.asarray(sample(vae, trained_with[std], key)))
        estimate, error = (float(number) for number in two_sample.energy_distance(samples[-1], fresh))
        rows.append(
            row(
                f"VAE, std {std:g}, trained with it",
                "energy distance of samples to fresh points",
                estimate,
                "length",
                standard_error=error,
                note=f"{NUM_SAMPLES:,} points in each set",
            )
        )
    return Result(rows, arrays | {"samples": np.stack(samples)})


def trained_with_each(setting: Setting, vae: models.VAE, key: jax.Array, x: jax.Array) -> Any:
    """Parameters of a VAE for each std, from the same start."""
    init_key, fit_key = jax.random.split(key)
    num_steps = setting.steps(4000)
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
    raw = bound * jnp.arctanh(jnp.log(std) / bound)  # what `distributions.bounded_log_std` takes to log(std)
    return params | {"decoder": params["decoder"] | {"head": {"log_std": raw}}}


def limit_row(vae: models.VAE, params: Any, log_likelihood: np.ndarray, test: jax.Array) -> dict[str, Any]:
    """The coefficient of -1 / (2 std^2) in log p(x) at the smallest std, which must be the squared distance to G(z)."""
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
    code_key, key = jax.random.split(key)
    return distributions.sample(vae.decode(params, jax.random.normal(code_key, (NUM_SAMPLES, 1))), key)
