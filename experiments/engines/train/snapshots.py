"""What the pictures of a run show, saved as arrays while the model is at hand; `plots.py` draws from them alone."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from engines.harness import loading, run_folder
from engines.train import examples, measures
from vaejax import data, distributions, evaluation, models, training

NUM_LATENT_POINTS = 2000  # examples in the pictures of the latent space
MANIFOLD = 13  # images in a row and in a column of the plane of two latents

NUM_PICTURES = 10  # images from the prior in each column of the strip

NUM_POINTS = 500  # and points, where the data are no images


class Viewer:
    """Saves, as arrays, what the pictures show; `plots.py` draws them."""

    def __init__(
        self,
        vae: models.VAE,
        test: examples.Examples,
        original: data.Dataset,
        folder: pathlib.Path,
        num_labels: int | None = None,
        params_of: Callable[[training.TrainState], Any] = lambda state: state.params,
        white: float = 1.0,
    ):
        rows = np.random.default_rng(0).permutation(len(original.images))[:NUM_LATENT_POINTS]  # some sets are sorted
        self.vae, self.folder, self.num_labels, self.params_of, self.white = vae, folder, num_labels, params_of, white
        self.test, self.original = jax.tree.map(jnp.asarray, examples.take(test, rows)), original.images[rows]
        self.labels = np.zeros(0, np.int32) if original.labels is None else original.labels[rows]
        self.decode = jax.jit(lambda params, z, batch: models.given(vae, batch)[0].decode(params, z).mean / white)
        self.generate = jax.jit(self._generate, static_argnums=1)

    def snapshot(self, state: training.TrainState) -> None:
        """Latents of the test images and samples from the prior, at this step of training."""
        step = int(state.step)
        params = self.params_of(state)
        latents = np.asarray(evaluation.posterior_means(self.vae, params, self.test))
        count = NUM_PICTURES if self.original.ndim > 2 else NUM_POINTS
        run_folder.write_arrays(
            self.folder / "snapshots" / f"step_{step:08d}.npz",
            step=step,
            codes=latents,
            labels=self.labels,
            samples=np.asarray(self.generate(params, count)),
        )

    def _generate(self, params, count: int) -> jax.Array:
        """From z of the prior: means of p(x|z) where they are images, whose noise would hide them; else samples."""

        def one(key, batch):
            model, _ = models.given(self.vae, batch)
            latent_key, noise_key = jax.random.split(key)
            p = model.decode(params, distributions.sample(model.prior(params), latent_key))
            return p.mean / self.white if self.original.ndim > 2 else distributions.sample(p, noise_key)

        # The same samples from the prior in every picture of every run; of a conditional model, label after label.
        keys = jax.random.split(loading.evaluation_key("pictures"), count)
        x = jnp.zeros((count, *self.original.shape[1:]))
        context = None if self.num_labels is None else examples.labels_of_columns(count, self.num_labels)
        return jax.vmap(one)(keys, x if context is None else models.Batch(x, context))

    def pictures(self, params) -> dict[str, float]:
        """Test images, what the model sees of them, reconstructions, prior samples; for two latents, the manifold.

        Returns:
            What the ranks of latents say, if they are looked at, for result.json.
        """
        latents = evaluation.posterior_means(self.vae, params, self.test)
        shown = examples.take(self.test, slice(1000))
        means = np.asarray(self.decode(params, latents[:1000], shown))
        x, mask = np.asarray(models.numbers_of(shown)) / self.white, getattr(shown, "mask", None)
        arrays = {
            "originals": self.original[:1000],
            "binarized": x,
            "reconstructions": means,
            "samples": np.asarray(self.generate(params, 1000)),
        }
        q = jax.eval_shape(
            lambda params, batch: models.given(self.vae, batch)[0].encode(params, x * self.white), params, shown
        )
        is_point = isinstance(distributions.family_of(q), dist.Delta)  # of an autoencoder
        calibration = None if is_point else measures.calibrated(self.vae, params, shown)
        if calibration is not None:
            arrays |= {"ranks": np.asarray(calibration.ranks), "rank_p_values": np.asarray(calibration.p_values)}
            arrays |= {"num_rank_samples": np.asarray(calibration.num_samples)}
        if mask is not None:
            arrays |= {"observed": np.where(mask, x, 0.5), "imputations": np.where(mask, x, means)}
        prior = distributions.family_of(jax.eval_shape(self.vae.prior, params))
        if latents.shape[1] == 2 and self.num_labels is None and isinstance(prior, dist.Normal):
            # Equal steps of probability under the prior, as in figure 4 of Kingma & Welling 2014.
            quantiles = jax.scipy.stats.norm.ppf((jnp.arange(MANIFOLD, dtype=jnp.float32) + 0.5) / MANIFOLD)
            grid = jnp.stack(jnp.meshgrid(quantiles, -quantiles), axis=-1)
            arrays["manifold"] = np.asarray(self.decode(params, grid, self.original[:1]))
        run_folder.write_arrays(self.folder / "pictures.npz", **arrays)
        if calibration is None:
            return {}
        smallest = float(calibration.p_values.min())
        return {"smallest_rank_p_value": smallest, "num_simulations": len(calibration.ranks)}
