"""Examples in, one result for each out: what every evaluation checks first, and its loop over the examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled


def checked_examples(vae: VAE, params: Params, x: Batch | ArrayLike, least: int = 0, **given: Any) -> Any:
    """The data as an array, after the checks that an evaluation makes before its compiled program runs.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `models.Batch`; (n, *data_shape) if `least` is given.
        least: how many examples the evaluation needs at least, on one batch axis; 0 allows any batch axes.
        given: other arguments by name, as `checks.check_given` takes them: keys, and counts of at least 1.

    Returns:
        x, of JAX arrays.

    Raises:
        ValueError: if an argument is not what its name says, `models.check_data` refuses x, or there are too few
            examples.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> checked_examples(vae, vae.init(jax.random.key(0)), jnp.ones((1, 3)), least=2, batch_size=10)
    Traceback (most recent call last):
    ...
    ValueError: expected at least 2 examples; got 1: a variance over the examples needs them
    """
    checks.check_given(**given)
    models.check_data(vae, params, x)
    x = jax.tree.map(jnp.asarray, x) if isinstance(x, Batch) else jnp.asarray(x)
    if least:
        x, number = models.with_batch_axis(vae, params, x), number_of(x)
        if number < least:
            raise ValueError(
                f"expected at least {least} examples; got {number}: a variance over the examples needs them"
            )
    return x


def number_of(x: Batch | ArrayLike) -> int:
    """How many examples there are on the first axis.

    >>> number_of(Batch(jnp.ones((7, 3)), mask=jnp.ones((7, 3), bool)))
    7
    """
    return len(checks.as_array(models.numbers_of(x)))


def like_posterior(vae: VAE, params: Params, x: Batch | ArrayLike) -> Any:
    """The posteriors of all examples as shapes: a distribution without numbers, of batch shape (*batch,).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> like_posterior(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).batch_shape
    (7,)
    """
    checks.check_given(vae=vae, params=params)
    model, x = models.given(vae, x)
    return jax.eval_shape(model.encode, params, x)


def latent_dtype(vae: VAE, params: Params, x: Batch | ArrayLike) -> Any:
    """The dtype of a sample of q(z|x).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> latent_dtype(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    dtype('float32')
    """
    model, x = models.given(vae, x)
    return jax.eval_shape(lambda key: distributions.sample(model.encode(params, x), key), jax.random.key(0)).dtype


def check_continuous(vae: VAE, params: Params, advice: str) -> None:
    """Refuse a model whose latents are discrete.

    Args:
        vae: the model, `models.given` its context.
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
    checks.check_model(vae)
    prior = vae.prior(params)
    if prior.is_discrete:
        raise ValueError(f"expected continuous latents; got discrete ones, {distributions.name_of(prior)}: {advice}")


def over_batch(
    function: Callable[..., Any], vae: VAE, params: Params, x: Batch | ArrayLike, batch_size: int, *others: Any
) -> Any:
    """`function(index, x, *others)` of each example, `batch_size` examples at once, for use in a compiled program.

    Args:
        function: of the number of an example, its data (a `models.Batch` if x is one) and its own entries of the
            others.
        vae: the model, which says where the batch axes of x end.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `models.Batch`.
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
    batch_shape = like_posterior(vae, params, x).batch_shape
    x, others = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), (x, others))
    results = monte_carlo.over_examples(
        lambda example: function(example[0], example[1], *example[2]), (jnp.arange(number_of(x)), x, others), batch_size
    )
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), results)


@compiled(0, 3)
def posterior_means(
    vae: VAE, params: Params, x: Batch | ArrayLike, batch_size: int = 1000
) -> Float[Array, "n latent_dim"]:
    """E_q[z] of each example; for categories, which have no mean, the most probable one.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), or a `models.Batch`; not checked.
        batch_size: examples at once.

    Returns:
        The means, (n, latent_dim).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> posterior_means(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7, 2)
    """

    def mean(example: Any) -> Array:
        model, x = models.given(vae, example)
        return distributions.center(model.encode(params, x))

    return monte_carlo.over_examples(mean, x, batch_size)


@compiled(0, 3)
def posterior_moments(
    vae: VAE, params: Params, x: Batch | ArrayLike, batch_size: int = 1000
) -> tuple[Float[Array, "n latent_dim"], Float[Array, "n latent_dim"]]:
    """Mean and variance of q(z|x) of each example.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), or a `models.Batch`; not checked.
        batch_size: examples at once.

    Returns:
        The means and the variances of each unit, both (n, latent_dim).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> means, variances = posterior_moments(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    >>> means.shape, variances.shape
    ((7, 2), (7, 2))
    """

    def moments(example: Any) -> tuple[Array, Array]:
        model, x = models.given(vae, example)
        q = model.encode(params, x)
        return jnp.asarray(q.mean), jnp.asarray(q.variance)

    return monte_carlo.over_examples(moments, x, batch_size)


@compiled(0, 1)
def simulated(vae: VAE, num_examples: int, params: Params, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Latents of the prior, and one example of each.

    Args:
        vae: the model, without a context.
        num_examples: n.
        params: its parameters.
        key: consumed.

    Returns:
        Latents (n, latent_dim) and data (n, *data_shape).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> [part.shape for part in simulated(vae, 7, vae.init(jax.random.key(0)), jax.random.key(1))]
    [(7, 2), (7, 3)]
    """
    prior = vae.prior(params)

    def one_example(key):
        latent_key, data_key = jax.random.split(key)
        z = distributions.sample(prior, latent_key)
        return z, models.sample_data(vae, params, data_key, z)

    return monte_carlo.over_samples(one_example, key, num_examples)
