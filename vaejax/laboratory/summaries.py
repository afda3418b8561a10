"""A gradient as a vector: its norm, noise, direction and bias, from its moments. Public as `laboratory.summarize`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.laboratory.moments import GradientMoments, groups, leaf_name, normal_quantile


@dataclass(frozen=True)
class Summary:
    """What the moments say of one group of coordinates, as one vector. None stands for what is undefined.

    With g one gradient, its mean squared error is bias_squared + variance, and that of the mean of n of them
    bias_squared + variance / n.

    Attributes:
        size: number of coordinates.
        norm: |E g|, from the unbiased estimate of its square; 0 where noise hides it.
        variance: E |g - E g|^2, the sum over the coordinates.
        variance_lower: end of its confidence interval.
        variance_upper: other end.
        signal_to_noise: |E g| / sqrt(variance), of one gradient.
        signal_to_noise_lower: end of its confidence interval, which is wider than its level asks for.
        signal_to_noise_upper: other end.
        coordinate_signal_to_noise: mean over the coordinates that vary of |E g_i| / sd(g_i) (Rainforth et al. 2018).
            Without any signal it comes out as 0.34 / sqrt(N).
        cosine: between E g and the reference; above 1 only by its own error.
        bias_squared: |E g - reference|^2, unbiased, and so at times negative.
        bias_squared_error: its standard error; too large rather than too small, but for few coordinates.
    """

    size: int
    norm: float | None
    variance: float | None
    variance_lower: float | None
    variance_upper: float | None
    signal_to_noise: float | None
    signal_to_noise_lower: float | None
    signal_to_noise_upper: float | None
    coordinate_signal_to_noise: float | None
    cosine: float | None
    bias_squared: float | None
    bias_squared_error: float | None


def summarize(moments: GradientMoments, reference: Any = None, level: float = 0.99) -> dict[str, Summary]:
    """What the moments say of the whole gradient ("total") and of every node of the tree ("encoder", ...).

    Args:
        moments: concrete, not inside `jit`.
        reference: the gradient that E g should be: a tree like the parameters, taken for exact, or the
            `GradientMoments` of an estimator that is unbiased, with other keys, whose own noise is then allowed for.
        level: of the confidence intervals.

    Raises:
        ValueError: if level is not between 0 and 1, or the reference is not like the parameters.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from vaejax import laboratory, models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> result = laboratory.gradient_moments(objectives.make_elbo(vae), params, jax.random.key(1), x)
    >>> {name: part.size for name, part in summarize(result).items() if "." not in name}
    {'total': 77, 'decoder': 33, 'encoder': 44}
    """
    z = normal_quantile(level)
    num = int(moments.num_repeats)
    reference = _as_moments(reference, moments.mean)
    leaf_sums = _leaf_sums(moments, reference)
    summaries = {}
    for name, members in groups(moments.mean).items():
        sums = _Sums(*np.sum([leaf_sums[i] for i in members], axis=0))
        spread = np.float64(moments.group_spread[name])
        noise = np.array([sums.variance, np.sqrt(spread)]) / num
        reference_spread = np.float64(reference.group_spread.get(name, np.nan))
        reference_noise = np.array([sums.reference_variance, np.sqrt(reference_spread)]) / int(reference.num_repeats)
        with np.errstate(divide="ignore", invalid="ignore"):  # what is undefined becomes NaN, and then None
            squared, _ = _debiased(sums.squared, noise)
            reference_squared, _ = _debiased(sums.reference_squared, reference_noise)
            bias_squared, bias_squared_error = _debiased(sums.distance, noise + reference_noise)
            log_error = z * np.sqrt(spread / (num - 1)) / sums.variance
            lowest, highest = _interval(squared, noise, z)
            variance_lower, variance_upper = sums.variance * np.exp([-log_error, log_error])
            fields = {
                "norm": np.sqrt(np.maximum(squared, 0)),
                "variance": sums.variance,
                "variance_lower": variance_lower,
                "variance_upper": variance_upper,
                "signal_to_noise": np.sqrt(np.maximum(squared, 0) / sums.variance),
                "signal_to_noise_lower": np.sqrt(lowest / variance_upper),
                "signal_to_noise_upper": np.sqrt(highest / variance_lower),
                "coordinate_signal_to_noise": sums.coordinate_ratios / sums.num_varying,
                "cosine": sums.product / (np.sqrt(squared) * np.sqrt(reference_squared)),
                "bias_squared": bias_squared,
                "bias_squared_error": bias_squared_error,
            }
        summaries[name] = Summary(int(sums.size), **{field: defined(value) for field, value in fields.items()})
    return summaries


def noise_ratio(
    part: Summary, unit: Summary, price: float = 1.0, price_error: float = 0.0
) -> tuple[float | None, float | None, float | None]:
    """The variance of one gradient over that of another, times the ratio of what they cost, and its interval.

    The mean of n independent gradients has the variance of one over n. So for the noise of the unit it takes as many
    gradients as the ratio of the variances says, and so many times the unit's price.

    Args:
        part: of the one.
        unit: of the other. A gradient is exactly like itself.
        price: ratio of the prices of one gradient, such as of samples or of seconds.
        price_error: error of its logarithm, of the summaries' level; see `cost.seconds_ratio`.

    Returns:
        The ratio and the ends of its interval, of the summaries' level; None where there is nothing to divide by.
    """
    if not unit.variance or part.variance is None:
        return None, None, None
    ratio = part.variance / unit.variance * price
    # Errors of independent gradients add in squares, on the log scale.
    error = 0.0 if part is unit else math.hypot(_log_error(part), _log_error(unit), price_error)
    return defined(ratio), defined(ratio * math.exp(-error)), defined(ratio * math.exp(error))


def shared_signal_to_noise(
    part: Summary, same_mean: Sequence[Summary]
) -> tuple[float | None, float | None, float | None]:
    """|E g| / sqrt(variance) with E g by whichever estimator of the same mean gradient shows it best, and its interval.

    For the mean of a few hundred gradients by the score function without a baseline is nothing but noise.

    Args:
        part: of the gradient.
        same_mean: of gradients with the same mean, `part` among them.

    Returns:
        The ratio and the ends of its interval, of the summaries' level; None where it is undefined.
    """
    clearest = max(same_mean, key=lambda other: other.signal_to_noise_lower or 0)
    lower, upper = clearest.signal_to_noise_lower or 0.0, clearest.signal_to_noise_upper or math.inf
    if clearest.norm is None or not part.variance:
        return None, None, None
    upper_ratio = math.sqrt(_over(clearest.variance_upper, part.variance_upper))
    lower_ratio = math.sqrt(_over(clearest.variance_lower, part.variance_lower))
    return clearest.norm / math.sqrt(part.variance), defined(lower * upper_ratio), defined(upper * lower_ratio)


def _log_error(part: Summary) -> float:
    """Half the width of the variance's interval on the log scale."""
    ratio = _over(part.variance_upper, part.variance_lower)
    return math.log(ratio) / 2 if ratio else math.nan


def _over(one: float | None, other: float | None) -> float:
    """A ratio, NaN where it is undefined."""
    return math.nan if one is None or not other else one / other


def defined(value: float) -> float | None:
    """The number, or None where it is NaN or infinite, of which JSON knows nothing."""
    return float(value) if math.isfinite(value) else None


class _Sums(NamedTuple):
    """Sums over the coordinates of a group, of which those with a reference are NaN without one."""

    size: Any
    squared: Any
    variance: Any
    num_varying: Any
    coordinate_ratios: Any
    product: Any
    distance: Any
    reference_squared: Any
    reference_variance: Any


def _leaf_sums(moments: GradientMoments, reference: GradientMoments) -> list[_Sums]:
    """In double precision, for the estimates that come of them are differences of near numbers."""
    references = _leaves(reference)
    sums = []
    for name, (mean, variance) in _leaves(moments).items():
        expected, expected_variance = references.get(name, (np.nan, np.nan))
        varying = variance > 0
        squared_ratios = mean[varying] ** 2 / variance[varying] - 1 / int(moments.num_repeats)
        sums.append(
            _Sums(
                size=mean.size,
                squared=(mean**2).sum(),
                variance=variance.sum(),
                num_varying=varying.sum(),
                coordinate_ratios=np.sqrt(np.maximum(squared_ratios, 0)).sum(),
                product=(mean * expected).sum(),
                distance=((mean - expected) ** 2).sum(),
                reference_squared=np.sum(expected**2),
                reference_variance=np.sum(expected_variance),
            )
        )
    return sums


def _leaves(moments: GradientMoments) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    means = jax.tree_util.tree_leaves_with_path(moments.mean)
    variances = jax.tree.leaves(moments.variance)
    return {
        leaf_name(path): (np.asarray(mean, np.float64), np.asarray(variance, np.float64))
        for (path, mean), variance in zip(means, variances, strict=True)
    }


def _as_moments(reference: Any, mean: Any) -> GradientMoments:
    """The reference, as moments without variance where it is known exactly, or not at all."""
    if not isinstance(reference, GradientMoments):
        zeros = jax.tree.map(np.zeros_like, reference)
        reference = GradientMoments(reference, zeros, zeros, dict.fromkeys(groups(reference), np.zeros(())), 1)
    got = _shapes(reference.mean)
    for name, shape in _shapes(mean).items():
        # A trained baseline's own parameters are no part of what is estimated, and are left out where they have none.
        if got and got.get(name) != shape and name.split(".")[0] != "baseline":
            raise ValueError(
                f"expected a reference like the parameters, with {name!r} of shape {shape}; got {got.get(name)}"
            )
    return reference


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {leaf_name(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _debiased(squared: np.float64, noise: np.ndarray) -> tuple[np.float64, np.float64]:
    """|E v|^2 estimated from |v|^2, with its standard error.

    With C the covariance of v, the variance of |v|^2 is 2 tr C^2 + 4 E v' C E v for a Gaussian, as v is, being a mean
    of many. The first is the variance of |v - E v|^2; and C's largest eigenvalue is at most sqrt(tr C^2), which is what
    one coordinate has. So for many coordinates the error comes out too large where E v is not zero.

    Args:
        squared: |v|^2.
        noise: tr C and the standard deviation of |v - E v|^2. The spread of the terms estimates it from above: heavy
            tails add their fourth cumulants.
    """
    estimate = squared - noise[0]
    return estimate, np.sqrt(noise[1] ** 2 + _slope(noise) * np.maximum(estimate, 0))


def _interval(estimate: np.float64, noise: np.ndarray, z: float) -> tuple[np.float64, np.float64]:
    """All |E v|^2 that lie within z of their own standard errors of the estimate (Wilson 1927)."""
    center = estimate + z**2 * _slope(noise) / 2
    half_width = np.sqrt(np.maximum(center**2 - estimate**2 + (z * noise[1]) ** 2, 0))
    return np.maximum(center - half_width, 0), np.maximum(center + half_width, 0)


def _slope(noise: np.ndarray) -> np.float64:
    """How the variance of |v|^2 grows with |E v|^2, at most."""
    return 4 * noise[1] / math.sqrt(2)
