"""A q without its gradient, also where it holds its parameters in the closure of a function."""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpyro.distributions as dist
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from vaejax import distributions
from vaejax.estimators.signature import Broadcasting, Integrand


class OneByOne(NamedTuple):
    """An integrand that takes one sample of the batch, and knows how to make q without its gradient.

    Attributes:
        integrand: `(z, q) -> (log_w, terms)`; calling the record calls it.
        detach: `() -> q` without its gradient.
        log_q_weight: c, of a log-weight that holds -c log q(z).

    >>> integrand = OneByOne(lambda z, q: (z**2, None), lambda: dist.Normal(0.0, 1.0))
    >>> float(integrand(jax.numpy.array(3.0), dist.Normal(1.0, 1.0))[0])
    9.0
    """

    integrand: Integrand
    detach: Callable[[], dist.Distribution]
    log_q_weight: ArrayLike = 1.0

    def __call__(self, z: Any, q: dist.Distribution | distributions.Told) -> tuple[Array, Any]:
        """The log-weights and the terms of z."""
        return self.integrand(z, q)


def with_detached(
    integrand: Integrand, detach: Callable[[], dist.Distribution], log_q_weight: ArrayLike = 1.0
) -> Integrand:
    """The same integrand, with the way to make q without its gradient.

    `lax.stop_gradient(q)` reaches the arrays that q is a tree of. It does not reach those that a function of q closes
    over, as the network of numpyro's `InverseAutoregressiveTransform` does; and an estimator that drops the score of q
    is then biased. So q is made a second time, of parameters without gradient.

    Args:
        integrand: as in `EstimateFunction`.
        detach: `() -> q`, made of detached parameters: `lambda: make_q(lax.stop_gradient(params))`.
        log_q_weight: c, where the log-weight holds -c log q(z): the weight of a KL that is sampled. An estimator that
            replaces the score of q needs it.

    Returns:
        The integrand, for estimators that take `detached(q, integrand)`.

    >>> make = lambda mean: dist.Normal(mean, 1.0)
    >>> def slope_of_score(mean):
    ...     integrand = with_detached(lambda z, q: (q.log_prob(z), None), lambda: make(lax.stop_gradient(mean)))
    ...     return integrand(jax.numpy.array(2.0), detached(make(mean), integrand))[0]
    >>> float(jax.grad(slope_of_score)(0.5))
    0.0
    """
    if isinstance(integrand, Broadcasting):
        return integrand._replace(detach=detach, log_q_weight=log_q_weight)
    return OneByOne(integrand, detach, log_q_weight)


def detached(q: dist.Distribution, integrand: Integrand) -> dist.Distribution:
    """The distribution q without its gradient, as the integrand knows to make it.

    Args:
        q: the distribution that the estimator was called with.
        integrand: what it was called with; of one without `with_detached`, q's arrays are detached.

    Returns:
        A distribution equal to q.

    Raises:
        ValueError: if the integrand does not say how, and q holds traced numbers in a function, where they cannot be
            reached.

    >>> float(detached(dist.Normal(0.0, 1.0), lambda z, q: (z, None)).scale)
    1.0
    """
    detach = getattr(integrand, "detach", None)
    if detach is not None:
        return detach()
    if _hides_tracers(jax.tree.structure(q)):
        raise ValueError(
            f"q = {distributions.name_of(q)} holds traced numbers in the closure of a function, where "
            "lax.stop_gradient does not reach them: the estimate would be biased. Expected an integrand that knows how "
            "to make q without its gradient, as objectives and estimators.expectation pass one: "
            "estimators.with_detached(integrand, lambda: make_q(lax.stop_gradient(params)))"
        )
    return lax.stop_gradient(q)


def _hides_tracers(tree: Any) -> bool:
    """Whether a tree's structure, beside its leaves, holds a traced number."""
    node = tree.node_data()
    return _holds_tracer(node and node[1], set()) or any(map(_hides_tracers, tree.children()))


def _holds_tracer(thing: Any, seen: set[int]) -> bool:
    if isinstance(thing, Tracer):
        return True
    if id(thing) in seen or thing is None or isinstance(thing, str | int | float | type | types.ModuleType):
        return False
    seen.add(id(thing))
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, tuple | list | set | frozenset):
        parts = list(thing)
    elif isinstance(thing, functools.partial):
        parts = [thing.func, thing.args, thing.keywords]
    elif isinstance(thing, types.MethodType):
        parts = [thing.__self__, thing.__func__]
    elif isinstance(thing, types.FunctionType):
        parts = [_content(cell) for cell in thing.__closure__ or ()] + [thing.__defaults__, thing.__kwdefaults__]
    else:
        parts = [getattr(thing, "__dict__", None), getattr(thing, "__wrapped__", None)]
    return any(_holds_tracer(part, seen) for part in parts)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a function that is not defined yet
        return None
