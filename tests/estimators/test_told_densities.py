"""A q that computes a sample and its density in one pass is asked for both at once."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vaejax import distributions, estimators, evaluation, models, objectives


class OnePass(dist.Normal):
    """A Gaussian that counts who asks for what."""

    asked = []  # noqa: RUF012

    def rsample_with_log_prob(self, key):
        OnePass.asked.append("both")
        noise = jax.random.normal(key, self.batch_shape)
        return self.loc + self.scale * noise, dist.Normal(0.0, 1.0).log_prob(noise) - jnp.log(self.scale)


class OnePassVector(dist.Independent):
    def rsample_with_log_prob(self, key):
        z, log_q = self.base_dist.rsample_with_log_prob(key)
        return z, log_q.sum(-1)


def pair(num_samples, make):
    """The same objective of the same posterior, once as numpyro has it and once in one pass."""
    plain = models.mlp_vae((3,), 2, (4,))

    def encode(params, x):
        base = distributions.without_wrappers(plain.encode(params, x))
        return OnePassVector(OnePass(base.loc, base.scale), 1)

    return [make(vae, num_samples) for vae in (plain, plain._replace(encode=encode))], plain


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["sampled", "analytic", "entropy"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_pathwise_asks_once(kl, chunk_size):
    OnePass.asked.clear()
    (one, other), vae = pair(4, lambda vae, k: objectives.make_elbo(vae, num_samples=k, kl=kl, chunk_size=chunk_size))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    expected = jax.grad(one, has_aux=True)(params, jax.random.key(1), x)
    result = jax.grad(other, has_aux=True)(params, jax.random.key(1), x)
    assert OnePass.asked
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), expected, result)


@pytest.mark.slow
def test_evaluation_and_other_estimators_serve_it():
    OnePass.asked.clear()
    (one, other), vae = pair(4, lambda vae, k: objectives.make_iwae(vae, estimators.doubly_reparameterized(), k))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(*(f(params, jax.random.key(1), x)[0] for f in (one, other)), rtol=1e-5)
    _, encoded = pair(1, lambda vae, k: vae)[0]
    results = [evaluation.log_likelihood(model, params, jax.random.key(2), x, 50) for model in (vae, encoded)]
    np.testing.assert_allclose(results[0].estimate, results[1].estimate, rtol=1e-4)
    assert "both" in OnePass.asked
