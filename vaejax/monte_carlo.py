"""What every gradient estimator stands on: K samples under K keys, their reduction to a bound, and one signature."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import devices
from vaejax.baselines import Baseline
from vaejax.distributions import Params

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


class Reduction(NamedTuple):
    """How the log-weights of K samples become a bound. `bound`, and with it the others, shifts: f(l + c) = f(l) + c.

    Attributes:
        bound: (K, *batch) -> (*batch,).
        leave_one_out: (K, *batch) -> (K, *batch); entry k is the bound of the other K - 1 samples.
        credit: (K, *batch) -> (K, *batch); entry k is the part of the bound that sample k can have changed, the reward
            of the score function without a leave-one-out baseline. For a mean that is its own term, l_k / K; for a
            log-mean-exp it is all of it.
        path_weights: (K, *batch) -> (K, *batch); entry k is d bound / d l_k - d^2 bound / d l_k^2, the weight of the
            path derivative of l_k once the score terms are reparameterized a second time: 1 / K for a mean.
        linear: whether the bound is linear in the log-weights.
    """

    bound: Callable[[Array], Array]
    leave_one_out: Callable[[Array], Array]
    credit: Callable[[Array], Array]
    path_weights: Callable[[Array], Array]
    linear: bool


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
        came = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            "this estimator has a trained baseline, and expects its parameters in params['baseline']; came only "
            f"{came}. Add them: params = estimators.with_baseline(params, estimator, key, x)"
        )
    values = estimator.baseline.apply(params["baseline"], x.reshape(-1, *x.shape[len(batch_shape) :]))
    return values.reshape(batch_shape)


def over_samples(
    sample_term: Callable[[Key[Array, ""]], Any], key: Key[Array, ""], num_samples: int, chunk_size: int | None = None
) -> Any:
    """Evaluate `sample_term(key_k)` for K keys made from `key`, and stack the results on a new first axis.

    Args:
        sample_term: a function of one key.
        key: consumed; sample k has a key of its own, whatever K and the chunks.
        num_samples: K.
        chunk_size: how many are evaluated at once; the rest waits, and nothing of a chunk is kept for the backward pass
            (it is computed anew). Memory is then that of `chunk_size` samples, whatever K. None: all at once.

    Raises:
        ValueError: if num_samples or chunk_size is not a positive integer.
    """
    check_count("num_samples", num_samples)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    # The split consumes the key, so that jax_debug_key_reuse notices where a caller uses it again.
    (key,) = jax.random.split(key, 1)
    return over_indices(lambda index: sample_term(jax.random.fold_in(key, index)), num_samples, chunk_size)


def over_draws(
    draw: Callable[[Key[Array, ""]], Array],
    term: Callable[[Array], Any],
    integrand: Integrand,
    key: Key[Array, ""],
    num_samples: int,
    chunk_size: int | None = None,
) -> Any:
    """`over_samples` of `term(draw(key_k))`, whose `term` calls the integrand: on all draws at once if it takes them.

    Args:
        draw: one sample of the batch, (*batch, *event).
        term: of one sample; of several, on an axis in front, if the integrand is a `Broadcasting`.
        integrand: what `term` calls.
        key: as in `over_samples`, and so are the others; the draws are the same.
        num_samples: K.
        chunk_size: samples at once.
    """
    if not isinstance(integrand, Broadcasting):
        return over_samples(lambda key: term(draw(key)), key, num_samples, chunk_size)
    check_count("num_samples", num_samples)
    (key,) = jax.random.split(key, 1)  # as `over_samples` does

    def at_once(indices: Array) -> Any:
        return term(jax.vmap(lambda index: draw(jax.random.fold_in(key, index)))(indices))

    indices = jnp.arange(num_samples)
    if chunk_size is None or chunk_size >= num_samples:
        return at_once(devices.spread(devices.SAMPLES, indices))
    check_count("chunk_size", chunk_size)
    whole = num_samples // chunk_size * chunk_size
    # Draws too are made anew in the backward pass: kept, those of all K would be in memory.
    chunk = jax.checkpoint(at_once)
    results = lax.map(chunk, indices[:whole].reshape(-1, chunk_size))
    results = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)
    if whole == num_samples:
        return results
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, chunk(indices[whole:]))


def over_indices(term: Callable[[Array], Any], num: int, chunk_size: int | None = None) -> Any:
    """Evaluate `term(0), ..., term(num - 1)`, at once or `chunk_size` at a time, and stack the results.

    The backward pass of a chunk evaluates it anew, so that nothing of it is kept.
    """
    if chunk_size is None or chunk_size >= num:
        return jax.vmap(term)(devices.spread(devices.SAMPLES, jnp.arange(num)))
    return lax.map(jax.checkpoint(term), jnp.arange(num), batch_size=chunk_size)


def over_examples(function: Callable[[Any], Any], examples: Any, batch_size: int, axis: str = devices.BATCH) -> Any:
    """`function` of each example, at most `batch_size` of them at once, on each device of a mesh that has the axis.

    `lax.map` would compile a second program for the last, smaller batch: here the batches are of one size, filled up
    with the first examples over again.
    """
    num_examples = len(jax.tree.leaves(examples)[0])
    num_devices = devices.size(axis)
    num_batches = -(-num_examples // (batch_size * num_devices))
    batch_size = num_devices * -(-num_examples // (num_batches * num_devices))
    rows = (jnp.arange(num_batches * batch_size) % num_examples).reshape(num_batches, batch_size)

    def one_batch(batch: Any) -> Any:
        return jax.vmap(function)(devices.spread(axis, batch))

    result = lax.map(one_batch, jax.tree.map(lambda array: array[rows], examples))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_examples], result)


def check_count(name: str, number: int) -> None:
    """Refuse a number of samples, or of anything done at once, that is not a positive integer.

    Raises:
        ValueError: naming the argument and what came.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {number!r}")


def mean_reduction() -> Reduction:
    """The mean over samples: the ELBO."""

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return (log_w.sum(axis=0, keepdims=True) - log_w) / (log_w.shape[0] - 1)

    return Reduction(
        bound=lambda log_w: log_w.mean(axis=0),
        leave_one_out=leave_one_out,
        credit=lambda log_w: log_w / log_w.shape[0],
        path_weights=lambda log_w: jnp.full_like(log_w, 1 / log_w.shape[0]),
        linear=True,
    )


def log_mean_exp_reduction() -> Reduction:
    """The log of the mean weight, log (1/K) sum_k exp(l_k): the importance-weighted bound (Burda et al. 2015)."""

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # From both ends, so that the largest weight is never subtracted from a sum that it dominates.
        nothing = jnp.full_like(log_w[:1], -jnp.inf)
        before = lax.associative_scan(jnp.logaddexp, log_w[:-1], axis=0)
        after = lax.associative_scan(jnp.logaddexp, log_w[1:], axis=0, reverse=True)
        others = jnp.logaddexp(jnp.concatenate([nothing, before]), jnp.concatenate([after, nothing]))
        return others - math.log(log_w.shape[0] - 1)

    return Reduction(
        bound=bound,
        leave_one_out=leave_one_out,
        credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
        # The softmax w has derivative w (1 - w).
        path_weights=lambda log_w: jax.nn.softmax(log_w, axis=0) ** 2,
        linear=False,
    )


def renyi_reduction(alpha: float) -> Reduction:
    """The log of the power mean of the weights with exponent 1 - alpha: the variational Renyi bound (Li & Turner 2016).

    Raises:
        ValueError: if alpha is not a number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or math.isnan(alpha):
        raise ValueError(f"alpha must be a number, or math.inf or -math.inf; got {alpha!r}")
    if alpha == 1:
        return mean_reduction()
    if math.isinf(alpha):
        return _extreme_reduction(jnp.max if alpha < 0 else jnp.min)
    power, plain = 1 - alpha, log_mean_exp_reduction()

    def near_one(log_w: Float[Array, "K ..."], mean_excess: Callable[[Array], Array], far: Callable[[Array], Array]):
        """`far(power * log_w) / power`, where the log-weights times the power are small by expm1 and log1p.

        Alpha near 1 would otherwise divide the rounding of a logarithm by a power near 0.
        """
        largest = log_w.max(axis=0, keepdims=True)
        largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
        excess = power * (log_w - largest)
        small = (jnp.abs(excess) < 0.5).all(axis=0, keepdims=True)
        little = jnp.log1p(mean_excess(jnp.expm1(jnp.where(small, excess, 0))))
        return largest + jnp.where(small, little, far(jnp.where(small, 0, excess))) / power

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return near_one(log_w, lambda e: e.mean(axis=0, keepdims=True), lambda log_w: plain.bound(log_w)[None])[0]

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return near_one(log_w, mean_reduction().leave_one_out, plain.leave_one_out)

    def path_weights(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        shares = jax.nn.softmax(power * log_w, axis=0)
        return shares - power * shares * (1 - shares)  # a share has derivative power * share * (1 - share)

    return Reduction(
        bound=bound,
        leave_one_out=leave_one_out,
        credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
        path_weights=path_weights,
        linear=False,
    )


def _extreme_reduction(extreme: Callable[..., Array]) -> Reduction:
    """The largest or the smallest of the log-weights."""

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        nothing = -jnp.inf if extreme is jnp.max else jnp.inf
        own = jnp.eye(len(log_w), dtype=bool).reshape(len(log_w), len(log_w), *[1] * (log_w.ndim - 1))
        return extreme(jnp.where(own, nothing, log_w[None]), axis=1)

    def chosen(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return jax.grad(lambda log_w: extreme(log_w, axis=0).sum())(log_w)

    return Reduction(
        bound=lambda log_w: extreme(log_w, axis=0),
        leave_one_out=leave_one_out,
        credit=lambda log_w: jnp.broadcast_to(extreme(log_w, axis=0)[None], log_w.shape),
        path_weights=chosen,
        linear=False,
    )


def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, to the last bit, with the gradient of `surrogate` added to its own."""
    return value + (surrogate - lax.stop_gradient(surrogate))


def bounds_with_replaced(reduce: Reduction, log_w: Array, replacements: Array) -> Array:
    """Entry k is the bound with the k-th log-weight replaced: (K, *others, *batch) -> (K, *others, *batch).

    Sample by sample, because K bounds of K log-weights at once would take K times their memory.
    """
    flat = replacements.reshape(len(log_w), -1, *log_w.shape[1:])

    def bounds(args: tuple[Array, Array]) -> Array:
        k, news = args
        return jax.vmap(lambda new: reduce.bound(log_w.at[k].set(new)))(news)

    return lax.map(bounds, (jnp.arange(len(log_w)), flat)).reshape(replacements.shape)
