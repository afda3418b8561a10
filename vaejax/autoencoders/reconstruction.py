"""Autoencoders: models whose posterior is a point, trained to reconstruct; and PCA, the closed form of the linear one.

An autoencoder is a `models.VAE` with the posterior "point", made of the same networks by the same factories. So `fit`,
checkpoints and every function that decodes latents serve it. It has no bound on log p(x), and whoever asks for one is
refused. Its objectives have the signature of all others; their values are errors with a minus sign, in the units of the
error, per example, to be maximised.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models, records
from vaejax.autoencoders.errors import ErrorFunction, numbers_of, of_shape, squared_error
from vaejax.autoencoders.regularizers import Corruption, Penalty
from vaejax.distributions import Head, Params
from vaejax.models import VAE, networks


class ReconstructionInfo(NamedTuple):
    """What a reconstruction objective reports beside its value. No gradient flows through it.

    Attributes:
        bound: the value, which is maximised: minus the mean error and minus the penalties. ()
        error: the chosen error, summed over an example, mean over the batch. ()
        squared_error: |x - mean of p(x|z)|^2, summed over an example, mean over the batch. ()
        per_example: the chosen error of each example. (*batch,)

    >>> info = ReconstructionInfo(*jnp.array([-12.0, 10.0, 10.0]), per_example=jnp.array([9.0, 11.0]))
    >>> float(-info.bound - info.error)  # the penalties
    2.0
    >>> bool(info.error == info.per_example.mean())
    True
    """

    bound: Float[Array, ""]
    error: Float[Array, ""]
    squared_error: Float[Array, ""]
    per_example: Float[Array, " *batch"]

    __repr__ = records.short_repr


def mlp_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int,
    hidden_sizes: Sequence[int] = (500,),
    likelihood: str | Head = "gaussian_fixed_std",
    activation: str | networks.Activation = "tanh",
) -> VAE:
    """A deep autoencoder of multilayer perceptrons: `models.mlp_vae` with the posterior "point".

    Args:
        data_shape: shape of one example.
        latent_dim: numbers in the latent of one example.
        hidden_sizes: units of each hidden layer of the encoder; the decoder has them in the opposite order. (): a
            linear autoencoder, or with likelihood="bernoulli" logistic PCA.
        likelihood: what the decoder's output means: "gaussian_fixed_std" the reconstruction itself, "bernoulli" its
            logit, for data in [0, 1]; or another of `models.make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.

    Returns:
        The model, a `models.VAE` whose q(z|x) is a point.

    Raises:
        ValueError: as `models.make_vae`.

    >>> model = mlp_autoencoder(data_shape=(28, 28), latent_dim=30, hidden_sizes=(1000, 500, 250))
    >>> model.encode(model.init(jax.random.key(0)), jnp.ones((7, 28, 28))).mean.shape
    (7, 30)

    Source: Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".
    """
    return models.mlp_vae(data_shape, latent_dim, hidden_sizes, likelihood, activation, "point")


def conv_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int,
    channels: Sequence[int] = (32, 64),
    hidden_size: int = 256,
    likelihood: str | Head = "gaussian_fixed_std",
    activation: str | networks.Activation = "relu",
) -> VAE:
    """A convolutional autoencoder: `models.conv_vae` with the posterior "point".

    Args:
        data_shape: shape of one image, (height, width) or (height, width, channels).
        latent_dim: as in `mlp_autoencoder`.
        channels: as in `models.conv_vae`.
        hidden_size: as in `models.conv_vae`.
        likelihood: as in `mlp_autoencoder`.
        activation: as in `mlp_autoencoder`.

    Returns:
        The model, a `models.VAE` whose q(z|x) is a point.

    Raises:
        ValueError: as `models.conv_vae`.

    >>> model = conv_autoencoder(data_shape=(8, 8), latent_dim=2, channels=(4,), hidden_size=16)
    >>> model.decode(model.init(jax.random.key(0)), jnp.zeros((7, 2))).mean.shape
    (7, 8, 8)
    """
    return models.conv_vae(data_shape, latent_dim, channels, hidden_size, likelihood, activation, "point")


def linear_autoencoder(
    data_shape: Sequence[int], latent_dim: int, likelihood: str | Head = "gaussian_fixed_std"
) -> VAE:
    """A linear autoencoder, z = x A + a and x^ = z B + b; with `squared_error` B finds the principal subspace.

    B is `params["decoder"]["network"]["layer_0"]["kernel"]`, (latent_dim, data size). With likelihood="bernoulli" and
    `cross_entropy` the model is logistic PCA with an affine encoder.

    Args:
        data_shape: shape of one example.
        latent_dim: as in `mlp_autoencoder`.
        likelihood: as in `mlp_autoencoder`.

    Returns:
        The model, a `models.VAE` whose q(z|x) is a point.

    Raises:
        ValueError: as `models.make_vae`.

    >>> params = linear_autoencoder((5,), latent_dim=2).init(jax.random.key(0))
    >>> params["decoder"]["network"]["layer_0"]["kernel"].shape
    (2, 5)

    Source: Baldi & Hornik 1989, "Neural networks and principal component analysis: learning from examples without local
    minima".
    """
    return mlp_autoencoder(data_shape, latent_dim, (), likelihood)


def make_reconstruction(
    vae: VAE,
    error: ErrorFunction = squared_error,
    *,
    corrupt: Corruption | None = None,
    corrupt_code: Corruption | None = None,
    penalties: Penalty | Sequence[Penalty] = (),
) -> Callable[..., tuple[Float[Array, ""], ReconstructionInfo]]:
    """The objective of an autoencoder: minus the mean reconstruction error, - E[error(p(x | z(x~)), x)] - penalties.

    Args:
        vae: the model, with the posterior "point".
        error: `(p, x) -> (*batch,)`: `squared_error`, `cross_entropy`, `negative_log_likelihood` or another.
        corrupt: `(key, x) -> x~`, applied to the input and not to the target: `gaussian_noise(std)`,
            `masking_noise(probability)`. It makes a denoising autoencoder.
        corrupt_code: `(key, z) -> z~`, applied to the latents before they are decoded:
            `nested_dropout(probabilities)`, or noise.
        penalties: one or several, each a `(params, z) -> ()` of the latents z (*batch, latent_dim) before their
            corruption: `uniform_l2(weight)`, `nonuniform_l2(weights)`, `rotation_augmentation()`.

    Returns:
        An objective `(params, key, x, *, step=None) -> (value, info)`, to be maximised as every other. x has shape
        (*batch, *data_shape); the value, (), is in the units of the error, per example, and `info` is a
        `ReconstructionInfo`.

    Raises:
        ValueError: if an argument is no function. When the objective is called: if the posterior is not a point, the
            data do not fit the model or the error, a function returns another shape, or concrete data hold NaN or
            infinities.

    >>> model = mlp_autoencoder((3,), latent_dim=2, hidden_sizes=(5,))
    >>> from vaejax.autoencoders import gaussian_noise
    >>> denoising = make_reconstruction(model, corrupt=gaussian_noise(0.3))
    >>> value, info = denoising(model.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> info.per_example.shape
    (7,)

    Source: for the denoising autoencoder, Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and composing robust
    features with denoising autoencoders".
    """
    checks.check_model(vae)
    penalties = (penalties,) if callable(penalties) else tuple(penalties)
    _check_functions(error, corrupt, corrupt_code, penalties)

    def objective(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        del step
        checks.check_given(params=params, key=key)
        x = numbers_of(x)
        input_key, latent_key = jax.random.split(key)
        seen = x if corrupt is None else of_shape("corrupt", corrupt(input_key, x), x.shape)
        z = _latents(vae, params, seen)
        decoded = z if corrupt_code is None else of_shape("corrupt_code", corrupt_code(latent_key, z), z.shape)
        p = vae.decode(params, decoded)
        errors = of_shape("error", error(p, x), z.shape[:-1])
        value = -errors.mean() - sum(of_shape("a penalty", penalty(params, z), ()) for penalty in penalties)
        info = ReconstructionInfo(value, errors.mean(), squared_error(p, x).mean(), errors)
        return value, lax.stop_gradient(info)

    return objective


def denoising_score(vae: VAE, params: Params, x: ArrayLike, std: float | Float[Array, ""]) -> Array:
    """Estimate of the score of noisy data, (r(x) - x) / std^2, with r the reconstruction by a denoising autoencoder.

    The autoencoder was trained with `squared_error` and `gaussian_noise(std)`. The best possible r(x) is the mean of
    the clean examples given the noisy x. By Tweedie's formula the result is then exactly the score, the gradient of
    log p(x), of the data's density smoothed by that noise. Errors of r are divided by std^2 too.

    Args:
        vae: the autoencoder.
        params: its parameters.
        x: points. (*batch, *data_shape)
        std: of the noise in training, above 0, in the units of x; it may be traced.

    Returns:
        The score, per unit of x. (*batch, *data_shape)

    Raises:
        ValueError: if std is not above 0, or the model is not an autoencoder.

    >>> model = mlp_autoencoder((2,), latent_dim=4, hidden_sizes=(8,))
    >>> denoising_score(model, model.init(jax.random.key(0)), jnp.ones((7, 2)), std=0.1).shape
    (7, 2)

    Source: Alain & Bengio 2014, "What regularized auto-encoders learn from the data-generating distribution".
    """
    checks.check_number("std", std, above=0, advice="give the std of the noise in training")
    checks.check_given(vae=vae, params=params)
    x = checks.as_array(x)
    checks.check_floating(x)
    x = jnp.asarray(x)
    return (jnp.asarray(vae.decode(params, _latents(vae, params, x)).mean) - x) / std**2


def _latents(vae: VAE, params: Params, x: Array) -> Array:
    q = vae.encode(params, x)
    if not isinstance(distributions.without_wrappers(q), dist.Delta):
        raise ValueError(
            f"expected a model with posterior='point', whose latents have no noise; got one with q = "
            f"{distributions.name_of(q)}: train it by objectives.make_elbo, or make the model with posterior='point'"
        )
    base = distributions.without_wrappers(q)
    if isinstance(base, distributions.Quantized) and base.is_learned:
        raise ValueError(
            "expected latents without a codebook, which a reconstruction error alone does not train; got those of a "
            "vq_vae: train it by autoencoders.make_vector_quantization"
        )
    return jnp.asarray(q.mean)


def _check_functions(error, corrupt, corrupt_code, penalties) -> None:
    for name, function, examples in (
        ("error", error, "autoencoders.squared_error"),
        ("corrupt", corrupt, "autoencoders.gaussian_noise(0.1), or None"),
        ("corrupt_code", corrupt_code, "autoencoders.nested_dropout(probabilities), or None"),
        *(("each of penalties", penalty, "autoencoders.uniform_l2(0.1)") for penalty in penalties),
    ):
        if not callable(function) and not (function is None and "corrupt" in name):
            raise ValueError(f"{name} must be a function, such as {examples}; got {checks.describe(function)}")
