import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import in_float64

from vaejax import evaluation, models


@pytest.mark.slow
def test_variances_of_the_linear_model(x64):
    """Samples have the variance of W z, and with the noise that of x under the model: W^T W + s^2 I."""
    vae = models.linear_vae(4, 2)
    params = in_float64(vae.init(jax.random.key(0)))
    kernel = params["decoder"]["network"]["layer_0"]["kernel"]
    params["decoder"]["head"]["log_std"] = jnp.array(-1.0)
    x = jax.random.normal(jax.random.key(1), (20_000, 4))
    loss = evaluation.variance_loss(vae, params, jax.random.key(2), x)
    np.testing.assert_allclose(loss.data, np.asarray(x).var(axis=0).sum(), rtol=1e-12)
    std = vae.decode(params, jnp.zeros(2)).variance
    np.testing.assert_allclose(loss.noise, std.sum(), rtol=1e-12)
    np.testing.assert_allclose(loss.samples, (kernel**2).sum(), rtol=0.05)
    np.testing.assert_allclose(loss.per_number[2], (kernel**2).sum(axis=0), rtol=0.05)
    np.testing.assert_allclose(loss.per_number.sum(axis=1), [loss.data, loss.reconstructions, loss.samples], rtol=1e-12)
    q = vae.encode(params, x)
    spread = np.cov((q.mean @ kernel).T, bias=True).trace() + (q.variance[0] @ kernel**2).sum()
    np.testing.assert_allclose(loss.reconstructions, spread, rtol=0.05)


def test_the_power_of_one_wave(x64):
    """Eight pixels across, one wave of 2 cycles in 8 pixels: all power in the ring that holds 0.25 cycles per pixel."""
    phases = jax.random.uniform(jax.random.key(0), (500, 1, 1), maxval=2 * np.pi)
    images = jnp.sqrt(2.0) * jnp.cos(np.pi / 2 * np.arange(8.0)[None, None] + phases)
    images = jnp.broadcast_to(images, (500, 8, 8))
    spectrum = evaluation.power_spectrum(images)
    ring = int(np.searchsorted(spectrum.frequency, 0.25, side="right")) - 1
    assert spectrum.frequency[ring] <= 0.25
    np.testing.assert_allclose(spectrum.power[ring], images.var(axis=0).mean(), rtol=1e-9)
    np.testing.assert_allclose(spectrum.power.sum(), spectrum.power[ring], rtol=1e-9)


@pytest.mark.parametrize("shape", [(50, 8, 8), (50, 7, 12), (50, 6, 6, 3)])
def test_powers_add_up_to_the_variance(shape, x64):
    images = jax.random.normal(jax.random.key(0), shape) + 5
    spectrum = evaluation.power_spectrum(images)
    depth = shape[3] if len(shape) == 4 else 1
    np.testing.assert_allclose(spectrum.power.sum(), images.var(axis=0).mean() * depth, rtol=1e-9)
    assert spectrum.frequency.shape == spectrum.power.shape == (min(shape[1:3]) // 2,)
    assert evaluation.power_spectrum(images, 10).power.shape == (10,)


def test_blur_is_power_lost_at_high_frequencies(x64):
    sharp = jax.random.normal(jax.random.key(0), (200, 16, 16))
    blurred = (sharp + jnp.roll(sharp, 1, axis=1) + jnp.roll(sharp, 1, axis=2) + jnp.roll(sharp, (1, 1), (1, 2))) / 4
    ratio = evaluation.power_spectrum(blurred).power / evaluation.power_spectrum(sharp).power
    assert ratio[0] > 0.9
    assert ratio[-1] < 0.1


def test_bad_input_is_refused():
    vae = models.linear_vae(4, 2)
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match="expected at least 2 examples; got 1"):
        evaluation.variance_loss(vae, params, jax.random.key(1), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"expected images of shape \(n, height, width\).*got \(3, 4\)"):
        evaluation.power_spectrum(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="images"):
        evaluation.power_spectrum(jnp.full((3, 4, 4), jnp.nan))
    with pytest.raises(ValueError, match="num_rings must be an integer of at least 1; got 0"):
        evaluation.power_spectrum(jnp.ones((3, 4, 4)), 0)
