"""What checks lets through and what it refuses, in which words; how records print."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import checks, records

ALLOWED = {
    "count": lambda: checks.check_count("n", np.int64(3)),
    "count from zero": lambda: checks.check_count("n", 0, least=0),
    "counts": lambda: checks.check_counts(n=1, m=np.int32(2)),
    "number": lambda: checks.check_number("x", jnp.float32(0.5), above=0, below=1),
    "number at its bounds": lambda: checks.check_number("x", 1, least=1, most=1),
    "choice": lambda: checks.check_choice("kl", "sampled", ("analytic", "sampled")),
    "choice of none": lambda: checks.check_choice("kl", None, ("analytic", None)),
    "shape": lambda: checks.check_shape("latents", (7, 2), ("*batch", 2)),
    "shape without a batch": lambda: checks.check_shape("latents", (2,), ("*batch", 2)),
    "named axes": lambda: checks.check_shape("y", (9, 2), ("m", 2)),
    "parts": lambda: checks.check_divides("n", 8, 4, "devices"),
    "finite": lambda: checks.check_finite(np.zeros(3)),
    "example": lambda: checks.check_not_empty(jnp.zeros((1, 3))),
    "floats": lambda: checks.check_floating(np.zeros(3, np.float32)),
}

REFUSED = {
    "n must be an integer of at least 1; got 0": lambda: checks.check_count("n", 0),
    "n must be an integer of at least 2; got 2.0": lambda: checks.check_count("n", 2.0, least=2),
    "n must be an integer of at least 1; got True: try 1": lambda: checks.check_count("n", True, advice="try 1"),
    "m must be an integer of at least 1; got -1": lambda: checks.check_counts(n=1, m=-1),
    "data_shape must be made of positive integers; got ()": lambda: checks.checked_shape("data_shape", ()),
    "sizes must be made of positive integers; got (3, 2.0): try 2": lambda: checks.checked_shape(
        "sizes", (3, 2.0), "try 2"
    ),
    "n must be divisible by the 4 devices; got 10: take 12": lambda: checks.check_divides(
        "n", 10, 4, "devices", "take 12"
    ),
    "x must be a number above 0; got 0": lambda: checks.check_number("x", 0, above=0),
    "x must be a number of at least 0 and below 1; got 1.0": lambda: checks.check_number("x", 1.0, least=0, below=1),
    "x must be a number at most 1; got inf: try 1": lambda: checks.check_number("x", np.inf, most=1, advice="try 1"),
    "x must be a number above 0; got nan": lambda: checks.check_number("x", float("nan"), above=0),
    "x must be a number above 0; got '1'": lambda: checks.check_number("x", "1", above=0),
    "x must be a number above 0; got float64[1]": lambda: checks.check_number("x", np.ones(1), above=0),
    "x must be a number above 0; got True": lambda: checks.check_number("x", True, above=0),
    "kl must be 'analytic' or 'sampled'; got 'exact'": lambda: checks.check_choice(
        "kl", "exact", ("analytic", "sampled")
    ),
    "kl must be 'analytic' or a function; got ['exact']": lambda: checks.check_choice(
        "kl", ["exact"], ("analytic",), otherwise="a function"
    ),
    "expected latents of shape (*batch, 2); got (7, 3)": lambda: checks.check_shape("latents", (7, 3), ("*batch", 2)),
    "expected latents of shape (*batch, 2); got ()": lambda: checks.check_shape("latents", (), ("*batch", 2)),
    "expected a slope of shape (3,); got (1, 3): squeeze it": lambda: checks.check_shape(
        "a slope", (1, 3), (3,), "squeeze it"
    ),
    "expected at least one example; got data of shape (0, 3)": lambda: checks.check_not_empty(jnp.zeros((0, 3))),
    "expected finite pixels, got 2 NaN or infinite values of 4, the first inf at index (0, 1): "
    "remove or repair these examples": lambda: checks.check_finite(np.array([[0, np.inf], [np.nan, 1]]), "pixels"),
    "expected zeros, got 1 other value of 2, the first 3 at index (1,): subtract it": lambda: checks.refuse_values(
        np.array([0, 3]), np.array([False, True]), "expected zeros", "other", "subtract it"
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_right_passes(name):
    assert ALLOWED[name]() is None


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_refused_in_one_wording(message, no_type_hook):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        REFUSED[message]()
    assert str(caught.value) == message


def test_a_shape_becomes_python_integers():
    shape = checks.checked_shape("data_shape", [np.int64(28), 28])
    assert shape == (28, 28)
    assert {type(size) for size in shape} == {int}


def test_data_of_the_models_shape_and_kind():
    x = checks.checked_data(np.ones((7, 2, 3), np.float32), (2, 3))
    assert (x.shape, x.dtype) == ((7, 2, 3), jnp.float32)
    for bad, words in (
        (np.ones((7, 3), np.float32), r"data of shape \(\*batch, 2, 3\); got \(7, 3\): .* reshape the data"),
        (np.ones((7, 2, 3)), "expected float32 data, because JAX runs in 32 bits; got float64"),
        (np.ones((7, 2, 3), np.uint8), "expected data of a floating dtype; got uint8"),
        (np.ones((0, 2, 3), np.float32), "at least one example"),
        (np.full((7, 2, 3), np.nan, np.float32), "expected finite data, got 42 NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            checks.checked_data(bad, (2, 3))


def test_of_traced_numbers_only_what_is_known_is_checked():
    @jax.jit
    def function(x, number):
        checks.check_number("number", number, above=0)
        checks.check_finite(x)
        return checks.checked_data(x, (2,)).sum() + number

    assert np.isnan(function(jnp.array([[jnp.nan, 1.0]]), -1.0))
    with pytest.raises(ValueError, match="number must be a number above 0; got"):
        function(jnp.zeros((1, 2)), jnp.ones(1))


def test_dtypes(x64, no_type_hook):
    assert checks.dtype_of([1.0, 2.0]) == np.float64
    assert checks.dtype_of(jnp.zeros(2, jnp.bfloat16)) == jnp.bfloat16
    assert checks.wide_dtype(jnp.bfloat16) == jnp.float32
    assert checks.wide_dtype(jnp.dtype("float32"), jnp.dtype("float64")) == jnp.float64
    checks.check_floating(np.zeros(3))  # in double precision


class Record(NamedTuple):
    array: Any
    tree: Any = None
    name: Any = "digits"

    __repr__ = records.short_repr


def test_a_record_of_many_numbers_prints_on_a_few_lines():
    many = np.arange(100_000, dtype=np.float32)
    text = repr(Record(many, {"kernel": many, "bias": many[:2]}))
    assert len(text) < 1000
    assert text == (
        "Record(\n"
        "  array: float32[100000], mean 49999.5\n"
        "  tree: {kernel: float32[100000], mean 49999.5; bias: float32[2], mean 0.5}\n"
        "  name: 'digits'\n"
        ")"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (jnp.float32(0.25), "float32[] 0.25"),
        (np.array([1, 3], np.int32), "int32[2], mean 2"),
        (np.array([1.0, np.nan, np.inf, 3.0]), "float64[4], mean 2, 2 not finite"),
        (np.array([np.nan]), "float64[1], mean nan, 1 not finite"),
        (np.zeros((0, 3)), "float64[0,3]"),
        (np.array([True, False]), "bool[2]"),
        (jax.random.key(0), "key<fry>[]"),
        (None, "None"),
        ({}, "{}"),
        ([np.zeros(2), np.zeros((3, 4))], "2 arrays of 14 numbers"),
        ({str(i): np.zeros(2) for i in range(50)}, "50 arrays of 100 numbers"),
        ({"encoder": {"a": np.zeros(2), "b": np.zeros(3)}}, "{encoder: 2 arrays of 5 numbers}"),
        ("long " * 1000, f"'{('long ' * 1000)[:96]}..."),
    ],
)
def test_each_field_is_printed_by_its_kind(value, words):
    assert repr(Record(value)).splitlines()[1] == f"  array: {words}"


def test_a_traced_record_prints_too():
    seen = []

    @jax.jit
    def function(x):
        seen.append(repr(Record(x, {"kernel": x})))
        return x

    function(jnp.zeros((2, 3)))
    assert seen == ["Record(\n  array: float32[2,3]\n  tree: {kernel: float32[2,3]}\n  name: 'digits'\n)"]
