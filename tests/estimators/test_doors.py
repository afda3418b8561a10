"""What is no estimator is refused where it is handed in; and holes that mutants found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import distributions, estimators, models, objectives


@pytest.mark.parametrize("wrong", [estimators.score_function, "reinforce", 3, [], lambda: 0, lambda key, q: 0])
def test_what_is_no_estimator_is_refused(wrong, no_type_hook):
    vae = models.mlp_vae((3,), 2, (5,))
    for make in (
        lambda: objectives.make_elbo(vae, wrong),
        lambda: estimators.expectation(wrong, lambda mean: None, lambda mean, z: z),
    ):
        with pytest.raises(TypeError, match="expected an estimator, such as"):
            make()


def test_an_uncalled_factory_is_named():
    with pytest.raises(TypeError, match=r"call it, score_function\(\)"):
        estimators.as_estimator(estimators.score_function)


@pytest.mark.parametrize("wrong", [3, True, [], lambda: 0])
def test_a_wrong_baseline_is_refused(wrong, no_type_hook):
    with pytest.raises(ValueError, match="baseline must be None, 'leave_one_out'"):
        estimators.score_function(wrong)


def test_vimcos_mean_of_the_others():
    """One that is off by a sample stays unbiased and is only noisier: so the estimate is held against the equation."""
    reduce = estimators.log_mean_exp_reduction()

    def bound(logits):
        q = distributions.BernoulliLogits(logits)
        values = jnp.array([-0.5, 1.2])
        integrand = lambda z, q: (values[z], z)  # noqa: E731
        return tuple(estimators.vimco()(jax.random.key(1), q, integrand, 3, reduce))

    gradient, z = jax.grad(bound, has_aux=True)(0.4)
    assert set(z.tolist()) == {0, 1}
    log_w = np.array([-0.5, 1.2])[np.asarray(z)]
    total = np.log(np.exp(log_w).mean())
    expected = 0.0
    for k in range(3):
        replaced = log_w.copy()
        replaced[k] = np.delete(log_w, k).mean()
        expected += (total - np.log(np.exp(replaced).mean())) * (float(z[k]) - 1 / (1 + np.exp(-0.4)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.exhaustive
def test_importance_weights_do_not_carry_the_weight_of_the_kl():
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0]])
    plain, heavy = (
        objectives.make_iwae(vae, num_samples=5, beta=beta)(params, jax.random.key(1), x)[1] for beta in (1.0, 4.0)
    )
    np.testing.assert_array_equal(plain.log_w, heavy.log_w)
    np.testing.assert_array_equal(plain.ess, heavy.ess)
    assert plain.bound != heavy.bound


@pytest.mark.slow
def test_the_bandwidth_counts():
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = vae.init(jax.random.key(0)), jnp.eye(3)
    values = [
        float(objectives.make_info_vae(vae, 10.0, bandwidth=width)(params, jax.random.key(1), x)[0])
        for width in (None, 2.0**0.5, 0.1)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)  # sqrt(latent_dim)
    assert values[0] != pytest.approx(values[2], rel=1e-3)
