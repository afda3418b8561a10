"""Control variates of softened latents for the score function: REBAR and RELAX.

A function of continuous noise y is differentiable, and close to f where it is f of a softened y. Its gradient is known
without the score function, and what is left to that is the difference of the two.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from vaejax import checks
from vaejax.distributions import Params
from vaejax.estimators.baselines import Trained, less_variance
from vaejax.estimators.discrete.noise import check_temperature, draws_of, relaxation_of, softened
from vaejax.estimators.monte_carlo import over_points, with_gradient_of
from vaejax.estimators.signature import Estimate, Estimator
from vaejax.models import networks

# Numbers that a control network sees of the latents, however many they are.
NUM_FEATURES = 256


def rebar(temperature: float | Array = 0.5) -> Estimator:
    """Score function with f of softened noise as its control variate (REBAR).

        c(y) = s f(soften(y / t)):  grad = E[(f(z) - c(y)) grad log q(z) + grad c(y) - grad c(y given z)]

    where y given z is the same number, and its path to the parameters another. The scale s and the temperature t are
    trained along to lower the variance, in `params["baseline"]` (see `with_baseline`). It serves a Bernoulli or
    categorical q with independent coordinates and K = 1, with 2 evaluations of f for each sample. At a softened sample
    the log-probabilities of q and of the prior are linear in it (`distributions.relaxed`), and a decoder sees it in the
    place of the hard numbers. For a bound that is no mean the control variate is that bound of softened samples.

    Args:
        temperature: the t that training starts from.

    Returns:
        An estimator, unbiased, for every form of the KL. An integrand of your own must take softened samples, floats
        from 0 to 1 or `distributions.Weights`, with `distributions.relaxed` of the q that it gets. The log-probability
        of any other Bernoulli is NaN there, and so would be the gradient: `relax(through_model=False)` needs neither.

    Raises:
        ValueError: if the temperature is not positive; when the estimator is called, if q is another, or a density of
            the objective takes no softened samples.

    >>> from vaejax import distributions, estimators
    >>> estimator, f = rebar(), lambda params, z: 4.0 * z.astype(float)
    >>> make = lambda params: distributions.BernoulliLogits(params["logit"])
    >>> params = estimators.with_baseline({"logit": 0.0}, estimator, jax.random.key(0), jnp.zeros(1))
    >>> mean_of = estimators.expectation(estimator, make, f, num_samples=1000)
    >>> grads, info = jax.grad(mean_of, has_aux=True)(params, jax.random.key(0))  # of 4 sigmoid(logit): 1
    >>> 0.9 < float(grads["logit"]) < 1.1
    True

    Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017, "REBAR: low-variance, unbiased gradient estimates for
    discrete latent variable models"; of its two noises the one is made of the other, as in its appendix.
    """
    check_temperature(temperature)

    def init(key: Key[Array, ""], x: Array) -> Params:
        del key
        log_temperature = jnp.log(jnp.asarray(temperature, x.dtype))
        return {"log_temperature": log_temperature, "scale": jnp.ones((), x.dtype)}

    def no_network(trained: Params, y: Array, logits: Array, num_batch: int) -> float:
        del trained, y, logits, num_batch
        return 0.0

    return Estimator(_with_control("rebar()", init, no_network, through_model=True), Trained(init))


def relax(
    hidden_sizes: Sequence[int] = (137,), temperature: float | Array = 0.5, *, through_model: bool = True
) -> Estimator:
    """Score function with a control variate of softened noise and of a network (RELAX).

        c(y) = s f(soften(y / t)) + r network(y, logits):  the gradient is that of `rebar`

    The network is trained along with s, t and r to lower the variance; r starts at 0, and so it starts as `rebar()`.
    How many latents there are is not known where its parameters are made: it sees 256 fixed combinations of y and as
    many of the logits of q, cosines of growing frequency along the latents.

    Args:
        hidden_sizes: units of each hidden layer of the network.
        temperature: the t that training starts from.
        through_model: whether f itself is part of the control variate; if not, it is not evaluated at softened samples,
            which then need no densities, and the network is all.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: as `rebar`, and if a size is not a positive integer.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,), posterior="bernoulli")
    >>> elbo, x = objectives.make_elbo(vae, relax()), jnp.ones((7, 3))
    >>> from vaejax import estimators
    >>> params = estimators.with_baseline(vae.init(jax.random.key(0)), relax(), jax.random.key(1), x)
    >>> grads, info = jax.jit(jax.grad(elbo, has_aux=True))(params, jax.random.key(2), x)
    >>> sorted(grads["baseline"])
    ['log_temperature', 'network', 'scale', 'share']

    Source: Grathwohl, Choi, Wu, Roeder & Duvenaud 2018, "Backpropagation through the void".
    """
    check_temperature(temperature)
    hidden_sizes = checks.checked_sizes("hidden_sizes", hidden_sizes)
    network = networks.mlp(2 * NUM_FEATURES, hidden_sizes, 1, "relu")

    def init(key: Key[Array, ""], x: Array) -> Params:
        start = {"log_temperature": jnp.log(jnp.asarray(temperature, x.dtype)), "scale": jnp.ones((), x.dtype)}
        if not through_model:
            start = {}
        return {**start, "share": jnp.zeros((), x.dtype), "network": network.init(key)}

    def control(trained: Params, y: Array, logits: Array, num_batch: int) -> Array:
        features = jnp.concatenate(
            [_features(array, y.ndim - logits.ndim + num_batch) for array in jnp.broadcast_arrays(y, logits[None])],
            axis=-1,
        )
        outputs = network.apply(trained["network"], features.reshape(-1, features.shape[-1]))
        return trained["share"] * outputs.reshape(features.shape[:-1])

    return Estimator(_with_control("relax()", init, control, through_model=through_model), Trained(init))


def _with_control(
    name: str,
    init: Callable[[Key[Array, ""], Array], Params],
    network: Callable[[Params, Array, Array, int], Array | float],
    *,
    through_model: bool,
) -> Callable[..., Estimate]:
    """The score function with the control variate c(y) = scale f(soften(y / temperature)) + network(y)."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        relaxation = relaxation_of(name, q)
        num_batch, held = relaxation.num_batch, lax.stop_gradient(relaxation.logits)
        trained = init(jax.random.key(0), held) if baseline is None else baseline
        draws = draws_of(relaxation, q, key, num_samples)
        log_w, terms = over_points(lambda z: integrand(z, q), draws.z, integrand, chunk_size)
        bound = reduce.bound(log_w)
        nothing = jnp.isneginf(bound)
        credit = lax.stop_gradient(jnp.where(nothing[None], 0, reduce.credit(log_w)))
        score = relaxation.score(draws.z)

        def gradient(trained: Params) -> Array:
            def control(y: Array) -> tuple[Array, Array]:
                """C of all samples together, and the part of it that belongs to the reward of each."""
                whole, own = jnp.zeros_like(bound), jnp.zeros_like(credit)
                if through_model:
                    temperature = jnp.exp(trained["log_temperature"])
                    soft = softened(relaxation, q, y, temperature, integrand, chunk_size)
                    whole, own = trained["scale"] * reduce.bound(soft), trained["scale"] * reduce.credit(soft)
                added = network(trained, y, held, num_batch) / num_samples
                return whole + jnp.sum(added * jnp.ones_like(credit), axis=0), own + added

            value, pull_back, own = jax.vjp(control, draws.y, has_aux=True)
            (slope,) = pull_back(jnp.where(nothing, 0, jnp.ones_like(value)))
            reward = jnp.where(nothing[None], 0, credit - own)
            reward = reward.reshape(*reward.shape, *[1] * (score.ndim - reward.ndim))
            return relaxation.onto((reward * score + slope * (1 - draws.kept)).sum(axis=0))

        g, tuning = less_variance(gradient, trained, bound)
        return Estimate(with_gradient_of(bound, relaxation.surrogate(g) + tuning), terms)

    return estimate


def _features(array: Array, num_axes: int) -> Array:
    """Fixed combinations of the numbers behind the first axes, (..., NUM_FEATURES)."""
    flat = array.reshape(*array.shape[:num_axes], -1)
    size = flat.shape[-1]
    place, frequency = jnp.arange(size, dtype=flat.dtype) + 0.5, jnp.arange(NUM_FEATURES, dtype=flat.dtype)
    return flat @ (jnp.cos(place[:, None] * frequency[None] * (math.pi / size)) / math.sqrt(size))
