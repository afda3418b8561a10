"""A distribution of named parts, whose samples stand one after another on the last axis."""
# ruff: noqa: D102

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Key

from vaejax import checks
from vaejax.distributions import densities
from vaejax.distributions.heads import Head, Params
from vaejax.distributions.simplex import is_relaxed, relaxed
from vaejax.distributions.wrappers import without_wrappers

Part = dist.Distribution | Callable[..., dist.Distribution]


class Parts(dist.Distribution):
    """Several latents of different kinds as one: `Parts(y=CategoricalLogits(...), z=Normal(...).to_event(1))`.

    A sample holds those of the parts one after another on its last axis, as floats: `split` takes them apart. The parts
    are independent, but one may depend on those before it: it is a function of their samples by name, in a dict, with
    any sample axes in front, such as `z=lambda before: Normal(mean_of(before["y"]), 1.0).to_event(1)`.

    Args:
        parts: by name; each of the same batch shape, with one number for each example or a vector of them.

    Raises:
        ValueError: if there is none, or a part is no distribution, or of another shape.

    >>> q = Parts(y=dist.CategoricalLogits(jnp.zeros((7, 3))), z=dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1))
    >>> q.batch_shape, q.event_shape
    ((7,), (3,))
    >>> {name: value.shape for name, value in q.split(densities.sample(q, jax.random.key(0))).items()}
    {'y': (7,), 'z': (7, 2)}
    """

    pytree_data_fields = ("parts",)
    pytree_aux_fields = ("names", "sizes")
    support: Any = None

    def __init__(self, **parts: Part):
        if not parts:
            raise ValueError("expected parts by name, such as Parts(y=..., z=...); got none")
        self.names = tuple(parts)
        self.parts: dict[str, Any] = {
            name: part if hasattr(part, "batch_shape") or not callable(part) else jax.tree_util.Partial(part)
            for name, part in parts.items()
        }
        shapes, before = [], {}
        for name, part in self.parts.items():
            if isinstance(part, jax.tree_util.Partial):
                part = jax.eval_shape(part, dict(before))
            else:
                checks.check_distribution(getattr(part, "q", part))  # of a `Told` too
            shapes.append((part.batch_shape, part.event_shape))
            before[name] = jnp.zeros((*part.batch_shape, *part.event_shape))
        batch_shape = shapes[0][0]
        for name, (batch, event) in zip(self.names, shapes, strict=True):
            if batch != batch_shape or len(event) > 1:
                raise ValueError(
                    f"expected parts of batch shape {batch_shape} with one axis of events at most; got {name} with "
                    f"batch shape {batch} and event shape {event}: declare the axes of its latents with to_event(1)"
                )
        self.sizes = tuple(event[0] if event else None for _, event in shapes)
        super().__init__(batch_shape, (sum(size or 1 for size in self.sizes),), validate_args=False)

    def part(self, name: str, before: Mapping[str, Array]) -> dist.Distribution:
        """The distribution of a part, given the samples of those before it by name."""
        part = self.parts[name]
        if not isinstance(part, jax.tree_util.Partial):
            return part
        # Floats, as `split` gives them, also of a sample that was drawn as a whole number.
        dtype = jnp.result_type(float)
        floats = {
            key: value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(dtype)
            for key, value in before.items()
        }
        return part(floats)

    def split(self, value: Any) -> dict[str, Array]:
        """The samples of the parts by name, of (*samples, *batch, *event of the whole)."""
        split, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            split[name] = value[..., start] if size is None else value[..., start : start + size]
            start += size or 1
        return split

    def joined(self, values: Mapping[str, Array]) -> Array:
        """The sample of the whole, of those of all parts by name."""
        arrays = [jnp.asarray(values[name]) for name in self.names]
        floats = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
        dtype = jnp.result_type(*floats) if floats else jnp.result_type(float)
        pairs = zip(arrays, self.sizes, strict=True)
        columns = [(array if size else array[..., None]).astype(dtype) for array, size in pairs]
        return jnp.concatenate(columns, axis=-1)

    def given(self, value: Any) -> list[tuple[dist.Distribution, Array]]:
        """The distribution of each part given the samples before it, and its own sample."""
        values = self.split(value)
        before = {}
        pairs = []
        for name in self.names:
            pairs.append((self.part(name, before), values[name]))
            before[name] = values[name]
        return pairs

    def is_independent(self) -> bool:
        """Whether no part depends on another."""
        return not any(isinstance(part, jax.tree_util.Partial) for part in self.parts.values())

    def is_relaxed(self) -> bool:
        """Whether the log-probability of a part takes relaxed samples."""
        return any(is_relaxed(part) for part in self.parts.values() if isinstance(part, dist.Distribution))

    def relaxed(self) -> "Parts":
        """The same with relaxed Bernoulli parts."""

        def soften(part: dist.Distribution) -> dist.Distribution:
            return relaxed(part) if isinstance(without_wrappers(part), dist.BernoulliLogits) else part

        def of(name: str) -> Any:
            own = self.parts[name]
            return (lambda before: soften(own(before))) if isinstance(own, jax.tree_util.Partial) else soften(own)

        return Parts(**{name: of(name) for name in self.names})

    @property
    def is_discrete(self) -> bool:
        """Whether a part is."""
        return any(part.is_discrete for part, _ in self.given(jnp.zeros(self.shape())))

    @property
    def has_rsample(self) -> bool:
        return self.is_independent() and all(part.has_rsample for part in self.parts.values())

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        return self._drawn(key, sample_shape, "sample")

    def rsample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        return self._drawn(key, sample_shape, "rsample")

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        del intermediates
        first, *others = (densities.log_prob(part, own) for part, own in self.given(value))
        return sum(others, start=first)

    @property
    def mean(self) -> Array:
        return self.joined({name: jnp.asarray(self.part(name, {}).mean) for name in self.names})

    @property
    def variance(self) -> Array:
        return self.joined({name: jnp.asarray(self.part(name, {}).variance) for name in self.names})

    def _drawn(self, key: Key[Array, ""], sample_shape: tuple[int, ...], method: str) -> Array:
        values = {}
        for name, own_key in zip(self.names, jax.random.split(key, len(self.names)), strict=True):
            part = densities.stable(self.part(name, values))
            own_shape = () if isinstance(self.parts[name], jax.tree_util.Partial) else sample_shape
            values[name] = jnp.asarray(getattr(part, method)(own_key, own_shape))
        return self.joined(values)


def side_by_side(**parts: tuple[int, Head]) -> Head:
    """A posterior of named parts, independent given x: how many latents each has, and its head.

    `models.mlp_vae((8, 8), latent_dim=5, posterior=side_by_side(bits=(3, bernoulli()), numbers=(2, gaussian())))` has
    three bits and two Gaussian numbers. Its q is `Parts`, so that `estimators.by_part` gives each part an estimator of
    its own, and so is its prior: the parts' own ones side by side.

    Args:
        parts: by name, the number of latents and the head, such as `bits=(3, distributions.bernoulli())`.

    Returns:
        A head for latents on one axis, as many as the parts have together. It takes as many arrays as the part that
        takes the most; the others leave their share of the rest unused.

    Raises:
        ValueError: if there is no part, a number is no positive integer, a head is no `Head`, or one of categories,
            which a decoder sees one-hot only where all latents are; and by the model, if `latent_dim` is not the sum.

    >>> from vaejax.distributions import bernoulli, gaussian
    >>> q = side_by_side(bits=(3, bernoulli()), numbers=(2, gaussian())).apply({}, *jnp.zeros((2, 7, 5)))
    >>> {name: part.event_shape for name, part in q.parts.items()}
    {'bits': (3,), 'numbers': (2,)}
    """
    if not parts:
        raise ValueError("expected parts by name, such as side_by_side(bits=(3, distributions.bernoulli())); got none")
    for name, pair in parts.items():
        _check_pair(name, pair)
    total = sum(size for size, _ in parts.values())

    def num_outputs(event_shape: tuple[int, ...]) -> int:
        if event_shape != (total,):
            sizes = ", ".join(f"{name} {size}" for name, (size, _) in parts.items())
            raise ValueError(f"side_by_side() has {total} latents ({sizes}); got a model of latents {event_shape}")
        return max(head.outputs_for((size,)) for size, head in parts.values())

    def init(key: Key[Array, ""], event_shape: tuple[int, ...]) -> Params:
        del event_shape
        keys = jax.random.split(key, len(parts))
        return {name: head.init(own, (size,)) for own, (name, (size, head)) in zip(keys, parts.items(), strict=True)}

    def apply(params: Params, *outputs: Array) -> Parts:
        made, start = {}, 0
        for name, (size, head) in parts.items():
            own = [array[..., start : start + size] for array in outputs[: head.outputs_for((size,))]]
            made[name] = _on_one_axis(head.apply(params.get(name, {}), *own))
            start += size
        return Parts(**made)

    def prior(event_shape: tuple[int, ...], dtype: Any) -> Parts:
        del event_shape
        return Parts(**{name: _on_one_axis(head.prior((size,), dtype)) for name, (size, head) in parts.items()})

    return Head(num_outputs, init, apply, prior)


def _on_one_axis(part: dist.Distribution) -> dist.Distribution:
    return part.to_event(1 - part.event_dim)


def _check_pair(name: str, pair: Any) -> None:
    example = "a number of latents and a head, such as (3, distributions.bernoulli())"
    checks.check_kind(f"part {name}", pair, tuple, example)
    if len(pair) != 2:
        raise ValueError(f"part {name} must be {example}; got {len(pair)} values")
    size, head = pair
    checks.check_count(f"the number of latents of {name}", size)
    checks.check_kind(f"the head of {name}", head, Head, "a distributions.Head, such as distributions.bernoulli()")
    if head.num_categories is not None:
        raise ValueError(
            f"the head of {name} must not be of categories, whose decoder sees all latents one-hot; got one of "
            f"{head.num_categories}. Use bits, distributions.bernoulli(), or write encode and decode yourself, with a "
            "q that is distributions.Parts"
        )
