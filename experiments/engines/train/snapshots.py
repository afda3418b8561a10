"""What the pictures of a run show, saved as arrays while the model is at hand; `plots.py` draws from them alone."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import run_folder
from vaejax import data, distributions, evaluation, models, training

SAMPLE_KEY = 20_131_220  # the same samples from the prior in every picture of every run

NUM_LATENT_POINTS = 2000  # examples in the pictures of the latent space

NUM_PICTURES = 10  # images from the prior in each column of the strip

NUM_POINTS = 500  # and points, where the data are no images


class Viewer:
    """Saves, as arrays, what the pictures show; `plots.py` draws them."""

    def __init__(self, vae: models.VAE, test: np.ndarray, original: data.Dataset, folder: pathlib.Path):
        rows = np.random.default_rng(0).permutation(len(test))[:NUM_LATENT_POINTS]  # some sets are sorted by class
        self.vae, self.folder = vae, folder
        self.test, self.original = jnp.asarray(test)[rows], original.images[rows]
        self.labels = np.zeros(0, np.int32) if original.labels is None else original.labels[rows]
        self.decode = jax.jit(lambda params, z: vae.decode(params, z).mean)
        self.generate = jax.jit(self._generate, static_argnums=1)

    def snapshot(self, state: training.TrainState) -> None:
        """Latents of the test images and samples from the prior, at this step of training."""
        step = int(state.step)
        latents = np.asarray(evaluation.posterior_means(self.vae, state.params, self.test))
        count = NUM_PICTURES if self.original.ndim > 2 else NUM_POINTS
        run_folder.write_arrays(
            self.folder / "snapshots" / f"step_{step:08d}.npz",
            step=step,
            codes=latents,
            labels=self.labels,
            samples=np.asarray(self.generate(state.params, count)),
        )

    def _generate(self, params, count: int) -> jax.Array:
        """From z of the prior: means of p(x|z) where they are images, whose noise would hide them; else samples."""

        def one(key):
            latent_key, noise_key = jax.random.split(key)
            p = self.vae.decode(params, distributions.sample(self.vae.prior(params), latent_key))
            return p.mean if self.original.ndim > 2 else distributions.sample(p, noise_key)

        return jax.vmap(one)(jax.random.split(jax.random.key(SAMPLE_KEY), count))

    def pictures(self, params) -> None:
        """Test images, what the model sees of them, reconstructions, prior samples; for two latents, the manifold."""
        latents = evaluation.posterior_means(self.vae, params, self.test)
        arrays = {
            "originals": self.original[:1000],
            "binarized": np.asarray(self.test[:1000]),
            "reconstructions": np.asarray(self.decode(params, latents[:1000])),
            "samples": np.asarray(self.generate(params, 1000)),
        }
        continuous = jnp.issubdtype(distributions.sample(self.vae.prior(params), jax.random.key(0)).dtype, jnp.floating)
        if latents.shape[1] == 2 and continuous:
            # Equal steps of probability under the prior, as in figure 4 of Kingma & Welling 2014.
            quantiles = jax.scipy.stats.norm.ppf((jnp.arange(20.0) + 0.5) / 20)
            grid = jnp.stack(jnp.meshgrid(quantiles, -quantiles), axis=-1)
            arrays["manifold"] = np.asarray(self.decode(params, grid))
        run_folder.write_arrays(self.folder / "pictures.npz", **arrays)
