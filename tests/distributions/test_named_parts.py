"""Distributions of named parts, and log-probabilities of softened samples."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from vaejax import distributions, estimators, models, objectives
from vaejax.distributions import Parts, Weights, relaxed, side_by_side


def parts():
    return Parts(
        c=dist.CategoricalLogits(jnp.array([[0.3, -1.0, 0.5]] * 4)),
        b=distributions.BernoulliLogits(jnp.array([[0.3, -1.0]] * 4)).to_event(1),
        z=dist.Normal(jnp.ones((4, 3)), 2.0).to_event(1),
    )


def test_a_sample_holds_the_parts_in_their_order():
    q = parts()
    assert q.batch_shape == (4,)
    assert q.event_shape == (6,)

    @jax.jit
    def densities(key):
        value = distributions.sample(q, key)
        split = q.split(value)
        each = [distributions.log_prob(q.parts[name], split[name]) for name in split]
        return value, split, sum(each), distributions.log_prob(q, value), distributions.own_log_prob(q, value)

    value, split, expected, log_prob, own = densities(jax.random.key(0))
    assert {name: part.shape for name, part in split.items()} == {"c": (4,), "b": (4, 2), "z": (4, 3)}
    np.testing.assert_array_equal(q.joined(split), value)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(own, expected, rtol=1e-6)


def test_the_kl_is_the_sum_of_those_of_the_parts():
    q = parts()
    p = Parts(
        c=dist.CategoricalLogits(jnp.zeros(3)),
        b=distributions.BernoulliLogits(jnp.zeros(2)).to_event(1),
        z=dist.Normal(jnp.zeros(3), jnp.ones(3)).to_event(1),
    )

    @jax.jit
    def numbers():
        kl = sum(distributions.kl_divergence(q.parts[name], p.parts[name]) for name in "cbz")
        entropy = sum(distributions.entropy(q.parts[name]) for name in "cbz")
        return (kl, entropy), (distributions.kl_divergence(q, p), distributions.entropy(q))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *numbers())


def test_a_part_may_depend_on_those_before():
    def after(before):
        c = before["c"][..., None]
        return dist.Normal(jnp.concatenate([100 * c, -100 * c], axis=-1), 1.0).to_event(1)

    q = Parts(c=dist.CategoricalLogits(jnp.zeros((4, 3))), z=after)
    assert q.event_shape == (3,)

    @jax.jit
    def densities(key):
        value = distributions.sample(q, key)
        many = jnp.stack([value, value + jnp.array([[0.0, 1.0, 1.0]])])
        return value, distributions.log_prob(q, many)

    value, log_prob = map(np.asarray, densities(jax.random.key(0)))
    noise = value[:, 1:] - value[:, :1] * [100, -100]
    assert (np.abs(noise) < 10).all()
    np.testing.assert_allclose(log_prob[0], -np.log(3) + stats.norm.logpdf(noise).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(log_prob[1], -np.log(3) + stats.norm.logpdf(noise + 1).sum(axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="of which one depends on others; use kl='sampled'"):
        distributions.kl_divergence(q, Parts(c=dist.CategoricalLogits(jnp.zeros(3)), z=after))


def test_it_is_a_tree_that_keeps_the_order():
    q = jax.tree.map(lambda leaf: leaf, parts())
    assert q.names == ("c", "b", "z")
    assert q.split(jnp.arange(24.0).reshape(4, 6))["c"].tolist() == [0.0, 6.0, 12.0, 18.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Parts, "got none"),
        (lambda: Parts(z=dist.Normal(jnp.zeros((4, 3, 2)), 1.0).to_event(2)), r"to_event\(1\)"),
        (lambda: Parts(y=dist.Normal(jnp.zeros(4), 1.0), z=dist.Normal(jnp.zeros(3), 1.0)), "batch shape"),
        (lambda: Parts(y=3), "a distribution must be one of numpyro's kind"),
        (lambda: Parts(y=dist.Normal), "the class Normal"),
    ],
)
def test_what_are_no_parts_is_refused(make, words, no_type_hook):
    with pytest.raises(ValueError, match=words):
        make()


BITS, NUMBERS = (2, distributions.bernoulli()), (3, distributions.gaussian())


def test_heads_side_by_side_each_take_their_share_of_the_outputs():
    head = side_by_side(b=BITS, z=NUMBERS)
    first, second = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    value = np.concatenate([np.array([[0, 1], [1, 1], [0, 0], [1, 0]]), 3 * np.ones((4, 3))], axis=1)
    q = head.apply({}, jnp.asarray(first), jnp.asarray(second))
    log_std = 8 * np.tanh(second[:, 2:] / 8)
    expected = stats.bernoulli.logpmf(value[:, :2], 1 / (1 + np.exp(-first[:, :2]))).sum(axis=1)
    expected += stats.norm.logpdf(value[:, 2:], first[:, 2:], np.exp(log_std)).sum(axis=1)
    np.testing.assert_allclose(distributions.log_prob(q, jnp.asarray(value, jnp.float32)), expected, rtol=1e-5)
    prior = head.prior((5,), jnp.float32)
    expected = 2 * np.log(0.5) + 3 * stats.norm.logpdf(3.0)
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(value, jnp.float32)), 4 * [expected], rtol=1e-5)
    assert side_by_side(z=NUMBERS, b=BITS).outputs_for((5,)) == 2


@pytest.mark.slow
def test_a_model_with_heads_side_by_side_has_their_kl():
    vae = models.mlp_vae((3,), 5, (4,), posterior=side_by_side(b=BITS, z=NUMBERS))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    models.check_data(vae, params, x)
    q = vae.encode(params, x)
    assert q.is_discrete
    p, mean, var = (np.asarray(part) for part in (q.parts["b"].mean, q.parts["z"].mean, q.parts["z"].variance))
    expected = (p * np.log(2 * p) + (1 - p) * np.log(2 - 2 * p)).sum(axis=1)
    expected += 0.5 * (mean**2 + var - 1 - np.log(var)).sum(axis=1)
    _, info = objectives.make_elbo(vae, estimators.score_function())(params, jax.random.key(1), x)
    np.testing.assert_allclose(info.kl, expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (side_by_side, "got none"),
        (lambda: side_by_side(b=distributions.bernoulli()), "part b must be a number of latents and a head"),
        (lambda: side_by_side(b=(distributions.bernoulli(), 2)), "the number of latents of b must be"),
        (lambda: side_by_side(b=(2, "bernoulli")), "the head of b must be a distributions.Head"),
        (lambda: side_by_side(b=(2, 3, 4)), "got 3 values"),
        (lambda: side_by_side(c=(2, distributions.categorical(3))), "must not be of categories.*got one of 3"),
        (lambda: models.mlp_vae((3,), 4, (4,), posterior=side_by_side(b=BITS, z=NUMBERS)), "5 latents.*b 2, z 3.*got"),
        (
            lambda: models.mlp_vae(
                (3,), 5, (4,), posterior=side_by_side(b=BITS, z=NUMBERS), prior=models.mixture_prior(2)
            ),
            "mixtures and flows are priors of continuous latents",
        ),
    ],
)
def test_what_are_no_heads_side_by_side_is_refused(make, words, no_type_hook):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.slow
def test_a_softened_log_probability_is_linear_and_right_at_the_ends():
    logits = jnp.array([0.3, -2.0])
    bits = relaxed(distributions.BernoulliLogits(logits).to_event(1))
    ends = [float(distributions.log_prob(bits, jnp.array([b, 1.0]))) for b in (0.0, 1.0)]
    hard = distributions.BernoulliLogits(logits).to_event(1)
    np.testing.assert_allclose(ends, [distributions.log_prob(hard, jnp.array([b, 1.0])) for b in (0.0, 1.0)], rtol=1e-6)
    middle = distributions.own_log_prob(bits, jnp.array([0.25, 1.0]))
    np.testing.assert_allclose(middle, 0.75 * ends[0] + 0.25 * ends[1], rtol=1e-6)
    categories = dist.CategoricalLogits(jnp.array([[0.3, -2.0, 1.0]])).to_event(1)
    soft, weights = relaxed(categories), jnp.array([[0.2, 0.3, 0.5]])
    each = [distributions.log_prob(categories, jnp.array([c])) for c in range(3)]
    np.testing.assert_allclose(distributions.log_prob(soft, Weights(weights)), weights[0] @ jnp.stack(each), rtol=1e-6)
    assert distributions.is_relaxed(soft)
    assert relaxed(soft) is soft


def test_a_decoder_of_categories_takes_weights_for_its_one_hot_numbers():
    vae = models.mlp_vae((3,), 2, (4,), posterior=distributions.categorical(5))
    params, z = vae.init(jax.random.key(0)), jnp.array([[3, 0], [1, 4]])
    hard, soft = (vae.decode(params, value) for value in (z, Weights(jax.nn.one_hot(z, 5))))
    np.testing.assert_array_equal(hard.base_dist.logits, soft.base_dist.logits)
    with pytest.raises(ValueError, match="latents"):
        vae.decode(params, Weights(jnp.ones((2, 2, 4))))
