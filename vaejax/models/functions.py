"""Anybody's model, for evaluation: three functions of NumPy, PyTorch or JAX instead of networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vaejax import checks


class Functions(NamedTuple):
    """A latent-variable model and its approximate posterior as three functions of a batch, which JAX need not trace.

    Attributes:
        log_joint: `(x, z) -> log p(x, z)`, nats; x (n, *data_shape), z (n, *latent_shape), the result (n,).
        sample: `(key, x) -> z`, one sample of q(z|x) for each example.
        log_prob: `(x, z) -> log q(z|x)`, nats, (n,).

    >>> from scipy.stats import norm
    >>> model = Functions(  # z ~ N(0, 1), x ~ N(z, 1), and for q(z|x) the exact posterior
    ...     log_joint=lambda x, z: norm.logpdf(z) + norm.logpdf(x, z),
    ...     sample=lambda key, x: x / 2 + 0.5**0.5 * jax.random.normal(key, x.shape),
    ...     log_prob=lambda x, z: norm.logpdf(z, x / 2, 0.5**0.5),
    ... )
    >>> x, z = np.array([0.0, 2.0]), np.array([5.0, -1.0])
    >>> bool(np.allclose(model.log_joint(x, z) - model.log_prob(x, z), norm.logpdf(x, 0, 2**0.5)))  # log p(x) at any z
    True
    """

    log_joint: Callable[[Any, Any], Any]
    sample: Callable[[Any, Any], Any]
    log_prob: Callable[[Any, Any], Any]


def from_functions(
    log_joint: Callable[[Any, Any], Any], sample: Callable[[Any, Any], Any], log_prob: Callable[[Any, Any], Any]
) -> Functions:
    """Anybody's model as `evaluation.log_likelihood` and `evaluation.log_likelihood_sweep` take it, in a VAE's place.

    The functions get batches: examples repeated for several samples, as NumPy arrays if the data are, else as JAX's.
    They are called on the host, chunk by chunk, and may compute with what they like. A sampler that is not JAX's takes
    its seed from the key: `numpy.random.default_rng(numpy.asarray(jax.random.key_data(key)))`.

    Args:
        log_joint: `(x, z) -> log p(x, z)`, in nats, (n,).
        sample: `(key, x) -> z`, z ~ q(z|x), one for each of the n examples.
        log_prob: `(x, z) -> log q(z|x)`, in nats, (n,).

    Returns:
        The model; its parameters are wherever the functions keep them: pass None for `params`.

    Raises:
        ValueError: if one of them is no function.

    >>> from scipy.stats import norm
    >>> from vaejax import evaluation
    >>> def sample(key, x):
    ...     return np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(x / 2, 0.8)
    >>> model = from_functions(  # z ~ N(0, 1), x ~ N(z, 1)
    ...     log_joint=lambda x, z: norm.logpdf(z) + norm.logpdf(x, z, 1.0),
    ...     sample=sample,
    ...     log_prob=lambda x, z: norm.logpdf(z, x / 2, 0.8),
    ... )
    >>> x = np.array([0.0, 1.0], np.float32)
    >>> result = evaluation.log_likelihood(model, None, jax.random.key(0), x, 1000)
    >>> bool((np.abs(result.estimate - norm.logpdf(x, 0, 2**0.5)) < 5 * result.standard_error).all())
    True
    """
    checks.check_function("log_joint", log_joint, "(x, z) -> log p(x, z)")
    checks.check_function("sample", sample, "(key, x) -> z")
    checks.check_function("log_prob", log_prob, "(x, z) -> log q(z|x)")
    return Functions(log_joint, sample, log_prob)


def sampled_log_densities(
    model: Functions, key: Key[Array, ""], x: Any, num_samples: int, chunk_size: int
) -> tuple[Float[Array, "n K"], Float[Array, "n K"]]:
    """Log p(x, z) and log q(z|x) of K samples z of q(z|x) for each example.

    Args:
        model: of `models.from_functions`.
        key: chunk c of the samples is drawn with `fold_in(key, c)`.
        x: data, (n, *data_shape); the functions get NumPy arrays of NumPy's, else JAX's.
        num_samples: K.
        chunk_size: samples of each example in one call of a function.

    Returns:
        Both in nats, (n, K).

    Raises:
        ValueError: if x has no batch axis, or a function returns no array of one number for each example, or NaN.

    >>> import scipy.stats
    >>> normal = scipy.stats.norm
    >>> model = Functions(lambda x, z: normal.logpdf(x, z), lambda key, x: 0.0 * x, lambda x, z: normal.logpdf(z))
    >>> [array.shape for array in sampled_log_densities(model, jax.random.key(0), np.zeros(3, np.float32), 5, 2)]
    [(3, 5), (3, 5)]
    """
    arrays: Any = np if isinstance(x, np.ndarray) else jnp
    x = checks.as_array(x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"expected examples on one batch axis, (n, *data_shape); got data of shape {x.shape}")
    checks.check_finite(x, "data")
    parts = []
    for chunk, start in enumerate(range(0, num_samples, chunk_size)):
        size = min(chunk_size, num_samples - start)
        rows = arrays.concatenate([x] * size)
        z = model.sample(jax.random.fold_in(key, chunk), rows)
        if np.ndim(z) == 0 or len(z) != len(rows):
            raise ValueError(
                f"expected `sample` to give one z for each of {len(rows)} examples; got shape {np.shape(z)}"
            )
        numbers = [_of_examples(name, getattr(model, name)(rows, z), len(rows)) for name in ("log_joint", "log_prob")]
        parts.append([column.reshape(size, len(x)).T for column in numbers])
    log_joint, log_q = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
    return jnp.asarray(log_joint), jnp.asarray(log_q)


def _of_examples(name: str, values: Any, number: int) -> np.ndarray:
    values = np.asarray(values, np.float64 if jax.config.read("jax_enable_x64") else np.float32)
    if values.shape != (number,):
        raise ValueError(f"expected `{name}` to give one number for each of {number} examples; got {values.shape}")
    if np.isnan(values).any() or (values == np.inf).any():
        raise ValueError(f"expected log-densities from `{name}`; got NaN or infinity for some of {number} examples")
    return values
