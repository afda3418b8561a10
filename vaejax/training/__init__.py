"""Training: one step, one run, many runs, and what a run leaves on disk."""

from vaejax.training import checkpoints
from vaejax.training.chunks import (
    Chunk,
    DivergedError,
    check_chunk,
    run_chunks,
)
from vaejax.training.loop import (
    fit,
    fit_batches,
)
from vaejax.training.moving_averages import (
    AveragesState,
    averages,
    with_averages,
)
from vaejax.training.parameters import (
    flatten_params,
    unflatten_params,
)
from vaejax.training.population import (
    fit_population,
    init_population,
)
from vaejax.training.step import (
    TrainState,
    TrainStep,
    ascend,
    check_step,
    init_state,
    make_train_step,
)

__all__ = [
    "AveragesState",
    "Chunk",
    "DivergedError",
    "TrainState",
    "TrainStep",
    "ascend",
    "averages",
    "check_chunk",
    "check_step",
    "checkpoints",
    "fit",
    "fit_batches",
    "fit_population",
    "flatten_params",
    "init_population",
    "init_state",
    "make_train_step",
    "run_chunks",
    "unflatten_params",
    "with_averages",
]
