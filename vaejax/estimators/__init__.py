"""Gradient estimators of one signature, and the expectations that they serve."""

from vaejax.estimators import baselines, monte_carlo
from vaejax.estimators.chosen_points import (
    enumerate_support,
    measure_valued,
)
from vaejax.estimators.detaching import (
    OneByOne,
    detached,
    with_detached,
)
from vaejax.estimators.discrete import (
    arms,
    disarm,
    double_control_variates,
    gumbel_softmax,
    muprop,
    rebar,
    reinmax,
    relax,
    rodeo,
    straight_through,
)
from vaejax.estimators.expectations import (
    ControlVariate,
    delta_method,
    expectation,
    per_sample_gradients,
)
from vaejax.estimators.mixed_reductions import (
    combined_reduction,
    grouped_reduction,
    thermodynamic_reduction,
)
from vaejax.estimators.monte_carlo import (
    over_samples,
    over_samples_with_noise,
)
from vaejax.estimators.named_parts import (
    by_part,
)
from vaejax.estimators.reductions import (
    Reduction,
    bounds_with_replaced,
    effective_sample_size,
    log_mean_exp_reduction,
    mean_reduction,
    renyi_reduction,
    without_gradient_of_nothing,
)
from vaejax.estimators.reparameterized import (
    doubly_reparameterized,
    pathwise,
    sticking_the_landing,
)
from vaejax.estimators.score import (
    ovis,
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
    "OneByOne",
    "Reduction",
    "arms",
    "as_estimator",
    "baseline_values",
    "baselines",
    "bounds_with_replaced",
    "by_part",
    "combined_reduction",
    "delta_method",
    "detached",
    "disarm",
    "double_control_variates",
    "doubly_reparameterized",
    "effective_sample_size",
    "enumerate_support",
    "expectation",
    "grouped_reduction",
    "gumbel_softmax",
    "log_mean_exp_reduction",
    "mean_reduction",
    "measure_valued",
    "monte_carlo",
    "muprop",
    "over_samples",
    "over_samples_with_noise",
    "ovis",
    "pathwise",
    "per_sample_gradients",
    "rebar",
    "reinmax",
    "relax",
    "renyi_reduction",
    "rodeo",
    "score_function",
    "sticking_the_landing",
    "straight_through",
    "thermodynamic_reduction",
    "vimco",
    "with_baseline",
    "with_detached",
    "without_gradient_of_nothing",
]
