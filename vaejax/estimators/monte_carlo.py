"""K samples under K keys, at once or in chunks, and what else loops over samples or examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from vaejax import checks, devices
from vaejax.checks import check_count as check_count

# Public as `vaejax.monte_carlo.*` since the first version.
from vaejax.estimators.reductions import Reduction as Reduction
from vaejax.estimators.reductions import bounds_with_replaced as bounds_with_replaced
from vaejax.estimators.reductions import log_mean_exp_reduction as log_mean_exp_reduction
from vaejax.estimators.reductions import mean_reduction as mean_reduction
from vaejax.estimators.reductions import renyi_reduction as renyi_reduction
from vaejax.estimators.signature import Broadcasting as Broadcasting
from vaejax.estimators.signature import Estimate as Estimate
from vaejax.estimators.signature import EstimateFunction as EstimateFunction
from vaejax.estimators.signature import Estimator as Estimator
from vaejax.estimators.signature import Integrand as Integrand
from vaejax.estimators.signature import as_estimator as as_estimator
from vaejax.estimators.signature import baseline_values as baseline_values
from vaejax.estimators.signature import with_baseline as with_baseline


def over_samples(
    sample_term: Callable[[Key[Array, ""]], Any], key: Key[Array, ""], num_samples: int, chunk_size: int | None = None
) -> Any:
    """Evaluate `sample_term(key_k)` for K keys made from `key`, and stack the results on a new first axis.

    Args:
        sample_term: a function of one key.
        key: consumed; sample k has a key of its own, the same for every K and every chunk size.
        num_samples: K.
        chunk_size: how many samples are evaluated at once. The backward pass evaluates a chunk anew, so that memory is
            that of `chunk_size` samples, whatever K is. None: all at once.

    Returns:
        What `sample_term` returns, with leaves (K, ...).

    Raises:
        ValueError: if num_samples or chunk_size is not a positive integer.

    >>> over_samples(jax.random.normal, jax.random.key(0), num_samples=5, chunk_size=2).shape
    (5,)
    """
    checks.check_function("sample_term", sample_term, "key -> a tree of arrays")
    key_of = _keys_of(key, num_samples)
    return over_indices(lambda index: sample_term(key_of(index)), num_samples, chunk_size)


def over_samples_with_noise(
    sample_term: Callable[[Key[Array, ""], Key[Array, ""]], Any],
    key: Key[Array, ""],
    num_samples: int,
    chunk_size: int | None = None,
) -> Any:
    """`over_samples` of `sample_term(key_k, noise_key_k)`, for estimators that draw more than their samples.

    A sample drawn from key_k is then that of every other estimator, and what is drawn beside it shares nothing with it.
    To draw from key_k and to fold it as well would not do: what is folded is not safe from what was drawn.

    Args:
        sample_term: a function of two keys.
        key: as in `over_samples`; the first keys are the same.
        num_samples: K.
        chunk_size: as in `over_samples`.

    Returns:
        What `sample_term` returns, with leaves (K, ...).

    Raises:
        ValueError: as `over_samples`.

    >>> def two(key, noise_key):
    ...     return jax.random.normal(key), jax.random.normal(noise_key)
    >>> samples, noise = over_samples_with_noise(two, jax.random.key(0), num_samples=5)
    >>> bool((samples == over_samples(jax.random.normal, jax.random.key(0), num_samples=5)).all())
    True
    """
    checks.check_function("sample_term", sample_term, "(key, noise_key) -> a tree of arrays")
    key_of = _keys_of(key, num_samples)

    def with_noise(index: Array) -> Any:
        # Numbers that no K reaches, so that the noise of sample k is the same for every K.
        return sample_term(key_of(index), key_of(index.astype(jnp.uint32) + jnp.uint32(2**31)))

    return over_indices(with_noise, num_samples, chunk_size)


def over_draws(
    draw: Callable[[Key[Array, ""]], Any],
    term: Callable[[Any], Any],
    integrand: Integrand,
    key: Key[Array, ""],
    num_samples: int,
    chunk_size: int | None = None,
) -> Any:
    """`over_samples` of `term(draw(key_k))`, where `term` calls the integrand: on all draws at once if it takes them.

    Args:
        draw: one sample of the batch, (*batch, *event), or a tuple of it and what goes with it.
        term: of one sample; of several, on an axis in front, if the integrand is a `Broadcasting`.
        integrand: what `term` calls.
        key: as in `over_samples`; the draws are the same.
        num_samples: K.
        chunk_size: as in `over_samples`.

    Returns:
        What `term` returns, with leaves (K, ...).

    Raises:
        ValueError: as `over_samples`.

    >>> integrand = Broadcasting(lambda z, q: (z**2, None))
    >>> over_draws(jax.random.normal, lambda z: z**2, integrand, jax.random.key(0), num_samples=5).shape
    (5,)
    """
    if not isinstance(integrand, Broadcasting):
        return over_samples(lambda key: term(draw(key)), key, num_samples, chunk_size)
    key_of = _keys_of(key, num_samples)
    # Draws are made inside a chunk too: those of all K, kept, would fill the memory.
    return _in_chunks(
        lambda indices: term(jax.vmap(lambda index: draw(key_of(index)))(indices)), num_samples, chunk_size
    )


def over_points(term: Callable[[Any], Any], points: Any, integrand: Integrand, chunk_size: int | None = None) -> Any:
    """`over_draws` of points that are drawn already, as those are that depend on each other.

    Args:
        term: of one point; of several, on an axis in front, if the integrand is a `Broadcasting`.
        points: a tree with leaves (K, ...).
        integrand: what `term` calls.
        chunk_size: as in `over_samples`.

    Returns:
        What `term` returns, with leaves (K, ...).

    Raises:
        ValueError: if chunk_size is not a positive integer.

    >>> over_points(lambda z: z**2, jnp.arange(5), Broadcasting(lambda z, q: (z**2, None)), chunk_size=2).tolist()
    [0, 1, 4, 9, 16]
    """
    of_indices = lambda index: term(jax.tree.map(lambda leaf: leaf[index], points))  # noqa: E731
    at_once = of_indices if isinstance(integrand, Broadcasting) else jax.vmap(of_indices)
    return _in_chunks(at_once, len(jax.tree.leaves(points)[0]), chunk_size)


def over_indices(term: Callable[[Array], Any], num: int, chunk_size: int | None = None) -> Any:
    """Evaluate `term(0), ..., term(num - 1)`, at once or `chunk_size` at a time, and stack the results.

    Args:
        term: a function of an index, an integer ().
        num: how many indices.
        chunk_size: as in `over_samples`.

    Returns:
        What `term` returns, with leaves (num, ...).

    Raises:
        ValueError: if chunk_size is not a positive integer.

    >>> over_indices(lambda index: index**2, 4).tolist()
    [0, 1, 4, 9]
    """
    return _in_chunks(jax.vmap(term), num, chunk_size)


def over_examples(function: Callable[[Any], Any], examples: Any, batch_size: int, axis: str = devices.BATCH) -> Any:
    """Evaluate a function of one example for all of them, a batch at a time.

    `lax.map` would compile a second program for the last, smaller batch. Here all batches have one size: the last is
    filled up with the first examples.

    Args:
        function: of one example.
        examples: a tree with leaves (n, ...).
        batch_size: at most that many examples at once on each device of the mesh's axis.
        axis: of the mesh, over which a batch is spread where the mesh has it.

    Returns:
        What `function` returns, with leaves (n, ...).

    >>> over_examples(jnp.sum, jnp.ones((5, 3)), batch_size=2).tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    num_examples = len(jax.tree.leaves(examples)[0])
    num_devices = devices.size(axis)
    num_batches = -(-num_examples // (batch_size * num_devices))
    batch_size = num_devices * -(-num_examples // (num_batches * num_devices))
    rows = (jnp.arange(num_batches * batch_size) % num_examples).reshape(num_batches, batch_size)

    def one_batch(batch: Any) -> Any:
        return jax.vmap(function)(devices.spread(axis, batch))

    result = _flattened(lax.map(one_batch, jax.tree.map(lambda array: array[rows], examples)))
    return jax.tree.map(lambda leaf: leaf[:num_examples], result)


def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, to the last bit, with the gradient of `surrogate` added to its own.

    Args:
        value: of any shape.
        surrogate: of that shape; its own value does not matter. Where it is infinite or NaN, so is its gradient: NaN.

    Returns:
        The value, with the sum of both gradients.

    >>> jax.value_and_grad(lambda x: with_gradient_of(jnp.array(7.0), x**2))(3.0)
    (Array(7., dtype=float32...), Array(6., dtype=float32...))
    """
    return value + _zero_like(surrogate)


@jax.custom_jvp
def _zero_like(surrogate: Array) -> Array:
    """Zero, with the gradient of the surrogate: the difference of two infinite surrogates would be no zero."""
    return jnp.zeros_like(surrogate)


@_zero_like.defjvp
def _zero_like_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (surrogate,), (slope,) = primals, tangents
    # Zero with its gradient again, for a derivative of the derivative: in the parameters of one in a sample.
    return _zero_like(surrogate), slope * jnp.where(jnp.isfinite(surrogate), 1, jnp.nan).astype(slope.dtype)


def _keys_of(key: Key[Array, ""], num_samples: int) -> Callable[[Array], Key[Array, ""]]:
    """`index -> key` of that sample."""
    checks.check_given(key=key, num_samples=num_samples)
    # The split consumes the key, so that jax_debug_key_reuse notices where a caller uses it again.
    (key,) = jax.random.split(key, 1)
    return lambda index: jax.random.fold_in(key, index)


def _in_chunks(at_once: Callable[[Array], Any], num: int, chunk_size: int | None) -> Any:
    """`at_once` of the indices 0, ..., num - 1, whole or `chunk_size` of them at a time."""
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    indices = jnp.arange(num)
    if chunk_size is None or chunk_size >= num:
        num_devices = devices.size(devices.SAMPLES)
        # As many for each device; those beyond the last are dropped.
        filled = jnp.arange(num_devices * -(-num // num_devices))
        results = at_once(devices.spread(devices.SAMPLES, filled))
        return results if len(filled) == num else jax.tree.map(lambda leaf: leaf[:num], results)
    whole = num // chunk_size * chunk_size
    chunk = jax.checkpoint(at_once)
    results = _flattened(lax.map(chunk, indices[:whole].reshape(-1, chunk_size)))
    if whole == num:
        return results
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, chunk(indices[whole:]))


def _flattened(tree: Any) -> Any:
    """Leaves (chunks, size, ...) as (chunks * size, ...)."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
