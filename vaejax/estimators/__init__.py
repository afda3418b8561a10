"""Gradient estimators of one signature, and the expectations that they serve."""

from vaejax.estimators import baselines, monte_carlo
from vaejax.estimators.chosen_points import (
    enumerate_support,
    measure_valued,
)
from vaejax.estimators.expectations import (
    ControlVariate,
    delta_method,
    expectation,
    per_sample_gradients,
)
from vaejax.estimators.monte_carlo import (
    over_samples,
)
from vaejax.estimators.reductions import (
    Reduction,
    bounds_with_replaced,
    effective_sample_size,
    log_mean_exp_reduction,
    mean_reduction,
    renyi_reduction,
)
from vaejax.estimators.reparameterized import (
    doubly_reparameterized,
    pathwise,
    sticking_the_landing,
)
from vaejax.estimators.score import (
    score_function,
    vimco,
)
from vaejax.estimators.signature import (
    Broadcasting,
    Estimate,
    EstimateFunction,
    Estimator,
    Integrand,
    as_estimator,
    baseline_values,
    with_baseline,
)

__all__ = [
    "Broadcasting",
    "ControlVariate",
    "Estimate",
    "EstimateFunction",
    "Estimator",
    "Integrand",
    "Reduction",
    "as_estimator",
    "baseline_values",
    "baselines",
    "bounds_with_replaced",
    "delta_method",
    "doubly_reparameterized",
    "effective_sample_size",
    "enumerate_support",
    "expectation",
    "log_mean_exp_reduction",
    "mean_reduction",
    "measure_valued",
    "monte_carlo",
    "over_samples",
    "pathwise",
    "per_sample_gradients",
    "renyi_reduction",
    "score_function",
    "sticking_the_landing",
    "vimco",
    "with_baseline",
]
