"""The Gaussian nearest to a density on a grid: by KL(q || p) it seeks a mode, by KL(p || q) it covers the mass."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, records, training


class GridGaussian(NamedTuple):
    """The Gaussian nearest to a density on a grid, and both divergences from it, in nats.

    Attributes:
        mean: of q. (d,)
        covariance: of q. (d, d)
        reverse_kl: KL(q || p). ()
        forward_kl: KL(p || q). ()

    >>> points = jnp.linspace(-10.0, 10.0, 101)[:, None]
    >>> two_modes = jnp.logaddexp(-0.5 * (points[:, 0] - 3) ** 2, -0.5 * (points[:, 0] + 3) ** 2)
    >>> fitted = fit_gaussian_on_grid(two_modes, points, "forward")
    >>> round(float(fitted.covariance[0, 0]), 2), bool(fitted.reverse_kl > fitted.forward_kl)  # 1 + 3^2: it covers both
    (10.0, True)
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    reverse_kl: Float[Array, ""]
    forward_kl: Float[Array, ""]

    __repr__ = records.short_repr


def fit_gaussian_on_grid(
    log_density: ArrayLike,
    points: ArrayLike,
    direction: Literal["reverse", "forward"],
    *,
    start: ArrayLike | None = None,
    num_steps: int = 2000,
) -> GridGaussian:
    """The Gaussian q nearest to a density p that is given on a grid of points of equal volumes.

    KL(q || p) = E_q[log q - log p] punishes mass of q where p has none, so its minimum seeks a mode. KL(p || q)
    punishes mass of p where q has none, so its minimum covers p: it is the Gaussian with the mean and covariance of p.

    Args:
        log_density: log p at the points, up to a constant, (m,).
        points: a grid that holds the mass of p and q, (m, d).
        direction: "reverse" minimises KL(q || p), by gradient descent; "forward" KL(p || q), in closed form.
        start: mean from which the descent starts, (d,); by default the mean of p.
        num_steps: of the descent.

    Returns:
        Mean and covariance of q, and both divergences in nats.

    Raises:
        ValueError: if the shapes do not fit together, the direction is unknown, or num_steps is no positive integer.

    >>> points = jnp.linspace(-5.0, 5.0, 101)[:, None]
    >>> fitted = fit_gaussian_on_grid(-0.5 * (points[:, 0] - 1) ** 2, points, "forward")
    >>> round(float(fitted.mean[0]), 2), round(float(fitted.covariance[0, 0]), 2)
    (1.0, 1.0)
    """
    checks.check_choice("direction", direction, ("reverse", "forward"))
    checks.check_count("num_steps", num_steps)
    log_density = jnp.asarray(checks.as_array(log_density, "log_density"))
    points = jnp.asarray(checks.as_array(points, "points"))
    checks.check_shape("points", points.shape, ("m", "d"))
    checks.check_shape("densities", log_density.shape, points.shape[:1], "one for each point")
    start = None if start is None else jnp.asarray(start, points.dtype)
    return GridGaussian(*_fit_on_grid(direction, num_steps, log_density, points, start))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_on_grid(direction, num_steps, log_density, points, start):
    log_p = jax.nn.log_softmax(log_density)  # probabilities of the cells
    p = jnp.exp(log_p)
    mean = p @ points
    centred = points - mean[None]
    covariance = (p[:, None] * centred).T @ centred

    def log_cells(free):
        place, factor = free
        whitened = jax.scipy.linalg.solve_triangular(factor, (points - place[None]).T, lower=True)
        return jax.nn.log_softmax(-0.5 * (whitened**2).sum(axis=0))

    def triangular(raw):
        return jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diagonal(raw)))

    def reverse(free):
        log_q = log_cells(free)
        return (jnp.exp(log_q) * (log_q - log_p)).sum()

    free = (mean, jnp.linalg.cholesky(covariance))
    if direction == "reverse":
        first = mean if start is None else start
        factor = 0.3 * free[1]  # narrow, so that of several modes the nearest is found and not the middle
        raw = (first, jnp.tril(factor, -1) + jnp.diag(jnp.log(jnp.diagonal(factor))))
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))

        def value(raw):
            return -reverse((raw[0], triangular(raw[1]))), None

        def step(carry, _):
            raw, opt_state = carry
            return training.ascend(value, optimizer, raw, opt_state)[:2], None

        (raw, _), _ = lax.scan(step, (raw, optimizer.init(raw)), length=num_steps)
        free = (raw[0], triangular(raw[1]))
    log_q = log_cells(free)
    forward = jnp.where(p > 0, p * (log_p - log_q), 0).sum()
    return free[0], free[1] @ free[1].T, reverse(free), forward
