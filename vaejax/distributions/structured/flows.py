"""Posteriors whose latents depend on each other: a Gaussian of full covariance, and an inverse autoregressive flow."""
# ruff: noqa: D102, RUF012

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax, random
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.distributions import constraints

from vaejax import checks
from vaejax.distributions.heads import Head, Params, bounded_log_std, no_params

# Pairs of opposite draws for the moments of a flow, which has none in closed form.
NUM_PAIRS = 128


def full_covariance() -> Head:
    """Gaussian of full covariance L L^T, its mean and L from the network: latents that depend on each other given x.

        L = diag(std) U,  U lower triangular with ones on its diagonal

    The std are those of `gaussian()`; each is that of a latent given those before it. The numbers of U below the
    diagonal are squashed into (-8, 8) in the same way. With zeros there it is the diagonal Gaussian.

    The head takes 2 + floor(d / 2) arrays of d numbers for d latents: means, raw log std, and then array k holds at
    place i what latents i and i + k (modulo d) have in common; where 2k = d its second half is not used.

    Returns:
        A head for latents on one axis. Its KL to a standard normal is known in closed form, and so is its entropy.

    >>> head = full_covariance()
    >>> head.outputs_for((3,))
    3
    >>> head.apply({}, jnp.zeros(3), jnp.zeros(3), jnp.array([0.5, 0.0, -2.0])).scale_tril.round(2).tolist()
    [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.95..., 0.0, 1.0]]

    Source: Kingma & Welling 2019, "An introduction to variational autoencoders", section 2.5.1.
    """

    def apply(params: Params, mean: Array, raw: Array, *bands: Array) -> dist.MultivariateNormal:
        del params
        size = mean.shape[-1]
        unit = jnp.broadcast_to(jnp.eye(size, dtype=mean.dtype), (*mean.shape, size))
        if bands:
            below = bounded_log_std(jnp.concatenate(bands, axis=-1))[..., _places_of_bands(size)]
            unit = jnp.where(np.broadcast_to(np.tri(size, k=-1, dtype=bool), unit.shape), below, unit)
        return dist.MultivariateNormal(mean, scale_tril=jnp.exp(bounded_log_std(raw))[..., None] * unit)

    return Head(lambda event_shape: 2 + _length("full_covariance()", event_shape) // 2, no_params, apply)


def autoregressive_flow(num_layers: int = 2, hidden_size: int = 64) -> Head:
    """Inverse autoregressive flow (IAF): a diagonal Gaussian from the network, bent by layers of its own.

        z_0 = mean + std eps,  z_t = s_t z_{t-1} + (1 - s_t) m_t,  log q(z_T) = log q(z_0) - sum_t sum_i log s_{t, i}

    where m_t and s_t of latent i are functions of the latents before it, by a masked network of one hidden layer, and
    of an array of one more number for each latent that the encoder gives, the context. Every other layer takes the
    latents in the opposite order. The weights are the head's parameters, `params["encoder"]["head"]`, and train along.

    A sample and its log q take one pass. Log q of a z that is given takes as many passes as there are latents, one
    after another, and is exact: the estimators that need it, such as `sticking_the_landing`, cost as much more.
    A KL in closed form is not known: `kl="sampled"`.

    Args:
        num_layers: T.
        hidden_size: hidden units of each layer's network; at least the number of latents, so that none is left out.

    Returns:
        A head for latents on one axis, with 3 outputs for each: mean, raw log std and context.

    Raises:
        ValueError: if a number is not a positive integer.

    >>> head = autoregressive_flow(num_layers=2, hidden_size=5)
    >>> q = head.apply(head.init(jax.random.key(0), (3,)), *jnp.zeros((3, 7, 3)))
    >>> z, log_q = q.rsample_with_log_prob(jax.random.key(1))
    >>> z.shape, bool(jnp.allclose(q.log_prob(z), log_q, atol=1e-4))
    ((7, 3), True)

    Source: Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow"; Germain et al. 2015,
    "MADE", for the masks.
    """
    checks.check_counts(num_layers=num_layers, hidden_size=hidden_size)

    def init(key: Key[Array, ""], event_shape: tuple[int, ...]) -> Params:
        size = _length("autoregressive_flow()", event_shape)
        layers = {}
        for number, layer_key in enumerate(random.split(key, num_layers)):
            from_latents, from_context, to_outputs = random.split(layer_key, 3)
            layers[f"layer_{number}"] = {
                "latent_kernel": random.normal(from_latents, (size, hidden_size)) / math.sqrt(size),
                "context_kernel": random.normal(from_context, (size, hidden_size)) / math.sqrt(size),
                "hidden_bias": jnp.zeros(hidden_size),
                # Small, so that the first flow is nearly the Gaussian beneath it.
                "output_kernel": 0.1 * random.normal(to_outputs, (hidden_size, 2 * size)) / math.sqrt(hidden_size),
                "output_bias": jnp.zeros(2 * size),
            }
        return layers

    def apply(params: Params, mean: Array, raw: Array, context: Array) -> AutoregressiveFlow:
        return AutoregressiveFlow(mean, bounded_log_std(raw), context, params)

    return Head(3, init, apply)


class AutoregressiveFlow(dist.Distribution):
    """The distribution of `autoregressive_flow`, which says what it is.

    Its mean and variance are taken over 256 fixed draws in opposite pairs, for there is no closed form: the error of
    the mean is below a tenth of the standard deviation.

    Args:
        loc: means of the Gaussian beneath, (*batch, latent).
        log_std: its log standard deviations, (*batch, latent).
        context: what the layers see beside the latents, (*batch, latent).
        weights: of the layers, a dict of "layer_0", "layer_1" and so on.
        validate_args: as everywhere in numpyro.

    >>> weights = autoregressive_flow(1, 4).init(jax.random.key(0), (2,))
    >>> AutoregressiveFlow(jnp.zeros((7, 2)), jnp.zeros((7, 2)), jnp.zeros((7, 2)), weights).batch_shape
    (7,)
    """

    arg_constraints = dict.fromkeys(("loc", "log_std", "context"), constraints.real_vector)
    reparametrized_params = ["loc", "log_std", "context"]
    pytree_data_fields = ("loc", "log_std", "context", "weights")
    support = constraints.real_vector

    def __init__(
        self, loc: Array, log_std: Array, context: Array, weights: Params, *, validate_args: bool | None = None
    ):
        self.loc, self.log_std, self.context, self.weights = loc, log_std, context, weights
        super().__init__(jnp.shape(loc)[:-1], jnp.shape(loc)[-1:], validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        return self._bent(random.normal(key, sample_shape + self.shape(), self.loc.dtype))[0]

    def rsample_with_log_prob(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """One sample and its log density, in one pass: (*batch, latent) and (*batch,)."""
        return self._bent(random.normal(key, self.shape(), self.loc.dtype))

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """Log density in nats of z (*samples, *batch, latent), by inversion; differentiable in z and in the weights."""
        del intermediates  # of numpyro's transformed distributions
        with jax.numpy_rank_promotion("allow"):
            z, log_scales = jnp.asarray(value), jnp.zeros((), self.loc.dtype)
            for layer in reversed(self._layers()):
                z = layer.inverse(z)
                log_scales += layer(z)[1].sum(axis=-1)
            noise = (z - self.loc) * jnp.exp(-self.log_std)
            return _log_normal(noise) - self.log_std.sum(axis=-1) - log_scales

    @property
    def mean(self) -> Array:
        return self._moments()[0]

    @property
    def variance(self) -> Array:
        return self._moments()[1]

    def _bent(self, noise: Array) -> tuple[Array, Array]:
        with jax.numpy_rank_promotion("allow"):
            z = self.loc + jnp.exp(self.log_std) * noise
            log_q = _log_normal(noise) - self.log_std.sum(axis=-1)
            for layer in self._layers():
                shift, log_scale = layer(z)
                z = layer.mixed(z, shift, log_scale)
                log_q -= log_scale.sum(axis=-1)
            return z, log_q

    def _moments(self) -> tuple[Array, Array]:
        def add(sums: tuple[Array, Array], noise: Array) -> tuple[tuple[Array, Array], None]:
            pair = [self._bent(jnp.broadcast_to(side, self.shape()))[0] - self.loc for side in (noise, -noise)]
            return (sums[0] + pair[0] + pair[1], sums[1] + pair[0] ** 2 + pair[1] ** 2), None

        noises = random.normal(random.key(0), (NUM_PAIRS, *self.event_shape), self.loc.dtype)
        sums, _ = lax.scan(add, (jnp.zeros_like(self.loc), jnp.zeros_like(self.loc)), noises)
        away, square = (total / (2 * NUM_PAIRS) for total in sums)
        return self.loc + away, square - away**2

    def _layers(self) -> list["_Layer"]:
        named = [self.weights[f"layer_{number}"] for number in range(len(self.weights))]
        return [_Layer(weights, self.context, bool(number % 2)) for number, weights in enumerate(named)]


class _Layer:
    """One layer: the latents on the way in, and on the way back."""

    def __init__(self, weights: Params, context: Array, is_backward: bool):
        to_hidden, to_outputs = _masks(context.shape[-1], weights["hidden_bias"].shape[0], is_backward)
        self._to_hidden = weights["latent_kernel"] * to_hidden.astype(context.dtype)
        self._to_outputs = weights["output_kernel"] * to_outputs.astype(context.dtype)
        self._from_context = context @ weights["context_kernel"] + weights["hidden_bias"]
        self._bias = weights["output_bias"]

    def __call__(self, z: Array) -> tuple[Array, Array]:
        """The shifts, and the logarithms of the scales, between log sigmoid(-6) and 0."""
        hidden = jnp.tanh(z @ self._to_hidden + self._from_context)
        shift, raw = jnp.split(hidden @ self._to_outputs + self._bias, 2, axis=-1)
        # Near 1 at first: a layer that forgets what it is given is hard to train.
        return shift, jax.nn.log_sigmoid(bounded_log_std(raw) + 2)

    @staticmethod
    def mixed(z: Array, shift: Array, log_scale: Array) -> Array:
        return jnp.exp(log_scale) * z - jnp.expm1(log_scale) * shift

    def inverse(self, mixed: Array) -> Array:
        """What the layer was given. The n-th round sets the n-th latent right, for it needs those before it alone."""

        def one_round(_: Array, z: Array) -> Array:
            shift, log_scale = self(z)
            return jnp.exp(-log_scale) * (mixed + jnp.expm1(log_scale) * shift)

        shape = jnp.broadcast_shapes(mixed.shape, (*self._from_context.shape[:-1], mixed.shape[-1]))
        return lax.fori_loop(0, shape[-1], one_round, jnp.zeros(shape, self._bias.dtype))


def _masks(size: int, hidden_size: int, is_backward: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which latents a hidden unit sees, (size, hidden), and which hidden units an output sees, (hidden, 2 size)."""
    places = np.arange(size)[::-1] if is_backward else np.arange(size)
    num_seen = np.arange(hidden_size) * size // hidden_size  # 0 to size - 1: the latents of the first so many places
    return places[:, None] < num_seen[None], np.tile(num_seen[:, None] <= places[None], 2)


def _places_of_bands(size: int) -> np.ndarray:
    """Where in the bands, one after another, the numbers below the diagonal stand, (size, size)."""
    row, column = np.indices((size, size))
    apart = np.abs(row - column)
    is_near = 2 * apart <= size
    band, place = np.where(is_near, apart, size - apart), np.where(is_near, column, row)
    return np.where(row > column, (band - 1) * size + place, 0)


def _log_normal(noise: Float[Array, "*batch latent"]) -> Float[Array, "*batch"]:
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(axis=-1)


def _length(head: str, event_shape: tuple[int, ...]) -> int:
    if len(event_shape) != 1:
        raise ValueError(f"{head} is for numbers on one axis, as latents are; got an event of shape {event_shape}")
    return event_shape[0]
