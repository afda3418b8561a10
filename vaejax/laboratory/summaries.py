"""A gradient as a vector: its norm, noise, direction and bias, from its moments. Public as `laboratory.summarize`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.laboratory.moments import GradientMoments, groups, leaf_name, normal_quantile

Ratio = tuple[float | None, float | None, float | None]
"""A ratio with the lower and the upper end of its confidence interval; None where there is none."""


@dataclass(frozen=True)
class Summary:
    """The norm, noise, direction and bias of a gradient g, over one group of coordinates. None: undefined.

    One gradient has the mean squared error `bias_squared + variance`. The mean of n independent ones has
    `bias_squared + variance / n`.

    Attributes:
        size: number of coordinates.
        norm: |E g|, the root of an unbiased estimate of |E g|^2; 0 where that is negative, because noise hides it.
        variance: E |g - E g|^2, summed over the coordinates.
        variance_lower: lower end of its confidence interval.
        variance_upper: upper end.
        signal_to_noise: |E g| / sqrt(variance), of one gradient.
        signal_to_noise_lower: lower end of its confidence interval, which is wider than its level requires.
        signal_to_noise_upper: upper end.
        coordinate_signal_to_noise: |E g_i| / sd(g_i), mean over the coordinates that vary (Rainforth et al. 2018). From
            N gradients without any signal it is about 0.34 / sqrt(N).
        cosine: of the angle between E g and the reference. Noise may carry it above 1.
        bias_squared: |E g - reference|^2, an unbiased estimate, which may be negative.
        bias_squared_error: its standard error. It is too large, if anything, except for a group of few coordinates.
        kurtosis: of the group, 1 + Var |g - E g|^2 / variance^2: 3 of one Gaussian coordinate, nearer to 1 of many. The
            intervals of variance and signal-to-noise hold less often than their level says where it is above N / 100.

    >>> part = Summary(5, 3.0, 4.0, 3.5, 4.5, 1.5, 1.3, 1.7, None, None, bias_squared=0.25, bias_squared_error=0.05)
    >>> part.norm / part.variance**0.5 == part.signal_to_noise
    True
    >>> part.bias_squared + part.variance / 16  # mean squared error of the mean of 16 gradients
    0.5

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
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
    kurtosis: float | None = None


def summarize(moments: GradientMoments, reference: Any = None, level: float = 0.99) -> dict[str, Summary]:
    """The norm, noise, direction and bias of a gradient: of the whole, and of each part of the parameters.

    Args:
        moments: of the gradient; concrete, so not inside `jit`.
        reference: what the mean gradient should be, for `cosine` and `bias_squared`. Either a tree like the parameters,
            which is taken as exact; or the `GradientMoments` of an unbiased estimator, from other keys, whose own noise
            is then allowed for. None: both are None.
        level: of the confidence intervals.

    Returns:
        Summaries by group: "total", all parameters but those of a trained baseline; and each node of the tree by its
        path, "encoder", "encoder.network" and so on. Norms are in the unit of the gradient, variances in its square.

    Raises:
        ValueError: if level is not between 0 and 1, or the reference does not have the shapes of the parameters.

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
                "kurtosis": 1 + spread / sums.variance**2,
            }
        summaries[name] = Summary(int(sums.size), **{field: defined(value) for field, value in fields.items()})
    return summaries


def noise_ratio(part: Summary, unit: Summary, price: float = 1.0, price_error: float = 0.0) -> Ratio:
    """How many times the unit's cost a gradient needs to reach the unit's variance.

        ratio = price * variance / variance of the unit

    The mean of n independent gradients has 1 / n of the variance of one. So it takes variance / (variance of the unit)
    gradients to reach the unit's variance, and each of them costs `price` times as much as the unit.

    Args:
        part: summary of the gradient.
        unit: summary of the gradient to compare with. Compared with itself (the same object), a gradient has the ratio
            `price` without error.
        price: cost of one gradient over that of the unit. 1 compares variances; the ratio of the K compares samples;
            the ratio of the seconds compares time.
        price_error: half the width of the confidence interval of log(price), as `seconds_ratio` returns it.

    Returns:
        The ratio, and the lower and the upper end of its confidence interval, which has the level of the summaries.
        All None if a variance is missing or the unit's is 0; ends None where a variance has no interval.

    >>> def summary(variance, lower, upper):
    ...     return Summary(1, None, variance, lower, upper, *[None] * 7)
    >>> noise_ratio(summary(8.0, 4.0, 16.0), summary(2.0, 2.0, 2.0), price=10.0)
    (40.0, 20.0, 80.0)
    """
    if not unit.variance or part.variance is None:
        return None, None, None
    ratio = part.variance / unit.variance * price
    # Errors of independent gradients add in squares, on the log scale.
    error = 0.0 if part is unit else math.hypot(_log_error(part), _log_error(unit), price_error)
    return defined(ratio), defined(ratio * math.exp(-error)), defined(ratio * math.exp(error))


def shared_signal_to_noise(part: Summary, same_mean: Sequence[Summary]) -> Ratio:
    """|E g| / sqrt(variance), with |E g| from the estimator that shows it best among those with the same mean gradient.

    A noisy estimator hides its own signal: the mean of a few hundred gradients by the score function without a baseline
    is almost only noise. A less noisy estimator of the same mean gradient shows how large the signal is.

    Args:
        part: summary of the gradient, whose variance is the noise.
        same_mean: summaries of gradients with the same mean, `part` among them. The one with the highest
            `signal_to_noise_lower` gives |E g|.

    Returns:
        The ratio, and the lower and the upper end of its confidence interval, which has the level of the summaries.
        All None if |E g| or the variance is missing or the variance is 0; an end is None where it is unknown.

    >>> quiet = Summary(1, 4.0, 1.0, 0.9, 1.1, 4.0, 3.9, 4.1, *[None] * 4)
    >>> noisy = Summary(1, 30.0, 100.0, 90.0, 110.0, 3.0, 0.0, 6.0, *[None] * 4)
    >>> shared_signal_to_noise(noisy, [quiet, noisy])[0]
    0.4
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
    """The number, or None where it is NaN or infinite, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


class _Sums(NamedTuple):
    """Sums over the coordinates of a group; those that involve a reference are NaN without one."""

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
    """The sums of each leaf, in double precision: the estimates are differences of numbers that are nearly equal."""
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
    """The reference as moments: without variance where it is exact, and without any leaf where there is none."""
    if not isinstance(reference, GradientMoments):
        zeros = jax.tree.map(np.zeros_like, reference)
        reference = GradientMoments(reference, zeros, zeros, dict.fromkeys(groups(reference), np.zeros(())), 1)
    got = _shapes(reference.mean)
    for name, shape in _shapes(mean).items():
        # The parameters of a trained baseline are no part of the estimated gradient, and need no reference.
        if got and got.get(name) != shape and name.split(".")[0] != "baseline":
            raise ValueError(
                f"expected a reference like the parameters, with {name!r} of shape {shape}; got {got.get(name)}"
            )
    return reference


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {leaf_name(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _debiased(squared: np.float64, noise: np.ndarray) -> tuple[np.float64, np.float64]:
    """|E v|^2 estimated from |v|^2, with its standard error.

    v is the mean of many gradients and so nearly Gaussian. With C its covariance, the variance of |v|^2 is then
    2 tr C^2 + 4 E v' C E v. The first term is the variance of |v - E v|^2. The second is bounded by the largest
    eigenvalue of C, which is at most sqrt(tr C^2), and equal to it for one coordinate. So for many coordinates the
    error is too large where E v is not zero.

    Args:
        squared: |v|^2.
        noise: tr C, and the standard deviation of |v - E v|^2. The spread of the terms of the variance estimates the
            latter from above, as heavy tails add their fourth cumulants.
    """
    estimate = squared - noise[0]
    return estimate, np.sqrt(noise[1] ** 2 + _slope(noise) * np.maximum(estimate, 0))


def _interval(estimate: np.float64, noise: np.ndarray, z: float) -> tuple[np.float64, np.float64]:
    """The ends of all |E v|^2 that are at most z of their own standard errors from the estimate (Wilson 1927)."""
    center = estimate + z**2 * _slope(noise) / 2
    half_width = np.sqrt(np.maximum(center**2 - estimate**2 + (z * noise[1]) ** 2, 0))
    return np.maximum(center - half_width, 0), np.maximum(center + half_width, 0)


def _slope(noise: np.ndarray) -> np.float64:
    """How fast the variance of |v|^2 grows with |E v|^2, at most."""
    return 4 * noise[1] / math.sqrt(2)
