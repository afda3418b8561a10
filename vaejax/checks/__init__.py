"""What a function may refuse, in one wording: what was expected, what was given, and what to do.

Checks stand where a user enters: where a function is built, or at its first lines. Below that door there is only maths.
"""

from vaejax.checks.arrays import (
    as_array,
    check_array,
    check_finite,
    check_floating,
    check_not_empty,
    check_shape,
    check_values,
    checked_data,
    dtype_of,
    refuse_values,
    wide_dtype,
)
from vaejax.checks.callers import (
    check_distribution,
    check_function,
    check_given,
    check_key,
    check_keys,
    check_kind,
    check_leaves,
    check_like,
    check_model,
    check_objective,
    check_optimizer,
    check_params,
)
from vaejax.checks.options import (
    check_choice,
    check_count,
    check_counts,
    check_divides,
    check_number,
    checked_shape,
    checked_sizes,
)
from vaejax.checks.words import (
    describe,
)

__all__ = [
    "as_array",
    "check_array",
    "check_choice",
    "check_count",
    "check_counts",
    "check_distribution",
    "check_divides",
    "check_finite",
    "check_floating",
    "check_function",
    "check_given",
    "check_key",
    "check_keys",
    "check_kind",
    "check_leaves",
    "check_like",
    "check_model",
    "check_not_empty",
    "check_number",
    "check_objective",
    "check_optimizer",
    "check_params",
    "check_shape",
    "check_values",
    "checked_data",
    "checked_shape",
    "checked_sizes",
    "describe",
    "dtype_of",
    "refuse_values",
    "wide_dtype",
]
