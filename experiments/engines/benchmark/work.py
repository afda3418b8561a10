"""What every system of `benchmark.py` gets: the sizes of each work, the same weights, images and learning rate."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

LEARNING_RATE = 1e-3  # of Adam
NUM_IMAGES = 6000
NUM_CHECKED = 100  # images on which the systems must agree


class Recipe(NamedTuple):
    """How a work is trained to its end, as a preset of `train.py` does it, where it is not timed by the step.

    Attributes:
        images: path of the training images, in NumPy's format.
        activation: between the layers, "tanh" or "gelu".
        rates: the learning rate of each step. (num_steps,)
        betas: the weight of the KL at each step, which is 1 at the end. (num_steps,)
    """

    images: str
    activation: str
    rates: np.ndarray
    betas: np.ndarray


class Work(NamedTuple):
    """One kind of work.

    Attributes:
        name: on the command line.
        kind: "train", whose unit is a step; "likelihood", a batch of images; or "moments", a gradient.
        image_shape: of the data.
        hidden_sizes: of the encoder, or channels and then dense units of a convolutional one.
        latent_dim: number of latents.
        batch_size: images in a unit.
        num_samples: K.
        objective: "elbo" with the KL in closed form, "iwae", or "score", the ELBO by leave-one-out REINFORCE.
        chunk: units that vaejax takes in one call.
        recipe: of a training to its end; None where units are timed.
    """

    name: str
    kind: str
    image_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    latent_dim: int
    batch_size: int
    num_samples: int
    objective: str
    chunk: int
    recipe: Recipe | None = None

    @property
    def activation(self) -> str:
        """Between the layers."""
        return self.recipe.activation if self.recipe else "relu" if self.is_conv else "tanh"

    @property
    def is_conv(self) -> bool:
        """Whether the networks are convolutional."""
        return len(self.image_shape) == 3

    @property
    def num_pixels(self) -> int:
        """Numbers in an image."""
        return int(np.prod(self.image_shape))


WORK = {
    work.name: work
    for work in (
        Work("aevb", "train", (28, 28), (500,), 20, 100, 1, "elbo", 200),
        Work("iwae", "train", (28, 28), (200, 200), 50, 20, 50, "iwae", 50),
        Work("conv", "train", (32, 32, 3), (32, 64, 128, 256), 64, 100, 1, "elbo", 10),
        Work("score", "train", (28, 28), (500,), 20, 100, 16, "score", 50),
        Work("likelihood", "likelihood", (28, 28), (200, 200), 50, 100, 5000, "iwae", 1),
        Work("moments", "moments", (28, 28), (500,), 20, 100, 1, "elbo", 1000),
    )
}

# The layers of a network, each a matrix (inputs, outputs), or a kernel (height, width, inputs, outputs), and a bias.
Layers = list[tuple[np.ndarray, np.ndarray]]


class System(Protocol):
    """Who does the work, in a process of its own. One that is trained by a recipe also has `compile` and `layers`."""

    def value(self) -> tuple[float, float]:
        """A number on which all systems must agree, at the initial weights, and its standard error."""
        ...

    def advance(self, units: int) -> None:
        """Do so many units; return when they are done."""
        ...


Make = Callable[[Work, Layers, Layers, np.ndarray], System]


def images_of(work: Work) -> np.ndarray:
    """Those of the recipe; else random images, binary for dense networks, as time does not depend on what they show."""
    if work.recipe:
        return np.load(work.recipe.images)
    rng = np.random.default_rng(0)
    grey = rng.random((NUM_IMAGES, *work.image_shape), np.float32)
    return grey if work.is_conv else (grey > 0.8).astype(np.float32)


def weights_of(work: Work) -> tuple[Layers, Layers]:
    """Layers of encoder and decoder, drawn so that signals keep their size."""
    rng = np.random.default_rng(1)

    def dense(num_in: int, num_out: int):
        weight = rng.standard_normal((num_in, num_out), np.float32) / np.sqrt(num_in, dtype=np.float32)
        return weight, np.zeros(num_out, np.float32)

    def kernel(num_in: int, num_out: int):
        weight = rng.standard_normal((4, 4, num_in, num_out), np.float32) / np.sqrt(16 * num_in, dtype=np.float32)
        return weight, np.zeros(num_out, np.float32)

    if not work.is_conv:
        encoder = [dense(*pair) for pair in itertools.pairwise((work.num_pixels, *work.hidden_sizes))]
        encoder.append(dense(work.hidden_sizes[-1], 2 * work.latent_dim))
        sizes = (work.latent_dim, *reversed(work.hidden_sizes), work.num_pixels)
        return encoder, [dense(*pair) for pair in itertools.pairwise(sizes)]
    *channels, units = work.hidden_sizes
    side = work.image_shape[0] // 2 ** len(channels)
    flat = side * side * channels[-1]
    encoder = [kernel(*pair) for pair in itertools.pairwise((work.image_shape[-1], *channels))]
    encoder += [dense(flat, units), dense(units, 2 * work.latent_dim)]
    decoder = [dense(work.latent_dim, units), dense(units, flat)]
    upward = itertools.pairwise((*reversed(channels), work.image_shape[-1]))
    return encoder, decoder + [kernel(*pair) for pair in upward]


def multiplications(work: Work) -> int:
    """Multiplications in the matrix products of one unit: forward, and twice as many backward except in layer 1."""
    encoder, decoder = weights_of(work)
    side, passes = work.image_shape[0], 1 if work.kind == "likelihood" else 3
    total = 0
    for which, layers in (("encoder", encoder), ("decoder", decoder)):
        inputs = work.batch_size * (1 if which == "encoder" else work.num_samples)
        places = side if which == "encoder" else work.image_shape[0] // 2 ** sum(w.ndim == 4 for w, _ in layers)
        for number, (weight, _) in enumerate(layers):
            positions = 1
            if weight.ndim == 4 and which == "encoder":
                places //= 2
                positions = places**2
            elif weight.ndim == 4:
                positions = places**2  # each input pixel is spread over 4x4 outputs
                places *= 2
            # The gradient with respect to the images is not needed.
            through = passes - 1 if which == "encoder" and number == 0 and passes == 3 else passes
            total += through * inputs * positions * weight.size
    return total


def num_parameters(work: Work) -> int:
    """The number of parameters of encoder and decoder."""
    return sum(weight.size + bias.size for layers in weights_of(work) for weight, bias in layers)


def filled(tree: Any, layers: Layers) -> Any:
    """The parameters of a flax network whose layers have these shapes, with these numbers."""
    params = {}
    names = sorted(tree, key=functools.partial(_place, tree=tree, layers=layers))
    for name, (weight, bias) in zip(names, layers, strict=True):
        expected = np.shape(tree[name]["kernel"])
        if expected != weight.shape:
            raise ValueError(f"expected a kernel of shape {expected} in {name}; got {weight.shape}")
        params[name] = {"kernel": weight, "bias": bias}
    return params


def layers_of(tree: Any, layers: Layers) -> Layers:
    """The reverse of `filled`: the layers of a network, in the order of these."""
    names = sorted(tree, key=functools.partial(_place, tree=tree, layers=layers))
    return [(np.array(tree[name]["kernel"]), np.array(tree[name]["bias"])) for name in names]


def _place(name: str, tree: Any, layers: Layers) -> int:
    """The position of a module among the layers, by its shape; modules of one shape are in the order of their names."""
    shape = np.shape(tree[name]["kernel"])
    places = [i for i, (weight, _) in enumerate(layers) if weight.shape == shape]
    same = sorted(other for other in tree if np.shape(tree[other]["kernel"]) == shape)
    return places[same.index(name)]
