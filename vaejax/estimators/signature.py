"""The one signature of gradient estimators, and what an objective must know of an estimator beforehand."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions, records
from vaejax.distributions import Params
from vaejax.estimators.baselines import Baseline, Trained
from vaejax.estimators.reductions import Reduction

Integrand = Callable[[Array, dist.Distribution], tuple[Array, Any]]
"""What an estimator evaluates at a sample, `(z, q) -> (log_w, terms)`; log_w in nats, (*batch,)."""


class Broadcasting(NamedTuple):
    """An integrand that takes one sample of the batch, or all K at once: z of shape (K, *batch, *event).

    Its log-weights and terms then have the axis of length K in front too. A network evaluates all K samples in one
    matrix product, which the gradient of a `vmap` over K would split into K and copy.

    Attributes:
        integrand: `(z, q) -> (log_w, terms)`; calling the record calls it.
        detach: `() -> q` without its gradient; see `with_detached`.
        log_q_weight: c, of a log-weight that holds -c log q(z); see `with_detached`.

    >>> integrand = Broadcasting(lambda z, q: (z.sum(axis=-1), None))
    >>> integrand(jnp.ones((4, 7, 2)), dist.Normal(0, 1))[0].shape
    (4, 7)
    """

    integrand: Integrand
    detach: Callable[[], dist.Distribution] | None = None
    log_q_weight: ArrayLike = 1.0

    def __call__(self, z: Any, q: dist.Distribution | distributions.Told) -> tuple[Array, Any]:
        """The log-weights and the terms of z."""
        return self.integrand(z, q)


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        bound: (*batch,), nats; its gradient is the estimator.
        terms: what the integrand returned beside the log-weight, stacked over samples: leaves (K, *batch, ...).

    >>> from vaejax import estimators
    >>> log_w, kl = jnp.array([[1.0, 4.0], [3.0, 8.0]]), jnp.array([[5.0, 0.0], [7.0, 1.0]])  # 2 samples of 2 examples
    >>> estimate = Estimate(estimators.mean_reduction().bound(log_w), terms={"kl": kl})
    >>> estimate.bound.tolist(), estimate.terms["kl"].mean(axis=0).tolist()
    ([2.0, 6.0], [6.0, 0.5])
    """

    bound: Array
    terms: Any

    __repr__ = records.short_repr


@runtime_checkable
class EstimateFunction(Protocol):
    """The signature that all gradient estimators share. A plain function of your own with it is one too.

    It draws K samples z_k from q, evaluates the integrand at each, and reduces the log-weights l_k to a bound. The
    *value* of the bound is the same for all estimators that draw the same samples; its *gradient* is the estimate. So
    what exists for the gradient alone is added with `monte_carlo.with_gradient_of(bound, surrogate)`, which leaves the
    value as it is.

    >>> import jax
    >>> from vaejax import estimators, monte_carlo
    >>> def my_pathwise(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
    ...     log_w, terms = monte_carlo.over_samples(
    ...         lambda key: integrand(q.rsample(key), q), key, num_samples, chunk_size
    ...     )
    ...     return estimators.Estimate(reduce.bound(log_w), terms)
    >>> mean_of = estimators.expectation(my_pathwise, lambda mean: dist.Normal(mean, 1.0), lambda mean, z: 3 * z)
    >>> float(jax.grad(mean_of, has_aux=True)(2.0, jax.random.key(0))[0])
    3.0
    """

    def __call__(
        self,
        key: Key[Array, ""],
        q: dist.Distribution,
        integrand: Integrand,
        num_samples: int,
        reduce: Reduction,
        baseline: Any = None,
        chunk_size: int | None = None,
    ) -> Estimate:
        """Estimate the bound.

        Args:
            key: consumed, once.
            q: the distribution of the samples, with batch shape (*batch,). Its gradient is what is estimated.
            integrand: `(z, q) -> (log_w, terms)`, what stands inside the expectation: for z of shape (*batch, *event)
                the log-weights (*batch,), and a tree that is handed back. Pass a q without its gradient,
                `estimators.detached(q, integrand)`, to drop the score of q; then set `Estimator.detaches_q`.
            num_samples: K.
            reduce: how the log-weights (K, *batch) become a bound (*batch,).
            baseline: (*batch,) or (), the reward that is expected of each example, if a baseline is trained along; or
                the tree of what else is trained along, `baselines.Trained`. An estimator without a use for it ignores
                it.
            chunk_size: how many samples are evaluated at once; None: all.

        Returns:
            The bound (*batch,) and the terms (K, *batch, ...).

        Raises:
            ValueError: if it cannot serve this q or this K; the message names an estimator that can.
        """
        ...


class Estimator(NamedTuple):
    """A gradient estimator: a function of the one signature, and what an objective must know of it beforehand.

    Attributes:
        estimate: the function; calling the estimator calls it.
        baseline: what is trained along, if anything: a baseline, which the objective evaluates and whose values it
            passes on; or other parameters, which it passes on as they are. A dict of both, by name, is a tree of them.
        detaches_q: whether the integrand gets q without its gradient. Then a KL in closed form would have none.
        fewest_samples: the smallest K that it serves. A multiple of it is served too.

    >>> from vaejax import estimators
    >>> estimators.score_function(baseline="leave_one_out").fewest_samples  # the other samples are the baseline of each
    2
    >>> estimators.pathwise().detaches_q, estimators.sticking_the_landing().detaches_q  # the latter needs a sampled KL
    (False, True)
    """

    estimate: EstimateFunction
    baseline: Baseline | Trained | dict[str, Any] | None = None
    detaches_q: bool = False
    fewest_samples: int = 1

    def __call__(self, key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        """The bound and the integrand's terms; see `EstimateFunction`."""
        return self.estimate(key, q, integrand, num_samples, reduce, baseline, chunk_size)


def as_estimator(estimate: Estimator | EstimateFunction) -> Estimator:
    """The estimator itself, or one made of a plain function of the one signature.

    Args:
        estimate: an `Estimator`, as `score_function()` returns one, or a function of the signature.

    Raises:
        TypeError: if it is neither.

    >>> as_estimator(lambda key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None: ...).detaches_q
    False
    """
    if isinstance(estimate, Estimator):
        return estimate
    if not callable(estimate) or not _has_the_signature(estimate):
        advice = f": call it, {estimate.__name__}({_required(estimate)})" if _makes_estimators(estimate) else ""
        raise TypeError(
            "expected an estimator, such as estimators.pathwise() or estimators.score_function('leave_one_out'), or a "
            f"function (key, q, integrand, num_samples, reduce, baseline, chunk_size); got {estimate!r}{advice}"
        )
    return Estimator(estimate)


def _makes_estimators(function: Any) -> bool:
    """Whether it is a factory of this room, or another that says so: `def my_estimator() -> Estimator`."""
    return inspect.isfunction(function) and inspect.signature(function).return_annotation in (Estimator, "Estimator")


def _required(factory: Callable[..., Any]) -> str:
    """The arguments without which it cannot be called, as in a call."""
    parameters = inspect.signature(factory).parameters.values()
    return ", ".join(parameter.name for parameter in parameters if parameter.default is parameter.empty)


def _has_the_signature(function: Callable[..., Any]) -> bool:
    """Whether it can be called as an estimator is; so it is taken to be where Python does not know its arguments."""
    try:
        inspect.signature(function).bind(*range(7))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def with_baseline(params: Params, estimator: Estimator, key: Key[Array, ""], x: Any) -> Params:
    """The parameters with those of the estimator's trained baseline in `params["baseline"]`, or unchanged without one.

    Args:
        params: the model's.
        estimator: such as `score_function(baseline="nvil")`.
        key: consumed.
        x: a batch of data, or an array of its shape, (n, *data_shape); or a `models.Batch`.

    Returns:
        A new dict; the arrays of the model are the same.

    >>> import jax
    >>> from vaejax import estimators
    >>> with_baseline({}, estimators.score_function(baseline="moving_average"), jax.random.key(0), jnp.ones((7, 3)))
    {'baseline': {'mean': Array(0., dtype=float32)}}
    """
    estimator = as_estimator(estimator)
    if estimator.baseline is None:
        return params
    checks.check_kind("params", params, dict, "a dict, as vae.init(key) gives")
    checks.check_leaves(params)
    checks.check_array(getattr(x, "x", x))
    checks.check_key(key)
    return {**params, "baseline": _initial(estimator.baseline, key, jnp.asarray(getattr(x, "x", x)))}  # of a Batch too


def _initial(baseline: Any, key: Key[Array, ""], x: Array) -> Any:
    if not isinstance(baseline, dict):
        return baseline.init(key, x)
    keys = dict(zip(sorted(baseline), jax.random.split(key, len(baseline)), strict=True))
    return {name: _initial(part, keys[name], x) for name, part in baseline.items()}


def baseline_values(estimator: Estimator, params: Any, x: Array, batch_shape: tuple[int, ...]) -> Any:
    """What the estimator gets as its baseline: the rewards expected of each example, or what else is trained along.

    Args:
        estimator: such as `score_function(baseline="nvil")`.
        params: a dict with the parameters of the baseline in "baseline".
        x: data, (*batch, *data_shape).
        batch_shape: the axes of x that count examples.

    Returns:
        Nats, (*batch,), of a baseline; the parameters themselves of a `baselines.Trained`; a dict of those for a dict;
        None where nothing is trained along.

    Raises:
        ValueError: if the parameters of the baseline are missing.

    >>> from vaejax import estimators
    >>> estimator = estimators.score_function(baseline="moving_average")
    >>> baseline_values(estimator, {"baseline": {"mean": jnp.array(-90.0)}}, jnp.ones((2, 3)), (2,)).tolist()
    [-90.0, -90.0]
    """
    if estimator.baseline is None:
        return None
    if not isinstance(params, dict) or "baseline" not in params:
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            "this estimator has a trained baseline, and expects its parameters in params['baseline']; got only "
            f"{got}. Add them: params = estimators.with_baseline(params, estimator, key, x)"
        )
    flat = x.reshape(-1, *x.shape[len(batch_shape) :])

    def values(baseline: Any, own: Any) -> Any:
        if isinstance(baseline, Trained):
            return own
        if isinstance(baseline, dict):
            return {name: values(part, own[name]) for name, part in baseline.items()}
        return baseline.apply(own, flat).reshape(batch_shape)

    return values(estimator.baseline, params["baseline"])


# More states do not fit in memory, and sampling is the better answer long before.
MAX_STATES = 2**16


def is_enumerable(q: dist.Distribution) -> bool:
    """Whether q is discrete with a finite support, independent coordinates and few states: `enumerate_support` serves.

    >>> is_enumerable(dist.BernoulliLogits(jnp.zeros(3)).to_event(1)), is_enumerable(dist.Poisson(1.0))
    (True, False)
    """
    base = distributions.without_wrappers(q)
    if base.event_shape or not base.has_enumerate_support:
        return False
    num_values = jax.eval_shape(lambda: base.enumerate_support(expand=False)).size
    return num_values ** math.prod(q.event_shape) <= MAX_STATES


def refuse_q(estimator: str, served: str, q: dist.Distribution, instead: str) -> NoReturn:
    """Raise the one error of estimators that cannot serve a q: what they serve, what q is, and what to use instead."""
    raise ValueError(f"{estimator} serves {served}; got q = {distributions.name_of(q)}. Use {instead}")
