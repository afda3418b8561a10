"""Likelihoods of pixels: whole numbers from 0 to 255, and grey values in [0, 1]."""
# ruff: noqa: D102, RUF012

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax, random
from jaxtyping import Array, ArrayLike, Key
from numpyro.distributions import constraints

from vaejax import checks
from vaejax.distributions import edges
from vaejax.distributions.heads import CHANNELS, Head, Params, bounded_log_std, no_params

NUM_VALUES = 256

Shape = tuple[int, ...]


def discretized_logistic_mixture(num_components: int = 5, channels: Literal["first", "last"] = "first") -> Head:
    """8-bit pixels as a mixture of logistic distributions, each cut into 256 bins; the outer two reach to infinity.

        p(x) = sum_c weight_c [sigmoid((x + 1/2 - mean_c) / scale_c) - sigmoid((x - 1/2 - mean_c) / scale_c)]

    For each pixel and channel the head takes the logits of the weights, then the means, then the raw log scales, which
    are squashed into (-8, 8). Means and scales count in half of the range, so that a mean of -1 is black and of 1
    white. Pixels and channels are independent given z: PixelCNN++ lets the channels of a pixel see each other.

    Args:
        num_components: of each pixel's mixture.
        channels: as in `Head`.

    Returns:
        A head of whole numbers from 0 to 255, integers or floats, which the encoder sees scaled to [-1, 1].

    Raises:
        ValueError: if num_components is not a positive integer, or channels is another word.

    >>> p = discretized_logistic_mixture(1).apply({}, jnp.zeros(2), jnp.array([0.0, 1e4]), jnp.zeros(2))
    >>> p.mean.round(1).tolist()
    [127.5, 255.0]

    Source: Salimans, Karpathy, Chen & Kingma 2017, "PixelCNN++".
    """
    checks.check_count("num_components", num_components)
    checks.check_choice("channels", channels, CHANNELS)

    def apply(params: Params, *outputs: Array) -> dist.Distribution:
        del params
        logits, means, raw = (
            jnp.stack(outputs[part * num_components : (part + 1) * num_components], axis=-1) for part in range(3)
        )
        return DiscretizedLogisticMixture(logits, means, bounded_log_std(raw))

    return Head(3 * num_components, no_params, apply, channels=channels, seen=_seen)


def categorical_pixels(channels: Literal["first", "last"] = "first") -> Head:
    """8-bit pixels as categories without an order: 256 logits from the network for each pixel and channel.

    It is `categorical(256)` with a mean, for reconstructions, and an encoder that sees pixels scaled to [-1, 1].

    Args:
        channels: as in `Head`.

    Raises:
        ValueError: if channels is another word.

    >>> categorical_pixels().apply({}, *jnp.zeros((256, 2))).mean.tolist()
    [127.5, 127.5]
    """
    checks.check_choice("channels", channels, CHANNELS)

    def apply(params: Params, *logits: Array) -> dist.Distribution:
        return apply_stacked(params, jnp.stack(logits, axis=-1))

    def apply_stacked(params: Params, logits: Array) -> dist.Distribution:
        del params
        return CategoricalPixels(logits)

    return Head(NUM_VALUES, no_params, apply, channels=channels, seen=_seen, apply_stacked=apply_stacked)


def continuous_bernoulli() -> Head:
    """Grey values in [0, 1] with the density of a Bernoulli, lambda^x (1 - lambda)^(1 - x), and its normalizer.

    Without the normalizer, which is 2 at lambda = 1/2 and grows without bound, a Bernoulli of grey pixels is no
    density, and its log p(x) can be compared with nothing. The network's output is the logit of lambda.

    >>> from vaejax import distributions
    >>> p = continuous_bernoulli().apply({}, jnp.array([0.0, 1e4]))
    >>> distributions.log_prob(p, jnp.array([0.3, 1.0])).round(2).tolist()
    [-0.0, 9.2...]

    Source: Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders".
    """
    return Head(1, no_params, lambda params, logits: ContinuousBernoulli(logits))


def beta() -> Head:
    """Grey values inside (0, 1) as a beta, whose two concentrations are exp of the squashed outputs, within (-8, 8).

    An image has exact zeros, and a beta's density is 0 or infinite there: move the data off the edges.

    >>> beta().apply({}, jnp.zeros(2), jnp.array([0.0, 1.0])).mean.round(2).tolist()
    [0.5, 0.26...]
    """

    def apply(params: Params, raw1: Array, raw0: Array) -> dist.Distribution:
        del params
        return OpenBeta(jnp.exp(bounded_log_std(raw1)), jnp.exp(bounded_log_std(raw0)))

    return Head(2, no_params, apply)


class DiscretizedLogisticMixture(dist.Distribution):
    """The distribution of `discretized_logistic_mixture`, which says what it is.

    Args:
        logits: of the components' weights, (*batch, components).
        means: in [-1, 1] for pixels within the range, (*batch, components).
        log_scales: in the same unit, (*batch, components).
        validate_args: as everywhere in numpyro.

    >>> DiscretizedLogisticMixture(jnp.zeros((7, 5)), jnp.zeros((7, 5)), jnp.zeros((7, 5))).batch_shape
    (7,)
    """

    arg_constraints = dict.fromkeys(("logits", "means", "log_scales"), constraints.real_vector)
    support = constraints.integer_interval(0, NUM_VALUES - 1)

    def __init__(self, logits: Array, means: Array, log_scales: Array, *, validate_args: bool | None = None):
        self.logits, self.means, self.log_scales = logits, means, log_scales
        super().__init__(jnp.shape(logits)[:-1], validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        component_key, noise_key = random.split(key)
        shape = sample_shape + self.batch_shape
        component = random.categorical(component_key, self.logits, shape=shape)[..., None]

        def chosen(array: Array) -> Array:
            whole = jnp.broadcast_to(array, (*shape, array.shape[-1]))
            return jnp.take_along_axis(whole, component, axis=-1)[..., 0]

        grey = chosen(self.means) + jnp.exp(chosen(self.log_scales)) * random.logistic(noise_key, shape)
        return jnp.clip(jnp.round((grey + 1) * (NUM_VALUES - 1) / 2), 0, NUM_VALUES - 1).astype(jnp.int32)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        del intermediates  # of numpyro's transformed distributions
        value = jnp.asarray(value).astype(self.means.dtype)[..., None]
        lower, upper = (self._standard(value + side) for side in (-0.5, 0.5))
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), in which nothing cancels.
        log_width = jnp.log(-jnp.expm1(-2 / (NUM_VALUES - 1) * jnp.exp(-self.log_scales)))
        below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        inside = below + above + log_width
        log_bins = jnp.where(value <= 0, below, jnp.where(value >= NUM_VALUES - 1, above, inside))
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits, axis=-1) + log_bins, axis=-1)

    @property
    def mean(self) -> Array:
        return self._moments()[0]

    @property
    def variance(self) -> Array:
        mean, square = self._moments()
        return square - mean**2

    def _standard(self, value: Array) -> Array:
        """Where an edge between pixels stands, in standard deviations from each component's mean."""
        return (2 / (NUM_VALUES - 1) * value - 1 - self.means) * jnp.exp(-self.log_scales)

    def _moments(self) -> tuple[Array, Array]:
        """E[x] = sum_k P(x > k) and E[x^2] = sum_k (2 k + 1) P(x > k), one k after another, which takes no memory."""
        weights = jax.nn.softmax(self.logits, axis=-1)

        def add(sums: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
            above = (weights * jax.nn.sigmoid(-self._standard(k + 0.5))).sum(axis=-1)
            return (sums[0] + above, sums[1] + (2 * k + 1) * above), None

        zeros = jnp.zeros(self.batch_shape, self.means.dtype)
        sums, _ = lax.scan(add, (zeros, zeros), jnp.arange(NUM_VALUES - 1, dtype=self.means.dtype))
        return sums

    def unsupported(self, x: Array) -> str:
        """The message about data that are no 8-bit pixels."""
        return _no_pixels(x)


class CategoricalPixels(dist.CategoricalLogits):
    """numpyro's categorical of 256 values that are numbers: they have a mean and a variance.

    >>> CategoricalPixels(jnp.zeros(256)).variance.round(2).tolist()  # (256^2 - 1) / 12
    5461.25
    """

    @property
    def mean(self) -> Array:
        return (jax.nn.softmax(self.logits, axis=-1) * self._values).sum(axis=-1)

    @property
    def variance(self) -> Array:
        away = self._values - self.mean[..., None]
        return (jax.nn.softmax(self.logits, axis=-1) * away**2).sum(axis=-1)

    @property
    def _values(self) -> Array:
        logits = jnp.asarray(self.logits)
        return jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=logits.dtype), logits.shape)

    def unsupported(self, x: Array) -> str:
        """The message about data that are no 8-bit pixels."""
        return _no_pixels(x)


class ContinuousBernoulli(dist.Distribution):
    """The distribution of `continuous_bernoulli`: an exponential density, rising or falling, on [0, 1].

    Args:
        logits: of lambda; any shape, which is the batch shape.
        validate_args: as everywhere in numpyro.

    >>> ContinuousBernoulli(jnp.array([0.0, 1e-4, 50.0])).mean.round(6).tolist()
    [0.5, 0.50000..., 0.980000...]
    """

    arg_constraints = {"logits": constraints.real}
    reparametrized_params = ["logits"]
    support = constraints.unit_interval

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(jnp.shape(logits), validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        logits = jnp.asarray(self.logits)
        uniform = random.uniform(key, sample_shape + self.batch_shape, logits.dtype)
        steep = jnp.maximum(jnp.abs(logits), 1e-3)
        falling = jnp.log1p(uniform * jnp.expm1(-steep)) / -steep
        flat = uniform + 0.5 * logits * uniform * (1 - uniform)  # up to terms of logits^2
        return jnp.where(jnp.abs(logits) < 1e-3, flat, jnp.where(logits > 0, 1 - falling, falling))

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        del intermediates  # of numpyro's transformed distributions
        logits = jnp.asarray(self.logits)
        value = jnp.asarray(value).astype(logits.dtype)
        steep = jnp.maximum(jnp.abs(logits), 1)
        from_peak = jnp.where(logits > 0, 1 - value, value)
        far = jnp.log(steep) - jnp.log1p(-jnp.exp(-steep)) - steep * from_peak
        flat = jnp.clip(logits, -1, 1)
        return jnp.where(jnp.abs(logits) < 1, flat * (value - 0.5) - _log_normalizer_near_zero(flat), far)

    @property
    def mean(self) -> Array:
        return _mean_of_continuous_bernoulli(jnp.asarray(self.logits))

    @property
    def variance(self) -> Array:
        logits = jnp.asarray(self.logits)
        return jax.jvp(_mean_of_continuous_bernoulli, (logits,), (jnp.ones_like(logits),))[1]

    def entropy(self) -> Array:
        return -self.log_prob(self.mean)  # log p(x) is linear in x

    def unsupported(self, x: Array) -> str:
        """The message about data outside [0, 1]."""
        return _outside(x, (x < 0) | (x > 1), "a continuous Bernoulli likelihood expects numbers in [0, 1]", "rescale")


class OpenBeta(edges.Beta):
    """A beta of data inside (0, 1): at the edges its density is 0 or infinite, and they are refused.

    >>> OpenBeta(2.0, 3.0).support(jnp.array([0.0, 0.5])).tolist()
    [False, True]
    """

    support = constraints.open_interval(0.0, 1.0)

    def unsupported(self, x: Array) -> str:
        """The message about data on the edges or beyond."""
        advice = "move the data off the edges, as by x * (1 - 2 * margin) + margin"
        return _outside(x, (x <= 0) | (x >= 1), "a beta likelihood expects numbers inside (0, 1)", advice)


def _log_normalizer_near_zero(logits: Array) -> Array:
    """log(sinh(l / 2) / (l / 2)) for l in [-1, 1], by its series: a difference of logarithms would have no gradient."""
    coefficients = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000)
    square, total = logits**2, jnp.zeros_like(logits)
    for coefficient in reversed(coefficients):
        total = square * (coefficient + total)
    return total


def _mean_of_continuous_bernoulli(logits: Array) -> Array:
    """1/2 plus the derivative of log(sinh(l / 2) / (l / 2))."""
    flat, steep = jnp.clip(logits, -1, 1), jnp.where(jnp.abs(logits) < 1, 1, logits)
    near = jax.jvp(_log_normalizer_near_zero, (flat,), (jnp.ones_like(flat),))[1]
    return jnp.where(jnp.abs(logits) < 1, 0.5 + near, 0.5 + 0.5 / jnp.tanh(0.5 * steep) - 1 / steep)


def _seen(x: Array) -> Array:
    return 2 / (NUM_VALUES - 1) * x - 1


def _no_pixels(x: Array) -> str:
    bad = (x < 0) | (x > NUM_VALUES - 1) | (x != jnp.floor(x))
    expected = f"a likelihood of 8-bit pixels expects whole numbers from 0 to {NUM_VALUES - 1}"
    return _outside(x, bad, expected, "images in [0, 1] become such pixels by jnp.round(255 * x)")


def _outside(x: Array, bad: Array, expected: str, advice: str) -> str:
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return (
        f"{expected}; got {int(bad.sum())} others, the first at index {first} with value {float(x[first]):.4g}: "
        f"{advice}"
    )
