"""Where the time of vaejax's work goes: its matrix products, the pixels' log-probabilities and Adam, each alone."""

import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.benchmark.choices import seconds_of
from engines.benchmark.run import seconds_of_products
from engines.benchmark.systems_jax import Vaejax
from engines.benchmark.work import LEARNING_RATE, WORK, Work, images_of, weights_of
from engines.harness import run_folder, tables
from engines.harness.progress import Progress
from vaejax import distributions

NAMES = ("aevb", "iwae", "score", "likelihood")  # whose networks are dense
ROWS = 5000  # of images and samples at once, in `likelihood`


def run(folder: pathlib.Path, repeats: int, works: tuple[Work, ...] = tuple(WORK[name] for name in NAMES)) -> None:
    """Measure, save and print."""
    # The models are not trained, so warnings about their importance weights would not help.
    logging.getLogger("vaejax").setLevel(logging.ERROR)
    rows = [measured(work, repeats) for work in works]
    run_folder.write_json(folder / "parts.json", rows)
    print(table(rows))
    print(f"\nThe rows are in {folder}/parts.json")


def measured(work: Work, repeats: int) -> dict[str, Any]:
    """Median seconds of a unit of work, of each part of it alone, and of its products at the rate of a large one."""
    system = Vaejax(work, *weights_of(work), images_of(work))
    calls: dict[str, Callable[[], float]] = {
        "whole": lambda: seconds_of(lambda: system.advance(work.chunk)) / work.chunk,
        "products": looped(products, *factors(work)),
        "pixels": looped(functools.partial(pixels, work.kind == "train"), *logits_and_bits(work)),
        "products at a large one's rate": lambda: seconds_of_products(work),
    }
    if work.kind == "train":
        optimizer = optax.adam(LEARNING_RATE)
        params = weights_of(work)
        calls["adam"] = looped(lambda *state: optimizer.update(state[0], state[1]), params, optimizer.init(params))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with Progress(work.name, repeats + 1, unit="rounds") as bar:
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                took = call()
                if repeat:  # the first compiles
                    seconds[name].append(took)
            bar.update()
    parts = {name: float(np.median(values)) for name, values in seconds.items()}
    times = pieces(work)
    parts |= {name: times * parts[name] for name in ("products", "pixels")}
    return {"work": work.name, **parts}


def pieces(work: Work) -> int:
    """How often a unit does its products and its pixels: log p(x) takes so many rows at once."""
    return max(1, work.batch_size * work.num_samples // ROWS) if work.kind == "likelihood" else 1


def factors(work: Work) -> tuple[list[jax.Array], ...]:
    """The inputs, weights and gradients of the layers; of the encoder's only where it is a part of each piece."""
    encoder, decoder = weights_of(work)
    inputs, weights, gradients = [], [], []
    for which, layers in (("encoder", encoder), ("decoder", decoder)):
        if which == "encoder" and pieces(work) > 1:
            continue  # once for thousands of samples
        rows = work.batch_size * (1 if which == "encoder" else work.num_samples // pieces(work))
        for number, (weight, _) in enumerate(layers):
            inputs.append(noise(rows, weight.shape[0]))
            weights.append(jnp.asarray(weight))
            needed = work.kind == "train"
            gradients.append((noise(rows, weight.shape[1]), which == "decoder" or number > 0) if needed else None)
    return inputs, weights, gradients


def noise(*shape: int) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def products(inputs: list[jax.Array], weights: list[jax.Array], gradients: list[Any]) -> list[jax.Array]:
    """Of each layer forward, and backward for its weights and, where it is needed, for its inputs."""
    results = [x @ weight for x, weight in zip(inputs, weights, strict=True)]
    for x, weight, of_layer in zip(inputs, weights, gradients, strict=True):
        if of_layer is not None:
            gradient, through = of_layer
            results += [x.T @ gradient, *([gradient @ weight.T] if through else [])]
    return results


def logits_and_bits(work: Work) -> tuple[jax.Array, jax.Array]:
    """Those of the decoder for the samples of one piece."""
    bits = jnp.asarray(images_of(work)[: work.batch_size]).reshape(work.batch_size, -1)
    return noise(work.num_samples // pieces(work), work.batch_size, work.num_pixels), bits[None]


def pixels(with_gradient: bool, logits: jax.Array, bits: jax.Array) -> Any:
    """The log-probabilities of images, and the gradient of their sum."""

    def log_prob(logits: jax.Array) -> jax.Array:
        return distributions.log_prob(distributions.BernoulliLogits(logits, validate_args=False).to_event(1), bits)

    if not with_gradient:
        return log_prob(logits)
    values, pull_back = jax.vjp(log_prob, logits)
    return values, pull_back(values)


def looped(function: Callable[..., Any], *args: Any, number: int = 5) -> Callable[[], float]:
    """A function that returns the seconds of one call of `function`, from a compiled loop of so many."""
    arrays, static = jax.tree.flatten(args)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in arrays]

    def again(_: Any, carry: Any) -> Any:
        # The barriers keep the call in the loop, and its results whole.
        given = iter(jax.lax.optimization_barrier(carry))
        leaves = [next(given) if one else leaf for one, leaf in zip(is_array, arrays, strict=True)]
        results = jax.lax.optimization_barrier(function(*jax.tree.unflatten(static, leaves)))
        last = next(given)
        return [*carry[:-1], last + sum(leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(results))]

    changing = [leaf for one, leaf in zip(is_array, arrays, strict=True) if one]
    program = jax.jit(lambda carry: jax.lax.fori_loop(0, number, again, carry)[-1])
    start = [*map(jnp.asarray, changing), jnp.float32(0)]
    return lambda: seconds_of(lambda: program(start)) / number


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the terminal, in milliseconds."""
    names = ("whole", "products", "products at a large one's rate", "pixels", "adam")
    cells = [("ms of a unit", *names, "the rest")]
    for row in rows:
        parts = [row.get(name, 0.0) for name in names]
        rest = parts[0] - parts[1] - sum(parts[3:])
        cells.append((row["work"], *(f"{1e3 * value:,.2f}" for value in (*parts, rest))))
    return tables.columns(cells, left=1)
