"""Programs that are compiled for a model are kept, once, and freed with it."""

import gc
import weakref

import jax
import jax.numpy as jnp
import pytest

from vaejax import evaluation, models


@pytest.mark.exhaustive
def test_a_program_is_compiled_once_and_freed_with_its_model():
    traced = []

    @models.compiled(1)
    def means(scale, vae, params, x):
        traced.append(1)
        return scale * vae.encode(params, x).mean

    def use():
        vae = models.linear_vae(data_dim=3, latent_dim=2)
        params = vae.init(jax.random.key(0))
        for _ in range(3):
            assert means(2.0, vae, params, jnp.ones((7, 3))).shape == (7, 2)
        evaluation.elbo(vae, params, jax.random.key(1), jnp.ones((7, 3)), 3)
        return weakref.ref(vae.encode)

    first = use()
    assert len(traced) == 1
    gc.collect()
    assert first() is None
    use()
    assert len(traced) == 2


def test_a_model_whose_functions_hold_nothing_is_served():
    plain = models.linear_vae(data_dim=3, latent_dim=2)
    vae = plain._replace(encode=jax.jit(plain.encode))
    params = vae.init(jax.random.key(0))
    results = [evaluation.posterior_means(model, params, jnp.ones((7, 3))) for model in (vae, plain)]
    assert jnp.allclose(*results)
