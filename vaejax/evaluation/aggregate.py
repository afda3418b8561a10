"""The aggregate posterior q(z) = (1/N) sum_n q(z|x_n): what a latent tells about its example, and the prior missed."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import distributions, models, records
from vaejax.distributions import Params, two_sample
from vaejax.estimators import monte_carlo
from vaejax.evaluation.estimates import mean_and_error
from vaejax.evaluation.examples import checked_examples, number_of, over_batch, posterior_moments
from vaejax.evaluation.representation import has_moments, has_own_priors
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled


class AggregatePosterior(NamedTuple):
    """The mixture q(z) = (1/N) sum_n q(z|x_n) of all N examples, and how far it is from the prior; in nats.

    rate = mutual_information + kl_to_prior: what the latent tells about x, and the cost of an aggregate posterior that
    is not the prior.

    Attributes:
        mutual_information: I_q(x; z) = (1/N) sum_n KL(q(z|x_n) || q(z)), at most log N. ()
        mutual_information_error: its standard error over examples and samples. ()
        kl_to_prior: KL(q(z) || p(z)). ()
        kl_to_prior_error: its standard error over examples and samples: how far other data would move it, which is
            more than another key would. ()
        mean: of q(z). This and the next two are None where q(z|x) has no moments in closed form. (latent_dim,)
        mean_of_squared_means: (1/N) sum_n mu_n^2. (latent_dim,)
        mean_of_variances: (1/N) sum_n sigma_n^2. The sum of the two is the second moment of q(z), which is 1 for a
            standard normal prior. (latent_dim,)
        energy_distance: between at most 2,000 samples of q(z) and as many of p(z), and its standard error.
        p_value: of the permutation test that both come from one distribution, on at most 1,000 samples each. ()
        num_examples: N.

    >>> half, distance = jax.numpy.array([0.5, 0.5]), two_sample.Distance(*jax.numpy.array([0.1, 0.01]))
    >>> found = AggregatePosterior(*jax.numpy.array([2.0, 0.1, 0.5, 0.1]), 0 * half, half, half, distance, half[0], 100)
    >>> float(found.mutual_information + found.kl_to_prior)  # the rate
    2.5
    >>> (found.mean_of_squared_means + found.mean_of_variances).tolist()  # second moments, here those of N(0, I)
    [1.0, 1.0]
    """

    mutual_information: Float[Array, ""]
    mutual_information_error: Float[Array, ""]
    kl_to_prior: Float[Array, ""]
    kl_to_prior_error: Float[Array, ""]
    mean: Float[Array, " latent_dim"] | None
    mean_of_squared_means: Float[Array, " latent_dim"] | None
    mean_of_variances: Float[Array, " latent_dim"] | None
    energy_distance: two_sample.Distance
    p_value: Float[Array, ""]
    num_examples: int

    __repr__ = records.short_repr


class MutualInformation(NamedTuple):
    """What a sample z of q(z|x) tells about which of N examples it belongs to, in nats.

    Attributes:
        estimate: I_q(x; z), at most log N. ()
        standard_error: over examples and samples. ()
        num_examples: N.

    >>> found = MutualInformation(*jax.numpy.array([4.6, 0.1]), num_examples=100)
    >>> bool(found.estimate > math.log(found.num_examples) - 0.1)  # the latents tell all 100 apart: take more examples
    True
    """

    estimate: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_examples: int

    __repr__ = records.short_repr


def mutual_information(
    vae: VAE, params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, batch_size: int = 100
) -> MutualInformation:
    """Mutual information I_q(x; z) of an example and its latent, where x is one of the N given examples.

    It is estimated by the mean of log q(z_n|x_n) - log q(z_n), with one z_n from each q(z|x_n). The mixture q(z) =
    (1/N) sum_m q(z|x_m) is summed in full, so the estimate has no bias and costs N^2 densities. It cannot exceed log N.
    Near log N the latents tell all N examples apart, and the information about the data at large may be greater.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`.
        batch_size: latents at once, each against all N posteriors.

    Returns:
        The estimate in nats, and its standard error over examples and samples.

    Raises:
        ValueError: if there are fewer than two examples, batch_size is not a positive integer, or `models.check_data`
            refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = mutual_information(vae, vae.init(jax.random.key(0)), jax.random.key(1), jax.numpy.eye(3))
    >>> bool(result.estimate < jax.numpy.log(3))
    True

    Source: Hoffman & Johnson 2016, "ELBO surgery".
    """
    x = checked_examples(vae, params, x, least=2, key=key, batch_size=batch_size)
    log_q, log_mixture, _, _ = _aggregate_terms(vae, batch_size, params, key, x)
    return MutualInformation(*mean_and_error(log_q - log_mixture), number_of(x))


def aggregate_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    *,
    num_permutations: int = 199,
    batch_size: int = 100,
) -> AggregatePosterior:
    """The aggregate posterior q(z) = (1/N) sum_n q(z|x_n) against the prior p(z).

    The further q(z) is from the prior, the worse are samples that the decoder makes of the prior's latents.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`.
        num_permutations: of the two-sample test, whose p-value is at least 1 / (num_permutations + 1).
        batch_size: as in `mutual_information`.

    Returns:
        Mutual information and KL to the prior in nats with standard errors, moments, and a two-sample test.

    Raises:
        ValueError: as `mutual_information`; and if the prior depends on the context, so that no one prior is there to
            compare with.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = aggregate_posterior(vae, vae.init(jax.random.key(0)), jax.random.key(1), jax.numpy.eye(3))
    >>> result.mean_of_variances.shape
    (2,)

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Makhzani et al. 2015 for the name.
    """
    x = checked_examples(vae, params, x, least=2, key=key, batch_size=batch_size, num_permutations=num_permutations)
    if has_own_priors(vae, params, x):
        raise ValueError(
            "expected one prior for all examples; got one for each context: take the examples of one context, with a "
            "model whose prior is bound to it, or use mutual_information"
        )
    posterior_key, prior_key, test_key = jax.random.split(key, 3)
    log_q, log_mixture, log_prior, z = _aggregate_terms(vae, batch_size, params, posterior_key, x)
    from_prior = _prior_samples(vae, min(number_of(x), 2000), params, prior_key)
    z, from_prior = (array.astype(log_q.dtype) for array in (z, from_prior))  # of discrete latents, too
    moments = (None,) * 3
    if has_moments(vae, params, x):
        means, variances = posterior_moments(vae, params, x)
        moments = means.mean(axis=0), (means**2).mean(axis=0), variances.mean(axis=0)
    return AggregatePosterior(
        *mean_and_error(log_q - log_mixture),
        *mean_and_error(log_mixture - log_prior),
        *moments,
        energy_distance=two_sample.energy_distance(z[:2000], from_prior[:2000]),
        p_value=two_sample.p_value(test_key, z[:1000], from_prior[:1000], num_permutations=num_permutations),
        num_examples=number_of(x),
    )


@compiled(0, 1)
def _aggregate_terms(vae, batch_size, params, key, x) -> tuple[Array, Array, Array, Array]:
    """Log q(z_n|x_n), log q(z_n), log p(z_n), all (n,), and the latents z_n (n, latent_dim)."""
    log_densities_at = _all_posteriors(vae, params, x)

    def one_example(index, x):
        model, x = models.given(vae, x)
        own = model.encode(params, x)
        z = distributions.sample(own, jax.random.fold_in(key, index))
        log_densities = log_densities_at(z)
        log_mixture = jax.nn.logsumexp(log_densities) - math.log(log_densities.shape[0])
        return distributions.log_prob(own, z), log_mixture, distributions.log_prob(model.prior(params), z), z

    return over_batch(one_example, vae, params, x, batch_size)


def _all_posteriors(vae: VAE, params: Params, x: Batch | ArrayLike, batch_size: int = 1000) -> Callable[[Array], Array]:
    """`z -> log q(z|x_n)` for all n, (n,), of posteriors that are encoded once, `batch_size` at a time."""

    def encode(example):
        model, x = models.given(vae, example)
        return model.encode(params, x)

    # What does not depend on the example, as the networks between layers, is not copied for each.
    one, two = (jax.eval_shape(encode, jax.tree.map(lambda leaf, n=n: leaf[:n], x)) for n in (1, 2))
    is_own = [a.shape != b.shape for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)]
    leaves, structure = jax.tree.flatten(encode(jax.tree.map(lambda leaf: leaf[0], x)))
    leaves = [None if own else leaf for own, leaf in zip(is_own, leaves, strict=True)]

    def own_leaves(example):
        return [leaf for own, leaf in zip(is_own, jax.tree.leaves(encode(example)), strict=True) if own]

    def log_density(own_of_example, z):
        own = iter(own_of_example)
        return distributions.log_prob(
            jax.tree.unflatten(structure, [next(own) if leaf is None else leaf for leaf in leaves]), z
        )

    all_own = monte_carlo.over_examples(own_leaves, x, batch_size)
    return lambda z: jax.vmap(log_density, in_axes=(0, None))(all_own, z)


@compiled(0, 1)
def _prior_samples(vae: VAE, number: int, params: Params, key) -> Array:
    prior = vae.prior(params)
    return monte_carlo.over_samples(lambda key: distributions.sample(prior, key), key, number)
