"""Every family that the lectures reparameterize, as a posterior, against scipy; and their table in vaejax/README.md."""

import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import assert_unbiased, in_float64
from scipy import stats

from vaejax import distributions, estimators, families, reparameterization
from vaejax.distributions.reparameterization import FAMILIES

README = pathlib.Path(__file__).resolve().parents[2] / "vaejax" / "README.md"

# What scipy calls them; the multivariate ones are below.
ORACLES = {
    "Exponential": lambda rate: stats.expon(scale=1 / rate),
    "Cauchy": stats.cauchy,
    "Logistic": stats.logistic,
    "Rayleigh": lambda scale: stats.rayleigh(scale=scale),
    "Pareto": lambda scale, alpha: stats.pareto(alpha, scale=scale),
    "Weibull": lambda scale, concentration: stats.weibull_min(concentration, scale=scale),
    "Reciprocal": lambda low, high: stats.reciprocal(low, high),
    "Gompertz": lambda concentration, rate: stats.gompertz(concentration, scale=1 / rate),
    "Gumbel": stats.gumbel_r,
    "Erlang": lambda rate: stats.erlang(3, scale=1 / rate),
    "Laplace": stats.laplace,
    "Student's t": stats.t,
    "Uniform": lambda low, high: stats.uniform(low, high - low),
    "Triangular": lambda low, peak, high: stats.triang((peak - low) / (high - low), low, high - low),
    "Gaussian": stats.norm,
    "Log-Normal": lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
    "Gamma": lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    "Beta": lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
    "Chi-squared": stats.chi2,
    "F": lambda df1, df2: stats.f(df1, df2),
    "Elliptical, normal": lambda loc, scale_tril: stats.multivariate_normal(loc, scale_tril @ scale_tril.T),
    "Elliptical, Student's t": lambda df, loc, scale_tril: stats.multivariate_t(loc, scale_tril @ scale_tril.T, df),
    "Dirichlet": lambda concentration: stats.dirichlet(concentration),
}
MULTIVARIATE = ("Elliptical, normal", "Elliptical, Student's t", "Dirichlet")
UNIVARIATE = [name for name in FAMILIES if name not in MULTIVARIATE]
OWN = ("Rayleigh", "Triangular", "F", "Erlang")
REFUSED = [(name, moving) for name in ("Pareto", "Reciprocal", "Uniform") for moving in FAMILIES[name].moving]


def bounded(z, xp=jnp):
    """The integrand: bounded and smooth, so that no tail is too heavy for it; a product, so that correlations count."""
    weights = np.array([1.0, -0.6, 0.3])[: z.shape[-1]].reshape((1,) * (z.ndim - 1) + (-1,))
    return (weights * xp.arctan(z)).sum(-1) + 0.5 * xp.tanh(z[..., 0] * z[..., -1])


def integrand(params, z):
    del params
    return bounded(z.reshape(-1))


def from_normals(name, normals, params):
    """Samples (n, event) of a family from independent normals (n, m), by scipy's inverse CDFs."""
    if name == "Elliptical, normal":
        return params["loc"] + normals @ np.tril(params["scale_tril"]).T
    uniforms = stats.norm.cdf(normals)
    if name == "Elliptical, Student's t":
        stretch = np.sqrt(params["df"] / stats.chi2.ppf(uniforms[:, 2], params["df"]))
        return params["loc"] + stretch[:, None] * (normals[:, :2] @ np.tril(params["scale_tril"]).T)
    if name == "Dirichlet":
        a, b, c = params["concentration"]
        first, share = stats.beta.ppf(uniforms[:, 0], a, b + c), stats.beta.ppf(uniforms[:, 1], b, c)
        return np.stack([first, (1 - first) * share, (1 - first) * (1 - share)], axis=-1)
    return ORACLES[name](**params).ppf(uniforms)


@functools.cache
def normal_grid(num_dims):
    """Nodes (n, num_dims) and weights (n,) of the trapezoid rule under independent normals."""
    axis, step = np.linspace(-8, 8, {1: 2001, 2: 201, 3: 41}[num_dims], retstep=True)
    nodes = np.stack([coordinate.ravel() for coordinate in np.meshgrid(*[axis] * num_dims)], axis=-1)
    return nodes, stats.norm.pdf(nodes).prod(axis=-1) * step**num_dims


def exact_expectation(name, params):
    nodes, weights = normal_grid({"Elliptical, normal": 2, "Elliptical, Student's t": 3, "Dirichlet": 2}.get(name, 1))
    return weights @ bounded(from_normals(name, nodes, params), np)


def numeric_gradient(function, params, step=1e-4):
    """Central differences of a function of a dict of arrays; right to about step^2."""
    gradient = {}
    for parameter, value in params.items():
        gradient[parameter] = np.zeros(np.shape(value))
        for index in np.ndindex(np.shape(value)):
            shift = np.zeros(np.shape(value))
            shift[index] = step
            up, down = (function({**params, parameter: value + sign * shift}) for sign in (1, -1))
            gradient[parameter][index] = (up - down) / (2 * step)
    return gradient


@functools.cache
def exact_gradient(name):
    return numeric_gradient(lambda params: exact_expectation(name, params), FAMILIES[name].params)


def gradient_estimate(estimator, make, params, f=integrand):
    """`key -> gradient` of one sample."""
    objective = estimators.expectation(estimator, make, f)
    return lambda key: jax.grad(objective, has_aux=True)(in_float64(params), key)[0]


@functools.cache
def sampler(name):
    """`(params, direction) -> 10,000 samples and their derivatives in that direction`, always with the same key."""

    def samples(params):
        return jax.vmap(FAMILIES[name].make(params).rsample)(jax.random.split(jax.random.key(0), 10_000))

    return jax.jit(lambda params, direction: jax.jvp(samples, (params,), (direction,)))


@functools.cache
def draw(name):
    params = in_float64(FAMILIES[name].params)
    return np.asarray(sampler(name)(params, jax.tree.map(jnp.zeros_like, params))[0])


def one_dimensional(name, z):
    """Numbers made of samples (n, event), each with the CDF that it must have."""
    params = FAMILIES[name].params
    if name not in MULTIVARIATE:
        return [(z, ORACLES[name](**params).cdf)]
    if name == "Dirichlet":
        a = params["concentration"]
        coordinates = [(z[:, i], stats.beta(a[i], a.sum() - a[i]).cdf) for i in range(3)]
        return [*coordinates, (z[:, 0] / (z[:, 0] + z[:, 1]), stats.beta(a[0], a[1]).cdf)]
    df, loc, scale_tril = params.get("df", np.inf), params["loc"], params["scale_tril"]
    directions = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    lines = [(z @ a, stats.t(df, loc @ a, np.linalg.norm(a @ scale_tril)).cdf) for a in directions]
    # Student's t has one stretch for all coordinates, which no line through the sample shows but its radius does.
    squared_radius = (np.linalg.solve(scale_tril, (z - loc).T) ** 2).sum(axis=0)
    return [*lines, (squared_radius / 2, stats.f(2, df).cdf if df < np.inf else stats.chi2(2, scale=0.5).cdf)]


def test_there_are_22_families_and_each_has_an_oracle():
    assert set(ORACLES) == set(FAMILIES)
    lists = [route for family in FAMILIES.values() for route in family.route.split(", ")]
    # The elliptical family has two entries; Logistic stands on two lists.
    sizes = {"inverse CDF": 10, "location-scale": 7 + 1, "composition": 6}
    assert {route: lists.count(route) for route in lists} == sizes
    assert len({name.split(",")[0] for name in FAMILIES}) == 22


@pytest.mark.quick_for("Gaussian", "Triangular")
@pytest.mark.slow_for("Gamma", "Beta", "Uniform")
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_have_the_distribution(name, x64):
    for numbers, cdf in one_dimensional(name, draw(name)):
        assert stats.kstest(numbers, cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_log_prob_equals_scipys(name, x64):
    z = draw(name)[:50]
    oracle = ORACLES[name](**FAMILIES[name].params)
    if name == "Dirichlet":
        expected = oracle.logpdf(z.T / z.sum(axis=1))
    else:
        expected = oracle.logpdf(z)
    log_q = distributions.log_prob(FAMILIES[name].make(FAMILIES[name].params), jnp.asarray(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", UNIVARIATE)
def test_the_support_moves_with_what_the_record_says(name):
    family = FAMILIES[name]
    moving = [
        parameter
        for parameter, value in family.params.items()
        if ORACLES[name](**{**family.params, parameter: value + 0.1}).support()
        != ORACLES[name](**family.params).support()
    ]
    assert tuple(moving) == family.moving


@pytest.mark.quick_for("Rayleigh", "Gumbel")
@pytest.mark.slow_for("Gamma", "Beta", "Gaussian")
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_implicit_in_what_the_record_says(name, x64):
    params, implicit = in_float64(FAMILIES[name].params), []
    for parameter in FAMILIES[name].params:
        # An explicit reparameterization is the derivative of the sampler at fixed noise. The sampler of an implicit one
        # has another derivative, for it says nothing of which noise is rejected.
        direction = {other: jnp.full_like(value, float(other == parameter)) for other, value in params.items()}
        above, below = (jax.tree.map(lambda p, d, h=h: p + h * d, params, direction) for h in (1e-6, -1e-6))
        slopes = sampler(name)(params, direction)[1]
        difference = sampler(name)(above, direction)[0] - sampler(name)(below, direction)[0]
        if not np.allclose(slopes, difference / 2e-6, rtol=1e-4, atol=1e-6):
            implicit.append(parameter)
    assert tuple(implicit) == FAMILIES[name].implicit


@pytest.mark.slow_for("Gaussian", "Gamma", "Triangular", "Uniform")
@pytest.mark.parametrize("name", FAMILIES)
def test_pathwise_gradient_is_unbiased(name, x64):
    grad = gradient_estimate(estimators.pathwise(), FAMILIES[name].make, FAMILIES[name].params)
    assert_unbiased(grad, exact_gradient(name), jax.random.key(1), 40_000)


@pytest.mark.quick_for("Gompertz", "Laplace")
@pytest.mark.slow_for("Gamma", "Gaussian")
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if set(family.params) - set(family.moving)])
def test_score_function_gradient_is_unbiased_where_the_support_does_not_move(name, x64):
    params = dict(FAMILIES[name].params)
    fixed = {parameter: params.pop(parameter) for parameter in FAMILIES[name].moving}
    grad = gradient_estimate(estimators.score_function(), lambda params: FAMILIES[name].make(fixed | params), params)
    exact = {parameter: exact_gradient(name)[parameter] for parameter in params}
    assert_unbiased(grad, exact, jax.random.key(1), 40_000)


@pytest.mark.parametrize(("name", "moving"), REFUSED)
def test_score_function_refuses_a_support_that_moves(name, moving):
    params = dict(FAMILIES[name].params)

    def value(number):
        q = FAMILIES[name].make({**params, moving: number})
        reduce = estimators.mean_reduction()
        return estimators.score_function()(jax.random.key(0), q, lambda z, q: (z, None), 1, reduce).bound

    message = rf"q = {type(FAMILIES[name].make(params)).__name__} may, .* Use estimators.pathwise\(\)"
    for call in (value, jax.jit(value), jax.grad(value)):
        with pytest.raises(ValueError, match=message):
            call(jnp.asarray(params[moving]))


@pytest.mark.parametrize(("name", "moving"), REFUSED)
def test_where_the_support_moves_the_score_function_lacks_the_boundary_term(name, moving, x64):
    family = FAMILIES[name]

    def score_times_integrand(key):
        z = family.make(family.params).sample(key)

        def log_q(number):
            return distributions.log_prob(family.make({**family.params, moving: number}), z)

        return bounded(z.reshape(1)) * jax.grad(log_q)(jnp.asarray(family.params[moving]))

    exact = exact_gradient(name)[moving]
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(score_times_integrand, exact, jax.random.key(1), 40_000)
    # Leibniz' rule: what is missing is the integrand times the density at the bound, outwards.
    bound = family.params[moving]
    outwards = 1 if moving == "high" else -1
    boundary_term = outwards * bounded(np.array([bound]), np) * ORACLES[name](**family.params).pdf(bound)
    assert_unbiased(score_times_integrand, exact - boundary_term, jax.random.key(1), 40_000)


# The three that follow stand for law 2 in the bounds of Triangular. The score has no variance there, so that no number
# of draws makes a standard error: its mean is held against the exact gradient by quadrature, and by draws only for an
# integrand that is zero near the bounds.


def triangular_scores(z):
    """The derivative of log q(z) in each of Triangular's parameters, at z (n,)."""
    params = in_float64(FAMILIES["Triangular"].params)
    return jax.jacrev(lambda params: FAMILIES["Triangular"].make(params).log_prob(jnp.asarray(z)))(params)


def between(*points, num_nodes=200):
    """Nodes and weights of Gauss-Legendre quadrature on each interval between the points."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    pieces = [((b - a) / 2 * nodes + (a + b) / 2, (b - a) / 2 * weights) for a, b in itertools.pairwise(points)]
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])


def test_score_function_is_unbiased_in_the_bounds_of_triangular(x64):
    params = FAMILIES["Triangular"].params
    z, weights = between(params["low"], params["peak"], params["high"])
    measure = weights * bounded(z[:, None], np) * ORACLES["Triangular"](**params).pdf(z)
    for parameter, exact in exact_gradient("Triangular").items():
        np.testing.assert_allclose(measure @ triangular_scores(z)[parameter], exact, rtol=1e-5)


def test_score_function_in_the_bounds_of_triangular_has_infinite_variance(x64):
    params = FAMILIES["Triangular"].params
    low, peak, high = params.values()
    q = ORACLES["Triangular"](**params)
    for bound, inwards, parameter in ((low, 1, "low"), (high, -1, "high")):
        from_bound, weights = between(*np.geomspace(1e-10, 1e-4, 7))  # decades
        z = bound + inwards * from_bound
        density = bounded(z[:, None], np) ** 2 * np.asarray(triangular_scores(z)[parameter]) ** 2 * q.pdf(z)
        decades = (weights * density).reshape(6, -1).sum(axis=1)
        # Each decade nearer to the bound adds as much as the last: the integral diverges as a logarithm.
        slope = 2 * bounded(np.array([bound]), np) ** 2 / ((high - low) * abs(peak - bound))
        np.testing.assert_allclose(decades, slope * np.log(10), rtol=1e-3)


def test_score_function_is_unbiased_in_the_bounds_of_triangular_for_an_integrand_that_is_zero_there(x64):
    params = FAMILIES["Triangular"].params
    first, last = params["low"] + 0.05, params["high"] - 0.05

    def inside(params, z):
        return jnp.where((z > first) & (z < last), integrand(params, z), 0)

    def expectation(moved):
        z, weights = between(first, moved["peak"], last)
        return weights @ (bounded(z[:, None], np) * ORACLES["Triangular"](**moved).pdf(z))

    grad = gradient_estimate(estimators.score_function(), FAMILIES["Triangular"].make, params, inside)
    assert_unbiased(grad, numeric_gradient(expectation, params), jax.random.key(1), 40_000)


@pytest.mark.parametrize("name", OWN)
def test_our_own_families_equal_scipys(name, x64):
    q, oracle = FAMILIES[name].make(FAMILIES[name].params), ORACLES[name](**FAMILIES[name].params)
    quantiles = np.linspace(0.01, 0.99, 50)
    z = oracle.ppf(quantiles)
    np.testing.assert_allclose(q.cdf(jnp.asarray(z)), quantiles, rtol=1e-10)
    if name in ("Rayleigh", "Triangular"):
        np.testing.assert_allclose(q.icdf(jnp.asarray(quantiles)), z, rtol=1e-10)
    np.testing.assert_allclose([q.mean, q.variance, q.entropy()], [oracle.mean(), oracle.var(), oracle.entropy()])


def test_moments_that_are_infinite_and_mass_outside_the_support(x64):
    assert families.F(3.0, jnp.array([1.5, 2.0, 3.0])).mean.tolist() == [np.inf, np.inf, 3.0]
    assert families.F(3.0, jnp.array([1.5, 3.5, 4.0])).variance.tolist() == [np.inf] * 3
    q = families.Triangular(-1.0, 0.0, 2.0)
    assert q.cdf(jnp.array([-2.0, 3.0])).tolist() == [0, 1]
    assert q.support(jnp.array([-2.0, 1.0, 3.0])).tolist() == [False, True, False]


@pytest.mark.parametrize("name", OWN)
def test_our_own_families_batch_and_are_pytrees(name):
    params = {parameter: jnp.array([value, value + 0.1]) for parameter, value in FAMILIES[name].params.items()}
    q = FAMILIES[name].make(params)
    with jax.numpy_rank_promotion("allow"):  # as any family of numpyro broadcasts its parameters over sample_shape
        z = q.sample(jax.random.key(0), (3,))
        log_q = jax.jit(lambda q, z: q.log_prob(z))(q, z)
    assert z.shape == log_q.shape == (3, 2)
    for i in range(2):
        alone = FAMILIES[name].make({parameter: values[i] for parameter, values in params.items()})
        np.testing.assert_allclose(log_q[:, i], alone.log_prob(z[:, i]), rtol=1e-5)


@pytest.mark.parametrize("name", ["Rayleigh", "F", "Erlang"])
def test_our_own_families_refuse_parameters_that_are_not_positive(name):
    with pytest.raises(ValueError, match="invalid"):
        FAMILIES[name].make(dict.fromkeys(FAMILIES[name].params, -1.0))


@pytest.mark.parametrize("concentration", [0, 1.5, True])
def test_erlang_wants_a_number_of_events(concentration, no_type_hook):
    with pytest.raises(
        ValueError, match=f"an integer of at least 1; got {concentration}: another shape has numpyro.*Gamma"
    ):
        families.Erlang(concentration)


@pytest.mark.parametrize("peak", [-0.6, 1.5])
def test_triangular_with_its_peak_at_an_end_has_finite_gradients(peak):
    def sample_and_density(peak):
        q = families.Triangular(-0.6, peak, 1.5)
        return q.sample(jax.random.key(0), (100,)), q.log_prob(jnp.linspace(-0.5, 1.4, 20))

    assert all(np.isfinite(array).all() for array in jax.jacrev(sample_and_density)(peak))


@pytest.mark.parametrize("u", ["first", "last"])
def test_our_own_samples_stay_inside_their_open_supports(u, monkeypatch):
    # The uniform numbers that make trouble come once in eight million draws, so they are put in its place.
    eps = float(jnp.finfo(jnp.float32).eps)
    extreme = {"first": lambda minval: minval, "last": lambda minval: 1 - eps / 2}[u]
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape, minval=0.0: jnp.full(shape, extreme(minval), jnp.float32)
    )
    for name in ("Rayleigh", "Triangular", "Erlang"):
        q = FAMILIES[name].make(FAMILIES[name].params)
        assert np.isfinite(q.log_prob(q.sample(jax.random.key(0)))), name


def users_family(loc):
    class Unsaid(dist.Normal):
        support = None

    return Unsaid(loc, 1.0, validate_args=False)


UNIT_TO = {"fixed": lambda number: (-1.0, 2.0), "moving": lambda number: (number, 2.0)}


@pytest.mark.parametrize(
    "make",
    [
        lambda number: dist.Uniform(0.0, 1.0),
        lambda number: dist.Uniform(number, 5.0).expand((3,)).to_event(1),
        lambda number: dist.Uniform(0.0, 1.0).mask(False),
        lambda number: dist.LogUniform(1.0, 2.0),
        lambda number: dist.Pareto(number, 2.0),
        lambda number: dist.Delta(number),
        lambda number: dist.TruncatedNormal(0.0, 1.0, low=number),
        lambda number: dist.TruncatedCauchy(0.0, 1.0, high=number),
        lambda number: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=number),
        lambda number: dist.DoublyTruncatedPowerLaw(-2.0, number, 5.0),
        lambda number: dist.LowerTruncatedPowerLaw(-2.0, number),
        lambda number: dist.TransformedDistribution(dist.Uniform(0.0, 1.0), dist.transforms.ExpTransform()),
        lambda number: dist.TransformedDistribution(dist.Beta(2.0, 2.0), dist.transforms.AffineTransform(number, 2.0)),
        lambda number: dist.MixtureGeneral(
            dist.CategoricalProbs(np.array([0.5, 0.5])), [dist.Uniform(0.0, 1.0), dist.Uniform(number, 5.0)]
        ),
    ],
)
def test_supports_that_may_move_are_refused(make):
    for call in (lambda call: call, jax.jit, jax.grad):
        with pytest.raises(ValueError, match=r"support that does not move .* Use estimators.pathwise\(\)"):
            call(lambda number: reparameterization.check_fixed_support(make(number)))(jnp.asarray(0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda number: dist.Normal(number, 1.0).expand((3,)).to_event(1),
        lambda number: dist.Beta(number, 2.0),
        lambda number: dist.Pareto(1.0, number),
        lambda number: dist.Pareto(np.ones(3), number),
        lambda number: dist.TruncatedNormal(number, 1.0, low=0.0),
        lambda number: dist.TruncatedNormal(number, 1.0, low=np.zeros(3), high=1.0),
        lambda number: families.Triangular(-1.0, number, 2.0),
        lambda number: families.Triangular(-1.0, 0.0, number),
        lambda number: dist.Levy(number, 1.0),
        lambda number: dist.Binomial(jnp.array(5), probs=number),
        lambda number: dist.Categorical(jnp.stack([number, 1 - number])),
        lambda number: dist.DiscreteUniform(jnp.array(0), jnp.array(5)),
        lambda number: dist.LogNormal(number, 1.0),
        lambda number: dist.TransformedDistribution(dist.Beta(number, 2.0), dist.transforms.AffineTransform(-1.0, 2.0)),
        lambda number: dist.TransformedDistribution(
            dist.Normal(number, 1.0), [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(0.0, number)]
        ),
        users_family,
    ],
)
def test_supports_that_do_not_move_pass(make):
    for call in (lambda call: call, jax.jit, jax.grad):
        call(lambda number: reparameterization.check_fixed_support(make(number)) or number)(jnp.asarray(0.5))


def refused_parameters(family):
    """The parameters that the score function refuses to learn, when the others are constants."""
    refused = []
    for parameter, value in family.params.items():
        try:
            reparameterization.check_fixed_support(family.make({**family.params, parameter: jnp.asarray(value)}))
        except ValueError:
            refused.append(parameter)
    return refused


def table():
    """The table of vaejax/README.md, from what the library does."""

    def names(parameters):
        return ", ".join(f"`{parameter}`" for parameter in parameters)

    lines = [
        "| family | as | route | reparameterization | `pathwise` | `score_function` | to know |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, family in FAMILIES.items():
        q, refused = family.make(family.params), refused_parameters(family)
        home = "vaejax.families" if name in OWN else "numpyro.distributions"
        served = [parameter for parameter in family.params if parameter not in refused]
        cells = [
            name,
            f"`{home}.{type(q).__name__}`",
            family.route,
            f"implicit in {names(family.implicit)}" if family.implicit else "explicit",
            "yes" if q.has_rsample else "no",
            "; ".join([f"in {names(served)}"] * bool(served) + [f"raises in {names(refused)}"]) if refused else "yes",
            family.note,
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def with_table(text):
    """The text with the table between its two marks; unchanged where there are none."""
    before, mark, rest = text.partition("<!-- families -->\n")
    _, end, after = rest.partition("<!-- /families -->")
    return f"{before}{mark}{table()}\n{end}{after}" if mark and end else text


def test_the_table_in_the_readme_is_what_the_library_does():
    text = README.read_text()
    assert "<!-- families -->\n" in text, f"{README} has no lines <!-- families --> and <!-- /families -->:\n{table()}"
    assert text == with_table(text), f"python {__file__} writes the right table into {README}:\n{table()}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
    sys.stdout.write(table() + "\n")
