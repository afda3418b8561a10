"""Certificates: each estimator's mean gradient against the exact one, and what must fail the same test.

The exact gradients are sums over all states of a small model in double precision, or, of Gaussian latents, those of the
ELBO of a linear model in closed form; neither calls an estimator.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from engines.harness import run_folder, tables
from engines.harness.progress import Progress
from engines.reproduce.cases import Case
from vaejax import distributions, estimators, laboratory, models, objectives

LARGEST_ERROR = 0.03  # the standard error, as a share of the gradient's norm, that a certificate needs
MOST_REPEATS = 1_000_000
SURE = 5.0  # standard errors
GOOD = ("certified", "biased, as it says")
HEADER = ["estimator", "latents", "bound", "K", "largest abs(z)", "if 1.3 times as long", "error", "repeats", "verdict"]
TOO_LONG = 1.3  # the control of every estimator: its own gradient, made longer


def made() -> dict[str, Callable[[], estimators.Estimator]]:
    """The estimators, by name."""
    plain = ("pathwise", "sticking_the_landing", "doubly_reparameterized", "measure_valued", "enumerate_support")
    plain += ("vimco", "ovis", "disarm", "arms", "muprop", "double_control_variates", "rebar")
    plain += ("straight_through", "reinmax")
    named = {name: getattr(estimators, name) for name in plain}
    named |= {"rodeo": lambda: estimators.rodeo(10), "relax": lambda: estimators.relax((10,))}
    named |= {"gumbel_softmax": lambda: estimators.gumbel_softmax(0.5)}
    for baseline in (None, "leave_one_out", "moving_average", "nvil"):
        named[baseline or "score_function"] = lambda baseline=baseline: estimators.score_function(baseline)
    return named


def run(folder: pathlib.Path, chosen: tuple[Case, ...]) -> dict[str, Any]:
    """Certify each case, and write results.json and table.md."""
    found = []
    with jax.enable_x64(True), Progress("certificates", len(chosen), unit="cases") as bar:
        for case in chosen:
            done = folder / "rows" / f"{case.row}.json"
            if not done.exists():
                run_folder.write_json(done, certified(case))
                jax.clear_caches()  # so many programs would use up what a process may map of memory
            found.append(run_folder.read_object(done))
            bar.update(1, case.row)
    results = {"table": "certificates", "rows": found}
    run_folder.write_json(folder / "results.json", results)
    (folder / "table.md").write_text(markdown(results))
    return results


def certified(case: Case) -> dict[str, Any]:
    """The largest z-score of a case's mean gradient, and that of the same gradient made too long."""
    vae, params, x, exact = problem(case.latents, case.bound, case.num_samples)
    estimator = estimators.as_estimator(made()[case.name]())
    make = objectives.make_iwae if case.bound == "iwae" else objectives.make_elbo
    options = {"kl": "sampled"} if needs_sampled_kl(case) else {}
    objective = make(vae, estimator, num_samples=case.num_samples, **options)
    params = estimators.with_baseline(params, estimator, jax.random.key(5), x)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    number, key = 2000, jax.random.key(6)
    while True:
        moments = laboratory.gradient_moments(objective, params, jax.random.clone(key), x, number)
        parts = ("encoder", "decoder")
        mean, error, flat = (
            np.concatenate([np.asarray(ravel_pytree(tree[part])[0]) for part in parts])
            for tree in (moments.mean, moments.standard_error(), exact)
        )
        size = ravel_pytree(exact["encoder"])[0].size  # where the estimators differ
        share = float(np.linalg.norm(error[:size]) / np.linalg.norm(flat[:size]))
        if share < LARGEST_ERROR or number >= MOST_REPEATS:
            break
        number = min(MOST_REPEATS, math.ceil(1.2 * number * (share / LARGEST_ERROR) ** 2))
    noise = np.maximum(error, 1e-9 * np.linalg.norm(flat))  # of exact ones, rounding
    largest, control = (float(np.abs((scale * mean - flat) / noise).max()) for scale in (1.0, TOO_LONG))
    return {
        **dataclasses.asdict(case),
        "row": case.row,
        "largest_z": largest,
        "control_z": control,
        "share": share,
        "num_repeats": number,
        "num_coordinates": len(flat),
        "verdict": verdict(case, largest, control, share),
    }


def verdict(case: Case, largest: float, control: float, share: float) -> str:
    """Certified: within 5 standard errors in every coordinate, where a gradient 1.3 times as long is not."""
    if case.is_biased:
        return "biased, as it says" if largest > SURE else "its bias was not found"
    if share > LARGEST_ERROR:
        return "too noisy to tell"
    if largest > SURE:
        return "BIASED"
    return "certified" if control > SURE else "the control passed too"


def needs_sampled_kl(case: Case) -> bool:
    """Of the ELBO: estimators that are made for it, and those that a KL in closed form would leave nothing to do."""
    return case.bound == "elbo" and case.name in ("sticking_the_landing", "doubly_reparameterized")


def problem(latents: str, bound: str, num_samples: int) -> tuple[models.VAE, Any, jax.Array, Any]:
    """A small model, its parameters, two examples, and the exact gradient in its encoder and decoder."""
    if latents == "gaussian":
        vae = models.linear_vae(data_dim=4, latent_dim=2)
        params = _in_double(vae.init(jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (2, 4), jnp.float64)
        exact = objectives.make_linear_elbo(vae)
        return vae, params, x, jax.grad(lambda params: exact(params, jax.random.key(2), x)[0])(params)
    num_latents = 3 if latents == "categorical" or (bound == "iwae" and num_samples > 2) else 6
    posterior = distributions.categorical(3) if latents == "categorical" else "bernoulli"
    vae = models.mlp_vae((2, 2), num_latents, (3,), posterior=posterior)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, _in_double(vae.init(jax.random.key(0))))
    x = jnp.asarray([[[1, 0], [1, 1]], [[0, 0], [1, 0]]], jnp.float64)
    states = jnp.asarray(list(itertools.product(range(3 if latents == "categorical" else 2), repeat=num_latents)))

    def summed(params: Any) -> jax.Array:
        """The bound as a sum over all K-tuples of states."""

        def of_one(example: jax.Array) -> jax.Array:
            q = vae.encode(params, example)
            log_q = jax.vmap(lambda z: distributions.log_prob(q, z))(states)
            joint = jax.vmap(lambda z: distributions.log_prob(vae.prior(params), z))(states)
            joint += jax.vmap(lambda z: vae.decode(params, z).log_prob(example))(states)
            log_w = joint - log_q
            if bound == "elbo":
                return (jnp.exp(log_q) * log_w).sum()
            log_p, total = log_q, log_w
            for _ in range(num_samples - 1):
                log_p = (log_p[:, None] + log_q[None]).reshape(-1)
                total = jnp.logaddexp(total[:, None], log_w[None]).reshape(-1)
            return (jnp.exp(log_p) * (total - math.log(num_samples))).sum()

        return jnp.stack([of_one(example) for example in x]).mean()

    gradient = jax.jit(jax.grad(summed))(params)
    return vae, params, x, {part: gradient[part] for part in ("encoder", "decoder")}


def terminal(results: dict[str, Any]) -> str:
    """Columns of fixed width."""
    return tables.columns([HEADER, *cells(results)], left=3)


def cells(results: dict[str, Any]) -> list[list[str]]:
    """A line for each certificate."""
    return [
        [
            *(row["name"], row["latents"], row["bound"], str(row["num_samples"]), f"{row['largest_z']:.2f}"),
            *(f"{row['control_z']:.3g}", f"{row['share']:.1%}", f"{row['num_repeats']:,}", row["verdict"]),
        ]
        for row in results["rows"]
    ]


def markdown(results: dict[str, Any]) -> str:
    """The page of certificates."""
    numbers = sorted({row["num_coordinates"] for row in results["rows"]})
    notes = (
        f"z-scores are of each coordinate of the gradient, {numbers[0]} to {numbers[-1]} of them, in float64; above "
        f"{SURE:g} a gradient is called biased. The error is the standard error of the mean gradient as a share of the "
        "exact gradient's norm, both of the encoder. The control of each row, the same gradient made 1.3 times as "
        "long, has to fail."
    )
    return tables.pipes(tables.Table("Certificates", HEADER, cells(results))) + f"\n\n{notes}\n"


def _in_double(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
