"""Why the ELBO is below log p(x), and how well q(z|x) fits the posterior: the part `gaps` of `collapse.py`."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.collapse.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import evaluation, inference, models, objectives

NUM_TEST, NUM_CHAINS_TEST, NUM_ANNEALED = 1000, 8, 100
QUADRATURE, CHAINS = "quadrature, 401 x 401 nodes", "No-U-Turn sampler, 4 chains"


def run(setting: Setting) -> Result:
    """The inference gap of a trained model in its two parts; then a model of two latents, whose posterior is known."""
    small = setting.small
    vae = models.mlp_vae(setting.image_shape, 8 if small else 50, (100,) if small else (200, 200))
    params = trained(setting, "gaps", vae, 3000 if small else 20_000)
    test = jnp.asarray(setting.test[:NUM_TEST])
    gap = inference.inference_gap(vae, params, jax.random.key(1), test, num_steps=setting.steps(1000), num_samples=2000)
    name, note = "VAE, q Gaussian with independent units", f"of {len(test):,} test images"
    rows = []
    for quantity, average in (
        ("inference gap: log p(x) - ELBO", gap.gap),
        ("approximation gap: log p(x) - ELBO of the best q", gap.approximation),
        ("amortization gap: ELBO of the best q - ELBO", gap.amortization),
    ):
        error = float(average.error_over_data)
        rows.append(row(name, quantity, float(average.estimate), "nats", standard_error=error, note=note))
    total = float(gap.approximation.estimate + gap.amortization.estimate)
    rows.append(row(name, "sum of the two parts", total, "nats", known=float(gap.gap.estimate)))
    shared = inference.fit_shared_posterior(vae, params, jax.random.key(2), test, num_steps=setting.steps(2000))
    same = "of the same model and images"
    rows.append(row("one q(z) for all x", "ELBO", float(shared.elbo.mean()), "nats", note=same))
    amortized = float(gap.log_likelihood.estimate - gap.gap.estimate)
    rows.append(row("q(z|x), amortized", "ELBO", amortized, "nats", note=note))
    best = float(gap.log_likelihood.estimate - gap.approximation.estimate)
    rows.append(row("a q for each x", "ELBO", best, "nats", note="1,000 steps of gradient ascent each"))
    more_rows, arrays = two_latents(setting)
    return Result(rows + more_rows, arrays | {"per_example": np.asarray(gap.per_example)})


def trained(setting: Setting, what: str, vae: models.VAE, num_steps: int):
    """Parameters of a VAE trained on the ELBO with a warm-up."""
    num_steps = setting.steps(num_steps)
    init_key, key = jax.random.split(jax.random.key(0))
    return fitting.train(
        what,
        objectives.make_elbo(vae, beta=objectives.linear_warmup(max(1, num_steps // 4))),
        optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)),
        vae.init(init_key),
        key,
        setting.train,
        num_steps=num_steps,
        batch_size=100,
    ).params


def two_latents(setting: Setting):
    """Moments of p(z|x) by quadrature, chains and q; log p(x) in three ways; a Gaussian fitted by both divergences."""
    vae = models.mlp_vae(setting.image_shape, 2, (100,) if setting.small else (200, 200))
    params = trained(setting, "gaps, two latents", vae, 3000 if setting.small else 20_000)
    x = jnp.asarray(setting.test[:NUM_CHAINS_TEST])
    sizes = {"num_warmup": setting.steps(500), "num_samples": max(100, setting.steps(1000))}
    exact, exact_seconds = timed(evaluation.quadrature_posterior, vae, params, x, 401, bound=6.0)
    chains, chain_seconds = timed(inference.sample_posterior, vae, params, jax.random.key(5), x, **sizes)
    fitted, fit_seconds = timed(inference.fit_posterior, vae, params, jax.random.key(6), x)
    q, encode_seconds = timed(vae.encode, params, x)
    std = jnp.sqrt(jnp.diagonal(exact.covariance, axis1=1, axis2=2))
    found = {
        CHAINS: (chain_seconds, chains.mean, chains.std),
        "a q for each x, fitted": (fit_seconds, fitted.q.mean, jnp.sqrt(fitted.q.variance)),
        "q(z|x), amortized": (encode_seconds, q.mean, jnp.sqrt(q.variance)),
    }
    note = f"of {len(x)} test images, two latents; seconds with compilation"
    rows = [row(QUADRATURE, "seconds", exact_seconds, "s", note=note)]
    for name, (seconds, mean, spread) in found.items():
        off = float(jnp.sqrt((((mean - exact.mean) / std) ** 2).mean()))
        ratio = float(jnp.exp(jnp.log(spread / std).mean()))
        rows += [
            row(name, "seconds", seconds, "s", note=note),
            row(name, "error of the posterior mean", off, "stds of the posterior", known=0),
            row(name, "std over that of the posterior", ratio, "times", known=1),
        ]
    rows.append(row(CHAINS, "largest split R-hat", float(chains.r_hat.max()), "1", known=1))
    rows += three_ways(vae, params, jnp.asarray(setting.test[:NUM_TEST]))
    more, arrays = both_divergences()
    return rows + more, arrays


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """What the function returns, and the seconds until it is computed."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments, **options))
    return result, time.perf_counter() - start


def three_ways(vae: models.VAE, params, x: jax.Array):
    """Log p(x) by quadrature, importance sampling and annealing, which agree for each example."""
    exact = evaluation.quadrature_log_likelihood(vae, params, x, 401, bound=6.0)
    few = x[:NUM_ANNEALED]
    sampled = evaluation.log_likelihood(vae, params, jax.random.key(3), x, 5000)
    annealed = evaluation.annealed_log_likelihood(vae, params, jax.random.key(4), few, 32, 500, num_leapfrog=5)
    note = f"two latents; the quadrature is off by at most {float(exact.error.max()):.1g} nats"
    rows = [mean_row(QUADRATURE, "log p(x)", exact.estimate, "nats", note=note)]
    for name, result in (("importance sampling, K = 5000", sampled), ("annealing, 32 chains", annealed)):
        truth = exact.estimate[: len(result.estimate)]
        near = 100 * float((jnp.abs(result.estimate - truth) < 3 * result.standard_error).mean())
        note = f"of {len(truth):,} test images; median error {float(jnp.median(result.standard_error)):.2g} nats"
        mean = float(truth.mean())
        rows.append(mean_row(name, "log p(x)", result.estimate, "nats", known=mean, note=note))
        rows.append(row(name, "within 3 standard errors of quadrature", near, "% of images", known=99.7))
    return rows


def both_divergences():
    """The Gaussians nearest to a posterior of two modes, by KL(q || p) and by KL(p || q), on a grid."""
    axis = jnp.linspace(-4.0, 4.0, 161)
    points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    # p(z | x = 1) for z ~ N(0, I) and x = z1^2 / 2 + z2 / 4 + noise of std 0.2: two modes, because of the square.
    log_density = -0.5 * (points**2).sum(axis=1) - 0.5 * ((1 - points[:, 0] ** 2 / 2 - points[:, 1] / 4) / 0.2) ** 2
    fits = {
        "KL(q || p), mode-seeking": inference.fit_gaussian_on_grid(
            log_density, points, "reverse", start=jnp.array([1.0, 0.0])
        ),
        "KL(p || q), mass-covering": inference.fit_gaussian_on_grid(log_density, points, "forward"),
    }
    rows = []
    note = "p(z | x = 1) of z ~ N(0, I), x ~ N(z1^2 / 2 + z2 / 4, 0.2^2)"
    for name, fit in fits.items():
        rows.append(row(f"Gaussian of least {name}", "KL(q || p)", float(fit.reverse_kl), "nats", note=note))
        rows.append(row(f"Gaussian of least {name}", "KL(p || q)", float(fit.forward_kl), "nats", note=note))
    arrays = {
        "grid_axis": np.asarray(axis),
        "grid_density": np.exp(np.asarray(log_density)).reshape(len(axis), len(axis)),
        "grid_names": np.array(list(fits)),
        "grid_means": np.stack([np.asarray(fit.mean) for fit in fits.values()]),
        "grid_covariances": np.stack([np.asarray(fit.covariance) for fit in fits.values()]),
    }
    return rows, arrays
