"""A record of what is done with every key: `with recorded() as record: ...`, also inside jit, scan and vmap.

In JAX `split(key, n)[i]` equals `fold_in(key, i)`, and `jax_debug_key_reuse` cannot see it. So within `recorded()` keys
are of an implementation of their own, with Threefry's numbers, which notes the bits of each key as the program runs.
"""

import collections
import contextlib

import jax
import numpy as np
from jax.extend import random as implementations

THREEFRY = implementations.threefry_prng_impl


class Record:
    """What was done with each key: it was drawn from, split, or folded with a number.

    Attributes:
        phase: a name for what runs now.
        uses: of each key, pairs of what was done and the phase.
    """

    def __init__(self):
        self.phase = "all"
        self.uses = collections.defaultdict(list)

    def note(self, use, data):
        """Note a use of keys, (..., 2)."""
        for words in np.asarray(data).reshape(-1, 2).tolist():
            self.uses[tuple(words)].append((use, self.phase))

    @contextlib.contextmanager
    def during(self, phase):
        """Give the uses of this part of the program a phase of their own."""
        jax.effects_barrier()
        before, self.phase = self.phase, phase
        try:
            yield
            jax.effects_barrier()
        finally:
            self.phase = before

    def faults(self, meant=()):
        """Keys that were drawn from twice, drawn from and split or folded, or split and folded; with their uses.

        Args:
            meant: phases in which keys may be drawn from again, such as the validations of a run, which all use the
                same noise. A key that two phases use is a fault, also where both are meant.
        """
        jax.effects_barrier()
        found = {}
        for key, uses in self.uses.items():
            kinds, phases = {use for use, _ in uses}, {phase for _, phase in uses}
            again = len(uses) > 1 and kinds == {"draw"} and not (len(phases) == 1 and phases <= set(meant))
            if again or len(kinds) > 1:
                found[key] = dict(collections.Counter(uses))
        return found


@contextlib.contextmanager
def recorded():
    """Record what is done with each key that is made by `jax.random.key` in this block."""
    record = Record()

    def noting(use):
        @jax.custom_batching.custom_vmap
        def noted(data):
            jax.debug.callback(lambda data: record.note(use, data), data)
            return data

        @noted.def_vmap
        def _all_at_once(axis_size, in_batched, data):
            return noted(data), in_batched[0]

        return noted

    draw, split, fold = noting("draw"), noting("split"), noting("fold")
    implementation = implementations.define_prng_impl(
        key_shape=THREEFRY.key_shape,
        seed=THREEFRY.seed,
        split=lambda data, shape: THREEFRY.split(split(data), shape),
        random_bits=lambda data, width, shape: THREEFRY.random_bits(draw(data), width, shape),
        fold_in=lambda data, number: THREEFRY.fold_in(fold(data), number),
        name=f"recorded_{id(record)}",
        tag="rec",
    )
    make, remat = jax.random.key, jax.checkpoint
    jax.random.key = lambda seed: make(seed, impl=implementation)
    # What is computed again for a gradient draws the same numbers again, and is meant to.
    jax.checkpoint = lambda function, **options: function
    try:
        yield record
        jax.effects_barrier()
    finally:
        jax.random.key, jax.checkpoint = make, remat
