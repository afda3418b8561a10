"""Models with several stochastic layers: more layers on top of any model, and the perceptrons of most papers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions
from vaejax.distributions import Head, Params
from vaejax.models import networks, parameters
from vaejax.models.architectures import mlp_vae
from vaejax.models.batches import call_with
from vaejax.models.priors import Prior, check_prior, prior_of
from vaejax.models.vae import VAE, distribution_of, params_dtype


def hierarchical_vae(
    data_shape: Sequence[int],
    latent_dims: Sequence[int],
    hidden_sizes: Sequence[Sequence[int]],
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "tanh",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
    context_shape: Sequence[int] | None = None,
    sees_mask: bool = False,
    prior: Prior | None = None,
) -> VAE:
    """A VAE with stochastic layers z_1, ..., z_L and a perceptron between each two.

        q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}),    p(x, z) = p(x|z_1) p(z_1|z_2) ... p(z_{L-1}|z_L) p(z_L)

    Args:
        data_shape: shape of one example.
        latent_dims: units of each layer, from the data upwards. z holds the layers in this order.
        hidden_sizes: for each layer, units of the hidden layers of q below it; p has them in the opposite order.
        likelihood: as in `make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.
        posterior: of each layer: "gaussian", "bernoulli" or a head of independent units; so are p(z_l|z_{l+1}).
        compute_dtype: as in `make_vae`.
        context_shape: as in `make_vae`; q(z_1|x) and p(x|z_1) see the context.
        sees_mask: as in `make_vae`.
        prior: of z_L, as in `make_vae`; the pseudo-inputs of `vamp_prior` are z_{L-1}.

    Returns:
        The model; its latent is the vector of all layers, its q and its prior are `distributions.Layers`.

    Raises:
        ValueError: if there are fewer than two layers, or not as many hidden_sizes as layers; and as `make_vae`.

    >>> vae = hierarchical_vae((28, 28), latent_dims=(100, 50), hidden_sizes=((200, 200), (100, 100)))
    >>> params = vae.init(jax.random.key(0))
    >>> vae.encode(params, jnp.zeros((7, 28, 28))).event_shape, vae.prior(params).event_shape
    ((150,), (150,))

    Source: Burda, Grosse & Salakhutdinov 2015, "Importance weighted autoencoders", section 2 and appendix C.
    """
    sizes = _checked_layers(latent_dims, len(tuple(hidden_sizes)))
    base = mlp_vae(
        data_shape,
        sizes[0],
        hidden_sizes[0],
        likelihood,
        activation,
        posterior,
        compute_dtype,
        context_shape,
        sees_mask,
    )
    return with_layers(base, sizes, hidden_sizes[1:], activation, posterior, compute_dtype, prior)


def with_layers(
    vae: VAE,
    latent_dims: Sequence[int],
    hidden_sizes: Sequence[Sequence[int]],
    activation: str | networks.Activation = "tanh",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
    prior: Prior | None = None,
) -> VAE:
    """A model with more stochastic layers on top of its own: of a `conv_vae`, a convolutional hierarchical model.

    Args:
        vae: the model, whose own prior is dropped.
        latent_dims: units of each layer from the data upwards, those of the model first.
        hidden_sizes: for each new layer, as in `hierarchical_vae`.
        activation: as there.
        posterior: of each new layer, and of p of the layer below it.
        compute_dtype: as in `make_vae`, of the new networks.
        prior: of the last layer.

    Returns:
        The model. `params["encoder"]` has a "layer_0", the model's encoder, and one entry more for each new layer;
        `params["prior"]` has p(z_1|z_2) in "layer_0" and so on, and what is learned of the prior in "top";
        `params["decoder"]` is the model's.

    Raises:
        ValueError: if the first of latent_dims is not the model's, or its latent is of another kind than the layers
            above; and as `hierarchical_vae`.

    >>> from vaejax import models
    >>> below = models.conv_vae((8, 8), latent_dim=4, channels=(4,), hidden_size=16)
    >>> vae = with_layers(below, (4, 2), ((8,),))
    >>> sorted(vae.init(jax.random.key(0))["encoder"])
    ['layer_0', 'layer_1']
    """
    checks.check_model(vae)
    sizes = _checked_layers(latent_dims, 1 + len(tuple(hidden_sizes)))
    head = distributions.posterior_head(posterior)
    if head.num_categories is not None:
        raise ValueError("expected layers that are Gaussian, Bernoulli or of a head of your own; got categories")
    _check_below(vae, head, sizes[:1])
    upward, downward = [], []
    for below, above, hidden in zip(sizes, sizes[1:], hidden_sizes, strict=False):
        hidden = checks.checked_sizes("layer sizes", hidden)
        upward.append(_conditional(below, hidden, above, activation, head, compute_dtype))
        downward.append(_conditional(above, hidden[::-1], below, activation, head, compute_dtype))
    top, names = sizes[-1], [f"layer_{number}" for number in range(len(sizes))]

    @jax.jit
    def draw(key: Key[Array, ""]) -> Params:
        base_key, top_key, *keys = jax.random.split(key, 2 + 2 * len(upward))
        base = vae.init(base_key)
        up = [init(key) for (init, _), key in zip(upward, keys, strict=False)]
        down = [init(key) for (init, _), key in zip(downward, keys[len(up) :], strict=True)]
        learned = {} if prior is None else prior.init(top_key, top, sizes[-2:-1])
        return {
            "encoder": dict(zip(names, [base["encoder"], *up], strict=True)),
            "decoder": base["decoder"],
            "prior": {**dict(zip(names, down, strict=False)), "top": learned},
        }

    init, part_of = parameters.checking(draw)

    def below(params: Params) -> Params:
        """The parameters of the model below, as far as its encoder and its decoder need them."""
        return {"encoder": part_of(params, "encoder")["layer_0"], "decoder": params.get("decoder"), "prior": {}}

    def encode(
        params: Params, x: ArrayLike, context: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> dist.Distribution:
        first = call_with(vae.encode, below(params), x, **_known(context=context, mask=mask))
        return distributions.Layers(
            first, [params["encoder"][name] for name in names[1:]], [apply for _, apply in upward], sizes
        )

    def decode(params: Params, z: ArrayLike, context: ArrayLike | None = None) -> dist.Distribution:
        z = jnp.asarray(checks.as_array(z, "latents"))
        checks.check_shape("latents", z.shape, ("*batch", sum(sizes)), "the layers one after another, the lowest first")
        return call_with(vae.decode, below(params), z[..., : sizes[0]], **_known(context=context))

    def prior_of_layers(params: Params) -> dist.Distribution:
        part, apply_top = part_of(params, "prior"), upward[-1][1]
        checks.check_params(params, "decoder")
        first = prior_of(
            prior, head, part["top"], (top,), params_dtype(params), lambda z: apply_top(params["encoder"][names[-1]], z)
        )
        steps = list(reversed([(part[name], apply) for name, (_, apply) in zip(names, downward, strict=False)]))
        return distributions.Layers(
            first, [params for params, _ in steps], [apply for _, apply in steps], sizes[::-1], downward=True
        )

    check_prior(prior, lambda: prior_of_layers(draw(jax.random.key(0))))
    return VAE(init, encode, decode, prior_of_layers)


def _conditional(num_in: int, hidden: Sequence[int], num_out: int, activation: Any, head: Head, compute_dtype: Any):
    """`init` and `(params, z) -> distribution` of a layer of `num_out` units given one of `num_in`."""
    network = networks.mlp(num_in, hidden, head.outputs_for((num_out,)) * num_out, activation)
    network = network if compute_dtype is None else networks.in_dtype(network, compute_dtype)

    def init(key: Key[Array, ""]) -> Params:
        network_key, head_key = jax.random.split(key)
        return {"network": network.init(network_key), "head": head.init(head_key, (num_out,))}

    def apply(params: Params, z: Array) -> dist.Distribution:
        z = z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(jnp.float32)
        return distribution_of("layer", network, head, params, [(z, (num_in,))], (num_out,))

    return init, apply


def _check_below(vae: VAE, head: Head, latent_shape: tuple[int, ...]) -> None:
    """Refuse a model below whose latent is of another size or kind than that of layers of this head."""
    own = jax.eval_shape(lambda: vae.prior(vae.init(jax.random.key(0))))
    checks.check_shape("latents of the model below", own.event_shape, latent_shape, "give its latent_dim first")
    above = head.prior(latent_shape, jnp.float32)
    is_category = isinstance(distributions.family_of(own), dist.CategoricalLogits)
    if is_category or bool(own.is_discrete) != bool(above.is_discrete):
        raise ValueError(
            f"expected layers of one kind; got a model below with latents like {distributions.name_of(own)}, and "
            f"layers above like {distributions.name_of(above)}: give both the same posterior"
        )


def _known(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _checked_layers(latent_dims: Sequence[int], num_layers: int) -> tuple[int, ...]:
    sizes = checks.checked_shape("latent_dims", latent_dims)
    if len(sizes) < 2:
        raise ValueError(f"expected latent_dims of two or more layers; got {sizes}: a model of one is an mlp_vae")
    if num_layers != len(sizes):
        raise ValueError(
            f"expected the hidden sizes of each layer, such as ((200, 200), (100, 100)) for two; got {num_layers} for "
            f"the layers {sizes}"
        )
    return sizes
