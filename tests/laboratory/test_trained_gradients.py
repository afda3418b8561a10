"""What the literature says of the noise of gradients, on a VAE that was trained on real digits."""

import functools

import jax
import optax
import pytest

from vaejax import data, estimators, laboratory, models, objectives, training

pytestmark = pytest.mark.slow
LATENT_DIM = 5


@pytest.fixture(scope="module")
def trained():
    """The model, its parameters after 2,000 steps, and fifty binarized digits."""
    digits = data.load("digits", split="train")
    vae = models.mlp_vae(data_shape=(8, 8), latent_dim=LATENT_DIM, hidden_sizes=(50,))
    optimizer = optax.adam(3e-3)
    step = training.make_train_step(objectives.make_elbo(vae), optimizer, prepare=data.binarize_dynamic)
    run = jax.jit(functools.partial(training.fit, step, num_steps=2000, batch_size=100))
    state, history = run(training.init_state(vae.init(jax.random.key(3)), optimizer), jax.random.key(4), digits.images)
    assert history.elbo[-50:].mean() > -25  # nats per example; it starts at -50
    return vae, state.params, data.binarize_dynamic(jax.random.key(2), digits.images[:50])


def encoder_summary(objective, params, x, num_repeats):
    moments = laboratory.gradient_moments(objective, params, jax.random.key(7), x, num_repeats)
    return laboratory.summarize(moments, level=0.99)["encoder"]


@pytest.mark.parametrize("num_samples", [4, 16])
def test_pathwise_below_leave_one_out_below_plain_score_function(trained, num_samples):
    vae, params, x = trained
    ordered = (
        estimators.pathwise(),
        estimators.score_function(baseline="leave_one_out"),
        estimators.score_function(),
    )
    pathwise, leave_one_out, plain = (
        encoder_summary(objectives.make_elbo(vae, estimator, num_samples, kl="sampled"), params, x, 300)
        for estimator in ordered
    )
    assert pathwise.variance_upper < leave_one_out.variance_lower
    assert 20 * leave_one_out.variance_upper < plain.variance_lower
    # Averages of K independent terms, or nearly: the intervals are no wider than they should be.
    for part in (pathwise, leave_one_out, plain):
        assert part.variance_upper / part.variance_lower < 1.2


def test_signal_to_noise_of_the_importance_weighted_bound(trained):
    """Rainforth et al. 2018 and Tucker et al. 2019, for weights that have the moments that they assume.

    The ELBO leaves posteriors too narrow for that, so the rates are tested with each of them widened by e^0.3.
    """
    vae, params, x = trained
    x = x[:10]
    encoder = params["encoder"]["network"]
    log_std_bias = encoder["layer_1"]["bias"].at[LATENT_DIM:].add(0.3)
    widened = encoder | {"layer_1": encoder["layer_1"] | {"bias": log_std_bias}}
    widened = params | {"encoder": params["encoder"] | {"network": widened}}
    of_name = {"pathwise": estimators.pathwise(), "doubly": estimators.doubly_reparameterized()}
    bounds = {(name, K): objectives.make_iwae(vae, of_name[name], K) for name in of_name for K in (8, 64)}

    at_64 = {name: encoder_summary(bounds[name, 64], params, x, 500) for name in of_name}
    assert at_64["doubly"].variance_upper < at_64["pathwise"].variance_lower

    ratios = {
        case: encoder_summary(bound, widened, x, 500).coordinate_signal_to_noise for case, bound in bounds.items()
    }
    noise_floor = 0.34 / 500**0.5
    assert ratios["pathwise", 64] < 0.6 * ratios["pathwise", 8]  # 0.35 asymptotically
    assert ratios["doubly", 64] > 1.4 * ratios["doubly", 8]  # 2.8 asymptotically
    assert ratios["doubly", 8] > 3 * ratios["pathwise", 8] > 6 * noise_floor
