"""Examples in, one result for each out: what every evaluation checks first, and its loop over the examples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE


def checked_examples(vae: VAE, params: Params, x: ArrayLike, least: int = 0, **counts: int) -> Array:
    """The data as an array, after the checks that an evaluation makes before its compiled program runs.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (*batch, *data_shape); (n, *data_shape) if `least` is given.
        least: how many examples the evaluation needs at least, on one batch axis; 0 allows any batch axes.
        counts: arguments that must be integers of at least 1, by name.

    Returns:
        x, (*batch, *data_shape).

    Raises:
        ValueError: if a count is not such an integer, `models.check_data` refuses x, or there are too few examples.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> checked_examples(vae, vae.init(jax.random.key(0)), jnp.ones((1, 3)), least=2, batch_size=10)
    Traceback (most recent call last):
    ...
    ValueError: expected at least 2 examples; got 1: a variance over the examples needs them
    """
    checks.check_counts(**counts)
    models.check_data(vae, params, x)
    x = models.with_batch_axis(vae, params, x) if least else jnp.asarray(x)
    if least and len(x) < least:
        raise ValueError(f"expected at least {least} examples; got {len(x)}: a variance over the examples needs them")
    return x


def check_continuous(vae: VAE, params: Params, advice: str) -> None:
    """Refuse a model whose latents are discrete.

    Args:
        vae: the model.
        params: its parameters.
        advice: what to do instead.

    Raises:
        ValueError: if the prior is discrete.

    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, posterior="bernoulli")
    >>> check_continuous(vae, vae.init(jax.random.key(0)), "use log_likelihood")
    Traceback (most recent call last):
    ...
    ValueError: expected continuous latents; got discrete ones, BernoulliLogits: use log_likelihood
    """
    prior = vae.prior(params)
    if prior.is_discrete:
        raise ValueError(f"expected continuous latents; got discrete ones, {distributions.name_of(prior)}: {advice}")


def over_batch(function: Callable[..., Any], vae: VAE, params: Params, x: Array, batch_size: int, *others: Any) -> Any:
    """`function(index, x, *others)` of each example, `batch_size` examples at once, for use in a compiled program.

    Args:
        function: of the number of an example, its data and its own entries of the others.
        vae: the model, which says where the batch axes of x end.
        params: its parameters.
        x: data, (*batch, *data_shape).
        batch_size: examples at once.
        others: trees of arrays, (*batch, ...).

    Returns:
        What the function returns, each leaf (*batch, ...).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((2, 5, 3))
    >>> numbers, sums = over_batch(lambda index, x: (index, x.sum()), vae, params, x, 4)
    >>> numbers.tolist(), sums.shape
    ([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], (2, 5))
    """
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x, others = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), (x, others))
    results = monte_carlo.over_examples(
        lambda example: function(example[0], example[1], *example[2]), (jnp.arange(len(x)), x, others), batch_size
    )
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), results)


@functools.partial(jax.jit, static_argnums=(0, 3))
def posterior_means(vae: VAE, params: Params, x: Array, batch_size: int = 1000) -> Float[Array, "n latent_dim"]:
    """E_q[z] of each example; for categories, which have no mean, the most probable one.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), which is not checked.
        batch_size: examples at once.

    Returns:
        The means, (n, latent_dim).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> posterior_means(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7, 2)
    """
    return monte_carlo.over_examples(lambda example: distributions.center(vae.encode(params, example)), x, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def posterior_moments(
    vae: VAE, params: Params, x: Array, batch_size: int = 1000
) -> tuple[Float[Array, "n latent_dim"], Float[Array, "n latent_dim"]]:
    """Mean and variance of q(z|x) of each example.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), which is not checked.
        batch_size: examples at once.

    Returns:
        The means and the variances of each unit, both (n, latent_dim).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> means, variances = posterior_moments(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    >>> means.shape, variances.shape
    ((7, 2), (7, 2))
    """

    def moments(example: Array) -> tuple[Array, Array]:
        q = vae.encode(params, example)
        return jnp.asarray(q.mean), jnp.asarray(q.variance)

    return monte_carlo.over_examples(moments, x, batch_size)
