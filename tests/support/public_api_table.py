"""The one table of public functions, with a right call and the kinds of the arguments of each.

A new public function is one row: how it is called, its arguments with their kinds, and, if
it can be had, the same answer found in another way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
import support.argument_kinds as k
from support import reference_calls as calls
from support.bad_values import KEY
from support.conversions_table import CONVERSIONS
from support.factories_table import ACTIVATION, OF_CELLS, OF_METHODS, SIZES, factories
from support.losses_table import LOSSES
from support.models_table import MODELS
from support.optimizers import SGD
from support.reference_calls import (
    B,
    H,
    I,
    O,
    T,
    carry,
    cell,
    classes,
    cut,
    mask,
    net,
    net_params,
    params,
    reset,
    starts,
    targets,
    weight,
    xs,
)


class Row(NamedTuple):
    """A public function.

    Attributes:
      call: of the arguments by their names.
      arguments: the kind and a right value of each.
      wanted: the same answer, found in another way; None where only `call` knows it.
      is_traced: whether it is run inside jit.
    """

    call: Callable[..., Any]
    arguments: dict[str, tuple[k.Kind, Any]]
    wanted: Callable[..., Any] | None = None
    is_traced: bool = False


_marks = {"mask": (k.MARK, mask), "reset": (k.MARK, reset), "cut": (k.MARK, cut)}
_starts, _net_starts = {"starts": (k.CARRY, starts)}, {"starts": (k.CARRY, (starts,))}
_neutral = {"mask": (k.MARK, mask | True), "reset": (k.MARK, mask & False), "cut": (k.MARK, mask & False)}
_cell = {"cell": (k.CELL, cell), "params": (k.TREE, params)}
_run = _cell | {"carry": (k.CARRY, carry), "xs": (k.ARRAY, xs)}
_at_point = {
    name: (k.FLOATING_TREE, value) for name, value in {"params": params, "carry": carry, "xs": xs}.items()
}
_at_t = {name: (kind, mark[0]) for name, (kind, mark) in _neutral.items()}
_of_step = {name: (k.MARK, mark[0]) for name, mark in (("mask", mask), ("reset", reset))}
_of_step["dtype"] = (k.DTYPE, None)
_begun = jb.rtrl_init(cell, params, (B,))
_after_step = jb.rtrl_step(cell, params, _begun, xs[0])[0]
_key = {"key": (k.or_none(k.KEY), jax.random.key(7))}
_weight = {"weight": (k.MARK, weight)}
_net = {"net": (k.NET, net), "loss": (k.FUNCTION, jb.squared_error)}
_net_run = {"params": (k.TREE, net_params), "carry": (k.CARRY, (carry,)), "xs": (k.ARRAY, xs)}
_judged = _net | _net_run | {"targets": (k.ARRAY, targets)} | _weight
_gradient = {"gradient": (k.GRADIENT, jb.full(2)), "dtype": (k.DTYPE, None)}
_lags = {"lags": (k.or_none(k.integer(1, T)), 3)}
_optimizer = {"optimizer": (k.OPTIMIZER, SGD)}
_state = jb.init_train_state(KEY, net, SGD, (B,))._replace(carry=(carry,))
_mesh = jax.make_mesh((1,), ("data",))
_placed = {"mesh": (k.MESH, _mesh), "state": (k.STATE, _state)}
_batch = jb.Batch(xs, targets, mask, reset, cut, KEY, weight, (starts,))
_batches = jax.tree.map(lambda z: jnp.stack([z, z]), _batch)
_training = _net | _optimizer | _gradient


def _step(units, s_prev, u, v):
    return jb.Carry(jnp.tanh(u[0] + v[0]))


def _any_step(p, s_prev, x):
    return jb.Carry(jnp.tanh(x @ p + s_prev.h))


def _any_init(key):
    return jax.random.normal(key, (I, H))


def _cell_row(make, **arguments):
    return Row(lambda **given: calls.of_cell(make(**given)), arguments)


def _gradient_row(make, **arguments):
    return Row(lambda **given: calls.of_gradient(make(**given)), arguments)


_own = {
    "step": (k.FUNCTION, _step),
    "gates": (k.either(k.SIZE, k.NAMES), 1),
    "carry_type": (k.CARRY_TYPE, jb.Carry),
    "bias": (k.FLAG, False),
}
_parts = dict.fromkeys(("init", "linearise", "adjoint"), (k.or_none(k.FUNCTION), None))
_any = {
    "step": (k.FUNCTION, _any_step),
    "init": (k.FUNCTION, _any_init),
    "carry_type": (k.CARRY_TYPE, jb.Carry),
}
_any_parts = dict.fromkeys(
    ("initial_carry", "project", "linearise", "adjoint", "contract"), (k.or_none(k.FUNCTION), None)
)

ROWS = {
    "make_cell": _cell_row(jb.make_cell, **SIZES, **_own, **_parts),
    "step_cell": _cell_row(jb.step_cell, **SIZES, **_any, **_any_parts, gates=(k.NAMES, ("a",))),
    "learn_carry": _cell_row(jb.learn_carry, cell=(k.CELL, cell)),
    "layer": Row(
        lambda **given: calls.of_layer(jb.layer(**given)),
        {
            "cell": (k.CELL, cell),
            "backward": (k.or_none(k.CELL), cell),
            "residual": (k.FLAG, False),
            "merge": (k.thing(str, within=("concatenate", "sum", "mean").__contains__), "sum"),
            "dropout": (k.number(lambda p: 0 <= p <= 1), 0.25),
            "recurrent_dropout": (k.number(lambda p: 0 <= p <= 1), 0.25),
        },
    ),
    "network": Row(
        lambda **given: calls.of_net(jb.network(**given)),
        {
            "cells": (k.CELLS, [jb.elman(I, H), jb.gru(H, H)]),
            "readout": (k.READOUT, jb.readout(H, O)),
        },
    ),
    "readout": Row(
        lambda **given: calls.of_net(jb.network([jb.elman(I, given["hidden_size"])], jb.readout(**given))),
        {"hidden_size": (k.SIZE, H), "output_size": (k.SIZE, O), **ACTIVATION, "bias": (k.FLAG, False)},
    ),
    "last": Row(
        lambda **given: calls.of_net(jb.network([cell], jb.last(**given))),
        {"readout": (k.READOUT, jb.readout(H, O))},
    ),
    "orthogonal": Row(lambda gain: calls.of_initializer(jb.orthogonal(gain)), {"gain": (k.number(), 0.5)}),
    "identity": Row(lambda gain: calls.of_initializer(jb.identity(gain)), {"gain": (k.number(), 0.5)}),
    "chrono": Row(lambda longest: jb.chrono(longest)(KEY, H, "float64"), {"longest": (k.integer(3), 9)}),
    "newton": Row(
        lambda **given: calls.of_gradient(jb.parallel(jb.newton(**given))),
        {
            "iterations": (k.SIZE, 20),
            "tolerance": (k.or_none(k.number(lambda e: e > 0)), 1e-9),
            "diagonal": (k.FLAG, False),
            "damping": (k.number(lambda k: 0 < k <= 1), 0.5),
        },
    ),
    "mask_of_lengths": Row(
        jb.mask_of_lengths,
        {"lengths": (k.LENGTHS, jnp.array([T, 0, 2])), "steps": (k.SIZE, T)},
        lambda lengths, steps: np.arange(steps)[(...,) + (None,) * lengths.ndim] < np.asarray(lengths)[None],
    ),
    "by_steps": Row(jb.by_steps, {"z": (k.NUMBERS, xs[:3, 0, :])}, calls.by_steps),
    "unroll": Row(
        calls.unrolled,
        _run | _marks | _starts | {"reverse": (k.FLAG, True)} | _gradient,
        calls.plainly(calls.unrolled),
        True,
    ),
    "unroll_states": Row(
        calls.of_states,
        _run | _marks | _starts | {"reverse": (k.FLAG, True)} | _gradient,
        calls.plainly(calls.of_states),
        True,
    ),
    "scan": Row(
        calls.scanned,
        {"f": (k.FUNCTION, calls.body), "init": (k.FLOATING_TREE, carry), "xs": (k.ARRAY, xs)}
        | {"length": (k.or_none(k.integer(T, T)), T), "reverse": (k.FLAG, True)}
        | {"gradient": (k.GRADIENT, jb.full(2))}
        | _marks,
        calls.plainly(calls.scanned),
        True,
    ),
    "unroll_by_newton": Row(
        calls.by_newton,
        _run
        | {"newton": (k.NEWTON, jb.newton()), "reverse": (k.FLAG, True)}
        | {"mask": (k.MARK, mask), "reset": (k.MARK, reset)},
        calls.by_loop,
        True,
    ),
    "Network.apply": Row(
        calls.applied,
        _net_run | _marks | _net_starts | _key | _gradient,
        calls.plainly(calls.applied),
        True,
    ),
    "step": Row(
        calls.stepped,
        _cell | {"carry": (k.CARRY, carry), "x": (k.ARRAY, xs[0])} | _of_step,
        calls.of_one,
        True,
    ),
    "Network.step": Row(
        net.step,
        {"params": (k.TREE, net_params), "carry": (k.CARRY, (carry,)), "x": (k.ARRAY, xs[0])} | _of_step,
        calls.applied_to_one,
        True,
    ),
    "value_and_grad": Row(
        calls.graded, _judged | _marks | _net_starts | _key | _gradient, calls.graded_by_jax, True
    ),
    "value_and_grad of classes": Row(
        calls.graded,
        _judged
        | {
            "loss": (k.FUNCTION, jb.softmax_cross_entropy),
            "targets": (k.CLASSES, classes),
            "mask": (k.MARK_OF_SOME, mask),
        },
        lambda **given: calls.graded_by_jax(**given),
        True,
    ),
    "make_train_step": Row(
        calls.trained,
        _training | {"state": (k.TREE, _state), "batch": (k.BATCH, _batch)},
        calls.trained_by_jax,
        True,
    ),
    "make_train_steps": Row(
        calls.trained_often,
        _training | {"state": (k.TREE, _state), "batches": (k.BATCH, _batches)},
        calls.trained_often_by_jax,
        True,
    ),
    "fastest": Row(
        lambda **given: sorted(repr(one.gradient) for one in jb.fastest(**given).tried),
        {
            name: (k.only_wrong(kind), right)  # an answer takes seconds
            for name, (kind, right) in (
                _net
                | {"batch": (k.BATCH, _batch), "dtype": (k.DTYPE, None)}
                | {"memory": (k.or_none(k.number(lambda bytes: bytes > 0)), 1e9)}
            ).items()
        },
    ),
    "init_train_state": Row(
        lambda **given: jb.init_train_state(**given),
        {"key": (k.KEY, KEY), "net": (k.NET, net), **_optimizer, "batch_shape": (k.or_none(k.SHAPE), (B,))},
    ),
    "by_rows": Row(
        lambda **given: jb.by_rows(**given),
        {"mesh": (k.MESH, _mesh), "tree": (k.SHAPES, xs), "axis": (k.integer(0, 31), 1)},
    ),
    "data_parallel": Row(lambda **given: jb.data_parallel(**given), _placed),
    "fully_sharded": Row(lambda **given: jb.fully_sharded(**given), _placed),
    "credit": Row(lambda **given: jb.credit(**given).gradient, _judged | _neutral | _key | _lags, None, True),
    "gradient_flow": Row(
        lambda **given: jb.gradient_flow(**given)[:5],
        _judged
        | _neutral
        | _key
        | {"lags": (k.or_none(k.integer(2, T)), 3), "eps": (k.number(lambda e: 0 < e < 1), 0.1)},
        None,
        True,
    ),
    "omega": Row(jb.omega, _judged | _neutral | _key, None, True),
    "clipped_share": Row(
        jb.clipped_share,
        _judged | _neutral | _key | {"max_norm": (k.number(lambda c: c > 0), 0.5)},
        jb.clipped_share,  # the loss of the first step has nowhere to go back to: its NaN is not seen
        True,
    ),
    "lag_profile": Row(
        jb.lag_profile, _run | {"d_hs": (k.MARK, jnp.ones((T, B, H)))} | _neutral | _lags, None, True
    ),
    "lyapunov_spectrum": Row(
        jb.lyapunov_spectrum,
        _run
        | {"exponents": (k.or_none(k.integer(1, 2 * H)), 2), "transient": (k.integer(0, T - 1), 1)}
        | _key,
        None,
        True,
    ),
    "flossing": Row(
        jb.flossing,
        _run
        | {"exponents": (k.or_none(k.integer(1, 2 * H)), 2), "transient": (k.integer(0, T - 1), 1)}
        | _key,
        None,
        True,
    ),
    "rtrl_init": Row(jb.rtrl_init, _cell | {"batch_shape": (k.SHAPE, (B,))}, calls.no_influence, True),
    "rtrl_step": Row(
        jb.rtrl_step, _cell | _at_t | {"state": (k.TREE, _begun), "x": (k.ARRAY, xs[0])}, None, True
    ),
    "rtrl_gradient": Row(
        jb.rtrl_gradient,
        {"params": (k.COUNT, params), "state": (k.LEAVES, _after_step), "d_h": (k.ARRAY, carry.h)},
        calls.influence_of_h,
        True,
    ),
    "check_cell": Row(
        jb.check_cell,
        {"cell": (k.only_wrong(k.CELL), cell), "gradient": (k.only_wrong(k.GRADIENT), jb.full())},
    ),
    "check_gradient": Row(
        lambda **given: jb.check_gradient(**given).ok,
        {"cell": (k.either(k.CELL, k.NET), jb.elman(I, H)), "gradient": (k.GRADIENT, jb.full())}
        | {"steps": (k.SIZE, 2), "batch_shape": (k.SHAPE, (B,)), "reverse": (k.FLAG, False)}
        | {"key": (k.or_none(k.KEY), KEY)},
    ),
    "check_gradient at a point": Row(lambda **given: jb.check_gradient(cell, **given).ok, _at_point | _marks),
    "Cell.init": Row(cell.init, {"key": (k.KEY, KEY)}),
    "Cell.initial_carry": Row(
        cell.initial_carry, {"params": (k.DTYPE_OF, params), "batch_shape": (k.SHAPE, (B,))}, calls.zeros
    ),
    "Readout.init": Row(net.readout.init, {"key": (k.KEY, KEY)}),
    "Network.init": Row(net.init, {"key": (k.KEY, KEY)}),
    "Network.initial_carry": Row(
        net.initial_carry, {"params": (k.TREE, net_params), "batch_shape": (k.SHAPE, (B,))}
    ),
    "Network.next_carry": Row(net.next_carry, {"carry": (k.PARTS, (carry,))}),
}

for name, (factory, arguments) in factories("cells", OF_CELLS).items():
    ROWS[name] = _cell_row(factory, **arguments)
for name, (factory, arguments) in factories("gradients", OF_METHODS).items():
    ROWS[name] = _gradient_row(factory, **arguments)
by_scan = lambda **given: jb.fused(**given)._replace(engine=None)  # noqa: E731  without its warning
ROWS["fused"] = _gradient_row(by_scan, gradient=(k.GRADIENT, jb.full()))

ROWS |= {f"convert.{name}": Row(*row) for name, row in CONVERSIONS.items()}
ROWS |= {name: Row(*row) for name, row in (LOSSES | MODELS).items()}
