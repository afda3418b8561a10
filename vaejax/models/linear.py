"""The linear VAE, whose every quantity is a closed form, and its decoder as a matrix."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from vaejax import checks, distributions
from vaejax.distributions import Head, Params
from vaejax.models import networks
from vaejax.models.vae import VAE, make_vae


def linear_decoder(vae: VAE, params: Params) -> tuple[Float[Array, "k d"], Float[Array, " d"], Float[Array, " d"]]:
    """W, b and the standard deviations of p(x|z) = N(z W + b, diag(std^2)) of a linear VAE, data flattened.

    Args:
        vae: the model, a `linear_vae` or one with a decoder like it.
        params: its parameters.

    Returns:
        W (latent_dim, data_dim), b (data_dim,) and std (data_dim,), in the units of the data.

    Raises:
        ValueError: if the decoder is not linear, or the likelihood is another.

    >>> import jax
    >>> vae = linear_vae(data_dim=5, latent_dim=2)
    >>> [array.shape for array in linear_decoder(vae, vae.init(jax.random.key(0)))]
    [(2, 5), (5,), (5,)]
    """
    checks.check_given(vae=vae, params=params)
    kernel = jnp.asarray(networks.linear_kernel(params["decoder"]["network"]))
    prior = vae.prior(params)
    p = vae.decode(params, jnp.zeros(prior.event_shape, kernel.dtype))
    normal = distributions.without_wrappers(p)
    if not isinstance(normal, dist.Normal) or kernel.shape != (*prior.event_shape, math.prod(p.event_shape)):
        raise ValueError(
            "the closed form needs a linear VAE whose std does not depend on z: expected likelihood="
            f"'gaussian_shared_std' or 'gaussian_fixed_std'; got {distributions.name_of(p)}, and a kernel of shape "
            f"{kernel.shape}. Use log_likelihood, which draws samples"
        )
    return kernel, jnp.ravel(jnp.asarray(normal.loc)), jnp.ravel(jnp.asarray(normal.scale))


def linear_vae(data_dim: int | Sequence[int], latent_dim: int, likelihood: str | Head = "gaussian_shared_std") -> VAE:
    """The linear VAE: q(z|x) = N(Vx + c, diag(std^2)), p(x|z) = N(Wz + b, s^2 I), everything learned.

    With the Gaussian likelihood, log p(x), the posterior, the ELBO and every gradient are closed forms, and its optimum
    is probabilistic PCA (Lucas et al. 2019). The posterior's std is one vector, the same for every x, as it is in the
    exact posterior.

    Args:
        data_dim: numbers in one example, or the shape of one example.
        latent_dim: latents of one example.
        likelihood: as in `make_vae`; "bernoulli" makes it logistic PCA's variational cousin.

    Returns:
        The model, as `make_vae`.

    Raises:
        ValueError: as `make_vae`.

    >>> import jax
    >>> params = linear_vae(data_dim=5, latent_dim=2).init(jax.random.key(0))
    >>> params["decoder"]["network"]["layer_0"]["kernel"].shape, params["encoder"]["head"]["log_std"].shape
    ((2, 5), (2,))
    """
    data_shape = checks.checked_shape("data_dim", data_dim if isinstance(data_dim, Sequence) else (data_dim,))
    checks.check_count("latent_dim", latent_dim)
    head = distributions.likelihood_head(likelihood)
    return make_vae(
        networks.mlp(math.prod(data_shape), (), latent_dim),
        networks.mlp(latent_dim, (), head.outputs_for(data_shape) * math.prod(data_shape)),
        data_shape=data_shape,
        latent_dim=latent_dim,
        likelihood=head,
        posterior=distributions.gaussian_shared_std((latent_dim,)),
    )
