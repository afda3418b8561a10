"""The peers of vaejax in `benchmark.py` that run on flax: a Python loop of jitted steps, and NumPyro's SVI."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from flax.training import train_state
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO
from numpyro.infer.svi import SVIState

from engines.benchmark.work import LEARNING_RATE, NUM_CHECKED, Layers, Make, Work, filled
from engines.harness.rows import mean_and_error


class _Dense(nn.Module):
    """Layers of a dense network with tanh between them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, size in enumerate(self.sizes):
            x = nn.Dense(size)(x)
            x = nn.tanh(x) if i < len(self.sizes) - 1 else x
        return x


class _ConvEncoder(nn.Module):
    work: Any

    @nn.compact
    def __call__(self, x):
        *channels, units = self.work.hidden_sizes
        for size in channels:
            x = nn.relu(nn.Conv(size, (4, 4), strides=2)(x))
        x = nn.relu(nn.Dense(units)(x.reshape(x.shape[0], -1)))
        return nn.Dense(2 * self.work.latent_dim)(x)


class _ConvDecoder(nn.Module):
    work: Any

    @nn.compact
    def __call__(self, z):
        *channels, units = self.work.hidden_sizes
        side = self.work.image_shape[0] // 2 ** len(channels)
        x = nn.relu(nn.Dense(side * side * channels[-1])(nn.relu(nn.Dense(units)(z))))
        x = x.reshape(z.shape[0], side, side, channels[-1])
        for size in reversed(channels[:-1]):
            x = nn.relu(nn.ConvTranspose(size, (4, 4), strides=(2, 2))(x))
        return nn.ConvTranspose(self.work.image_shape[-1], (4, 4), strides=(2, 2))(x)


def _linen(work: Work) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder as flax's users write them."""
    if work.is_conv:
        return _ConvEncoder(work), _ConvDecoder(work)
    encoder = _Dense((*work.hidden_sizes, 2 * work.latent_dim))
    return encoder, _Dense((*reversed(work.hidden_sizes), work.num_pixels))


def _linen_params(module: nn.Module, example, layers: Layers):
    return jax.tree.map(jnp.asarray, filled(module.init(jax.random.key(0), example)["params"], layers))


class JaxLoop:
    """A jitted step, called from a Python loop with one batch after another: flax's way."""

    def __init__(self, work: Work, encoder: Layers, decoder: Layers, images: np.ndarray):
        self.work = work
        self.images = images if work.is_conv else images.reshape(len(images), -1)
        self.networks = _linen(work)
        examples = (self.images[:1], np.zeros((1, work.latent_dim), np.float32))
        params = [
            _linen_params(network, example, layers)
            for network, example, layers in zip(self.networks, examples, (encoder, decoder), strict=True)
        ]
        self.state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(LEARNING_RATE))
        self.first = params
        self.key = jax.random.key(0)
        self.step = jax.jit(self._step, donate_argnums=0)
        self.gradient = jax.jit(lambda params, key, x: jax.grad(self._loss)(params, key, x))
        self.estimate = jax.jit(self._estimate)
        self.rng = np.random.default_rng(0)

    def _decoded(self, params, z):
        flat = z.reshape(-1, z.shape[-1])
        return self.networks[1].apply({"params": params[1]}, flat).reshape(*z.shape[:-1], *self.images.shape[1:])

    def _log_likelihood(self, outputs, x):
        if self.work.is_conv:
            return (-0.5 * (x - outputs) ** 2 - 0.5 * math.log(2 * math.pi)).sum(axis=(-3, -2, -1))
        return -optax.sigmoid_binary_cross_entropy(outputs, jnp.broadcast_to(x, outputs.shape)).sum(axis=-1)

    def _sampled(self, params, key, x, number: int):
        mean, log_std = jnp.split(self.networks[0].apply({"params": params[0]}, x), 2, axis=-1)
        noise = jax.random.normal(key, (number, *mean.shape))
        return mean, log_std, mean + jnp.exp(log_std) * noise

    def _log_w(self, params, key, x, number: int):
        mean, log_std, z = self._sampled(params, key, x, number)
        log_q = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_std)).sum(axis=-1)
        log_prior = jax.scipy.stats.norm.logpdf(z).sum(axis=-1)
        return self._log_likelihood(self._decoded(params, z), x) + log_prior - log_q

    def _loss(self, params, key, x):
        work = self.work
        if work.objective == "iwae":
            log_w = self._log_w(params, key, x, work.num_samples)
            return -(jax.nn.logsumexp(log_w, axis=0) - math.log(work.num_samples)).mean()
        mean, log_std, z = self._sampled(params, key, x, work.num_samples)
        kl = 0.5 * (mean**2 + jnp.exp(2 * log_std) - 2 * log_std - 1).sum(axis=-1)
        if work.objective == "elbo":
            return -(self._log_likelihood(self._decoded(params, z), x).mean(axis=0) - kl).mean()
        z = jax.lax.stop_gradient(z)
        log_q = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_std)).sum(axis=-1)
        f = self._log_likelihood(self._decoded(params, z), x)
        rewards = jax.lax.stop_gradient(f)
        number = work.num_samples
        advantage = (rewards - (rewards.sum(axis=0) - rewards) / (number - 1)) / number
        surrogate = (f.mean(axis=0) + (advantage * log_q).sum(axis=0) - kl).mean()
        return -(surrogate + jax.lax.stop_gradient((rewards.mean(axis=0) - kl).mean() - surrogate))

    def _step(self, state, key, x):
        loss, grads = jax.value_and_grad(self._loss)(state.params, key, x)
        return state.apply_gradients(grads=grads), loss

    def _estimate(self, params, key, x):
        return jax.nn.logsumexp(self._log_w(params, key, x[None], self.work.num_samples), axis=0)[0] - math.log(
            self.work.num_samples
        )

    def value(self) -> tuple[float, float]:
        """As Vaejax.value."""
        checked = self.images[:NUM_CHECKED]
        if self.work.kind == "likelihood":
            values = [float(self.estimate(self.first, jax.random.key(i), x)) for i, x in enumerate(checked[:20])]
            return float(np.mean(values)), math.nan
        if self.work.kind == "moments":
            return float(self._moments(checked, 1000)), math.nan
        loss = jax.jit(self._loss)
        values = [-float(loss(self.first, jax.random.key(100 + i), checked)) for i in range(50)]
        return mean_and_error(values)

    def _moments(self, x, number: int):
        total, squares = 0.0, 0.0
        for i in range(number):
            leaves = jax.tree.leaves(self.gradient(self.first, jax.random.fold_in(self.key, i), x))
            flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
            total, squares = total + flat, squares + flat**2
        return ((squares - total**2 / number) / (number - 1)).sum()

    def advance(self, units: int) -> None:
        """One call for each unit."""
        work = self.work
        if work.kind == "moments":
            jax.block_until_ready(self._moments(self.images[: work.batch_size], units))
            return
        if work.kind == "likelihood":
            for i in range(units * work.batch_size):
                jax.block_until_ready(self.estimate(self.first, jax.random.key(i), self.images[i % len(self.images)]))
            return
        state = self.state
        order = self.rng.permutation(len(self.images))
        for i in range(units):
            start = i * work.batch_size % (len(order) - work.batch_size + 1)
            batch = self.images[order[start : start + work.batch_size]]
            self.key, key = jax.random.split(self.key)
            state, _ = self.step(state, key, batch)
        self.state = jax.block_until_ready(state)


class Numpyro:
    """SVI with flax modules, updates in a `fori_loop` that adds up the loss, as NumPyro's example of a VAE has them."""

    def __init__(self, work: Work, encoder: Layers, decoder: Layers, images: np.ndarray):
        if work.kind != "train" or work.objective == "score":
            raise NotImplementedError("SVI has no such estimator")
        self.work = work
        self.images = jnp.asarray(images if work.is_conv else images.reshape(len(images), -1))
        networks = _linen(work)
        shapes = ((1, *self.images.shape[1:]), (1, work.latent_dim))

        def model(x):
            decode = flax_module("decoder", networks[1], input_shape=shapes[1])
            with numpyro.plate("images", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(work.latent_dim), 1.0).to_event(1))
                outputs = decode(z)
                if work.is_conv:
                    numpyro.sample("x", dist.Normal(outputs, 1.0).to_event(3), obs=x)
                else:
                    numpyro.sample("x", dist.Bernoulli(logits=outputs).to_event(1), obs=x)

        def guide(x):
            encode = flax_module("encoder", networks[0], input_shape=shapes[0])
            mean, log_std = jnp.split(encode(x), 2, axis=-1)
            with numpyro.plate("images", len(x)):
                numpyro.sample("z", dist.Normal(mean, jnp.exp(log_std)).to_event(1))

        loss = RenyiELBO(0.0, work.num_samples) if work.objective == "iwae" else TraceMeanField_ELBO()
        self.svi = SVI(model, guide, optax.adam(LEARNING_RATE), loss)
        params = {
            f"{name}$params": _linen_params(network, jnp.zeros(shape), layers)
            for name, network, shape, layers in zip(
                ("encoder", "decoder"), networks, shapes, (encoder, decoder), strict=True
            )
        }
        self.svi.init(jax.random.key(0), self.images[: work.batch_size])  # which makes what maps parameters
        self.state = SVIState(self.svi.optim.init(params), None, jax.random.key(1))
        self.advance_jitted = jax.jit(self._advance, donate_argnums=0)

    def _advance(self, state, images, order, units):
        size, batches = self.work.batch_size, len(self.images) // self.work.batch_size

        def body(i, carry):
            total, state = carry
            rows = jax.lax.dynamic_slice_in_dim(order, (i % batches) * size, size)
            state, loss = self.svi.update(state, images[rows])
            return total + loss, state

        return jax.lax.fori_loop(0, units, body, (0.0, state))

    def value(self) -> tuple[float, float]:
        """As Vaejax.value."""
        checked = self.images[:NUM_CHECKED]
        evaluate = jax.jit(lambda key: self.svi.evaluate(self.state._replace(rng_key=key), checked))
        return mean_and_error([-float(evaluate(jax.random.key(i))) / NUM_CHECKED for i in range(50)])

    def advance(self, units: int) -> None:
        """One call, with the images in an order of its own."""
        order = jax.random.permutation(jax.random.key(units), len(self.images))
        _, self.state = jax.block_until_ready(self.advance_jitted(self.state, self.images, order, units))


MAKE: dict[str, Make] = {"jax-loop": JaxLoop, "numpyro": Numpyro}
