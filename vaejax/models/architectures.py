"""Models with the networks that most papers take: perceptrons, convolutions; and where parameters may start."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions
from vaejax.distributions import Head, Params
from vaejax.models import networks
from vaejax.models.priors import Prior
from vaejax.models.vae import VAE, make_vae


def mlp_vae(
    data_shape: Sequence[int],
    latent_dim: int,
    hidden_sizes: Sequence[int] = (500,),
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "tanh",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
    context_shape: Sequence[int] | None = None,
    sees_mask: bool = False,
    prior: Prior | None = None,
) -> VAE:
    """A VAE with multilayer perceptrons for encoder and decoder (Kingma & Welling 2014, appendix C).

    Args:
        data_shape: shape of one example.
        latent_dim: latents of one example.
        hidden_sizes: units of each hidden layer of the encoder; the decoder has them in the opposite order.
        likelihood: as in `make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.
        posterior: as in `make_vae`.
        compute_dtype: as in `make_vae`.
        context_shape: as in `make_vae`; the context is flattened and joined to the first layer's inputs.
        sees_mask: as in `make_vae`.
        prior: as in `make_vae`.

    Returns:
        The model, as `make_vae`.

    Raises:
        ValueError: as `make_vae`.

    >>> vae = mlp_vae(data_shape=(28, 28), latent_dim=20)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, jnp.zeros((7, 20))).event_shape
    (28, 28)
    """
    data_size = math.prod(checks.checked_shape("data_shape", data_shape))
    checks.check_count("latent_dim", latent_dim)
    head = distributions.likelihood_head(likelihood)
    posterior = distributions.posterior_head(posterior)
    context_size = _size_of(context_shape)
    encoder_inputs = data_size * (2 if sees_mask else 1) + context_size
    decoder_inputs = latent_dim * (posterior.num_categories or 1) + context_size
    num_outputs = head.outputs_for(checks.checked_shape("data_shape", data_shape)) * data_size
    return make_vae(
        networks.mlp(encoder_inputs, hidden_sizes, posterior.outputs_for((latent_dim,)) * latent_dim, activation),
        networks.mlp(decoder_inputs, tuple(reversed(hidden_sizes)), num_outputs, activation),
        data_shape=data_shape,
        latent_dim=latent_dim,
        likelihood=head,
        posterior=posterior,
        compute_dtype=compute_dtype,
        context_shape=context_shape,
        sees_mask=sees_mask,
        prior=prior,
    )


def conv_vae(
    data_shape: Sequence[int],
    latent_dim: int,
    channels: Sequence[int] = (32, 64),
    hidden_size: int = 256,
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "relu",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
    context_shape: Sequence[int] | None = None,
    sees_mask: bool = False,
    prior: Prior | None = None,
) -> VAE:
    """A VAE with strided convolutions in the encoder and their mirror image in the decoder.

    Args:
        data_shape: (height, width) or (height, width, depth).
        latent_dim: latents of one example.
        channels: channels of each convolution, which halves height and width.
        hidden_size: units of the dense layer between the convolutions and the latents.
        likelihood: as in `make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.
        posterior: as in `make_vae`.
        compute_dtype: as in `make_vae`.
        context_shape: as in `make_vae`; the context is flattened and joined to the inputs of the dense layers.
        sees_mask: as in `make_vae`.
        prior: as in `make_vae`.

    Returns:
        The model, as `make_vae`.

    Raises:
        ValueError: if data_shape has not two or three axes, or there is no convolution; and as `make_vae`.

    >>> vae = conv_vae(data_shape=(8, 8), latent_dim=2, channels=(4,), hidden_size=16)
    >>> vae.encode(vae.init(jax.random.key(0)), jnp.ones((7, 8, 8))).batch_shape
    (7,)
    """
    data_shape = checks.checked_shape("data_shape", data_shape)
    if len(data_shape) not in (2, 3):
        raise ValueError(f"conv_vae expects data_shape (height, width) or (height, width, depth); got {data_shape}")
    checks.check_count("latent_dim", latent_dim)
    height, width, depth = (*data_shape, 1)[:3]
    image_shape = (height, width, depth)
    head = distributions.likelihood_head(likelihood)
    posterior = distributions.posterior_head(posterior)
    context_size = _size_of(context_shape)
    decoder_inputs = latent_dim * (posterior.num_categories or 1) + context_size
    num_outputs = posterior.outputs_for((latent_dim,)) * latent_dim
    seen_shape = (height, width, depth * (2 if sees_mask else 1))
    return make_vae(
        networks.conv_encoder(seen_shape, channels, hidden_size, num_outputs, activation, context_size),
        networks.conv_decoder(
            decoder_inputs, image_shape, channels, hidden_size, head.outputs_for(data_shape), activation
        ),
        data_shape=data_shape,
        latent_dim=latent_dim,
        likelihood=head,
        posterior=posterior,
        compute_dtype=compute_dtype,
        context_shape=context_shape,
        sees_mask=sees_mask,
        prior=prior,
    )


def vq_vae(
    data_shape: Sequence[int],
    num_codes: int,
    code_dim: int,
    num_positions: int = 16,
    hidden_sizes: Sequence[int] = (500,),
    channels: Sequence[int] | None = None,
    likelihood: str | Head = "gaussian_fixed_std",
    activation: str | networks.Activation = "relu",
) -> VAE:
    """A vector-quantized autoencoder: each position of the latent is the nearest code of a learned codebook.

    `autoencoders.make_vector_quantization` trains it, under the optimizer `autoencoders.with_codebook(optimizer)`. Like
    every autoencoder it has no bound on log p(x), and its prior N(0, I) is not learned. For one position at each place
    of an image, give convolutions of your own to `make_vae`, with
    posterior=distributions.vector_quantized(num_codes, code_dim).

    Args:
        data_shape: shape of one example.
        num_codes: in the codebook, which all positions share.
        code_dim: numbers of a code.
        num_positions: codes of one example; a latent then has num_codes^num_positions possible values.
        hidden_sizes: as in `mlp_vae`; with convolutions one number, the `hidden_size` of `conv_vae`.
        channels: as in `conv_vae`; None: perceptrons.
        likelihood: what the decoder's output means, as in `autoencoders.mlp_autoencoder`.
        activation: a name of `networks.ACTIVATIONS` or a function.

    Returns:
        The model, whose latents have num_positions * code_dim numbers. `distributions.as_quantized(q)` shows the
        indices of the codes.

    Raises:
        ValueError: if num_codes is below 2 or another number no positive integer; and as `mlp_vae` or `conv_vae`.

    >>> vae = vq_vae(data_shape=(8, 8), num_codes=32, code_dim=4, num_positions=6)
    >>> params = vae.init(jax.random.key(0))
    >>> params["encoder"]["head"]["codebook"]["codes"].shape
    (32, 4)
    >>> distributions.as_quantized(vae.encode(params, jnp.ones((7, 8, 8)))).indices.shape
    (7, 6)

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning".
    """
    posterior = distributions.vector_quantized(num_codes, code_dim)
    return _quantized(data_shape, posterior, code_dim, num_positions, hidden_sizes, channels, likelihood, activation)


def fsq_vae(
    data_shape: Sequence[int],
    levels: Sequence[int],
    num_positions: int = 16,
    hidden_sizes: Sequence[int] = (500,),
    channels: Sequence[int] | None = None,
    likelihood: str | Head = "gaussian_fixed_std",
    activation: str | networks.Activation = "relu",
) -> VAE:
    """An autoencoder with finite scalar quantization: each number of the latent is rounded to one of a few levels.

    `vq_vae` with the grid of all levels for its codebook, which is not learned: any optimizer serves, and
    `autoencoders.make_reconstruction` as well as `autoencoders.make_vector_quantization`.

    Args:
        data_shape: shape of one example.
        levels: of each number of a code, at least 2; (8, 5, 5, 5) makes 1,000 codes of four numbers.
        num_positions: as in `vq_vae`.
        hidden_sizes: as in `vq_vae`.
        channels: as in `vq_vae`.
        likelihood: as in `vq_vae`.
        activation: as in `vq_vae`.

    Returns:
        The model, whose latents have num_positions * len(levels) numbers in [-1, 1].

    Raises:
        ValueError: if levels is empty or one is below 2; and as `vq_vae`.

    >>> vae = fsq_vae(data_shape=(8, 8), levels=(8, 5), num_positions=6, channels=(4,), hidden_sizes=(16,))
    >>> q = distributions.as_quantized(vae.encode(vae.init(jax.random.key(0)), jnp.ones((7, 8, 8))))
    >>> q.num_codes, q.mean.shape
    (40, (7, 12))

    Source: Mentzer, Minnen, Agustsson & Tschannen 2023, "Finite scalar quantization: VQ-VAE made simple".
    """
    posterior = distributions.scalar_quantized(levels)
    code_dim = len(levels)
    return _quantized(data_shape, posterior, code_dim, num_positions, hidden_sizes, channels, likelihood, activation)


def _quantized(data_shape, posterior, code_dim, num_positions, hidden_sizes, channels, likelihood, activation) -> VAE:
    checks.check_count("num_positions", num_positions)
    latent_dim = num_positions * code_dim
    if channels is None:
        return mlp_vae(data_shape, latent_dim, hidden_sizes, likelihood, activation, posterior)
    sizes = checks.checked_sizes("hidden_sizes", hidden_sizes)
    if len(sizes) != 1:
        raise ValueError(f"with channels, hidden_sizes must hold one size, that of the dense layer; got {sizes}")
    return conv_vae(data_shape, latent_dim, channels, sizes[0], likelihood, activation, posterior)


def with_output_bias(params: Params, x: ArrayLike) -> Params:
    """The parameters with the decoder's output bias at the logit of the mean of x, the optimum of independent pixels.

    Args:
        params: of an `mlp_vae` or `linear_vae` with Bernoulli likelihood.
        x: data in [0, 1], (n, *data_shape); means are held within 0.001 and 0.999.

    Returns:
        New parameters; those given are unchanged.

    Raises:
        ValueError: if the decoder is not such a network, or x is not of its size.

    >>> vae = mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params = with_output_bias(vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 0.2], [0.0, 1.0, 0.8]]))
    >>> params["decoder"]["network"]["layer_1"]["bias"].round(1).tolist()
    [-6.9..., 6.9..., 0.0]

    Source: the program of Burda, Grosse & Salakhutdinov 2015.
    """
    checks.check_params(params, "decoder")
    network = params["decoder"].get("network", {})
    last = f"layer_{len(network) - 1}"
    checks.check_floating(x)
    x = jnp.asarray(x)
    checks.check_not_empty(x)
    checks.check_finite(x, "data")
    if last not in network or getattr(network[last].get("bias"), "size", None) != math.prod(x.shape[1:]):
        raise ValueError(
            f"expected the parameters of an mlp_vae or linear_vae with one output for each of {math.prod(x.shape[1:])} "
            f"pixels; got a decoder with {sorted(network)}"
        )
    mean = jnp.clip(x.reshape(len(x), -1).mean(axis=0), 1e-3, 1 - 1e-3)
    layer = {**network[last], "bias": jnp.log(mean / (1 - mean)).astype(network[last]["bias"].dtype)}
    return {**params, "decoder": {**params["decoder"], "network": {**network, last: layer}}}


def with_pseudo_inputs(vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike) -> Params:
    """The parameters with the pseudo-inputs of `vamp_prior` started at examples, or at what is encoded of them.

    Args:
        vae: a model with that prior. Of one with layers the pseudo-inputs are latents of the layer below the last, and
            start at their centers given the examples.
        params: its parameters.
        key: consumed; which examples they are is drawn with it, each at most once.
        x: data, (n, *data_shape), as the encoder sees them: at least as many as there are pseudo-inputs.

    Returns:
        New parameters; those given are unchanged.

    Raises:
        ValueError: if the model has another prior, or x is of another shape or too few examples.

    >>> from vaejax import models
    >>> vae = models.mlp_vae((3,), latent_dim=2, prior=models.vamp_prior(2))
    >>> params = with_pseudo_inputs(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> params["prior"]["inputs"].sum(axis=1).tolist()
    [1.0, 1.0]
    """
    checks.check_given(vae=vae, key=key)
    checks.check_params(params, "prior")
    has_layers = "top" in params["prior"]
    own = params["prior"]["top"] if has_layers else params["prior"]
    if set(own) != {"inputs"}:
        raise ValueError(
            "expected the parameters of a model with prior=models.vamp_prior(num_inputs); got params['prior'] with "
            f"{sorted(own)}"
        )
    inputs = own["inputs"]
    if has_layers:
        q: Any = vae.encode(params, x)
        x = q.split(distributions.center(q))[-2]
    x = checks.checked_data(x, inputs.shape[1:])
    checks.check_shape("data", x.shape, ("n", *inputs.shape[1:]))
    checks.check_count("the number of examples", len(x), len(inputs), "each starts one pseudo-input: take a smaller K")
    chosen = jax.random.choice(key, len(x), (len(inputs),), replace=False)
    started = {"inputs": x[chosen].astype(inputs.dtype)}
    return {**params, "prior": {**params["prior"], "top": started} if has_layers else started}


def _size_of(context_shape: Sequence[int] | None) -> int:
    return 0 if context_shape is None else math.prod(checks.checked_shape("context_shape", context_shape))
