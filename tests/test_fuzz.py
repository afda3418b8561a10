"""Every public function with every argument wrong in turn: one clear error of our own, never a number."""

import ast
import functools
import inspect
import pathlib

import calls
import jax
import numpy as np
import pytest
import wrong
from hypothesis import given, settings
from hypothesis import strategies as st

import vaejax

PACKAGE = pathlib.Path(vaejax.__file__).parent
Case = tuple[str, str, str]  # a call, an argument of it, what is wrong

# What is allowed after all, by call ("" is any), argument and what is wrong; and why.
ALLOWED: dict[Case, str] = {
    ("", "hidden_sizes", "an empty tuple"): "no hidden layer: a linear map",
    ("", "x", "grey"): "where the likelihood is not known, or the program is compiled: then it gives NaN",
    ("", "batch", "grey"): "as x, in a compiled step",
    ("", "x", "out of range"): "as grey",
    ("", "batch", "out of range"): "as grey",
    ("checkpoints.save", "keep", "10^30"): "all of them",
    ("data.binarize_threshold", "key", ""): "a threshold draws nothing; it takes a key as the other binarization does",
    ("data.to_levels", "key", ""): "rounding draws nothing; it takes a key as the binarizations do",
    ("objectives.with_optimal_std", "chunk_size", "None"): "all samples at once",
    ("models.check_params", "params", ""): "any tree of finite numbers passes, one without numbers too",
    ("estimators.with_baseline", "params", ""): "it adds to a dict, of any model",
    ("evaluation.check_continuous", "params", ""): "the prior has none of them",
    ("VAE.prior", "params", ""): "the prior has none of them",
    ("VAE.encode", "params", ""): "those of the decoder are not used",
    ("evaluation.simulated", "params", ""): "those of the encoder are not used",
    ("models.sample_data", "params", ""): "those of the encoder are not used",
    ("VAE.decode", "params", ""): "those of the encoder are not used",
    ("models.with_output_bias", "params", ""): "of the decoder's last layer alone",
    ("models.with_batch_axis", "params", ""): "those of the decoder are not used",
    ("models.with_batch_axis", "x", ""): "its axes are asked for, not its numbers",
    ("models.given", "batch", ""): "the model's functions look at its numbers",
    ("inference.init_groups", "params", ""): "nothing is known of the model",
    ("inference.init_lagging", "params", ""): "nothing is known of the model",
    ("inference.make_aggressive_train_step", "validation", "grey"): "there are no parameters yet to decode with",
    ("inference.make_aggressive_train_step", "validation", "out of range"): "as grey",
    ("laboratory.cost", "objectives", "an empty dict"): "costs of none",
    ("laboratory.measure_noise", "served", "an empty dict"): "summaries of none",
    ("laboratory.serving", "params", ""): "the refusal is what it returns",
    ("laboratory.serving", "x", ""): "the refusal is what it returns",
    ("models.linear_vae", "data_dim", "a list"): "the shape of the data",
    ("prepared train step", "batch", "float64"): "the zeros and ones that it makes lose nothing",
    ("streams.make_stream", "source", ""): "examples are looked at when they are read",
    ("training.flatten_params", "params", "an empty dict"): "nothing, flat",
}


@functools.cache
def cases() -> tuple[Case, ...]:
    """All of them, less those where what is wrong is the argument's default, as None often is."""
    return tuple(
        (name, argument, what)
        for name, call in calls.calls().items()
        for argument, value in call.good().items()
        for what, make in wrong.WRONG.get(value.kind, {}).items()
        if not (what == "None" and call.allows(argument, None))
    )


@functools.cache
def quick_cases() -> tuple[Case, ...]:
    """Those that must be refused, which compiles nothing."""
    return tuple(case for case in cases() if not allowance(case))


def allowance(case: Case) -> str | None:
    """Why a case may be accepted, if it may."""
    name, argument, what = case
    return ALLOWED.get(case) or ALLOWED.get((name, argument, "")) or ALLOWED.get(("", argument, what))


@functools.cache
def raises(file: str) -> tuple[tuple[int, int], ...]:
    """The lines of each raise statement of a file."""
    tree = ast.parse(pathlib.Path(file).read_text())
    return tuple((node.lineno, node.end_lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise))


def outcome(case: Case, call: calls.Call | None = None) -> str:
    """What a call ends in: "refused", "accepted", or where and what else the call ended in."""
    name, argument, what = case
    call = call or calls.calls()[name]
    good = {known: value.make() for known, value in call.good().items()}
    kind = call.good()[argument].kind
    arguments = {**good, argument: wrong.WRONG[kind][what]()}
    try:
        result = call.make()(**arguments)
        if inspect.isgenerator(result):
            next(result)
    except Exception as error:  # every kind is judged
        frame = error.__traceback__
        while frame.tb_next is not None:
            frame = frame.tb_next
        file = frame.tb_frame.f_code.co_filename
        own = pathlib.Path(file).is_relative_to(PACKAGE)
        raised = own and any(first <= frame.tb_lineno <= last for first, last in raises(file))
        if raised and isinstance(error, ValueError | TypeError):
            return "refused"
        place = pathlib.Path(file).relative_to(PACKAGE) if own else file
        return f"{type(error).__name__} at {place}:{frame.tb_lineno}: {str(error)[:150]!r}"
    return "accepted"


@pytest.fixture(autouse=True)
def plain_errors(no_type_hook):
    """Lets an argument of the wrong type through, and shows the frames of JAX, in which no error may begin."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def judge(chosen):
    """Refuse, in one list, all cases that end in anything but an error of our own."""
    ends = {case: outcome(case) for case in chosen}
    bad = {case: end for case, end in ends.items() if end != "refused" and not allowance(case)}
    assert not bad, "\n".join(f"{' | '.join(case)}: {end}" for case, end in bad.items())


def test_every_public_function_is_called_or_exempt():
    public = calls.public()
    assert len(calls.calls()) > 150
    assert calls.EXEMPT.keys() <= public.keys()
    assert not calls.EXEMPT.keys() & calls.calls().keys()
    unknown = [name for name, call in calls.calls().items() if not call.is_known()]
    assert not unknown, "no good value of an argument: add it to calls.CALLS, or the function to calls.EXEMPT"


def test_there_are_enough_cases_of_every_kind():
    kinds = [calls.calls()[name].good()[argument].kind for name, argument, _ in cases()]
    assert len(kinds) > 5000
    for kind in ("data", "key", "params", "objective", "optimizer", "estimator", "count"):
        assert kinds.count(kind) > 50, kind


def test_what_is_allowed_is_a_case():
    for name, argument, what in ALLOWED:
        assert any(case[1] == argument and name in ("", case[0]) and what in ("", case[2]) for case in cases()), (
            name,
            argument,
            what,
        )


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_some_wrong_arguments(data):
    judge([data.draw(st.sampled_from(quick_cases()))])


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(
    st.sampled_from([(name, argument) for name, argument, what in cases() if what == "10^30"]),
    st.one_of(st.integers(max_value=0), st.integers(min_value=2**31), st.floats(), st.booleans(), st.text(), st.none()),
)
def test_any_number_that_counts_nothing_is_refused(place, number):
    name, argument = place
    call = calls.calls()[name]
    if number == 0 and call.good()[argument].kind == "count from 0":
        return
    if number is None and call.allows(argument, None):
        return
    wrong.WRONG["any number"] = {"it": lambda: number}
    arguments = {**call.arguments, argument: call.good()[argument]._replace(kind="any number")}
    end = outcome((name, argument, "it"), call._replace(arguments=arguments))
    assert end == "refused" or ALLOWED.get((name, argument, "10^30")), end


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(min_value=0, max_value=5), max_size=4).map(tuple))
def test_any_shape_that_is_not_the_datas_is_refused(shape):
    if shape[-1:] == (3,) and 0 not in shape:
        return
    for name, argument in (("elbo", "x"), ("VAE.encode", "x"), ("train step", "batch"), ("models.check_data", "x")):
        call = calls.calls()[name]
        wrong.WRONG["any shape"] = {"it": lambda: np.zeros(shape, np.float32)}
        arguments = {**call.arguments, argument: call.good()[argument]._replace(kind="any shape")}
        assert outcome((name, argument, "it"), call._replace(arguments=arguments)) == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_wrong_arguments(part):
    names = [name for number, name in enumerate(calls.calls()) if number % 8 == part]
    judge([case for case in cases() if case[0] in names])


@pytest.mark.slow
@pytest.mark.parametrize("name", calls.calls())
def test_what_is_right_passes(name):
    call = calls.calls()[name]
    result = call.make()(**{argument: value.make() for argument, value in call.good().items()})
    if inspect.isgenerator(result):
        next(result)
