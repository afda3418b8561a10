import concurrent.futures
import dataclasses
import functools
import json
import math
import statistics
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import Array, export, lax

from vaejax import estimators, laboratory, models, objectives


def drawn_gradient(draw):
    """An objective whose gradient is `draw(key)`, whatever the parameters."""

    def objective(params, key):
        products = jax.tree.map(lambda leaf, drawn: (leaf * drawn).sum(), params, draw(key))
        return sum(jax.tree.leaves(products)), None

    return objective


def stored_draws(draw, key, num_repeats):
    """What the repeats of `gradient_moments` draw from the key, stacked, as numpy arrays."""
    (key,) = jax.random.split(jax.random.clone(key), 1)
    draws = jax.jit(lambda key: jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(num_repeats)))(key)
    return jax.tree.map(np.asarray, draws)


def terms_of_variance(draws):
    """e_2, ..., e_N, by cumulative means."""
    n = np.arange(2, len(draws) + 1).reshape(-1, *[1] * (draws.ndim - 1))
    before = np.cumsum(draws, axis=0)[:-1] / (n - 1)
    return (n - 1) / n * (draws[1:] - before) ** 2


@pytest.fixture
def parts(x64):
    """Parameters in three parts and a draw of a correlated gradient, around a mean that may be huge."""
    params = {"baseline": jnp.ones(2), "decoder": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "prior": {}}

    def draw(key, offset=0.0):
        common, own = jax.random.split(key)
        shift = jax.random.exponential(common)
        noise = jax.random.normal(own, (11,)) + shift + offset
        return {"baseline": noise[:2], "decoder": {"kernel": noise[2:8].reshape(2, 3), "bias": noise[8:]}, "prior": {}}

    return params, draw


@pytest.mark.parametrize(
    ("num_repeats", "chunk_size", "offset"),
    [(3, 1000, 0.0), (501, 1, 0.0), (501, 7, 0.0), (501, 1, 1e8)],
)
def test_moments_equal_those_of_the_stored_gradients(parts, num_repeats, chunk_size, offset):
    params, draw = parts
    draw = functools.partial(draw, offset=offset)
    key = jax.random.key(3)
    moments = laboratory.gradient_moments(drawn_gradient(draw), params, key, None, num_repeats, chunk_size=chunk_size)
    draws = stored_draws(draw, key, num_repeats)
    assert moments.num_repeats == num_repeats
    # Near 1e8 the running mean is rounded to 1.5e-8, one and a half hundred-millionth of the standard deviation.
    tolerance = 1e-10 if offset == 0 else 2e-8
    chex.assert_trees_all_close(moments.mean, jax.tree.map(lambda leaf: leaf.mean(axis=0), draws), rtol=1e-14)
    variance = jax.tree.map(lambda leaf: np.var(leaf - offset, axis=0, ddof=1), draws)
    chex.assert_trees_all_close(moments.variance, variance, rtol=tolerance)
    terms = jax.tree.map(lambda leaf: terms_of_variance(leaf - offset), draws)
    chex.assert_trees_all_close(moments.spread, jax.tree.map(lambda leaf: leaf.var(axis=0, ddof=1), terms), rtol=1e-7)
    bias, kernel = terms["decoder"]["bias"].sum(axis=1), terms["decoder"]["kernel"].sum(axis=(1, 2))
    expected = {
        "total": bias + kernel,
        "baseline": terms["baseline"].sum(axis=1),
        "decoder": bias + kernel,
        "decoder.bias": bias,
        "decoder.kernel": kernel,
    }
    expected = {name: total.var(ddof=1) for name, total in expected.items()}
    chex.assert_trees_all_close(moments.group_spread, expected, rtol=1e-7)


def test_two_repeats_have_a_variance_of_unknown_error(parts):
    params, draw = parts
    moments = laboratory.gradient_moments(drawn_gradient(draw), params, jax.random.key(3), num_repeats=2)
    draws = stored_draws(draw, jax.random.key(3), 2)
    chex.assert_trees_all_close(moments.variance, jax.tree.map(lambda leaf: leaf.var(axis=0, ddof=1), draws))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves((moments.spread, moments.group_spread)))
    total = laboratory.summarize(moments)["total"]
    assert total.variance > 0
    assert total.variance_lower is total.variance_upper is total.signal_to_noise_lower is None


def test_errors_follow_from_variance_and_spread():
    moments = laboratory.GradientMoments(
        jnp.zeros(2), jnp.array([4.0, 0.0]), jnp.array([8.0, 0.0]), {"total": jnp.array(8.0)}, 101
    )
    np.testing.assert_allclose(moments.standard_error(), [2 / math.sqrt(101), 0], rtol=1e-6)
    lower, upper = moments.variance_interval(0.95)
    half_width = 1.959964 * math.sqrt(8 / 100) / 4
    np.testing.assert_allclose(lower, [4 * math.exp(-half_width), 0], rtol=1e-6)
    np.testing.assert_allclose(upper, [4 * math.exp(half_width), 0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"level must be a number above 0 and below 1; got 99.0"):
        moments.variance_interval(99.0)


@pytest.mark.parametrize(
    ("name", "true", "least"), [("normal", 1.0, 0.98), ("exponential", 1.0, 0.97), ("squared normal", 2.0, 0.96)]
)
def test_intervals_of_the_variance_hold_it(name, true, least):
    draw = {
        "normal": lambda key: jax.random.normal(key, (2000,)),
        "exponential": lambda key: jax.random.exponential(key, (2000,)),
        "squared normal": lambda key: jax.random.normal(key, (2000,)) ** 2,
    }[name]
    moments = laboratory.gradient_moments(drawn_gradient(draw), jnp.ones(2000), jax.random.key(0))
    lower, upper = moments.variance_interval(0.99)
    assert least < np.mean((lower < true) & (true < upper)) < 0.997
    mean_covered = np.abs(moments.mean - (0 if name == "normal" else 1)) < 2.5758 * moments.standard_error()
    assert 0.98 < mean_covered.mean() < 0.998


def test_the_kurtosis_says_where_an_interval_of_the_variance_holds():
    """3 of a Gaussian, 9 of an exponential, 114 of a log-normal, whose interval covers less than it says."""
    kurtoses, covered = {}, {}
    for name, draw, true in (
        ("normal", jax.random.normal, 1.0),
        ("exponential", jax.random.exponential, 1.0),
        ("log-normal", lambda key, shape: jnp.exp(jax.random.normal(key, shape)), (math.e - 1) * math.e),
    ):
        objective = drawn_gradient(lambda key, draw=draw: draw(key, (1000,)))
        moments = laboratory.gradient_moments(objective, jnp.ones(1000), jax.random.key(0))
        lower, upper = moments.variance_interval(0.99)
        kurtoses[name], covered[name] = np.median(moments.kurtosis()), np.mean((lower < true) & (true < upper))
    assert 2.8 < kurtoses["normal"] < 3.2
    assert 7 < kurtoses["exponential"] < 9.5
    assert kurtoses["log-normal"] > 1000 / 100  # so the interval is not to be trusted
    assert covered["log-normal"] < 0.95 < 0.97 < covered["exponential"]
    total = laboratory.summarize(moments)["total"]
    assert total.kurtosis == pytest.approx(1 + float(moments.group_spread["total"]) / total.variance**2, rel=1e-5)


def test_intervals_of_a_total_variance_allow_for_correlations():
    def total_interval(key):
        objective = drawn_gradient(lambda key: jax.random.normal(key) * jnp.ones(20))
        moments = laboratory.gradient_moments(objective, jnp.ones(20), key, num_repeats=400)
        return moments.variance.sum(), moments.group_spread["total"]

    totals, spreads = jax.jit(jax.vmap(total_interval))(jax.random.split(jax.random.key(0), 1000))
    half_widths = 2.5758 * np.sqrt(spreads / 399) / totals
    covered = np.abs(np.log(totals / 20)) < half_widths
    assert 0.97 < covered.mean() < 0.998
    # Were the twenty coordinates independent, the interval would be as narrow as this.
    assert np.median(half_widths) > 4 * 2.5758 * math.sqrt(2 / 400 / 20)


TOY_VARIANCES = {
    "pathwise": (estimators.pathwise(), lambda d, s: 4 * s**2),
    "score function": (estimators.score_function(), lambda d, s: d**4 / s**2 + 14 * d**2 + 15 * s**2),
}


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("pathwise", 3.0, 0.5), ("score function", 1.5, 1.0), ("score function", 2.0, 0.5), ("score function", 3.0, 2.0)],
)
def test_closed_form_variances_lie_in_their_intervals(name, mean, std, x64):
    estimator, variance = TOY_VARIANCES[name]
    d = mean - 1.0
    square = estimators.expectation(estimator, lambda mean: dist.Normal(mean, std), lambda mean, z: (z - 1.0) ** 2)
    moments = laboratory.gradient_moments(square, jnp.array(mean), jax.random.key(0), num_repeats=100_000)
    lower, upper = moments.variance_interval(0.99)
    assert lower < variance(d, std) < upper
    assert upper < 1.3 * lower
    assert abs(moments.mean - 2 * d) < 5 * moments.standard_error()


def test_score_function_has_15_quarters_of_the_variance_of_pathwise_at_the_minimum(x64):
    totals = []
    for name in ("score function", "pathwise"):
        square = estimators.expectation(
            TOY_VARIANCES[name][0], lambda mean: dist.Normal(mean, 1.5), lambda mean, z: z**2
        )
        moments = laboratory.gradient_moments(square, jnp.array(0.0), jax.random.key(1), num_repeats=100_000)
        totals.append(laboratory.summarize(moments)["total"])
    score, pathwise = totals
    assert score.variance_lower / pathwise.variance_upper < 3.75 < score.variance_upper / pathwise.variance_lower
    assert score.variance_upper / pathwise.variance_lower < 4.3


@pytest.mark.exhaustive
def test_memory_is_that_of_a_few_gradients():
    vae = models.mlp_vae((784,), 20, (500,))
    objective = objectives.make_elbo(vae)
    params = jax.eval_shape(vae.init, jax.random.key(0))
    key, x = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((100, 784), jnp.float32)

    def at_once(params, key, x):
        grads = jax.vmap(lambda key: jax.grad(objective, has_aux=True)(params, key, x)[0])(jax.random.split(key, 1000))
        return jax.tree.map(lambda leaf: (leaf.mean(axis=0), leaf.var(axis=0, ddof=1)), grads)

    def peak(function):
        memory = jax.jit(function).lower(params, key, x).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes

    # The hundredfold of repeats: memory does not grow with them.
    streamed = peak(lambda *arguments: laboratory.gradient_moments(objective, *arguments, num_repeats=100_000))
    assert streamed <= peak(at_once) / 20
    assert streamed < 10 * sum(leaf.size * 4 for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def small():
    vae = models.linear_vae(6, 2)
    return vae, vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (7, 6))


def test_moments_of_a_vae_are_those_of_its_gradients_and_trace_once(small):
    vae, params, x = small
    elbo = objectives.make_elbo(vae)
    num_traces = 0

    def objective(params, key, x, *, step=None):
        nonlocal num_traces
        num_traces += 1
        return elbo(params, key, x, step=step)

    moments_of = functools.partial(laboratory.gradient_moments, objective, num_repeats=50)
    for seed in range(3):
        moments = moments_of(params, jax.random.key(seed), x)
    assert num_traces == 1
    grads = stored_draws(lambda key: jax.grad(elbo, has_aux=True)(params, key, x)[0], jax.random.key(2), 50)
    chex.assert_trees_all_close(moments.mean, jax.tree.map(lambda leaf: leaf.mean(axis=0), grads), rtol=1e-3, atol=1e-6)
    variance = jax.tree.map(lambda leaf: leaf.var(axis=0, ddof=1), grads)
    chex.assert_trees_all_close(moments.variance, variance, rtol=1e-3, atol=1e-9)

    jitted = jax.jit(lambda params, key, x: moments_of(params, key, x)._replace(num_repeats=None))
    for seed in range(3):
        again = jitted(params, jax.random.key(seed), x)
    assert num_traces <= 2
    chex.assert_trees_all_close(again, moments._replace(num_repeats=None), rtol=1e-5)


def test_moments_of_half_precision_gradients_are_kept_in_single():
    moments = laboratory.gradient_moments(
        drawn_gradient(lambda key: jax.random.normal(key, (100,), jnp.bfloat16)),
        jnp.ones(100, jnp.bfloat16),
        jax.random.key(0),
    )
    assert moments.mean.dtype == moments.variance.dtype == jnp.float32
    assert abs(moments.variance.mean() - 1) < 0.02


def test_a_key_is_used_once(small):
    vae, params, x = small
    key, objective = jax.random.key(0), objectives.make_elbo(vae)
    laboratory.gradient_moments(objective, params, key, x, 5)
    with pytest.raises(jax.errors.KeyReuseError):
        laboratory.gradient_moments(objective, params, key, x, 5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_moments_lower_for_every_platform(small, platform, chunk_size):
    vae, params, x = small
    objective = objectives.make_elbo(vae)
    moments = lambda params, bits, x: laboratory.gradient_moments(  # noqa: E731
        objective, params, jax.random.wrap_key_data(bits), x, 10, chunk_size=chunk_size
    )
    shapes = jax.eval_shape(lambda: (params, jnp.zeros(2, jnp.uint32), x))
    assert export.export(jax.jit(moments), platforms=[platform])(*shapes).platforms == (platform,)


def test_bad_arguments_are_refused(small, no_type_hook):
    vae, params, x = small
    objective, key = objectives.make_elbo(vae), jax.random.key(0)
    with pytest.raises(
        ValueError, match="num_repeats must be an integer of at least 2; got 1: one gradient has no variance"
    ):
        laboratory.gradient_moments(objective, params, key, x, 1)
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1; got 0"):
        laboratory.gradient_moments(objective, params, key, x, 5, chunk_size=0)
    with pytest.raises(ValueError, match=r"returns \(value, info\) with a scalar value; got float32\[\]"):
        laboratory.gradient_moments(lambda params, key, x, *, step: x.sum(), params, key, x, 5)
    with pytest.raises(ValueError, match=r"scalar value; got \('float32\[6\]', None\)"):
        laboratory.gradient_moments(lambda params, key, x, *, step: (x[0], None), params, jax.random.key(0), x, 5)
    with pytest.raises(ValueError, match="expected finite data, got 1 NaN"):
        laboratory.gradient_moments(objective, params, key, x.at[1, 2].set(jnp.nan), 5)
    with pytest.raises(ValueError, match=r"expected float32 data.*got float64"):
        laboratory.gradient_moments(objective, params, key, np.ones((7, 6)), 5)


def test_moments_print_on_a_few_lines(small):
    vae, params, x = small
    printed = repr(laboratory.gradient_moments(objectives.make_elbo(vae), params, jax.random.key(0), x, 3))
    assert len(printed.splitlines()) == 7
    assert len(printed) < 500


def test_a_gradient_that_is_not_finite_shows():
    objective = drawn_gradient(lambda key: jnp.where(jax.random.normal(key, (2,)) > 2, jnp.array([jnp.inf, 0.0]), 1.0))
    moments = laboratory.gradient_moments(objective, jnp.ones(2), jax.random.key(0))
    assert np.isnan(moments.variance).tolist() == [True, False]
    assert laboratory.summarize(moments)["total"].variance is None


def simulated(key, num_repeats, bias=0.0):
    """Moments of a gradient (1, 2, 2) + bias with standard deviations (1, 2, 0), in float64."""
    true, std = jnp.array([1.0, 2.0, 2.0]), jnp.array([1.0, 2.0, 0.0])
    objective = drawn_gradient(lambda key: {"a": true + bias + std * jax.random.normal(key, (3,))})
    return laboratory.gradient_moments(objective, {"a": jnp.ones(3)}, key, num_repeats=num_repeats)


def test_summary_equals_its_definitions(x64):
    moments, other = simulated(jax.random.key(0), 1000), simulated(jax.random.key(1), 500, bias=1.0)
    summary = laboratory.summarize(moments, other)["a"]
    assert summary == laboratory.summarize(moments, other)["total"]
    m, r = np.asarray(moments.mean["a"]), np.asarray(other.mean["a"])
    v, w = np.asarray(moments.variance["a"]), np.asarray(other.variance["a"])
    norm = math.sqrt((m**2).sum() - v.sum() / 1000)
    reference_norm = math.sqrt((r**2).sum() - w.sum() / 500)
    assert summary.size == 3
    np.testing.assert_allclose(summary.norm, norm)
    np.testing.assert_allclose(summary.variance, v.sum())
    np.testing.assert_allclose(summary.signal_to_noise, norm / math.sqrt(v.sum()))
    np.testing.assert_allclose(summary.coordinate_signal_to_noise, np.sqrt(m[:2] ** 2 / v[:2] - 1 / 1000).mean())
    np.testing.assert_allclose(summary.cosine, (m @ r) / norm / reference_norm)
    np.testing.assert_allclose(summary.bias_squared, ((m - r) ** 2).sum() - v.sum() / 1000 - w.sum() / 500)
    assert summary.variance_lower < 5 < summary.variance_upper
    assert summary.signal_to_noise_lower < 3 / math.sqrt(5) < summary.signal_to_noise_upper
    assert summary.signal_to_noise_upper < 1.3 * summary.signal_to_noise_lower
    assert abs(summary.bias_squared - 3) < 3 * summary.bias_squared_error < 3


def test_without_a_reference_there_is_neither_cosine_nor_bias(x64):
    summary = laboratory.summarize(simulated(jax.random.key(0), 100))["total"]
    assert summary.cosine is summary.bias_squared is summary.bias_squared_error is None


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_bias_is_split_from_variance_without_bias(x64, bias):
    exact, num_runs = {"a": np.array([1.0, 2.0, 2.0])}, 1000
    moments = jax.jit(jax.vmap(lambda key: simulated(key, 100, bias)))(jax.random.split(jax.random.key(0), num_runs))
    moments = jax.tree.map(np.asarray, moments)
    runs = [jax.tree.map(lambda leaf, i=i: leaf[i], moments) for i in range(num_runs)]
    summaries = [laboratory.summarize(run, exact)["total"] for run in runs]
    squared, claimed, norms, lower, upper = np.transpose(
        [
            (s.bias_squared, s.bias_squared_error, s.norm, s.signal_to_noise_lower, s.signal_to_noise_upper)
            for s in summaries
        ]
    )
    assert abs(squared.mean() - 3 * bias**2) < 4 * squared.std() / math.sqrt(num_runs)
    assert squared.std() < claimed.mean() < 2 * squared.std()
    assert np.mean(np.abs(squared - 3 * bias**2) < 2.5758 * claimed) > 0.97
    norm = np.linalg.norm(exact["a"] + bias)
    assert abs(np.mean(norms**2) - norm**2) < 4 * (norms**2).std() / math.sqrt(num_runs)
    assert np.mean((lower < norm / math.sqrt(5)) & (norm / math.sqrt(5) < upper)) > 0.98


def test_a_reference_must_be_like_the_parameters(x64):
    moments = simulated(jax.random.key(0), 100)
    with pytest.raises(ValueError, match=r"with 'a' of shape \(3,\); got \(\)"):
        laboratory.summarize(moments, {"a": 1.0})
    with pytest.raises(ValueError, match=r"with 'a' of shape \(3,\); got None"):
        laboratory.summarize(moments, {"b": np.ones(3)})


def test_no_noise_leaves_ratios_undefined(x64):
    moments = laboratory.gradient_moments(drawn_gradient(lambda key: jnp.ones(3)), jnp.ones(3), jax.random.key(0))
    total = laboratory.summarize(moments, np.ones(3))["total"]
    assert (total.variance, total.bias_squared, total.bias_squared_error) == (0.0, 0.0, 0.0)
    np.testing.assert_allclose((total.norm, total.cosine), (math.sqrt(3), 1.0))
    assert total.signal_to_noise is total.coordinate_signal_to_noise is total.variance_lower is None


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(1, None), (4, None), (4, 3)])
def test_decoder_evaluations_are_counted(small, num_samples, chunk_size):
    vae, params, x = small
    objective = objectives.make_elbo(vae, num_samples=num_samples, chunk_size=chunk_size)
    (cost,) = laboratory.cost({"": objective}, params, jax.random.key(0), x, num_rounds=1).values()
    assert cost.decoder_evaluations == num_samples


class Report(NamedTuple):
    per_example: Array


def test_decoder_evaluations_are_counted_through_every_transformation(small):
    vae, params, x = small

    def decoded(evaluate):
        def objective(params, key, x, *, step=None):
            decode = lambda z: vae.decode(params, z).mean.sum(axis=-1)  # noqa: E731
            z = vae.encode(params, x).mean
            # What is decoded for the report alone serves no gradient.
            return evaluate(decode, z).sum(), Report(per_example=decode(z))

        (cost,) = laboratory.cost({"": objective}, params, jax.random.key(0), x, num_rounds=1).values()
        return cost.decoder_evaluations

    assert decoded(lambda decode, z: jax.vmap(decode, in_axes=-1)(jnp.stack([z] * 5, axis=-1))) == 5
    assert decoded(lambda decode, z: jax.checkpoint(decode)(z)) == 1
    assert decoded(lambda decode, z: lax.cond(z.sum() > 0, lambda z: decode(z) + decode(-z), decode, z)) == 2
    assert decoded(lambda decode, z: lax.map(decode, jnp.stack([z] * 3))) == 3

    def while_positive(function, start):
        step = lambda number: lax.stop_gradient(function(number))  # noqa: E731
        return lax.while_loop(lambda number: number.sum() > 0, step, lax.stop_gradient(start))

    assert decoded(lambda decode, z: decode(while_positive(lambda z: z - 1, z))) == 1
    assert decoded(lambda decode, z: decode(z) + while_positive(lambda sum: sum - decode(z) ** 2, decode(z))) is None


def test_what_is_no_vae_has_no_decoder():
    square = estimators.expectation(estimators.pathwise(), lambda m: dist.Normal(m, 1.0), lambda m, z: z**2)
    (cost,) = laboratory.cost({"": square}, jnp.array(1.0), jax.random.key(0)).values()
    assert cost.decoder_evaluations is None
    assert 0 < cost.seconds_lower <= cost.seconds <= cost.seconds_upper < 0.1


@pytest.mark.exhaustive
def test_flops_and_seconds_are_those_of_the_gradient():
    vae = models.mlp_vae((784,), 5, (100,))
    params, key, x = vae.init(jax.random.key(0)), jax.random.key(0), jnp.ones((50, 784))
    elbos = {1: objectives.make_elbo(vae), 16: objectives.make_elbo(vae, num_samples=16, chunk_size=4)}
    costs = laboratory.cost(elbos, params, jax.random.key(0), x, num_rounds=5)
    one = jax.jit(jax.grad(elbos[1], has_aux=True)).lower(params, key, x).compile()
    np.testing.assert_allclose(costs[1].flops, one.cost_analysis()["flops"], rtol=0.05)
    # Matrix products: the decoder's, forward and twice backward, and the encoder's, without a gradient for the data.
    decoder, encoder = 2 * 50 * (5 * 100 + 100 * 784), 2 * 50 * (784 * 100 + 100 * 10)
    # XLA counts the body of a loop once; here all rounds count, as if there were no loop. Chunks go forward twice.
    all_at_once = objectives.make_elbo(vae, num_samples=16)
    all_at_once = jax.jit(lambda *arguments: jax.grad(all_at_once, has_aux=True)(*arguments)[0]).lower(params, key, x)
    flops = all_at_once.cost_analysis()["flops"] + 16 * decoder
    np.testing.assert_allclose(costs[16].flops, flops, rtol=0.05)
    for num_samples, passes in {1: 3, 16: 4}.items():
        products = passes * num_samples * decoder + 3 * encoder - 2 * 50 * 784 * 100
        assert products < costs[num_samples].flops < 1.2 * products
    assert costs[16].seconds > 2 * costs[1].seconds


def test_costs_are_prepared_in_threads(small):
    vae, params, x = small
    elbos = {number: objectives.make_elbo(vae, num_samples=number) for number in (1, 2, 3)}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        costs = laboratory.cost(elbos, params, jax.random.key(0), x, num_rounds=2, map_jobs=pool.map)
    assert {number: cost.decoder_evaluations for number, cost in costs.items()} == {1: 1, 2: 2, 3: 3}
    assert all(cost.num_rounds == 2 for cost in costs.values())


def test_rounds_must_be_counted(small, no_type_hook):
    vae, params, x = small
    with pytest.raises(ValueError, match="num_rounds must be an integer of at least 1; got 0"):
        laboratory.cost({"": objectives.make_elbo(vae)}, params, jax.random.key(0), x, num_rounds=0)


CHOSEN = {"pathwise": estimators.pathwise(), "leave-one-out": estimators.score_function("leave_one_out")}


@pytest.fixture(scope="module")
def rows(small):
    vae, params, x = small
    return laboratory.compare(vae, params, jax.random.key(0), x, CHOSEN, (1, 4), num_repeats=2000, num_rounds=3)


@pytest.mark.exhaustive
def test_a_comparison_has_a_row_for_each_estimator_and_number_of_samples(rows):
    names = [(row.estimator, row.num_samples) for row in rows]
    assert names == [("pathwise", 1), ("pathwise", 4), ("leave-one-out", 1), ("leave-one-out", 4)]
    refused = rows[2]
    assert refused.refusal.startswith("num_samples must be an integer of at least 2; got 1")
    assert refused.cost is refused.summaries is refused.variance_ratio is refused.work_ratio is None
    json.loads(json.dumps([dataclasses.asdict(row) for row in rows], allow_nan=False))


def test_ratios_are_relative_to_one_pathwise_sample(rows):
    unit, pathwise, _, leave_one_out = rows
    assert unit.variance_ratio == unit.variance_ratio_lower == unit.variance_ratio_upper == 1
    assert unit.samples_ratio == unit.work_ratio == unit.samples_ratio_lower == unit.work_ratio_upper == 1
    # Four samples have a quarter of the variance.
    assert pathwise.variance_ratio_lower < 0.25 < pathwise.variance_ratio_upper < 1.5 * pathwise.variance_ratio_lower
    assert leave_one_out.variance_ratio_lower > pathwise.variance_ratio_upper
    for row in (pathwise, leave_one_out):
        total = row.summaries["total"]
        np.testing.assert_allclose(row.variance_ratio, total.variance / unit.summaries["total"].variance)
        np.testing.assert_allclose(row.samples_ratio, 4 * row.variance_ratio)
        np.testing.assert_allclose(row.work_ratio, row.variance_ratio * row.cost.seconds / unit.cost.seconds)
        errors = [0.5 * math.log(s.variance_upper / s.variance_lower) for s in (total, unit.summaries["total"])]
        np.testing.assert_allclose(math.log(row.variance_ratio_upper / row.variance_ratio), math.hypot(*errors))
        np.testing.assert_allclose(row.samples_ratio_lower, 4 * row.variance_ratio_lower)
        z = statistics.NormalDist().inv_cdf(0.995)
        for cost in (row.cost, unit.cost):
            spread = (cost.seconds_upper - cost.seconds_lower) / cost.seconds
            errors.append(z * 0.93 * spread / math.sqrt(cost.num_rounds))
        np.testing.assert_allclose(math.log(row.work_ratio / row.work_ratio_lower), math.hypot(*errors))
        assert row.cost.decoder_evaluations == 4


def test_unbiased_estimators_show_no_bias(rows):
    total = rows[3].summaries["total"]
    assert abs(total.bias_squared) < 3 * total.bias_squared_error
    assert total.cosine > 0.95
    assert rows[0].summaries["total"].cosine is None
    parts = rows[3].summaries
    assert set(parts) == {"total", "encoder", "decoder"}
    np.testing.assert_allclose(parts["total"].variance, parts["encoder"].variance + parts["decoder"].variance)


def test_a_row_does_not_depend_on_the_others(small, rows):
    vae, params, x = small
    fewer = laboratory.compare(
        vae, params, jax.random.key(0), x, {"pathwise": CHOSEN["pathwise"]}, (1,), num_repeats=2000, num_rounds=1
    )
    assert fewer[0].summaries == rows[0].summaries


def test_a_second_comparison_compiles_nothing(small, rows, caplog):
    vae, params, x = small
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)
    key = jax.random.key(1)
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(x)
        assert "Compiling jit(<lambda>)" in caplog.text
        caplog.clear()
        again = laboratory.compare(vae, other, key, x, CHOSEN, (1, 4), num_repeats=2000, num_rounds=3, group="encoder")
    assert "Compiling" not in caplog.text
    ratio = again[1].summaries["encoder"].variance / again[0].summaries["encoder"].variance
    np.testing.assert_allclose(again[1].variance_ratio, ratio)


@pytest.mark.exhaustive
def test_a_discrete_model_is_compared_with_another_estimator_than_pathwise():
    vae = models.mlp_vae((4,), 2, (), posterior="bernoulli")
    chosen = {"exact": estimators.enumerate_support(), "moving": estimators.score_function("moving_average"), **CHOSEN}
    params, x = vae.init(jax.random.key(0)), jnp.ones((5, 4))
    baseline = estimators.with_baseline(params, chosen["moving"], jax.random.key(1), x)["baseline"]
    exact_gradient = jax.jit(jax.grad(objectives.make_elbo(vae, chosen["exact"]), has_aux=True))
    rows = laboratory.compare(
        vae,
        params,
        jax.random.key(2),
        x,
        chosen,
        (1,),
        num_repeats=300,
        num_rounds=1,
        relative_to=("moving", 1),
        reference=exact_gradient(params, jax.random.key(3), x)[0],
        baselines={"moving": baseline},
    )
    exact, moving, pathwise, _ = rows
    assert pathwise.refusal.startswith("pathwise() serves distributions whose samples are a differentiable function")
    assert exact.variance_ratio == exact.samples_ratio == 0
    assert exact.variance_ratio_lower is None
    assert exact.cost.decoder_evaluations == 4
    assert set(moving.summaries) == {"total", "encoder", "decoder", "baseline"}
    total = moving.summaries["total"]
    np.testing.assert_allclose(total.variance, sum(moving.summaries[p].variance for p in ("encoder", "decoder")))
    assert abs(total.bias_squared) < 3 * total.bias_squared_error
    assert moving.summaries["baseline"].cosine is None
    json.dumps([dataclasses.asdict(row) for row in rows], allow_nan=False)


def test_bad_comparisons_are_refused(small, no_type_hook):
    vae, params, x = small
    compare = functools.partial(laboratory.compare, vae, params, num_repeats=3, num_rounds=1)
    with pytest.raises(
        ValueError, match=r"relative_to must be \('pathwise', 4\) or \('leave-one-out', 4\); got \('pathwise', 1\)"
    ):
        compare(jax.random.key(0), x, CHOSEN, (4,))
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 2; got 1"):
        compare(jax.random.key(0), x, CHOSEN, (1,), relative_to=("leave-one-out", 1))
    with pytest.raises(ValueError, match=r"group must be 'total', 'decoder' or 'encoder'; got 'prior'"):
        compare(jax.random.key(0), x, CHOSEN, (1,), group="prior")
    with pytest.raises(ValueError, match="expected data of shape"):
        compare(jax.random.key(0), jnp.ones((7, 5)), CHOSEN, (1,))


@pytest.mark.exhaustive
def test_each_gradient_has_the_reference_that_it_is_given(small):
    vae, params, x = small
    settings = [("first", 1), ("second", 1), ("biased", 1), ("refused", 1)]
    making = {"first": {}, "second": {"kl": "sampled"}, "biased": {"beta": 3.0}, "refused": {"num_samples": 0}}
    served, refusals = laboratory.serving(lambda s: objectives.make_elbo(vae, **making[s[0]]), settings, params, x)
    assert list(served) == settings[:3]
    assert refusals == {("refused", 1): "num_samples must be an integer of at least 1; got 0"}
    keys = dict(zip(served, jax.random.split(jax.random.key(0), 3), strict=True))

    def measured(**options):
        own_keys = {setting: jax.random.clone(key) for setting, key in keys.items()}
        return laboratory.measure_noise(served, params, own_keys, x, 300, **options)

    of_first = measured(reference_of=lambda setting: ("first", 1))
    of_biased = measured(reference_of=lambda setting: ("biased", 1))
    # What differs is the reference alone.
    assert of_first["first", 1].keys() == {"total", "encoder", "decoder"}
    for setting in served:
        assert of_first[setting]["total"].variance == of_biased[setting]["total"].variance
    assert of_first["first", 1]["total"].cosine is of_biased["biased", 1]["total"].cosine is None
    second, biased = of_first["second", 1]["total"], of_first["biased", 1]["total"]
    assert abs(second.bias_squared) < 3 * second.bias_squared_error
    assert biased.bias_squared > 4 * biased.bias_squared_error > 0
    assert of_biased["first", 1]["total"].bias_squared == pytest.approx(biased.bias_squared)


def test_estimators_of_one_mean_share_its_signal(x64):
    mean = jnp.asarray([3.0, 4.0])

    def summary_of(key, std):
        draw = drawn_gradient(lambda key: {"a": mean + std * jax.random.normal(key, (2,))})
        moments = laboratory.gradient_moments(draw, {"a": jnp.zeros(2)}, key, None, num_repeats=400)
        return laboratory.summarize(moments)["total"]

    quiet, noisy = summary_of(jax.random.key(0), 1.0), summary_of(jax.random.key(1), 200.0)
    # Of 400 gradients of the noisy one the mean is noise; its own ratio is known no better than "above 0".
    assert noisy.signal_to_noise_lower == 0
    for part, std in ((quiet, 1.0), (noisy, 200.0)):
        ratio, lower, upper = laboratory.shared_signal_to_noise(part, (quiet, noisy))
        assert lower < 5 / (std * 2**0.5) < upper < 1.4 * lower
        np.testing.assert_allclose(ratio, quiet.norm / part.variance**0.5)
    silent = dataclasses.replace(quiet, variance=0.0)
    assert laboratory.shared_signal_to_noise(silent, (silent, quiet)) == (None, None, None)
