"""Parameters under flat names, for files of any format, and the nested dicts that they come from."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import checks
from vaejax.distributions import Params


def flatten_params(params: Params) -> dict[str, np.ndarray]:
    """Parameters as one dict of NumPy arrays, by names such as "decoder/network/layer_0/kernel".

    `np.savez(file, **flatten_params(params))` writes them where any program with NumPy reads them.

    Args:
        params: dicts of arrays, nested.

    Returns:
        The arrays, on the host, bit for bit. A `.npz` does not know bfloat16: convert such arrays to float32 first.

    Raises:
        ValueError: if params are not nested dicts of arrays, or a name is not a string without "/".

    >>> import tempfile
    >>> params = {"encoder": {"kernel": jnp.ones((2, 3))}, "prior": {}}
    >>> with tempfile.TemporaryFile() as file:
    ...     np.savez(file, **flatten_params(params))
    ...     _ = file.seek(0)
    ...     restored = unflatten_params(np.load(file), like=params)
    >>> restored["encoder"]["kernel"].shape, restored["prior"]
    ((2, 3), {})
    """
    if not isinstance(params, dict):
        raise ValueError(
            f"expected params as dicts of arrays with names without '/'; got params {checks.describe(params)}"
        )
    flat = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key if isinstance(key, jax.tree_util.DictKey) else None for key in keys]
        path = f"params{jax.tree_util.keystr(keys)}"
        if not names or not all(isinstance(name, str) and "/" not in name for name in names):
            raise ValueError(f"expected params as dicts of arrays with names without '/'; got {path}")
        checks.check_array(leaf, path)
        flat["/".join(names)] = np.asarray(leaf)
    return flat


def unflatten_params(flat: Mapping[str, Any], like: Params | None = None) -> Params:
    """The parameters that `flatten_params` gave, as nested dicts of JAX arrays.

    Args:
        flat: arrays by name: a dict, or what `np.load` returns of a `.npz`.
        like: parameters, or `jax.eval_shape(vae.init, key)`, whose names, shapes and dtypes these must have. Without
            it nothing is compared, and dicts that hold nothing, such as those of a fixed prior, are not restored.

    Returns:
        Nested dicts of arrays, on the default device.

    Raises:
        ValueError: if a name is at once an array and a dict of others, or `like` has other names, shapes or dtypes.

    >>> unflatten_params({"decoder/bias": np.zeros(2, np.float32)})
    {'decoder': {'bias': Array([0., 0.], dtype=float32)}}
    """
    if not hasattr(flat, "keys") or not all(isinstance(name, str) for name in flat):
        raise ValueError(f"expected arrays by name, as flatten_params gives; got {checks.describe(flat)}")
    arrays = {}
    for name in flat:
        checks.check_array(flat[name], name)
        arrays[tuple(name.split("/"))] = np.asarray(flat[name])
    for names, array in arrays.items():
        if np.dtype(array.dtype).kind == "V" and np.dtype(array.dtype) == np.dtype(f"V{array.dtype.itemsize}"):
            raise ValueError(
                f"expected numbers in {'/'.join(names)}; got bytes of {array.dtype}: convert bfloat16 first"
            )
    if like is None:
        return jax.tree.map(jnp.asarray, nested(arrays.items()))
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {tuple(str(getattr(key, "key", key)) for key in keys): leaf for keys, leaf in leaves}
    expected, given = ({"/".join(names): kind(leaf) for names, leaf in tree.items()} for tree in (wanted, arrays))
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            got, want = given.get(name, "nothing"), expected.get(name, "nothing")
            raise ValueError(f"expected {want} as {name}, as in the parameters to compare with; got {got}")
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[names]) for names in wanted])


def kind(array: Any) -> str:
    """Dtype and shape of an array, as a message or a manifest has them.

    >>> kind(np.ones((2, 3), np.float32))
    'float32[2, 3]'
    """
    return f"{array.dtype}{list(array.shape)}"


def nested(items: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Nested dicts of values, each by the names on the way to it.

    Raises:
        ValueError: if a name is at once a value and a dict of others.

    >>> nested([(("a", "b"), 1), (("a", "c"), 2)])
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for names, value in items:
        node = tree
        for name in names[:-1]:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or names[-1] in node:
            raise ValueError(f"expected names of arrays alone; got {'/'.join(names)}, of which a part is an array too")
        node[names[-1]] = value
    return tree


def dict_names(path: str) -> tuple[str, ...] | None:
    """The keys of `jax.tree_util.keystr` of nested dicts, or None of another path.

    >>> dict_names("['decoder']['bias']"), dict_names(".opt_state[0]")
    (('decoder', 'bias'), None)
    """
    quoted = r"""\[(?:'((?:[^'\\])*)'|"([^"\\]*)")\]"""  # none with a backslash: `repr` changes those
    if not re.fullmatch(f"(?:{quoted})+", path):
        return None
    return tuple(single or double for single, double in re.findall(quoted, path))
