"""What is wrong for each kind of argument, by a name: what people hand in by mistake, and what nobody would."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from calls import ELBO, GAN, SGD, VAE, X, params_of, state_of

from vaejax import estimators, models, objectives

Wrong = dict[str, Callable[[], Any]]

ANYTHING: Wrong = {
    "None": lambda: None,
    "a word": lambda: "adam",
    "a number as a word": lambda: "3",
    "a dict": lambda: {"a": 1},
    "an empty dict": dict,
    "a tuple": lambda: (X, X),
    "an empty tuple": tuple,
    "an object": object,
}
NO_ARRAY = {key: value for key, value in ANYTHING.items() if key != "a tuple"}  # some read a tuple as an array
A_NUMBER: Wrong = {"3": lambda: 3, "nan": lambda: float("nan"), "True": lambda: True}
AN_ARRAY: Wrong = {"an array": lambda: X}
A_FUNCTION: Wrong = {"a function": lambda: ELBO}


def changed(change: Callable[[dict], Any]) -> Callable[[], Any]:
    """The good parameters, changed."""
    return lambda: change(dict(params_of(VAE)))


def without(part: str) -> Callable[[], Any]:
    """The good parameters without a part."""
    return changed(lambda params: {name: value for name, value in params.items() if name != part})


def deep(change: Callable[[Any], Any]) -> Callable[[], Any]:
    """The good parameters with the bias of the decoder's last layer changed."""

    def make() -> Any:
        params = jax.tree.map(lambda leaf: leaf, params_of(VAE))
        layer = params["decoder"]["network"]["layer_1"]
        layer["bias"] = change(layer["bias"])
        return params

    return make


NO_PARAMS: Wrong = {
    **ANYTHING,
    **A_NUMBER,
    **AN_ARRAY,
    "a list": list,
    "leaves": changed(jax.tree.leaves),
    "the model": lambda: VAE,
    "a state": state_of,
    "a dict of params": changed(lambda params: {"params": params}),
}
COUNT: Wrong = {
    **ANYTHING,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "2.0": lambda: 2.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10^30": lambda: 10**30,
    "float32": lambda: np.float32(2),
    "a list": lambda: [2],
    "an array": lambda: jnp.ones(2, int),
    "a key": lambda: jax.random.key(0),
}
KEYS: Wrong = {
    **ANYTHING,
    **A_NUMBER,
    "0": lambda: 0,
    "an array": lambda: X,
    "a generator": lambda: np.random.default_rng(0),
    "NumPy's old key": lambda: np.zeros(2, np.uint32),
}
NUMBERS: Wrong = {
    **NO_ARRAY,
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "words": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([None, 1]),
}
DATA: Wrong = {
    **ANYTHING,
    **A_NUMBER,
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "words": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([None, 1]),
    "wider": lambda: jnp.ones((4, 4)),
    "broadcasting": lambda: jnp.ones((4, 1)),
    "of one axis": lambda: jnp.ones(4),
    "empty": lambda: jnp.ones((0, 3)),
    "NaN": lambda: X.at[1, 2].set(jnp.nan),
    "infinite": lambda: X.at[1, 2].set(jnp.inf),
    "complex": lambda: X.astype(jnp.complex64),
    "float64": lambda: np.ones((4, 3)),
    "bytes": lambda: np.ones((4, 3), np.uint8),
    "integers": lambda: X.astype(jnp.int32),
    "an image in a dict": lambda: {"image": X},
    "a batch of nothing": lambda: models.Batch(None),
    "a mask of numbers": lambda: models.Batch(X, mask=jnp.ones((4, 3))),
    "another mask": lambda: models.Batch(X, mask=jnp.ones((4, 1), bool)),
    "a context": lambda: models.Batch(X, context=X),
}
SIZES: Wrong = {
    **ANYTHING,
    "0": lambda: (0,),
    "-1": lambda: (-1, 3),
    "1.5": lambda: (1.5, 3),
    "words": lambda: ("3",),
    "True": lambda: (True, 3),
    "a number": lambda: 2.5,
    "nothings": lambda: (None,),
    "10^30": lambda: (10**30,),
    "nested": lambda: ((3, 3), 3),
}
NUMBER: Wrong = {
    **ANYTHING,
    "True": lambda: True,
    "nan": lambda: float("nan"),
    "-1": lambda: -1.0,
    "complex": lambda: 1j,
    "several": lambda: jnp.ones(2),
}

WRONG: dict[str, Wrong] = {
    "count": COUNT,
    "count from 0": {key: value for key, value in COUNT.items() if key != "0"},
    "count from 2": {**COUNT, "1": lambda: 1},
    "counts": {
        **{key: value for key, value in COUNT.items() if key not in ("a list", "an array")},
        "2": lambda: 2,
        "with a 0": lambda: (1, 0),
        "with 1.5": lambda: [1, 1.5],
    },
    "key": {
        **KEYS,
        "old style": lambda: jax.random.PRNGKey(0),
        "several": lambda: jax.random.split(jax.random.key(0), 2),
        "one in an array": lambda: jax.random.split(jax.random.key(0), 1),
        "in a list": lambda: [jax.random.key(0)],
    },
    "keys": {
        **KEYS,
        "old style": lambda: jnp.zeros((2, 2), jnp.uint32),
        "one": lambda: jax.random.key(0),
        "none": lambda: jax.random.split(jax.random.key(0), 2)[:0],
        "in a list of numbers": lambda: [0, 1],
    },
    "params": {
        **NO_PARAMS,
        "of another model": lambda: params_of(models.mlp_vae((3,), 2, (5,))),
        "without encoder": without("encoder"),
        "without decoder": without("decoder"),
        "with a list": changed(lambda params: {**params, "encoder": [1.0]}),
        "with None": deep(lambda bias: None),
        "with a word": deep(lambda bias: "zero"),
        "without a part": changed(lambda params: {**params, "decoder": {"head": {}}}),
        "of a broadcasting shape": deep(lambda bias: bias[:1]),
        "with one more axis": deep(lambda bias: bias[None]),
        "of integers": deep(lambda bias: bias.astype(int)),
    },
    "linear params": {
        **NO_PARAMS,
        "of another model": lambda: params_of(models.mlp_vae((5,), 2, (5,))),
        "without encoder": without("encoder"),
    },
    "gan params": {**NO_PARAMS, "of a VAE": lambda: params_of(VAE)},
    "tree of params": {
        key: ANYTHING[key] for key in ("None", "a word", "an empty dict", "an empty tuple", "an object")
    },
    "baseline params": {**NO_PARAMS, "of a VAE": lambda: params_of(VAE)},
    "data": {
        **DATA,
        "grey": lambda: X * 0.5,
        "out of range": lambda: X * 255,
    },
    "real data": DATA,
    "tokens": {key: DATA[key] for key in DATA if key not in ("bytes", "integers", "3")}
    | {"outside": lambda: jnp.full((2, 4), 9)},
    "bytes": {**NUMBERS, "float32": lambda: X, "int32": lambda: jnp.ones(3, int)},
    "examples": {
        **ANYTHING,
        **A_NUMBER,
        **{key: DATA[key] for key in ("ragged", "words", "objects", "empty", "NaN", "infinite", "complex")},
    },
    "numbers": NUMBERS,
    "weights": {**NUMBERS, "negative": lambda: [-1.0, 2.0], "nan": lambda: [float("nan"), 1.0], "3": lambda: 3},
    "tree": {
        **{key: value for key, value in ANYTHING.items() if key not in ("a dict", "a tuple")},
        **{key: DATA[key] for key in ("empty", "NaN", "infinite", "float64", "words", "objects", "ragged")},
        "3": lambda: 3,
        "unequal": lambda: {"a": X, "b": X[:2]},
        "words in a dict": lambda: {"x": X, "label": ["a", "b", "c", "d"]},
    },
    "objective": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        "the model": lambda: VAE,
        "uncalled": lambda: objectives.make_elbo,
        "of no argument": lambda: lambda: 0.0,
        "in a list": lambda: [ELBO],
    },
    "estimator": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        "a name": lambda: "reinforce",
        "uncalled": lambda: estimators.score_function,
        "uncalled pathwise": lambda: estimators.pathwise,
        "of one argument": lambda: lambda q: q,
        "in a list": lambda: [estimators.pathwise()],
        "the objective": lambda: ELBO,
    },
    "optimizer": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        "a rate": lambda: 1e-3,
        "uncalled": lambda: optax.adam,
        "its init": lambda: SGD.init,
        "in a list": lambda: [SGD],
    },
    "model": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        **A_FUNCTION,
        "uncalled": lambda: models.mlp_vae,
        "params": lambda: params_of(VAE),
        "a part": lambda: tuple(VAE[:2]),
        "a GAN": lambda: GAN,
        "a network": lambda: models.networks.mlp(3, (), 2),
    },
    "prior": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        **A_FUNCTION,
        "uncalled": lambda: models.mixture_prior,
        "a distribution": lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    },
    "gan": {**ANYTHING, **A_NUMBER, **AN_ARRAY, **A_FUNCTION, "a VAE": lambda: VAE},
    "network": {**ANYTHING, **A_NUMBER, **AN_ARRAY, "a model": lambda: VAE},
    "state": {
        **ANYTHING,
        **A_NUMBER,
        **AN_ARRAY,
        **A_FUNCTION,
        "params": lambda: params_of(VAE),
        "the model": lambda: VAE,
    },
    "function": {**ANYTHING, **A_NUMBER, **AN_ARRAY},
    "distribution": {**ANYTHING, **A_NUMBER, **AN_ARRAY, **A_FUNCTION, "a class": lambda: dist.Normal},
    "record": {**ANYTHING, **A_NUMBER, **AN_ARRAY, **A_FUNCTION},
    "sizes": SIZES,
    "number": NUMBER,
    "temperatures": {
        **{key: value for key, value in ANYTHING.items() if key != "a tuple"},
        "a number": lambda: 0.5,
        "from above 0": lambda: (0.1, 0.5),
        "to 1": lambda: (0.0, 1.0),
        "falling": lambda: (0.0, 0.5, 0.2),
        "nan": lambda: (0.0, float("nan")),
        "True": lambda: (0.0, True),
    },
    "order": {key: value for key, value in NUMBER.items() if key not in ("-1", "inf")},
    "choice": {key: value for key, value in {**ANYTHING, **A_NUMBER}.items() if key != "None"},
    "estimators": {**ANYTHING, **A_NUMBER, **AN_ARRAY, "uncalled": lambda: {"pathwise": estimators.pathwise}},
    "objectives": {**ANYTHING, **A_NUMBER, **AN_ARRAY, "uncalled": lambda: {"elbo": objectives.make_elbo}},
}
