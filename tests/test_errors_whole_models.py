"""What is wrong with an encoder, a head or a tied readout is said in plain words, before anything runs."""

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from support.whole_models import NET, PATTERN, WORDS, XS, B, E, T, V

import jax_bptt as jb


def _apply(net, xs, **given):
    return net.apply(net.init(jax.random.key(0)), given.pop("carry", None), xs, **given)


def _summed(params, x):
    return jnp.full(E, x.sum())


KEY = jax.random.key(0)
COUNTED = {"a": jnp.ones(1), "n": jnp.arange(3)}
INTEGERS = jb.network([jb.elman(2, E)], jb.head(lambda p, h: h, lambda key: COUNTED))
DENSE = jb.network([jb.dense(E, E)], jb.readout(E, 2))
MESSAGES = {
    "an embedding among the cells": (
        lambda: jb.network([jb.embedding(V, E), jb.elman(E, E)], jb.readout(E, V)),
        r"cells: expected a list of cells, got embedding\(7, 4\); an encoder and a readout are arguments of",
    ),
    "an init without a key": (
        lambda: jb.network([jb.elman(E, E)], jb.head(lambda p, h: h, lambda: {})),
        "TypeError: .* raised by init; init of the head is given one key",
    ),
    "integers to train": (
        lambda: _apply(INTEGERS, XS["seen"]),
        r"init: expected a pytree of floating arrays, for the readout, got {a: .*, n: int64\[3\]}",
    ),
    "credit without a state": (
        lambda: jb.credit(DENSE, jb.squared_error, DENSE.init(KEY), None, jnp.ones((2, E)), None),
        "net: expected a network with a layer that has a state",
    ),
    "no encoder": (
        lambda: jb.network([jb.elman(E, E)], jb.readout(E, V), 3),
        "encoder: expected an encoder, got 3",
    ),
    "size of an embedding": (
        lambda: jb.network([jb.elman(E, E)], jb.readout(E, V), jb.embedding(V, 9)),
        r"encoder: expected an embedding of size 4, got embedding\(7, 9\)",
    ),
    "tied without embedding": (
        lambda: jb.network([jb.elman(E, E)], jb.tied_readout(V)),
        "encoder: expected an embedding, whose weights a tied readout reads, got None",
    ),
    "tied to other classes": (
        lambda: jb.network([jb.elman(E, E)], jb.tied_readout(9), jb.embedding(V, E)),
        r"encoder: expected an embedding of 9 classes, as the readout, got embedding\(7, 4\)",
    ),
    "tied to other features": (
        lambda: jb.network([jb.elman(E, 6)], jb.tied_readout(V), jb.embedding(V, E)),
        r"cells: expected hidden sizes \[4\], as the next layers read, got \[6\]",
    ),
    "one-hot rows": (
        lambda: _apply(WORDS, jnp.zeros((T, B, V))),
        r"xs: expected integers \[T, \*batch\] from 0 to 6",
    ),
    "ids and a mask": (
        lambda: _apply(WORDS, jnp.zeros((T, B, 2), int), mask=jnp.ones((T, B), bool)),
        r"xs: expected integers \[T, B\] from 0 to 6, got int64\[6,3,2\]",
    ),
    "no steps": (lambda: _apply(WORDS, jnp.zeros((0, B), int)), "xs: expected T >= 1 steps"),
    "rows that differ": (
        lambda: _apply(NET, XS | {"light": XS["light"][:2]}),
        r"xs: expected arrays whose first axes are all \[T\]",
    ),
    "batch first": (
        lambda: _apply(NET, XS, carry=NET.initial_carry(NET.init(jax.random.key(0)), (T,))),
        r"carry\[0\].h: expected shape \[3,4\], got float64\[6,4\]; xs is \[T, \*batch, ...\], time first",
    ),
    "an error in apply": (
        lambda: _apply(NET, {"seen": XS["seen"]}),
        "KeyError: 'light', raised by apply at whole_models.py",
    ),
    "another size": (
        lambda: _apply(jb.network([jb.elman(9, E)], jb.readout(E, 2), NET.encoder), XS),
        r"encoder: expected float64\[9\], as the first layer reads, got float64\[4\]",
    ),
    "any number of batch axes": (
        lambda: _apply(
            jb.network([jb.elman(E, E)], jb.readout(E, 2), jb.encoder(_summed, lambda key: {})),
            jnp.ones((T, B, 2)),
        ),
        "xs: expected inputs with one possible number of batch axes, got 0 or 1 of them; pass the carry",
    ),
    "a head of words": (
        lambda: jb.network([jb.elman(E, E)], jb.head(lambda p, h: jnp.argmax(h), lambda key: {})),
        r"head: expected floating arrays from apply\(params, h\), got int64\[\]",
    ),
    "a head of other features": (
        lambda: jb.network([jb.elman(E, 5)], NET.readout),
        "AssertionError, raised by apply at whole_models.py",
    ),
    "backward of a dense layer": (
        lambda: jb.layer(jb.dense(2, 2), backward=jb.elman(2, 2)),
        r"cell: expected a Cell, got dense\(2, 2\)",
    ),
    "dense after both ways, of the last step": (
        lambda: jb.network(
            [jb.layer(jb.elman(E, 2), backward=jb.elman(E, 2)), jb.dense(E, E)], jb.last(jb.readout(E, 2))
        ),
        "cells: expected no dense layer after the last recurrent one, with jb.last",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name):
    run, message = MESSAGES[name]
    with pytest.raises(ValueError, match=message):
        run()


def test_a_carry_or_a_mark_tells_the_number_of_batch_axes():
    net = jb.network([jb.elman(E, E)], jb.readout(E, 2), jb.encoder(_summed, lambda key: {}))
    xs = jnp.asarray(PATTERN[..., None] + 0.5)
    by_mark = _apply(net, xs, mask=jnp.ones((T, B), bool))[1]
    carry = net.initial_carry(net.init(jax.random.key(0)), (B,))
    assert by_mark.shape == (T, B, 2)
    assert not w.wrong([_apply(net, xs, carry=carry)[1]], [by_mark], 1e-12)
