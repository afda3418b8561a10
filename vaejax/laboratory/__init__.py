"""The gradient laboratory: moments, summaries, costs and comparisons of estimators."""

from vaejax.laboratory.comparison import (
    Row,
    compare,
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
from vaejax.laboratory.summaries import (
    Summary,
    noise_ratio,
    shared_signal_to_noise,
    summarize,
)

__all__ = [
    "Cost",
    "GradientMoments",
    "Row",
    "Summary",
    "compare",
    "cost",
    "gradient_moments",
    "noise_ratio",
    "seconds_ratio",
    "shared_signal_to_noise",
    "summarize",
]
