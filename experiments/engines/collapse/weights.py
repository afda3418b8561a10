"""log p(x) of models trained with other weights of the KL than 1: the part `weights` of `collapse.py`."""

import jax
import numpy as np
import optax

from engines.collapse import cures
from engines.collapse.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result
from vaejax import evaluation, models, objectives

WEIGHTS = (0.03, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)


def run(setting: Setting) -> Result:
    """Log p(x), the ELBO, rate and distortion of the same model trained with each weight."""
    small = setting.small
    vae = models.mlp_vae(setting.image_shape, 8 if small else 50, (100,) if small else (200, 200))
    num_steps = setting.steps(3000 if small else 10_000)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    rows, numbers = [], []
    for weight in WEIGHTS:
        runs = []
        for seed in range(setting.seeds):
            init_key, key = jax.random.split(jax.random.key(seed))
            trained = fitting.train(
                f"weight {weight:g}, seed {seed}",
                objectives.make_elbo(vae, beta=weight),
                optimizer,
                vae.init(init_key),
                key,
                setting.train,
                num_steps=num_steps,
                batch_size=100,
            )
            found = cures.measured(vae, trained.params, seed, setting.test)
            rate = evaluation.rate_distortion(vae, trained.params, jax.random.key(seed + 2000), setting.test)
            runs.append(found | {"distortion": float(rate.distortion)})
        note = "the same model, data and steps; only the weight differs"
        rows += cures.rows_of(f"weight {weight:g}", runs, note)
        numbers.append([[run["log p(x)"], run["ELBO"], run["KL"], run["distortion"]] for run in runs])
    return Result(rows, {"weights": np.array(WEIGHTS), "numbers": np.array(numbers)})
