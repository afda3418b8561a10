"""What every gradient estimator stands on: K samples under K keys, their reduction to a bound, and one signature."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from vaejax import devices
from vaejax.checks import check_count
from vaejax.estimators.signature import Broadcasting, Integrand


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


def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, to the last bit, with the gradient of `surrogate` added to its own."""
    return value + (surrogate - lax.stop_gradient(surrogate))
