import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import evaluation, models, sequences
from vaejax.evaluation import reports


@pytest.fixture(scope="module")
def problem():
    vae = models.mlp_vae((2, 2), 3, (5,))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (60, 2, 2)).astype(jnp.float32)
    # A decoder that hardly looks at its code, so that the weights are good.
    return vae, jax.tree.map(lambda leaf: 0.3 * leaf, vae.init(jax.random.key(0))), x


@pytest.mark.exhaustive
def test_a_report_holds_what_its_parts_say(problem, monkeypatch):
    vae, params, x = problem
    seen = []
    monkeypatch.setattr(reports, "_PART", 25)
    report = evaluation.report(vae, params, jax.random.key(2), x, num_samples=200, progress=seen.append)
    assert seen == [25, 25, 10]
    assert report.num_examples == 60
    assert report.num_samples == 200
    whole = evaluation.average(evaluation.log_likelihood(vae, params, jax.random.key(3), x, num_samples=200))
    error = np.hypot(whole.error_over_samples, report.log_likelihood.error_over_samples)
    assert abs(whole.estimate - report.log_likelihood.estimate) < 4 * error
    assert (
        0.5 < report.log_likelihood.error_over_data / whole.error_over_data < 2
    )  # of the same examples, other samples
    rates = report.rate_distortion
    bound = -(rates.rate + rates.distortion)
    assert abs(bound - report.elbo.estimate) < 0.2
    assert report.elbo.estimate < report.log_likelihood.estimate
    aggregate = report.aggregate
    sampled_rate = aggregate.mutual_information + aggregate.kl_to_prior
    assert abs(sampled_rate - rates.rate) < 0.1
    assert report.units.num_active == evaluation.active_units(vae, params, x).num_active
    assert report.num_trusted == 60


@pytest.mark.slow
def test_a_report_says_of_what_its_errors_are(problem):
    """The standard error that is printed is over examples; and log p(x) and the ELBO are of samples of their own."""
    vae, params, x = problem
    key = jax.random.key(2)
    report = evaluation.report(vae, params, key, x, num_samples=100)
    named = evaluation.numbers(report)
    likelihood_key = jax.random.split(jax.random.key(2), 5)[0]
    same = jax.random.fold_in(likelihood_key, 0)
    one, hundred = evaluation.log_likelihood_sweep(vae, params, same, x, (1, 100))
    spread = np.asarray(hundred.estimate).std(ddof=1) / np.sqrt(60)
    assert named["log_likelihood"] == pytest.approx(float(hundred.estimate.mean()), rel=1e-5)
    assert named["standard_error"] == pytest.approx(spread, rel=1e-3)
    over_samples = evaluation.average(hundred).error_over_samples
    assert named["standard_error_over_samples"] == pytest.approx(float(over_samples), rel=1e-3)
    assert float(over_samples) != pytest.approx(spread, rel=0.03)
    assert f"± {spread:.2f} nats" in evaluation.in_words(report)
    assert abs(named["elbo"] - one.estimate.mean()) > 1e-4
    error = np.hypot(one.standard_error, one.standard_error).mean() / np.sqrt(60)
    assert abs(named["elbo"] - one.estimate.mean()) < 5 * error


def test_a_report_in_numbers_and_in_words(problem):
    vae, params, x = problem
    report = evaluation.report(vae, params, jax.random.key(2), x, num_samples=50)
    named = json.loads(json.dumps(evaluation.numbers(report)))
    assert named["latent_dim"] == 3
    assert named["num_examples"] == 60
    assert named["log_likelihood"] == pytest.approx(float(report.log_likelihood.estimate))
    words = evaluation.in_words(report)
    assert f"log p(x) {named['log_likelihood']:.2f} ± {named['standard_error']:.2f} nats" in words
    assert f"{named['active_units']} of 3 units active" in words
    for before, name, after in (
        ("ELBO", "elbo", "nats, "),
        ("rate (KL)", "rate", "and"),
        ("distortion", "distortion", "nats"),
        ("the latent tells", "mutual_information", "nats about"),
        ("aggregate posterior", "aggregate_kl", "nats from the prior"),
    ):
        assert f"{before} {named[name]:.2f} ± {named[f'{name}_standard_error']:.2f} {after}" in words
    assert "K = 50" in words
    doubtful = report._replace(num_trusted=48)
    told = evaluation.in_words(doubtful).splitlines()[1]
    assert told.startswith("in 12 of 60 examples a few of the 50 weights decide all: log p(x) is probably higher")
    assert "weights" not in evaluation.in_words(report._replace(num_trusted=60))


@pytest.mark.exhaustive
def test_a_report_of_sequences_and_of_examples_all_alike(problem):
    vae, params, x = problem
    alike = evaluation.report(vae, params, jax.random.key(2), jnp.ones_like(x), num_samples=50)
    assert "variance, as a share" not in evaluation.in_words(alike)
    with pytest.raises(ValueError, match=r"one batch axis.*got data of shape \(2, 2\)"):
        evaluation.report(vae, params, jax.random.key(2), x[0])
    writer = sequences.lstm_vae(vocabulary_size=5, length=4, latent_dim=2, hidden_size=3)
    params, tokens = writer.init(jax.random.key(0)), jnp.zeros((6, 4), jnp.int32)
    report = evaluation.report(writer, params, jax.random.key(2), tokens, num_samples=50)
    assert report.variance_loss is None
    assert "data_variance" not in evaluation.numbers(report)
    assert "log p(x)" in evaluation.in_words(report)
    with pytest.raises(ValueError, match=r"p\(x\|z\) with a mean.*sequences of tokens"):
        evaluation.variance_loss(writer, params, jax.random.key(2), tokens)


@pytest.mark.slow
def test_a_report_of_discrete_latents(problem):
    _, _, x = problem
    for posterior, has_moments in (("bernoulli", True), ("categorical", False)):
        vae = models.mlp_vae((2, 2), 2, (5,), posterior=posterior)
        report = evaluation.report(vae, vae.init(jax.random.key(0)), jax.random.key(1), x, num_samples=10)
        assert (report.aggregate is not None) == has_moments
        assert (report.units is not None) == has_moments
        assert ("units active" in evaluation.in_words(report)) == has_moments
        assert ("mutual_information" in evaluation.numbers(report)) == has_moments


NAMES = """
    ActiveUnits AggregatePosterior AnnealedLogLikelihood Average BidirectionalBounds Elbo GridPosterior
    LogLikelihood MutualInformation PowerSpectrum Quadrature RateDistortion Report VarianceLoss active_units
    aggregate_posterior annealed_log_likelihood average bidirectional_bounds elbo encoder_density in_words
    independent_log_likelihood is_trustworthy linear_log_likelihood log_likelihood log_likelihood_from
    log_likelihood_from_prior log_likelihood_sweep mutual_information numbers pareto_index posterior_means
    posterior_moments power_spectrum prior_density quadrature_log_likelihood quadrature_posterior rate_distortion
    reconstructions_and_samples report variance_loss
"""


def test_the_public_names_of_the_first_release_are_there():
    assert set(NAMES.split()) <= set(evaluation.__all__)
    assert all(hasattr(evaluation, name) for name in evaluation.__all__)


def test_records_print_on_a_few_lines(problem):
    vae, params, x = problem
    result = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=50)
    lines = repr(result).splitlines()
    assert lines[0] == "LogLikelihood("
    assert lines[1].startswith("  estimate: float32[60], mean -")
    assert len(repr(result)) < 300
    report = evaluation.report(vae, params, jax.random.key(2), x, num_samples=50)
    assert "  elbo: Average(\n    estimate: float32[] -" in repr(report)
    assert len(repr(report)) < 2000
