"""A network that soon ignores its latents, and what gets it out of there: the part `trap` of `collapse.py`."""

import numpy as np
import optax

from engines.collapse import cures
from engines.collapse.setting import Setting
from engines.harness.rows import Result, row
from vaejax import evaluation, models


def run(setting: Setting) -> Result:
    """The relu network 512-512-128 (64-64-8 on digits) with its output bias at the pixel means, under every cure."""
    small = setting.small
    latent_dim = 8 if small else 128
    vae = models.mlp_vae(setting.image_shape, latent_dim, (64, 64) if small else (512, 512), activation="relu")
    num_steps = setting.steps(3000 if small else 20_000)
    recipe = cures.Recipe(
        num_steps=num_steps,
        batch_size=min(128, len(setting.train) // 11),
        optimizer=optax.adam(1e-3),
        warmup_steps=max(1, num_steps // 5),
        free_bits=0.1,
        max_encoder_steps=10,
    )
    baseline = float(evaluation.independent_log_likelihood(setting.train, setting.test).mean())
    note = "each pixel by itself, 1 as often as in the training images"
    rows = [row("independent pixels", "log p(x)", baseline, "nats", note=note)]
    splits = cures.Splits(setting.train, setting.validation, setting.test)

    def init(key):
        return models.with_output_bias(vae.init(key), setting.train)

    more, arrays = cures.compare("trap", setting, vae, recipe, splits, init)
    return Result(rows + more, arrays | {"baseline": np.array(baseline)})
