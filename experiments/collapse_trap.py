"""A network that falls at once to where it ignores its code, and what gets it out: `trap` of `collapse.py`."""

import collapse_cures
import collapse_run
import family
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vaejax import evaluation, models


def run(setting: collapse_run.Setting) -> family.Result:
    """The relu network 512-512-128 whose output bias is set to the pixel means, under every cure and seed."""
    shape, small = setting.train.shape[1:], setting.small
    latent_dim = 8 if small else 128
    vae = models.mlp_vae(shape, latent_dim, (64, 64) if small else (512, 512), activation="relu")
    num_steps = setting.steps(3000 if small else 20_000)
    recipe = collapse_cures.Recipe(
        num_steps=num_steps,
        batch_size=min(128, len(setting.train) // 11),
        optimizer=optax.adam(1e-3),
        warmup_steps=max(1, 2 * num_steps // 5),
        free_bits=0.1,
        max_encoder_steps=10,
    )
    baseline = float(evaluation.independent_log_likelihood(setting.train, setting.test).mean())
    note = "each pixel a coin of its own, as often 1 as in the training images"
    rows = [family.row("independent pixels", "log p(x)", baseline, "nats", note=note)]
    arrays = {"cures": np.array(setting.cures), "baseline": np.array(baseline)}
    for cure in setting.cures:
        runs, outcomes = [], []
        for seed in range(setting.seeds):
            init_key, key = jax.random.split(jax.random.key(seed))
            params = models.with_output_bias(vae.init(init_key), setting.train)
            what = f"trap, {cure}, seed {seed}"
            outcome = collapse_cures.train(
                what, cure, vae, recipe, params, key, setting.train, jnp.asarray(setting.validation[:500])
            )
            found = collapse_cures.measured(vae, outcome.params, seed, setting.test)
            runs.append(found | {"seconds of training": outcome.seconds})
            outcomes.append(outcome)
        rows += collapse_cures.rows_of(cure, runs, collapse_cures.in_words(cure, recipe))
        arrays[f"{cure}: kl"] = np.stack([outcome.kl for outcome in outcomes])
        arrays[f"{cure}: elbo"] = np.stack([outcome.elbo for outcome in outcomes])
        arrays[f"{cure}: log_likelihood"] = np.array([found["log p(x)"] for found in runs])
        arrays["steps"] = outcomes[0].steps
    return family.Result(rows, arrays)
