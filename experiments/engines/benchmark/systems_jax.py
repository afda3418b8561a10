"""vaejax in `benchmark.py`, as its README uses it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.benchmark.work import LEARNING_RATE, NUM_CHECKED, Layers, Make, Work, filled, layers_of
from engines.harness.rows import mean_and_error
from vaejax import estimators, evaluation, laboratory, models, objectives, training


def model_of(work: Work) -> models.VAE:
    """The model of a work, as the README makes one."""
    if work.is_conv:
        *channels, units = work.hidden_sizes
        return models.conv_vae(work.image_shape, work.latent_dim, channels, units, "gaussian_fixed_std", "relu")
    return models.mlp_vae(work.image_shape, work.latent_dim, work.hidden_sizes, activation=work.activation)


def objective_of(work: Work, vae: models.VAE, chunk_size: int | None = None) -> objectives.Objective:
    """What is maximised."""
    options: Any = {"num_samples": work.num_samples, "chunk_size": chunk_size}
    if work.recipe:
        options["beta"] = schedule_of(work.recipe.betas)
    if work.objective == "iwae":
        return objectives.make_iwae(vae, **options)
    if work.objective == "score":
        return objectives.make_elbo(vae, estimators.score_function(baseline="leave_one_out"), **options)
    return objectives.make_elbo(vae, **options)


def schedule_of(numbers: np.ndarray) -> optax.Schedule:
    """The function of the step that has these values."""
    return lambda step: jnp.asarray(numbers, jnp.float32)[step]


class Vaejax:
    """This library as its README uses it."""

    def __init__(self, work: Work, encoder: Layers, decoder: Layers, images: np.ndarray):
        self.work, self.images, self.drawn = work, jnp.asarray(images), (encoder, decoder)
        self.vae = model_of(work)
        params = self.params = self.vae.init(jax.random.key(0))
        for name, layers in (("encoder", encoder), ("decoder", decoder)):
            params[name]["network"] = jax.tree.map(jnp.asarray, filled(params[name]["network"], layers))
        self.objective = objective_of(work, self.vae)
        optimizer = optax.adam(schedule_of(work.recipe.rates) if work.recipe else LEARNING_RATE)
        step = training.make_train_step(self.objective, optimizer)
        self.state = training.init_state(params, optimizer)
        self.fit = jax.jit(
            lambda state, key, images, stop: training.fit(
                step, state, key, images, num_steps=work.chunk, batch_size=work.batch_size, stop=stop
            ),
            donate_argnums=0,
        )
        self.done = 0

    def value(self) -> tuple[float, float]:
        """The bound, the estimate of log p(x), or the variance of the gradient."""
        checked = self.images[:NUM_CHECKED]
        if self.work.kind == "likelihood":
            result = evaluation.log_likelihood(self.vae, self.params, jax.random.key(1), checked[:20], 5000)
            return float(result.estimate.mean()), float(evaluation.average(result).error_over_samples)
        if self.work.kind == "moments":
            return sum(float(leaf.sum()) for leaf in jax.tree.leaves(self._moments(checked, 1000).variance)), math.nan
        step = len(self.work.recipe.betas) - 1 if self.work.recipe else None  # with the whole KL
        values = jax.jit(jax.vmap(lambda key: self.objective(self.params, key, checked, step=step)[0]))(
            jax.random.split(jax.random.key(1), 50)
        )
        return mean_and_error(values)

    def _moments(self, x, number: int):
        return laboratory.gradient_moments(self.objective, self.params, jax.random.key(2), x, num_repeats=number)

    def advance(self, units: int) -> None:
        """Chunks of one compiled program."""
        work = self.work
        if work.kind == "likelihood":
            for i in range(units):
                rows = self.images[i * work.batch_size % len(self.images) :][: work.batch_size]
                key = jax.random.key(i)
                jax.block_until_ready(evaluation.log_likelihood(self.vae, self.params, key, rows, work.num_samples))
            return
        if work.kind == "moments":
            jax.block_until_ready(self._moments(self.images[: work.batch_size], units))
            return
        stop = self.done + units
        state = self.state
        while self.done < stop:
            state, _ = self.fit(state, jax.random.key(0), self.images, stop)
            self.done = min(stop, self.done + work.chunk)
        self.state = jax.block_until_ready(state)

    def compile(self) -> None:
        """Without a step."""
        self.state, _ = jax.block_until_ready(self.fit(self.state, jax.random.key(0), self.images, self.done))

    def layers(self) -> tuple[Layers, Layers]:
        """The weights of encoder and decoder now."""
        networks = (self.state.params[name]["network"] for name in ("encoder", "decoder"))
        encoder, decoder = (layers_of(tree, drawn) for tree, drawn in zip(networks, self.drawn, strict=True))
        return encoder, decoder


MAKE: dict[str, Make] = {"vaejax": Vaejax}
