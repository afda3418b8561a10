"""Variational autoencoders of token sequences: an LSTM reads, another writes, word by word, and a corpus to test them.

The writer sees what it has written, so that it can do without the latents: in this model posterior collapse was first
seen (Bowman et al. 2016).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Key
from numpyro.distributions import constraints

from vaejax import checks, distributions
from vaejax.distributions import Params
from vaejax.models import networks, parameters
from vaejax.models.networks import Network
from vaejax.models.programs import compiled
from vaejax.models.vae import VAE


class Writer(NamedTuple):
    """The decoder's parts, all but its parameters.

    Attributes:
        vocabulary_size: tokens are 0, ..., vocabulary_size - 1.
        length: of every sequence.
        start: latents to the first memory, (n, latent_dim) -> (n, hidden_size).
        cell: LSTM step; it sees the last token's embedding, and the latents.
        output: (n, hidden_size) -> logits (n, vocabulary_size).
    """

    vocabulary_size: int
    length: int
    start: Network
    cell: Network
    output: Network

    def begin(self, params: Params, z: Float[Array, "n latent_dim"]) -> Any:
        """The memory before the first token."""
        memory = self.start.apply(params["start"], z)
        return memory, jnp.tanh(memory)

    def step(
        self, params: Params, z: Float[Array, "n latent_dim"], memory: Any, last: Int[Array, " n"]
    ) -> tuple[Any, Float[Array, "n vocabulary"]]:
        """Memory and logits of the next token after `last`; before the first that is vocabulary_size."""
        inputs = jnp.concatenate([params["embedding"][last], z], axis=1)
        memory, hidden = self.cell.apply(params["cell"], (memory, inputs))
        return memory, self.output.apply(params["output"], hidden)


class TokenSequences(dist.Distribution):
    """p(x|z) = product over t of p(x_t | z, x_1, ..., x_{t-1}), of sequences of tokens.

    Args:
        writer: the decoder's parts.
        params: the parameters of these parts.
        codes: z, (*batch, latent_dim).

    >>> vae = lstm_vae(vocabulary_size=20, length=6, latent_dim=2)
    >>> p = vae.decode(vae.init(jax.random.key(0)), jnp.zeros((7, 2)))
    >>> p.log_prob(p.sample(jax.random.key(1))).shape
    (7,)
    """

    pytree_data_fields = ("params", "codes")
    pytree_aux_fields = ("writer",)

    def __init__(self, writer: Writer, params: Params, codes: Float[Array, "*batch latent_dim"]):
        self.writer, self.params, self.codes = writer, params, codes
        super().__init__(batch_shape=codes.shape[:-1], event_shape=(writer.length,))

    @property
    def support(self) -> Any:
        """Whole numbers below the size of the vocabulary."""
        return constraints.independent(constraints.integer_interval(0, self.writer.vocabulary_size - 1), 1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Int[Array, "*shape length"]:
        """Sequences, (*sample_shape, *batch, length)."""
        shape = (*sample_shape, *self.batch_shape)
        (key,) = jax.random.split(key, 1)

        def write(z, carry, place):  # folded: JAX calls a vmap of a scan over keys a reuse
            memory, last = carry
            memory, logits = self.writer.step(self.params, z, memory, last)
            token = jax.random.categorical(jax.random.fold_in(key, place), logits)
            return (memory, token), token

        tokens = self._scan(write, shape, jnp.arange(self.writer.length))
        return jnp.moveaxis(tokens, 0, 1).reshape(*shape, self.writer.length)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, " *shape"]:
        """Log-probability of sequences (*shape, *batch, length), in nats."""
        del intermediates  # of numpyro's transformed distributions
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        tokens = jnp.broadcast_to(value, (*shape, value.shape[-1])).reshape(math.prod(shape), -1)

        def read(z, carry, token):
            memory, last = carry
            memory, logits = self.writer.step(self.params, z, memory, last)
            chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
            return (memory, token), chosen - jax.nn.logsumexp(logits, axis=1)

        return self._scan(read, shape, jnp.moveaxis(tokens, 0, 1)).sum(axis=0).reshape(shape)

    def _scan(self, step: Callable, shape: tuple[int, ...], places: Array) -> Array:
        """What `step(z, (memory, last token), place)` gives at each place, (length, prod(shape))."""
        z = jnp.broadcast_to(self.codes, (*shape, self.codes.shape[-1])).reshape(math.prod(shape), -1)
        first = jnp.full(len(z), self.writer.vocabulary_size, jnp.result_type(places))
        start = (self.writer.begin(self.params, z), first)
        return lax.scan(functools.partial(step, z), start, places)[1]

    def unsupported(self, x: Array) -> str:
        """The message about sequences with tokens outside the vocabulary."""
        return _outside(x, self.writer.vocabulary_size)


def lstm_vae(
    vocabulary_size: int,
    length: int,
    latent_dim: int,
    *,
    embedding_size: int = 50,
    hidden_size: int = 50,
) -> VAE:
    """A VAE of token sequences: an LSTM encoder whose last state gives q(z|x), an LSTM decoder that sees z each step.

    Args:
        vocabulary_size: tokens are 0, ..., vocabulary_size - 1.
        length: of every sequence; shorter ones are filled up with a token of your own that means the end.
        latent_dim: latents of one sequence.
        embedding_size: numbers that stand for a token, in encoder and decoder.
        hidden_size: of both LSTMs.

    Returns:
        A model like any other, of data of an integer dtype, (*batch, length); p(x|z) is a `TokenSequences`.

    Raises:
        ValueError: if a size is not a positive integer, or vocabulary_size is 1; and, when the functions are called, if
            sequences are longer than the model's or shorter, or tokens out of range (checked outside `jit` alone; under
            it their log-likelihood is NaN).

    >>> vae = lstm_vae(vocabulary_size=20, length=6, latent_dim=2)
    >>> params = vae.init(jax.random.key(0))
    >>> x = vae.decode(params, jnp.zeros((7, 2))).sample(jax.random.key(1))
    >>> x.shape, vae.encode(params, x).batch_shape
    ((7, 6), (7,))

    Source: Bowman et al. 2016, "Generating sentences from a continuous space".
    """
    checks.check_count("vocabulary_size", vocabulary_size, least=2)
    checks.check_counts(length=length, latent_dim=latent_dim, embedding_size=embedding_size, hidden_size=hidden_size)
    reader_cell = networks.lstm(embedding_size, hidden_size)
    reader_output = networks.mlp(hidden_size, (), 2 * latent_dim)
    head = distributions.gaussian()
    writer = Writer(
        vocabulary_size,
        length,
        start=networks.mlp(latent_dim, (), hidden_size),
        cell=networks.lstm(embedding_size + latent_dim, hidden_size),
        output=networks.mlp(hidden_size, (), vocabulary_size),
    )

    @jax.jit
    def drawn(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, 7)
        read = {
            "embedding": 0.1 * jax.random.normal(keys[0], (vocabulary_size, embedding_size)),
            "cell": reader_cell.init(keys[1]),
            "output": reader_output.init(keys[2]),
        }
        written = {
            "embedding": 0.1 * jax.random.normal(keys[3], (vocabulary_size + 1, embedding_size)),  # one is the start
            "start": writer.start.init(keys[4]),
            "cell": writer.cell.init(keys[5]),
            "output": writer.output.init(keys[6]),
        }
        return {"encoder": {"network": read}, "decoder": {"network": written}, "prior": {}}

    init, part_of = parameters.checking(drawn)

    def encode(params: Params, x: ArrayLike) -> dist.Distribution:
        network = part_of(params, "encoder")["network"]
        x = _checked_tokens(x, vocabulary_size, length)
        hidden = _last_hidden(reader_cell, network, x.reshape(-1, length), hidden_size)
        mean, raw = jnp.split(reader_output.apply(network["output"], hidden), 2, axis=1)
        shape = (*x.shape[:-1], latent_dim)
        return head.apply({}, mean.reshape(shape), raw.reshape(shape)).to_event(1)

    def decode(params: Params, z: ArrayLike) -> dist.Distribution:
        part, z = part_of(params, "decoder"), jnp.asarray(checks.as_array(z, "latents"))
        checks.check_shape("latents", z.shape, ("*batch", latent_dim))
        return TokenSequences(writer, part["network"], z)

    def prior(params: Params) -> dist.Distribution:
        dtype = part_of(params, "decoder")["network"]["embedding"].dtype
        return distributions.standard_normal((latent_dim,), dtype).to_event(1)

    return VAE(init, encode, decode, prior)


def latent_lstm(
    key: Key[Array, ""],
    vocabulary_size: int = 100,
    length: int = 10,
    *,
    num_modes: int = 4,
    hidden_size: int = 100,
    scale: float = 1.0,
) -> tuple[VAE, Params]:
    """A generator whose latents are known: a random LSTM that writes given two latents, which lie in a few clusters.

    A model like any other, but its encoder is not trained: `quadrature_log_likelihood` computes its log p(x), and with
    it the information that a sequence holds about its latents.

    Args:
        key: consumed; of the random weights.
        vocabulary_size: of the corpus.
        length: of each sequence.
        num_modes: clusters of the latents, on a circle of radius 2, of std 0.4 each.
        hidden_size: of the LSTM.
        scale: of the weights; the larger, the more the latents say about the sequence.

    Returns:
        The model, and its parameters; `draw` draws from it.

    Raises:
        ValueError: as `lstm_vae`; and if num_modes is not a positive integer.

    >>> vae, params = latent_lstm(jax.random.key(0))
    >>> z, x = draw(vae, params, jax.random.key(1), 7)
    >>> z.shape, x.shape
    ((7, 2), (7, 10))

    Source: for the idea, He et al. 2019, section 6.1; the numbers are ours.
    """
    checks.check_given(key=key, num_modes=num_modes)
    checks.check_number("scale", scale, above=0)
    vae = lstm_vae(vocabulary_size, length, 2, embedding_size=hidden_size, hidden_size=hidden_size)
    init_key, weight_key = jax.random.split(key)
    params = vae.init(init_key)
    leaves, structure = jax.tree.flatten(params["decoder"])
    drawn = [
        scale * jax.random.uniform(leaf_key, leaf.shape, minval=-1.0, maxval=1.0)
        for leaf_key, leaf in zip(jax.random.split(weight_key, len(leaves)), leaves, strict=True)
    ]
    angles = jnp.asarray(2 * np.pi * np.arange(num_modes) / num_modes, drawn[0].dtype)
    centres = 2.0 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)

    def prior(params: Params) -> dist.Distribution:
        del params
        modes = dist.Normal(centres, 0.4 * jnp.ones_like(centres)).to_event(1)
        return dist.MixtureSameFamily(dist.CategoricalLogits(jnp.zeros(num_modes)), modes)

    return vae._replace(prior=prior), {**params, "decoder": jax.tree.unflatten(structure, drawn)}


@compiled(0, 3)
def draw(
    vae: VAE, params: Params, key: Key[Array, ""], num_sequences: int
) -> tuple[Float[Array, "n latent_dim"], Int[Array, "n length"]]:
    """Latents drawn from the prior, and the sequence that the decoder writes from each.

    Args:
        vae: an `lstm_vae` or a `latent_lstm`.
        params: its parameters.
        key: consumed.
        num_sequences: how many.

    Returns:
        z and x.

    >>> vae = lstm_vae(vocabulary_size=20, length=6, latent_dim=2)
    >>> z, x = draw(vae, vae.init(jax.random.key(0)), jax.random.key(1), 7)
    >>> z.shape, x.shape
    ((7, 2), (7, 6))
    """
    prior = vae.prior(params)

    def one(key: Key[Array, ""]) -> tuple[Array, Array]:
        code_key, token_key = jax.random.split(key)
        z = distributions.sample(prior, code_key)
        return z, distributions.sample(vae.decode(params, z), token_key)

    return jax.vmap(one)(jax.random.split(key, num_sequences))


def _last_hidden(cell: Network, params: Params, tokens: Int[Array, "n length"], hidden_size: int) -> Array:
    """The LSTM's hidden numbers after the last token, (n, hidden_size)."""
    embedded = params["embedding"][jnp.moveaxis(tokens, 0, 1)]
    nothing = jnp.zeros((len(tokens), hidden_size), embedded.dtype)

    def read(memory, inputs):
        return cell.apply(params["cell"], (memory, inputs))[0], None

    (_, hidden), _ = lax.scan(read, (nothing, nothing), embedded)
    return hidden


def _checked_tokens(x: ArrayLike, vocabulary_size: int, length: int) -> Int[Array, "*batch length"]:
    x = jnp.asarray(checks.as_array(x, "token ids"))
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"expected token ids of an integer dtype; got {x.dtype}: convert with x.astype('int32')")
    checks.check_shape("sequences", x.shape, ("*batch", length), "cut longer ones, or make the model with their length")
    checks.check_not_empty(x)
    if not isinstance(x, Tracer) and not ((x >= 0) & (x < vocabulary_size)).all():
        raise ValueError(_outside(x, vocabulary_size))
    return x


def _outside(x: Array, vocabulary_size: int) -> str:
    outside = (x < 0) | (x >= vocabulary_size)
    first = tuple(int(i) for i in jnp.argwhere(outside)[0])
    return (
        f"expected token ids from 0 to {vocabulary_size - 1}, the vocabulary that the model was made with; got "
        f"{int(outside.sum())} others, the first at index {first} with value {int(x[first])}: make the model with "
        "another vocabulary_size, or map rare tokens to one that stands for all of them"
    )
