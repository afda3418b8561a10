"""Training of quantized autoencoders: a reconstruction error, and a codebook that follows the encoder's outputs.

Each code follows the encoder's outputs that take it, by a moving average; the error's own gradient does not reach it.
The objective gives the average's step as the gradient of the codebook's parameters, so that plain gradient ascent with
rate 1 is exactly that step. `with_codebook` gives the codebook this optimizer and the rest of the parameters another.
Train steps, checkpoints and populations need to know nothing of codebooks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, records
from vaejax.autoencoders.errors import ErrorFunction, numbers_of, of_shape, squared_error
from vaejax.distributions import Params, Quantized
from vaejax.estimators import monte_carlo
from vaejax.models import VAE
from vaejax.objectives import Objective


class QuantizationInfo(NamedTuple):
    """What the objective of a quantized autoencoder reports beside its value. No gradient flows through it.

    Attributes:
        bound: the value, which is maximised: minus the mean error and minus commitment * distance. ()
        error: the chosen error, summed over an example, mean over the batch. ()
        squared_error: |x - mean of p(x|z)|^2, summed over an example, mean over the batch. ()
        distance: |encoder's output - its code|^2, summed over the positions of an example, mean over the batch; 0 for a
            fixed grid. ()
        perplexity: of the codes that the batch takes, at all positions. ()
        per_example: the chosen error of each example. (*batch,)

    >>> info = QuantizationInfo(*jnp.array([-12.0, 10.0, 10.0, 8.0, 3.0]), per_example=jnp.array([9.0, 11.0]))
    >>> bool(info.bound == -info.error - 0.25 * info.distance)  # 0.25: the commitment
    True
    >>> bool(info.error == info.per_example.mean())
    True
    """

    bound: Float[Array, ""]
    error: Float[Array, ""]
    squared_error: Float[Array, ""]
    distance: Float[Array, ""]
    perplexity: Float[Array, ""]
    per_example: Float[Array, " *batch"]

    __repr__ = records.short_repr


def make_vector_quantization(
    vae: VAE,
    error: ErrorFunction = squared_error,
    commitment: float | Array = 0.25,
    decay: float | Array = 0.99,
    revive_below: float | Array = 0.0,
) -> Objective:
    """The negative error of a quantized autoencoder, - E[error(p(x|e), x)] - commitment E[sum |z - stop(e)|^2].

    z are the encoder's outputs and e their codes. The decoder's gradient at e is passed to z as it is (straight
    through). The gradient of the codebook's parameters is the step of its moving average: with n_k the share of the
    batch's positions that take code k, and m_k the mean output at these,

        usage_k <- decay usage_k + (1 - decay) n_k
        code_k  <- code_k + (1 - decay) n_k (m_k - code_k) / usage_k,  with the new usage_k

    which is the ratio of the moving averages of the sums and the counts. A code that no position takes stays where it
    is. Optimize by `with_codebook(optimizer)`: another optimizer of the codebook makes no moving average of it.

    Args:
        vae: a model with quantized latents: `models.vq_vae`, `models.fsq_vae`.
        error: `(p, x) -> (*batch,)`, as in `make_reconstruction`.
        commitment: weight of the distance, at least 0. It is summed over positions, as the error is over pixels; the
            paper takes its mean over them. A fixed grid (`fsq_vae`) has no such term.
        decay: how much of the moving average one step keeps, at least 0 and below 1.
        revive_below: a code whose usage falls below revive_below / num_codes is dead: it is moved to a random output of
            the batch, with the usage 1 / num_codes. 0: never; below 1.

    Returns:
        An objective `(params, key, x, *, step=None) -> (value, info)`, to be maximised. x has shape (*batch,
        *data_shape); the value, (), is in the units of the error, per example, and `info` a `QuantizationInfo`. decay
        and revive_below change no value.

    Raises:
        ValueError: if an argument is out of range or no function. When the objective is called: if the latents are not
            quantized, the data do not fit the model or the error, or concrete data hold NaN or infinities.

    >>> from vaejax import models, training
    >>> vae = models.vq_vae((3,), num_codes=4, code_dim=2, num_positions=2, hidden_sizes=(5,))
    >>> optimizer = with_codebook(optax.adam(1e-3))
    >>> step = training.make_train_step(make_vector_quantization(vae), optimizer)
    >>> state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    >>> state, info = step(state, jax.random.key(1), jnp.ones((7, 3)))
    >>> state.params["encoder"]["head"]["codebook"]["usage"].shape, info.per_example.shape
    ((4,), (7,))

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning", section 3.2 and
    appendix A; for dead codes, Dhariwal et al. 2020, "Jukebox".
    """
    checks.check_model(vae)
    checks.check_function("error", error, "(p, x) -> (*batch,), such as autoencoders.squared_error", 2)
    checks.check_number("commitment", commitment, least=0)
    checks.check_number("decay", decay, least=0, below=1)
    checks.check_number("revive_below", revive_below, least=0, below=1)

    def objective(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        del step
        checks.check_given(params=params, key=key)
        x = numbers_of(x)
        q = distributions.as_quantized(vae.encode(params, x))
        p = vae.decode(params, q.mean)
        errors = of_shape("error", error(p, x), q.batch_shape)
        distance = q.distance.mean() if q.is_learned else jnp.zeros((), errors.dtype)
        value = -errors.mean() - jnp.asarray(commitment, errors.dtype) * distance
        counts = jnp.bincount(q.indices.reshape(-1), length=q.num_codes)
        if q.is_learned:
            codebook = params["encoder"]["head"]["codebook"]
            moved = _moved(lax.stop_gradient((codebook, q)), counts, key, decay, revive_below)
            moves = jax.tree.map(lambda new, old: ((new - lax.stop_gradient(old)) * old).sum(), moved, codebook)
            value = monte_carlo.with_gradient_of(value, sum(jax.tree.leaves(moves)).astype(value.dtype))
        usage = distributions.perplexity(counts)
        info = QuantizationInfo(value, errors.mean(), squared_error(p, x).mean(), distance, usage, errors)
        return value, lax.stop_gradient(info)

    return objective


def with_codebook(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for a model with a codebook, which moves by its moving average: `optimizer` for all the rest.

    Args:
        optimizer: the model's. A schedule, weight decay or clipping in it does not touch the codebook.

    Returns:
        An optimizer of the whole `params`; parameters without a codebook all get `optimizer`.

    Raises:
        ValueError: if the optimizer is none of optax.

    >>> optimizer = with_codebook(optax.adam(1e-3))
    >>> state = optimizer.init({"encoder": {"head": {"codebook": {"usage": jnp.ones(2)}}}, "decoder": jnp.ones(3)})
    >>> sorted(state.inner_states)
    ['codebook', 'model']
    """
    checks.check_optimizer(optimizer)

    def label(path: tuple, leaf: Array) -> str:
        del leaf
        names = [getattr(entry, "key", None) for entry in path]
        return "codebook" if names[:3] == ["encoder", "head", "codebook"] else "model"

    return optax.partition(
        {"model": optimizer, "codebook": optax.sgd(1.0)},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def _moved(
    held: tuple[Params, Quantized], counts: Array, key: Key[Array, ""], decay: ArrayLike, revive_below: ArrayLike
) -> Params:
    """The codebook after one step of the moving averages, from a batch whose codes were taken `counts` times."""
    codebook, q = held
    codes, usage = codebook["codes"], codebook["usage"]
    outputs = q.outputs.reshape(-1, codes.shape[1]).astype(codes.dtype)
    rate = 1 - jnp.asarray(decay, codes.dtype)
    share = counts.astype(codes.dtype) / len(outputs)
    # A product with ones and zeros, where a sum by index would depend on the order of an accelerator's threads.
    taken = jax.nn.one_hot(q.indices.reshape(-1), len(codes), dtype=codes.dtype)
    means = jnp.matmul(taken.T, outputs, precision=lax.Precision.HIGHEST) / len(outputs)
    usage = usage + rate * (share - usage)
    weight = jnp.where(share > 0, rate / jnp.where(share > 0, usage, 1), 0)
    codes = codes + weight[:, None] * (means - share[:, None] * codes)
    least = jnp.asarray(revive_below, usage.dtype) / len(codes)
    dead, fresh = usage < least, outputs[jax.random.randint(key, usage.shape, 0, len(outputs))]
    return {"codes": jnp.where(dead[:, None], fresh, codes), "usage": jnp.where(dead, 1 / len(codes), usage)}
