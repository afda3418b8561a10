"""Keys: in each kind of run no key is drawn from twice, and none both split and folded, or drawn from as well."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from key_recorder import recorded

from vaejax import autoencoders, data, estimators, evaluation, inference, laboratory, models, objectives, training
from vaejax.autoencoders import adversarial
from vaejax.data import augmentation
from vaejax.models import sequences

X = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], np.float32)


def small(posterior="gaussian", likelihood="bernoulli"):
    return models.mlp_vae((3,), 2, (4,), likelihood, posterior=posterior)


def started(vae, estimator=None):
    """Parameters of a model, and of the estimator's baseline."""
    params = vae.init(jax.random.key(0))
    if estimator is None or estimator.baseline is None:
        return params
    return estimators.with_baseline(params, estimator, jax.random.key(1), jnp.asarray(X))


def fit(objective, params, prepare=data.binarize_dynamic, **options):
    optimizer = estimators.baselines.with_optimizer(optax.sgd(0.01)) if "baseline" in params else optax.sgd(0.01)
    step = training.make_train_step(objective, optimizer, prepare)
    state = training.init_state(params, optimizer)
    return training.fit(step, state, jax.random.key(2), X, num_steps=5, batch_size=2, **options)


def fit_with(estimator, *, posterior="gaussian", num_samples=3, make=objectives.make_elbo, **options):
    vae = small(posterior)
    fit(make(vae, estimator, num_samples=num_samples, **options), started(vae, estimator))


def fit_em():
    vae, optimizers = small(), (optax.sgd(0.01), optax.sgd(0.01))
    step = inference.make_variational_em_step(objectives.make_elbo(vae), *optimizers, num_e_steps=2, num_m_steps=2)
    state = inference.init_groups(started(vae), *optimizers)
    training.fit(step, state, jax.random.key(2), X, num_steps=3, batch_size=2)


def fit_aggressively():
    vae, optimizers = small(), (optax.sgd(0.01), optax.sgd(0.01))
    sizes = {"batch_size": 1, "max_encoder_steps": 2, "window": 1, "check_every": 1, "patience": 9}
    step = inference.make_aggressive_train_step(
        vae, objectives.make_elbo(vae), *optimizers, X, prepare=data.binarize_dynamic, **sizes
    )
    state = inference.init_lagging(started(vae), *optimizers)
    training.fit(step, state, jax.random.key(2), X, num_steps=4, batch_size=3)


def fit_population():
    vae = small()
    step = training.make_train_step(objectives.make_elbo(vae), optax.sgd(0.01), data.binarize_dynamic)
    init_keys, keys = (jax.random.split(jax.random.key(i), 2) for i in (0, 1))
    states = training.init_population(vae.init, optax.sgd(0.01), init_keys)
    training.fit_population(lambda _: step, states, keys, X, num_steps=3, batch_size=2)


def fit_batches():
    vae = small()
    step = training.make_train_step(objectives.make_elbo(vae), optax.sgd(0.01), data.binarize_dynamic)
    training.fit_batches(
        step, training.init_state(started(vae), optax.sgd(0.01)), jax.random.key(2), np.stack([X, X, X])
    )


def measure_moments():
    vae = small()
    laboratory.gradient_moments(objectives.make_elbo(vae), started(vae), jax.random.key(2), X, num_repeats=4)


def compare_estimators():
    vae = small()
    named = {"pathwise": estimators.pathwise(), "score": estimators.score_function()}
    laboratory.compare(vae, started(vae), jax.random.key(2), X, named, (1, 2), num_repeats=3, num_rounds=2)


def evaluated(function, *, params_of=small, **options):
    vae = params_of()
    return function(vae, started(vae), jax.random.key(2), X, **options)


def draw_sets():
    for draw in (data.two_gaussians, data.spiral, data.linear_gaussian):
        draw(jax.random.key(len(draw.__name__)), 5)
    data.binarize_dynamic(jax.random.key(1000), X)
    data.linear_gaussian_parameters(jax.random.key(1001))


def draw_sequences():
    vae, params = sequences.latent_lstm(jax.random.key(0), vocabulary_size=3, length=2, hidden_size=3)
    sequences.draw(vae, params, jax.random.key(7), 3)


def play():
    gan = adversarial.mlp_gan((3,), 2, (4,))
    adversarial.sample(gan, gan.init(jax.random.key(0)), jax.random.key(1), 3)


ESTIMATORS = {
    "pathwise": (estimators.pathwise(), {}),
    "pathwise in chunks": (estimators.pathwise(), {"chunk_size": 2, "kl": "sampled"}),
    "sticking the landing": (estimators.sticking_the_landing(), {"kl": "sampled"}),
    "doubly reparameterized": (estimators.doubly_reparameterized(), {"make": objectives.make_iwae}),
    "score function": (estimators.score_function(), {"posterior": "bernoulli"}),
    "leave one out": (estimators.score_function("leave_one_out"), {"posterior": "bernoulli"}),
    "moving average": (estimators.score_function("moving_average"), {"posterior": "bernoulli"}),
    "nvil": (estimators.score_function("nvil"), {"posterior": "bernoulli"}),
    "vimco": (estimators.vimco(), {"posterior": "bernoulli", "make": objectives.make_iwae}),
    "measure-valued": (estimators.measure_valued(), {"kl": "sampled"}),
    "enumerated": (estimators.enumerate_support(), {"posterior": "bernoulli", "num_samples": 1}),
    "Renyi": (estimators.pathwise(), {"make": lambda vae, *args, **kw: objectives.make_renyi(vae, 0.5, *args, **kw)}),
    "free bits": (
        estimators.pathwise(),
        {"make": lambda vae, *args, **kw: objectives.make_free_bits(vae, 0.1, *args, **kw)},
    ),
    "MMD": (estimators.pathwise(), {"make": lambda vae, *args, **kw: objectives.make_info_vae(vae, 1.0, *args, **kw)}),
}
AUTOENCODER = functools.partial(autoencoders.mlp_autoencoder, (3,), 2, (4,))
RUNS = {
    **{name: functools.partial(fit_with, estimator, **options) for name, (estimator, options) in ESTIMATORS.items()},
    "best std": lambda: fit(
        objectives.make_optimal_std_elbo(small(likelihood="gaussian_shared_std")),
        started(small(likelihood="gaussian_shared_std")),
    ),
    "denoising": lambda: fit(
        autoencoders.make_reconstruction(AUTOENCODER(), corrupt=autoencoders.gaussian_noise(0.1)),
        started(AUTOENCODER()),
    ),
    "variational EM": fit_em,
    "aggressive": fit_aggressively,
    "population": fit_population,
    "batches": fit_batches,
    "moments": measure_moments,
    "comparison": compare_estimators,
    "report": lambda: evaluated(evaluation.report, num_samples=3),
    "sweep": lambda: evaluated(evaluation.log_likelihood_sweep, num_samples=(1, 3)),
    "from the prior": lambda: evaluated(evaluation.log_likelihood_from_prior, num_samples=3),
    "annealing": lambda: evaluated(evaluation.annealed_log_likelihood, num_chains=2, num_temperatures=3),
    "per example": lambda: evaluated(inference.inference_gap, num_steps=3, num_samples=3),
    "shared": lambda: evaluated(inference.fit_shared_posterior, num_steps=3, batch_size=2, eval_samples=3),
    "both sides": lambda: evaluation.bidirectional_bounds(
        small(), started(small()), jax.random.key(2), num_examples=2, num_chains=2, num_temperatures=3, num_leapfrog=2
    ),
    "augmentation": lambda: augmentation.random_affine()(jax.random.key(0), np.ones((3, 4, 4), np.float32)),
    "sets": draw_sets,
    "sequences": draw_sequences,
    "game": play,
}


QUICK = ("measure-valued", "pathwise in chunks", "variational EM", "augmentation")
LONG = ("both sides", "per example", "comparison", "annealing")
MARKS = dict.fromkeys(QUICK, ()) | dict.fromkeys(LONG, pytest.mark.exhaustive)
SOME = [pytest.param(run, marks=MARKS.get(name, pytest.mark.slow), id=name) for name, run in RUNS.items()]


@pytest.mark.parametrize("run", SOME)
def test_no_key_serves_twice(run):
    with recorded() as record:
        run()
    assert not record.faults()


def test_the_record_sees_what_the_checker_of_jax_does_not():
    key = jax.random.key

    def split_and_fold(key):
        halves = jax.random.split(jax.random.clone(key))
        return jax.random.normal(halves[1]), jax.random.normal(jax.random.fold_in(key, 1))

    def again_in_a_loop(key):
        return jax.lax.scan(lambda key, _: (key, jax.random.normal(jax.random.clone(key))), key, jnp.arange(3))[1]

    def draw_and_fold(key):
        return jax.random.normal(jax.random.clone(key)), jax.random.normal(jax.random.fold_in(key, 0))

    for number, fault in ((2, split_and_fold), (1, again_in_a_loop), (1, draw_and_fold)):
        for run in (fault, jax.jit(fault), lambda key, fault=fault: jax.vmap(fault)(key[None])):
            with recorded() as record:
                run(jax.random.key(0))
            assert len(record.faults()) == number, fault
    with recorded() as record:
        first, second = jax.random.split(jax.random.key(0))
        jax.vmap(jax.random.normal)(jax.random.split(first, 3))
        jax.random.normal(second)
    assert not record.faults()
    assert sum(use == "draw" for uses in record.uses.values() for use, _ in uses) == 4
    assert jax.random.key is key
