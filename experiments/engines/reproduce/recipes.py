"""How the rows are trained: with the settings of those who published them, or with ours."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engines.reproduce.published import Row
from vaejax import models, objectives, training

CIWAE_WEIGHT = 0.05  # of the ELBO, in the published row
AVERAGES = 0.999  # decay of the moving average that ours evaluates


class Recipe(NamedTuple):
    """The training of a row, but for its length.

    Attributes:
        hidden_sizes: of each stochastic layer's networks.
        activation: of them.
        batch_size: examples in a batch.
        optimizer: `num_steps -> optimizer`.
        warmup_steps: `num_steps -> steps` over which the weight of the KL rises.
        epochs: of the published run; None: as many as the minutes allow.
        is_averaged: whether the moving average of the parameters is evaluated.
        words: for the table.
    """

    hidden_sizes: tuple[tuple[int, ...], ...]
    activation: str
    batch_size: int
    optimizer: Callable[[int], optax.GradientTransformation]
    warmup_steps: Callable[[int], int]
    epochs: int | None
    is_averaged: bool
    words: str


def burda(row: Row) -> Recipe:
    """Burda's program: Adam whose second moment starts at ones, eight stages of 3^(i - 1) epochs, batches of 20."""
    return Recipe(
        ((200, 200), (100, 100))[: len(row.latent_dims)],
        "tanh",
        20,
        lambda num_steps: _adam_from_ones(_stages(num_steps)),
        lambda num_steps: 0,
        3280,
        False,
        "tanh 200-200, batches of 20, Adam with eps 1e-4 in stages; shuffled, which theirs are not",
    )


def exemplar(row: Row) -> Recipe:
    """The settings of the exemplar VAE's repository: gated 300-300, Adam 5e-4, a warm-up of the KL."""
    return Recipe(
        ((300, 300),) * len(row.latent_dims),
        "gated",
        100,
        lambda num_steps: optax.adam(5e-4),
        lambda num_steps: 50_000,
        None,
        False,
        "gated 300-300, Adam 5e-4, warm-up of 100 epochs; two layers are q(z_1|x) q(z_2|z_1), and theirs are not",
    )


def ours(row: Row) -> Recipe:
    """Gated layers, Adam with a cosine to the end of the minutes, a short warm-up of the KL, averaged parameters."""

    def optimizer(num_steps: int) -> optax.GradientTransformation:
        rising = min(1000, num_steps // 10)
        rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, rising, max(num_steps, rising + 1), 1e-5)
        return training.with_averages(optax.adam(rate), AVERAGES)

    return Recipe(
        ((300, 300),) * len(row.latent_dims),
        "gated",
        100,
        optimizer,
        lambda num_steps: num_steps // 10,
        None,
        True,
        "gated 300-300, batches of 100, Adam 1e-3 to 1e-5 by a cosine, warm-up of a tenth, parameters averaged",
    )


PUBLISHED = {"burda": burda, "exemplar": exemplar}


def recipe_of(name: str, row: Row) -> Recipe:
    """The recipe "ours", or "published" of a row whose settings are known."""
    return ours(row) if name == "ours" else PUBLISHED[str(row.settings)](row)


def model_of(row: Row, recipe: Recipe, data_shape: tuple[int, ...], num_pseudo_inputs: int) -> models.VAE:
    """The model of a row."""
    prior = models.vamp_prior(num_pseudo_inputs) if row.prior == "vamp" else None
    first, *further = row.latent_dims
    below = models.mlp_vae(
        data_shape, first, recipe.hidden_sizes[0], activation=recipe.activation, prior=None if further else prior
    )
    if not further:
        return below
    return models.with_layers(below, row.latent_dims, recipe.hidden_sizes[1:], recipe.activation, prior=prior)


def objective_of(row: Row, recipe: Recipe, vae: models.VAE, num_steps: int) -> objectives.Objective:
    """What is maximised."""
    rising = recipe.warmup_steps(num_steps)
    beta = objectives.linear_warmup(rising) if rising else 1.0
    if row.objective == "iwae":
        return objectives.make_iwae(vae, num_samples=row.num_samples, beta=beta)
    if row.objective in ("miwae", "piwae"):
        make = objectives.make_miwae if row.objective == "miwae" else objectives.make_piwae
        return make(vae, num_samples=row.num_groups * row.num_samples, num_groups=row.num_groups, beta=beta)
    if row.objective == "ciwae":
        return objectives.make_ciwae(vae, CIWAE_WEIGHT, num_samples=row.num_samples, beta=beta)
    sampled = len(row.latent_dims) > 1 or row.prior != "standard"
    return objectives.make_elbo(vae, num_samples=row.num_samples, kl="sampled" if sampled else "analytic", beta=beta)


def _stages(num_steps: int) -> Callable[[Any], Any]:
    """Stage i = 1, ..., 8 takes 3^(i - 1) of 3,280 parts, at the rate 1e-4 round(10^(1 - (i - 1) / 7), 1)."""
    ends = jnp.asarray([math.ceil(num_steps * (3**stage - 1) / 2 / 3280) for stage in range(1, 8)], jnp.int32)
    rates = jnp.asarray([1e-4 * round(10 ** (1 - stage / 7), 1) for stage in range(8)])
    return lambda count: rates[jnp.searchsorted(ends, jnp.asarray(count, jnp.int32), side="right")]


def _adam_from_ones(rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=0.99, b2=0.999, eps=1e-4)

    def init(params: Any) -> Any:
        state = adam.init(params)
        return state._replace(nu=jax.tree.map(jnp.ones_like, state.nu))

    return optax.chain(optax.GradientTransformation(init, adam.update), optax.scale_by_learning_rate(rate))
