"""Training: one step, one run, many runs, and what a run leaves on disk."""

from vaejax.training import checkpoints
from vaejax.training.chunks import (
    Chunk,
    run_chunks,
)
from vaejax.training.loop import (
    fit,
    fit_batches,
)
from vaejax.training.population import (
    fit_population,
    init_population,
)
from vaejax.training.step import (
    TrainState,
    TrainStep,
    ascend,
    init_state,
    make_train_step,
)

__all__ = [
    "Chunk",
    "TrainState",
    "TrainStep",
    "ascend",
    "checkpoints",
    "fit",
    "fit_batches",
    "fit_population",
    "init_population",
    "init_state",
    "make_train_step",
    "run_chunks",
]
