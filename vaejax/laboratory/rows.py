"""One line of a comparison of estimators, and how two gradients compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vaejax.laboratory.costs import Cost, seconds_ratio
from vaejax.laboratory.summaries import Ratio, Summary, noise_ratio

Setting = tuple[str, int]  # the name of an estimator, and K


@dataclass(frozen=True)
class Row:
    """One line of `compare`: an estimator with K samples. `dataclasses.asdict(row)` is ready for JSON.

    Ratios compare one gradient of the row with one of the row named in `relative_to`. They have no unit, and are None
    where they are undefined.

    Attributes:
        estimator: its name.
        num_samples: K.
        refusal: why the estimator cannot serve here, in its own words; all that follows is then None.
        summaries: of the whole gradient ("total") and of each part of the parameters ("encoder", "decoder").
        cost: of one gradient.
        variance_ratio: ratio of the variances.
        variance_ratio_lower: lower end of its confidence interval.
        variance_ratio_upper: upper end.
        samples_ratio: ratio of K x variance: how many times the samples it takes to reach the same variance.
        samples_ratio_lower: lower end of its confidence interval.
        samples_ratio_upper: upper end.
        work_ratio: ratio of seconds x variance: how many times the seconds it takes to reach the same variance.
        work_ratio_lower: lower end of its confidence interval, which allows for the noise of the clock too.
        work_ratio_upper: upper end.

    >>> rows = [Row("pathwise", 1, refusal="q is discrete"), Row("vimco", 4, variance_ratio=0.5, samples_ratio=2.0)]
    >>> {row.estimator: row.samples_ratio for row in rows if row.refusal is None}  # samples for the same variance
    {'vimco': 2.0}
    """

    estimator: str
    num_samples: int
    refusal: str | None = None
    summaries: dict[str, Summary] | None = None
    cost: Cost | None = None
    variance_ratio: float | None = None
    variance_ratio_lower: float | None = None
    variance_ratio_upper: float | None = None
    samples_ratio: float | None = None
    samples_ratio_lower: float | None = None
    samples_ratio_upper: float | None = None
    work_ratio: float | None = None
    work_ratio_lower: float | None = None
    work_ratio_upper: float | None = None


class NoiseRatios(NamedTuple):
    """How a gradient compares with another; each field is a ratio with both ends of its interval, as in `noise_ratio`.

    Attributes:
        variance: of one gradient.
        samples: how many times the samples it takes to reach the same variance.
        seconds: how many times the seconds.

    >>> ratios = NoiseRatios(variance=(0.25, 0.2, 0.3), samples=(1.0, 0.8, 1.2), seconds=(0.75, 0.6, 0.9))
    >>> [upper < 1 for _, lower, upper in ratios]  # it takes less time, but whether fewer samples is not known
    [True, False, True]
    """

    variance: Ratio
    samples: Ratio
    seconds: Ratio


def noise_ratios(
    summaries: Mapping[Setting, Summary],
    costs: Mapping[Setting, Cost],
    setting: Setting,
    relative_to: Setting,
    level: float = 0.99,
) -> NoiseRatios:
    """The variance of a gradient, and the samples and seconds that it takes to reduce it, relative to another.

    Args:
        summaries: by setting, of the same group of coordinates.
        costs: by setting.
        setting: of the gradient.
        relative_to: of the one to compare with.
        level: of the confidence intervals; that of the summaries.

    Returns:
        Three ratios, each with both ends of its interval.

    >>> summary = Summary(*(1, 3.0, 4.0, 3.0, 5.0), *[None] * 7)
    >>> costs = {("a", 4): Cost(4.0, None, 3.0, 3.0, 3.0, 20), ("b", 1): Cost(1.0, None, 2.0, 2.0, 2.0, 20)}
    >>> ratios = noise_ratios(dict.fromkeys(costs, summary), costs, ("a", 4), ("b", 1))
    >>> ratios.variance[0], ratios.samples[0], ratios.seconds[0]
    (1.0, 4.0, 1.5)
    """
    noises = summaries[setting], summaries[relative_to]
    seconds = seconds_ratio(costs[setting], costs[relative_to], level)
    return NoiseRatios(
        noise_ratio(*noises), noise_ratio(*noises, price=setting[1] / relative_to[1]), noise_ratio(*noises, *seconds)
    )
