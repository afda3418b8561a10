"""vaejax in `benchmark.py`, as its README uses it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.benchmark.work import LEARNING_RATE, NUM_CHECKED, Layers, Make, Work, filled
from engines.harness.rows import mean_and_error
from vaejax import estimators, evaluation, laboratory, models, objectives, training


class Vaejax:
    """This library as its README uses it."""

    def __init__(self, work: Work, encoder: Layers, decoder: Layers, images: np.ndarray):
        self.work, self.images = work, jnp.asarray(images)
        if work.is_conv:
            *channels, units = work.hidden_sizes
            likelihood = "gaussian_fixed_std"
            self.vae = models.conv_vae(work.image_shape, work.latent_dim, channels, units, likelihood, "relu")
        else:
            self.vae = models.mlp_vae(work.image_shape, work.latent_dim, work.hidden_sizes)
        params = self.params = self.vae.init(jax.random.key(0))
        for name, layers in (("encoder", encoder), ("decoder", decoder)):
            params[name]["network"] = jax.tree.map(jnp.asarray, filled(params[name]["network"], layers))
        if work.objective == "iwae":
            self.objective = objectives.make_iwae(self.vae, num_samples=work.num_samples)
        elif work.objective == "score":
            estimator = estimators.score_function(baseline="leave_one_out")
            self.objective = objectives.make_elbo(self.vae, estimator, work.num_samples)
        else:
            self.objective = objectives.make_elbo(self.vae, num_samples=work.num_samples)
        optimizer = optax.adam(LEARNING_RATE)
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
        values = jax.jit(jax.vmap(lambda key: self.objective(self.params, key, checked)[0]))(
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


MAKE: dict[str, Make] = {"vaejax": Vaejax}
