"""What reconstructions and samples lose of the data's variance, and at which spatial frequencies: blur, measured."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models, records
from vaejax.distributions import Params
from vaejax.evaluation.examples import checked_examples, like_posterior, over_batch
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled


class VarianceLoss(NamedTuple):
    """Variances over examples, each summed over the numbers of an example, in squared units of the data.

    A model that fits has `samples` + `noise` = `data`. An image that is shown as the mean of p(x|z) lacks the noise:
    the sharper p(x|z), the less it lacks.

    Attributes:
        data: variance of the examples. ()
        reconstructions: variance of E[x|z], with z from q(z|x) of the examples. ()
        samples: variance of E[x|z], with z from the prior. ()
        noise: mean of Var[x|z], with z from the prior. ()
        per_number: the first three variances for each number of an example. (3, *data_shape)

    >>> loss = VarianceLoss(*jnp.array([8.0, 7.0, 6.0, 2.0]), per_number=jnp.ones((3, 4)))
    >>> bool(loss.samples + loss.noise == loss.data), float(loss.samples / loss.data)  # the means show 3/4 of it
    (True, 0.75)
    """

    data: Float[Array, ""]
    reconstructions: Float[Array, ""]
    samples: Float[Array, ""]
    noise: Float[Array, ""]
    per_number: Float[Array, "3 *data"]

    __repr__ = records.short_repr


class PowerSpectrum(NamedTuple):
    """Power of images minus their mean image, by spatial frequency; the powers sum to the variance of a pixel.

    Attributes:
        frequency: lower edges of rings of equal width, in cycles per pixel, from 0 to at most 0.5 * sqrt(2). (rings,)
        power: variance of a pixel due to each ring, in squared units of the data. (rings,)

    >>> checkerboard = jnp.where(jnp.indices((8, 8)).sum(axis=0) % 2, 1.0, -1.0)
    >>> spectrum = power_spectrum(jnp.stack([checkerboard, -checkerboard]))
    >>> [round(float(power), 3) for power in spectrum.power]  # all of a pixel's variance, 1, is in the finest details
    [0.0, 0.0, 0.0, 1.0]
    """

    frequency: Float[Array, " rings"]
    power: Float[Array, " rings"]

    __repr__ = records.short_repr


def variance_loss(
    vae: VAE, params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, batch_size: int = 100
) -> VarianceLoss:
    """Variance over examples of data, reconstructions and samples: what blur costs.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch` without a mask; as many samples are drawn, with the same
            contexts.
        batch_size: examples at once.

    Returns:
        The variances, in squared units of the data.

    Raises:
        ValueError: if there are fewer than two examples, batch_size is not a positive integer, p(x|z) has no mean,
            numbers are missing, or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> loss = variance_loss(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> loss.per_number.shape
    (3, 3)
    """
    x = checked_examples(vae, params, x, least=2, key=key, batch_size=batch_size)
    if isinstance(x, Batch) and x.mask is not None:
        raise ValueError("expected data without a mask, for a variance of data that were not observed is not known")
    if not has_mean(vae, params, x):
        raise ValueError("expected a p(x|z) with a mean and a variance; got one without, as of sequences of tokens")
    reconstructions, samples, noise = reconstructions_and_samples(vae, batch_size, params, key, x)
    per_number = jnp.stack([images.var(axis=0) for images in (models.numbers_of(x), reconstructions, samples)])
    totals = per_number.reshape(3, -1).sum(axis=1)
    return VarianceLoss(*totals, noise=noise.mean(axis=0).sum(), per_number=per_number)


def has_mean(vae: VAE, params: Params, x: Batch | ArrayLike) -> bool:
    """Whether p(x|z) of these data has a mean and a variance, as images have and sequences of tokens have not."""
    q = like_posterior(vae, params, x)

    def moments(params, x):
        model, _ = models.given(vae, x)
        p = model.decode(params, jnp.zeros(q.shape()))
        return p.mean, p.variance

    try:
        jax.eval_shape(moments, params, x)
    except NotImplementedError:  # numpyro's, of a distribution that defines none
        return False
    return True


@compiled(0, 1)
def reconstructions_and_samples(
    vae: VAE, batch_size: int, params: Params, key: Key[Array, ""], x: Batch | ArrayLike
) -> tuple[Array, Array, Array]:
    """E[x|z] for z from q(z|x) of each example, then E[x|z] and Var[x|z] for as many z from the prior.

    Args:
        vae: the model, whose p(x|z) has a mean and a variance.
        batch_size: examples at once.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), or a `models.Batch`; not checked.

    Returns:
        Reconstructions, samples, and the noise variance of the samples, each (n, *data_shape).

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> [images.shape for images in reconstructions_and_samples(vae, 100, params, jax.random.key(1), x)]
    [(7, 3), (7, 3), (7, 3)]
    """
    posterior_key, prior_key = jax.random.split(key)

    def one_example(index, x):
        model, x = models.given(vae, x)
        from_posterior = distributions.sample(model.encode(params, x), jax.random.fold_in(posterior_key, index))
        from_prior = distributions.sample(model.prior(params), jax.random.fold_in(prior_key, index))
        sampled = model.decode(params, from_prior)
        return model.decode(params, from_posterior).mean, sampled.mean, sampled.variance

    return over_batch(one_example, vae, params, x, batch_size)


def power_spectrum(images: ArrayLike, num_rings: int | None = None) -> PowerSpectrum:
    """Mean power of images in rings of spatial frequency, |FFT of (image - mean image)|^2.

    Args:
        images: (n, height, width) or (n, height, width, depth), n >= 2; the power is summed over the depth.
        num_rings: into which the frequencies are cut; by default half of the shorter side.

    Returns:
        The frequency of each ring in cycles per pixel, and its power; the powers sum to the variance of a pixel.

    Raises:
        ValueError: if the images have another shape or a value that is not finite, or num_rings is not a positive
            integer.

    >>> spectrum = power_spectrum(jax.random.normal(jax.random.key(0), (1000, 8, 8)))
    >>> round(float(spectrum.power.sum()), 1)  # Parseval: the variance of a pixel
    1.0
    """
    images = jnp.asarray(checks.as_array(images, "images"))
    if images.ndim not in (3, 4) or len(images) < 2:
        raise ValueError(
            f"expected images of shape (n, height, width) or (n, height, width, depth), n >= 2; got {images.shape}"
        )
    checks.check_finite(images, "images")
    height, width = images.shape[1:3]
    num_rings = max(1, min(height, width) // 2) if num_rings is None else num_rings
    checks.check_count("num_rings", num_rings)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    edge = 0.5 * math.sqrt(2) / num_rings
    ring = np.minimum((radius / edge).astype(int), num_rings - 1)
    frequency = jnp.asarray(edge * np.arange(num_rings), images.dtype)
    return PowerSpectrum(frequency, _power_in_rings(images, jnp.asarray(ring), num_rings))


@functools.partial(jax.jit, static_argnums=2)
def _power_in_rings(images: Array, ring: Array, num_rings: int) -> Float[Array, " rings"]:
    centred = images - images.mean(axis=0, keepdims=True)
    amplitudes = jnp.fft.fft2(centred, axes=(1, 2)) / (images.shape[1] * images.shape[2])
    power = (jnp.abs(amplitudes) ** 2).mean(axis=0).reshape(ring.size, -1).sum(axis=1)
    return jax.ops.segment_sum(power, ring.reshape(-1), num_rings)
