"""Learned priors p(z): mixtures, pseudo-inputs through the encoder, flows; their parameters are `params["prior"]`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Key

from vaejax import checks, distributions
from vaejax.distributions import Head, Params
from vaejax.models import networks


class Prior(NamedTuple):
    """How a prior is made of its own parameters; `make_vae` takes one.

    Attributes:
        init: `(key, latent_dim, data_shape) -> params`, the prior's own, trained with the rest.
        apply: `(params, latent_dim, encode) -> p(z)`, with batch shape () and event shape (latent_dim,); `encode` is
            `x -> q(z|x)` of the same parameters.
        encodes: whether `apply` calls `encode`, which a model with a context cannot do without one.

    >>> wide = Prior(
    ...     init=lambda key, latent_dim, data_shape: {},
    ...     apply=lambda params, latent_dim, encode: dist.Normal(jnp.zeros(latent_dim), 2.0).to_event(1),
    ... )
    >>> wide.apply({}, 2, None).event_shape
    (2,)
    """

    init: Callable[[Key[Array, ""], int, tuple[int, ...]], Params]
    apply: Callable[[Params, int, Callable[[Array], dist.Distribution]], dist.Distribution]
    encodes: bool = False


def mixture_prior(num_components: int) -> Prior:
    """A mixture of Gaussians with diagonal covariance and learned weights, means and standard deviations.

    The means start at draws of a standard normal, the standard deviations at 1.

    Args:
        num_components: Gaussians in the mixture.

    Returns:
        A prior for `make_vae`. The KL has no closed form: pass kl="sampled" to the ELBO.

    Raises:
        ValueError: if num_components is not a positive integer.

    >>> from vaejax import models
    >>> vae = models.mlp_vae((3,), latent_dim=2, prior=mixture_prior(10))
    >>> params = vae.init(jax.random.key(0))
    >>> params["prior"]["mean"].shape, vae.prior(params).event_shape
    ((10, 2), (2,))
    """
    checks.check_count("num_components", num_components)

    def init(key: Key[Array, ""], latent_dim: int, data_shape: tuple[int, ...]) -> Params:
        del data_shape
        zeros = jnp.zeros((num_components, latent_dim), jnp.float32)
        mean = jax.random.normal(key, zeros.shape, zeros.dtype)
        return {"logits": jnp.zeros(num_components, zeros.dtype), "mean": mean, "log_std": zeros}

    def apply(params: Params, latent_dim: int, encode: Any) -> dist.Distribution:
        del latent_dim, encode
        std = jnp.exp(distributions.bounded_log_std(params["log_std"]))
        return _mixture(params["logits"], dist.Normal(params["mean"], std).to_event(1))

    return Prior(init, apply)


def vamp_prior(num_inputs: int) -> Prior:
    """The mixture of the posteriors of learned pseudo-inputs u_k: p(z) = (1 / K) sum_k q(z|u_k).

    The pseudo-inputs start at random numbers of [0, 1]; `models.with_pseudo_inputs(vae, params, key, x)` starts them
    from data. The encoder is trained through the prior too.

    Args:
        num_inputs: pseudo-inputs K.

    Returns:
        A prior for `make_vae`, of any posterior with a density. The KL has no closed form: pass kl="sampled".

    Raises:
        ValueError: if num_inputs is not a positive integer.

    >>> from vaejax import models
    >>> vae = models.mlp_vae((3,), latent_dim=2, prior=vamp_prior(5))
    >>> vae.init(jax.random.key(0))["prior"]["inputs"].shape
    (5, 3)

    Source: Tomczak & Welling 2018, "VAE with a VampPrior".
    """
    checks.check_count("num_inputs", num_inputs)

    def init(key: Key[Array, ""], latent_dim: int, data_shape: tuple[int, ...]) -> Params:
        del latent_dim
        return {"inputs": jax.random.uniform(key, (num_inputs, *data_shape), jnp.float32)}

    def apply(params: Params, latent_dim: int, encode: Callable[[Array], dist.Distribution]) -> dist.Distribution:
        del latent_dim
        return _mixture(jnp.zeros(num_inputs), encode(params["inputs"]))

    return Prior(init, apply, encodes=True)


def flow_prior(num_layers: int = 4, hidden_size: int = 64) -> Prior:
    """Standard normal noise through a flow of affine coupling layers; it starts as the standard normal.

    Args:
        num_layers: coupling layers; every unit has moved after two.
        hidden_size: units of the two hidden layers of each layer's network.

    Returns:
        A prior for `make_vae` with at least two latents. The KL has no closed form: pass kl="sampled".

    Raises:
        ValueError: if a number is not a positive integer; and by `make_vae`, of one latent.

    >>> from vaejax import models
    >>> vae = models.mlp_vae((3,), latent_dim=2, prior=flow_prior(num_layers=4))
    >>> params = vae.init(jax.random.key(0))
    >>> f"{vae.prior(params).log_prob(jnp.zeros(2)):.2f}"
    '-1.84'

    Source: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP"; as a prior, Chen et al. 2017,
    "Variational lossy autoencoder".
    """
    checks.check_counts(num_layers=num_layers, hidden_size=hidden_size)

    @functools.cache  # the same function each time: it is a static part of the distribution
    def conditioner_of(latent_dim: int) -> networks.Network:
        checks.check_count("latent_dim", latent_dim, 2, "a coupling layer moves one half of the latents by the other")
        network = networks.mlp(latent_dim, (hidden_size, hidden_size), 2 * latent_dim, "relu")
        return networks.Network(network.init, networks.of_any_batch(network.apply))

    def init(key: Key[Array, ""], latent_dim: int, data_shape: tuple[int, ...]) -> Params:
        del data_shape
        network = conditioner_of(latent_dim)
        layers = [network.init(layer_key) for layer_key in jax.random.split(key, num_layers)]
        for layer in layers:  # an output of zeros: the flow starts as the identity
            layer["layer_2"] = jax.tree.map(jnp.zeros_like, layer["layer_2"])
        return {f"coupling_{number}": layer for number, layer in enumerate(layers)}

    def apply(params: Params, latent_dim: int, encode: Any) -> dist.Distribution:
        del encode
        layers = [params[f"coupling_{number}"] for number in range(num_layers)]
        return distributions.CouplingFlow(layers, conditioner_of(latent_dim).apply, latent_dim)

    return Prior(init, apply)


def check_prior(learned: Prior | None, make: Callable[[], dist.Distribution]) -> None:
    """Refuse what is no learned prior, or cannot be the model's, when the model is made.

    Args:
        learned: what the caller gave.
        make: what makes the model's prior of it.

    Raises:
        ValueError: if it is no `Prior`; and what `make` raises.

    >>> check_prior(None, lambda: dist.Normal())
    """
    if learned is not None:
        checks.check_kind("prior", learned, Prior, "a models.Prior, such as models.mixture_prior(10) gives")
        jax.eval_shape(make)


def prior_of(
    learned: Prior | None,
    posterior: Head,
    params: Params,
    latent_shape: tuple[int, ...],
    dtype: Any,
    encode: Callable[[Array], dist.Distribution],
    context_shape: Any = None,
) -> dist.Distribution:
    """The prior of latents: a learned one, or the plainest of the posterior's family.

    Args:
        learned: what makes it of `params`; None: the plainest.
        posterior: the head of q(z|x).
        params: the prior's own.
        latent_shape: (latent_dim,).
        dtype: of a plain prior's densities.
        encode: `x -> q(z|x)`, for a prior of pseudo-inputs.
        context_shape: of what the model conditions on.

    Raises:
        ValueError: if a learned prior is not over latents of that shape and kind.
    """
    plain = posterior.prior(latent_shape, dtype)
    plain = plain.to_event(1 - plain.event_dim)
    if learned is None:
        return plain
    if learned.encodes and context_shape is not None:
        raise ValueError(
            "a prior of pseudo-inputs encodes them without a context, and this model has context_shape="
            f"{context_shape}: use models.mixture_prior or models.flow_prior"
        )
    prior = learned.apply(params, latent_shape[0], encode)
    if prior.batch_shape or prior.event_shape != latent_shape or bool(prior.is_discrete) != bool(plain.is_discrete):
        raise ValueError(
            f"expected a prior of event_shape {latent_shape} and batch_shape () over latents like those of "
            f"{distributions.name_of(plain)}; got {distributions.name_of(prior)} of event_shape {prior.event_shape} "
            f"and batch_shape {prior.batch_shape}: mixtures and flows are priors of continuous latents"
        )
    return prior


def _mixture(logits: Array, components: dist.Distribution) -> dist.Distribution:
    return dist.MixtureSameFamily(dist.CategoricalLogits(logits), components)
