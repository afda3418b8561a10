"""A sample of the product of `train.py`'s options; `product_of_options.py` has all of it."""

import product_of_options
import pytest


@pytest.fixture(autouse=True)
def _without_pictures(experiments, monkeypatch):
    """What is drawn of a model does not depend on these options."""
    from engines.train import pictures, run

    for name in ("snapshot", "pictures"):
        monkeypatch.setattr(run.snapshots.Viewer, name, lambda *_: {})
    monkeypatch.setattr(pictures, "draw", lambda *_: [])


def chosen(**options):
    """The one product of these options."""
    (product,) = (each for each in product_of_options.products() if each == options)
    return product


TRAINED = [
    ("measure_valued", "iwae", "gaussian", "analytic", "gaussian_fixed_std", "amortized"),
    ("score_function", "free_bits", "bernoulli", "analytic", "gaussian_shared_std", "aggressive"),
    ("pathwise", "reconstruction", "point", "analytic", "gaussian_fixed_std", "amortized"),
]
REFUSED = {
    ("pathwise", "elbo", "bernoulli", "analytic", "bernoulli", "amortized"): "score_function",
    ("enumerate_support", "elbo", "gaussian", "analytic", "bernoulli", "amortized"): "enumerate_support()",
    ("vimco", "elbo", "point", "analytic", "bernoulli", "amortized"): "--posterior point needs",
    ("sticking_the_landing", "elbo", "gaussian", "entropy", "gaussian", "amortized"): "needs --kl sampled",
    ("pathwise", "optimal_std", "gaussian", "analytic", "bernoulli", "amortized"): "needs --likelihood",
}


@pytest.mark.slow
@pytest.mark.parametrize("values", TRAINED, ids=map(" ".join, TRAINED))
def test_trains(values, tmp_path):
    product = chosen(**dict(zip(product_of_options.OPTIONS, values, strict=True)))
    kind, what = product_of_options.outcome(product, tmp_path)
    assert kind == "trained", what


@pytest.mark.parametrize("values", REFUSED, ids=map(" ".join, REFUSED))
def test_is_refused(values, tmp_path):
    product = chosen(**dict(zip(product_of_options.OPTIONS, values, strict=True)))
    kind, what = product_of_options.outcome(product, tmp_path)
    assert kind == "refused", what
    assert REFUSED[values] in what
    assert not list(tmp_path.iterdir())
