"""The gradient laboratory: the noise of gradients, what they cost, and estimators side by side.

moments = gradient_moments(objective, params, key, x, num_repeats=1000)
summarize(moments)["encoder"].signal_to_noise
cost({"K=1": objective}, params, key, x)["K=1"].seconds
rows = compare(vae, params, key, x, {"pathwise": estimators.pathwise(), ...}, num_samples=(1, 4, 16, 64))
"""

from vaejax.laboratory.comparison import (
    compare,
    measure_noise,
    serving,
)
from vaejax.laboratory.costs import (
    Cost,
    cost,
    seconds_ratio,
)
from vaejax.laboratory.moments import (
    GradientMoments,
    gradient_moments,
)
from vaejax.laboratory.rows import (
    NoiseRatios,
    Row,
    noise_ratios,
)
from vaejax.laboratory.summaries import (
    Ratio,
    Summary,
    noise_ratio,
    shared_signal_to_noise,
    summarize,
)

__all__ = [
    "Cost",
    "GradientMoments",
    "NoiseRatios",
    "Ratio",
    "Row",
    "Summary",
    "compare",
    "cost",
    "gradient_moments",
    "measure_noise",
    "noise_ratio",
    "noise_ratios",
    "seconds_ratio",
    "serving",
    "shared_signal_to_noise",
    "summarize",
]
