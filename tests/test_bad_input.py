"""With a spoiled argument a public function raises an error that names it, or still answers rightly.

One argument of a right call of each public function is spoiled at a time (`public`, `kinds`). What is
refused is refused before anything is compiled; what is taken is compared with the same answer found in
another way, and where there is no other way, a NaN that went in must come out.
"""

import collections
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.argument_kinds import PARTS, STATE
from support.bad_values import ODD
from support.public_api_table import ROWS

import jax_bptt as jb

CASES = 24  # of each function that has arguments
SPOILED = {name: row for name, row in ROWS.items() if row.arguments}
OF_HYPOTHESIS = settings(
    max_examples=CASES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
PROGRAMS = {}  # by the function and its arguments that are no data


def _right(row):
    return {name: value for name, (_, value) in row.arguments.items()}


def _data(row, arguments):
    return {name: arguments[name] for name, (kind, _) in row.arguments.items() if kind.is_data}


def _run(row, call, arguments):
    """The answer; data of the right shapes go through a program that is there already."""
    if not row.is_traced:
        return call(**arguments)
    data = _data(row, arguments)
    if _types(data) != _types(_data(row, _right(row))):
        jax.eval_shape(lambda: call(**arguments))  # refuses
    statics = {name: value for name, value in arguments.items() if name not in data}
    key = call, tuple((name, id(value)) for name, value in statics.items())
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(lambda data: call(**statics, **data)), statics
    return PROGRAMS[key][0](data)


def _types(data):
    """What jit would trace; None where something is no array."""
    if not all(isinstance(z, (jax.Array, np.ndarray)) for z in jax.tree.leaves(data)):
        return None
    try:
        return jax.tree.map(jax.typeof, data)
    except TypeError:  # an array of objects
        return None


def _outcome(row, argument, spoiled):
    """Whether it was refused or answered, and rightly."""
    kind, right = row.arguments[argument]
    arguments, may_be_taken = _right(row), kind.takes(right, spoiled)
    names = {argument, *getattr(right, "_fields", ())}
    if may_be_taken:
        names |= arguments.keys()  # of two that disagree, either may be blamed
    try:
        found = _run(row, row.call, arguments | {argument: spoiled})
    except (ValueError, TypeError, OverflowError) as error:  # the last from jax.jit, of a huge int
        if not any(re.search(rf"\b{name}\b", str(error)) for name in names):
            raise AssertionError(f"{argument} is not named: {error}") from error
        return "refused"
    assert may_be_taken, "taken without a word"
    another_way = row.wanted if row.wanted and kind.is_data else row.call
    _same(found, _run(row, another_way, arguments | {argument: kind.plain(spoiled)}))
    if row.is_traced and kind.is_data and row.wanted is None:
        assert _has_nan(found) or not _has_nan(spoiled), "NaN went in and did not come out"
    return "answered"


def _has_nan(tree):
    floats = (z for z in jax.tree.leaves(tree) if jnp.issubdtype(getattr(z, "dtype", bool), jnp.floating))
    return any(bool(jnp.isnan(z).any()) for z in floats)


def _same(found, wanted):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if a is b:
            continue
        if not hasattr(b, "dtype"):
            assert a == b
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        eps = float(jnp.finfo(b.dtype).eps) if jnp.issubdtype(b.dtype, jnp.floating) else 0.0
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e5 * eps, atol=1e4 * eps)


@pytest.mark.parametrize("name", SPOILED)
def test_an_error_names_what_is_spoiled_or_the_answer_is_right(name):
    row, seen = SPOILED[name], collections.Counter()

    @OF_HYPOTHESIS
    @given(st.data())
    def one_case(data):
        argument = data.draw(st.sampled_from(sorted(row.arguments)), "argument")
        kind, right = row.arguments[argument]
        seen[_outcome(row, argument, data.draw(kind.spoilt(right), "spoiled"))] += 1

    one_case()
    print(f"{name}: {seen['refused']} refused, {seen['answered']} answered")
    assert seen.total() >= CASES


def _arrays_at(tree):
    """The places of arrays in a tree that are no keys."""
    dtypes = [getattr(z, "dtype", None) for z in jax.tree.leaves(tree)]
    return [i for i, dtype in enumerate(dtypes) if isinstance(dtype, np.dtype)]


def _arrays(row):
    """The arguments with arrays that are read, not their shapes alone."""
    given = {name: right for name, (kind, right) in row.arguments.items() if kind not in (STATE, PARTS)}
    return {name: right for name, right in given.items() if _arrays_at(right)}


@pytest.mark.parametrize("name", [name for name, row in SPOILED.items() if _arrays(row)])
def test_an_array_that_jax_cannot_take_is_refused_with_its_cure(name):
    """The last array of each argument, of one kind after another."""
    row, kinds = SPOILED[name], itertools.cycle(ODD.items())
    for argument, right in _arrays(row).items():
        leaves, structure = jax.tree.flatten(right)
        at = _arrays_at(right)[-1]
        z = np.asarray(leaves[at])
        _, (make, cure) = next(kind for kind in kinds if (kind[0], z.dtype) != ("big-endian", bool))
        leaves[at] = make(z)
        names = "|".join({argument, *getattr(right, "_fields", ())})
        with pytest.raises(ValueError, match=rf"\b({names})\b.*expected an array that JAX takes.*{cure}"):
            row.call(**_right(row) | {argument: jax.tree.unflatten(structure, leaves)})


def test_a_matrix_is_an_array():
    ys, targets, mask = (
        jnp.ones((3, 2, 4)),
        jnp.zeros((3, 2, 4)),
        np.array([[True, False]] * 3).view(np.matrix),
    )
    assert jb.squared_error(ys, targets, mask) == 12


def test_there_are_enough_cases():
    assert CASES * len(SPOILED) >= 2000


@pytest.mark.parametrize("name", [n for n in ROWS if n != "check_cell"])  # whose doctest takes seconds
def test_the_right_call_is_answered(name):
    row = ROWS[name]
    _same(_run(row, row.call, _right(row)), _run(row, row.wanted or row.call, _right(row)))


def test_every_public_function_has_a_row():
    functions = {n for n in jb.__all__ if callable(getattr(jb, n)) and not hasattr(getattr(jb, n), "_fields")}
    conversions = {f"convert.{name}" for name in vars(jb.convert) if name.startswith(("to_", "from_"))}
    of_frameworks = {"adopt"}  # takes their cells: tests/test_adopt_*.py
    assert (functions | conversions) - of_frameworks <= ROWS.keys()
