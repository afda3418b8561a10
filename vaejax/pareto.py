"""How heavy the tail of importance weights is: whether their mean can be trusted."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Below this K the tail is less than five weights, and nothing can be said of it.
SMALLEST_K = 25


def pareto_index(log_w: Float[Array, "K *batch"]) -> Float[Array, " *batch"]:
    """Shape of the generalized Pareto distribution that fits the largest of K importance weights.

    Weights of index k have moments below 1 / k: from 0.5 on their variance is infinite, and with it the error of the
    mean; from 1 on the mean itself is. Where the largest exceeds the least of the tail by less than a thousandth there
    is nothing to fear from it, and the index is -inf.

    Args:
        log_w: of the weights, in nats. The largest min(K / 5, 3 sqrt(K)) are the tail.

    Returns:
        The index, drawn a little towards 0.5 where the tail is short.

    Raises:
        ValueError: if K is below 25.

    >>> log_w = 0.8 * jax.random.exponential(jax.random.key(0), (20_000,))  # Pareto weights of index 0.8
    >>> bool(0.7 < pareto_index(log_w) < 0.9)
    True

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024; the fit: Zhang & Stephens 2009, "A new and efficient estimation
    method for the generalized Pareto distribution".
    """
    num_samples = log_w.shape[0]
    if num_samples < SMALLEST_K:
        raise ValueError(
            f"the Pareto index needs at least {SMALLEST_K} weights, of which it takes the largest fifth; came "
            f"{num_samples}: draw more samples"
        )
    length = min(num_samples // 5, math.ceil(3 * math.sqrt(num_samples)))
    largest = jax.lax.top_k(jnp.moveaxis(log_w, 0, -1), length + 1)[0]
    weights = jnp.exp(largest - largest[..., :1])
    excess = (weights[..., :-1] - weights[..., -1:])[..., ::-1]  # over the weight below the tail, rising
    return jnp.vectorize(_pareto_shape, signature="(n)->()")(excess)


def _pareto_shape(excess: Float[Array, " n"]) -> Float[Array, ""]:
    """Zhang and Stephens' estimate: the mean of the likelihood over a grid of one parameter, the other profiled out."""
    number = excess.shape[0]
    largest, quartile = excess[-1], excess[int(number / 4 + 0.5) - 1]
    no_tail = largest <= 1e-3
    largest, quartile = (jnp.maximum(part, jnp.finfo(excess.dtype).tiny) for part in (largest, quartile))
    num_nodes = 30 + math.isqrt(number)
    nodes = jnp.arange(1, num_nodes + 1, dtype=excess.dtype)
    rates = 1 / largest + (1 - jnp.sqrt(num_nodes / (nodes - 0.5))) / (3 * quartile)

    def shape(rate):
        return jnp.log1p(-rate * excess).mean()

    shapes = jax.vmap(shape)(rates)
    log_likelihoods = number * (jnp.log(-rates / shapes) - shapes - 1)
    posterior = jax.nn.softmax(jnp.where(jnp.isnan(log_likelihoods), -jnp.inf, log_likelihoods))
    fitted = (number * shape((posterior * rates).sum()) + 10 * 0.5) / (number + 10)
    return jnp.where(no_tail, -jnp.inf, fitted)
