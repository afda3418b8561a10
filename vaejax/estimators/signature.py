"""The one signature of gradient estimators, and what an objective must know of an estimator beforehand."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax.distributions import Params
from vaejax.estimators.baselines import Baseline
from vaejax.estimators.reductions import Reduction

Integrand = Callable[[Array, dist.Distribution], tuple[Array, Any]]


class Broadcasting(NamedTuple):
    """An integrand that also takes all samples of a batch at once, z of shape (K, *batch, *event).

    Its log-weights and terms then have that axis too, K long. A network sees K times the batch in one product, which
    the gradient of a `vmap` over K would take apart and copy.

    Attributes:
        integrand: calling the record calls it.
    """

    integrand: Integrand

    def __call__(self, z: Array, q: dist.Distribution) -> tuple[Array, Any]:
        """The log-weight and the terms."""
        return self.integrand(z, q)


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        bound: (*batch,), nats; its gradient is the estimator.
        terms: what the integrand returned beside the log-weight, stacked over samples: leaves (K, *batch, ...).
    """

    bound: Array
    terms: Any


@runtime_checkable
class EstimateFunction(Protocol):
    """The one signature: an `Estimator`, or a plain function of your own."""

    def __call__(
        self,
        key: Key[Array, ""],
        q: dist.Distribution,
        integrand: Integrand,
        num_samples: int,
        reduce: Reduction,
        baseline: Array | None = None,
        chunk_size: int | None = None,
    ) -> Estimate:
        """The bound and the integrand's terms.

        Args:
            key: consumed.
            q: where the samples come from, of shape (*batch, *event).
            integrand: `(z, q) -> (log_w, terms)`, what stands inside the expectation, for one sample of the batch.
            num_samples: K.
            reduce: how the log-weights (K, *batch) become a bound (*batch,).
            baseline: (*batch,) or (), the reward that is expected of each example.
            chunk_size: how many samples are evaluated at once.
        """
        ...


class Estimator(NamedTuple):
    """A gradient estimator: a function of the one signature, and what an objective must know of it beforehand.

    Attributes:
        estimate: the function; calling the estimator calls it.
        baseline: the baseline that is trained along, if any; the objective evaluates it and hands its values over.
        detaches_q: whether q is handed to the integrand without its gradient. Then a KL in closed form would lose it.
    """

    estimate: EstimateFunction
    baseline: Baseline | None = None
    detaches_q: bool = False

    def __call__(self, key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        """The bound and the integrand's terms; see `EstimateFunction`."""
        return self.estimate(key, q, integrand, num_samples, reduce, baseline, chunk_size)


def as_estimator(estimate: Estimator | EstimateFunction) -> Estimator:
    """The estimator itself, or one made of a plain function of the one signature."""
    return estimate if isinstance(estimate, Estimator) else Estimator(estimate)


def with_baseline(params: Params, estimator: Estimator, key: Key[Array, ""], x: ArrayLike) -> Params:
    """The parameters with those of the estimator's trained baseline in `params["baseline"]`, or unchanged without one.

    Args:
        params: the model's.
        estimator: such as `score_function(baseline="nvil")`.
        key: consumed.
        x: a batch of data, or an array of its shape, (n, *data_shape).
    """
    if estimator.baseline is None:
        return params
    return {**params, "baseline": estimator.baseline.init(key, jnp.asarray(x))}


def baseline_values(
    estimator: Estimator, params: Any, x: Array, batch_shape: tuple[int, ...]
) -> Float[Array, "*batch"] | None:
    """What the estimator's trained baseline expects of each example: (*batch,), or None without one.

    Raises:
        ValueError: if the parameters of the baseline are missing.
    """
    if estimator.baseline is None:
        return None
    if not isinstance(params, dict) or "baseline" not in params:
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            "this estimator has a trained baseline, and expects its parameters in params['baseline']; got only "
            f"{got}. Add them: params = estimators.with_baseline(params, estimator, key, x)"
        )
    values = estimator.baseline.apply(params["baseline"], x.reshape(-1, *x.shape[len(batch_shape) :]))
    return values.reshape(batch_shape)
