"""Right backward passes made wrong by one mistake each: the negative controls of every checker.

A mutation says to which cells it applies, which marks the sequence needs for the mistake to matter, and
the leaves that it must spoil: those and no others. `python tests/mutations.py` prints the table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from cases import CELLS, FORMS, KINDS
from support.witnesses import as_dict

import jax_bptt as jb
from jax_bptt.base.trees import zeros_like
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import phases
from jax_bptt.engine.run import Cotangents, Kept, Outputs


class Mutation(NamedTuple):
    backward: Callable[..., Any]
    spoiled: Callable[[str], set[str]]  # of a cell's name; empty where the mistake cannot be made
    marks: tuple[str, ...] = ()


@functools.cache
def leaves(name: str) -> set[str]:
    """Every leaf of the gradient of this cell, but the initial carry's parameters."""
    cell = CELLS[name].cell
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0)))
    carry = jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), ()))
    named = {"params": params, "carry": carry, "xs": 0}
    paths = (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(named))
    paths = (path.removeprefix("['").replace("']", "", 1) for path in paths)
    return {path for path in paths if path not in _STARTS}


_STARTS = {"params.h_0", "params.c_0", "params['start']"}


def _where(*fields: str) -> Callable[[str], set[str]]:
    """These parameters, where the cell has them."""
    wanted = {f"params.{f}" for f in fields} | {f"params['{f}']" for f in fields}
    return lambda name: wanted & leaves(name)


def _starts(name: str) -> set[str]:
    params = jax.eval_shape(lambda: CELLS[name].cell.init(jax.random.key(0)))
    paths = (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return {f"params{path}" for path in paths} & _STARTS


def _gated(name: str) -> set[str]:
    return _where("w_h")(name) if len(CELLS[name].cell.gate_names) > 1 else set()


def _recurrent_matrix(name: str) -> set[str]:
    """w_h where it is contracted with h_{t−1}."""
    return set() if name == "indrnn" else _where("w_h")(name)


def _heads(name: str) -> set[str]:
    """w_h where it is blocks."""
    params = jax.eval_shape(lambda: CELLS[name].cell.init(jax.random.key(0)))
    return _where("w_h")(name) if getattr(as_dict(params).get("w_h"), "ndim", 0) == 3 else set()


def _chain(name: str) -> set[str]:
    """All that λ of earlier steps reaches, if it goes through a matrix w_h."""
    return leaves(name) if _recurrent_matrix(name) else set()


def _same(z: Any) -> Any:
    return z


def _backward(
    of_slopes: Any = _same,
    of_w_h: Any = _same,
    of_w_p: Any = _same,
    of_d_carry: Any = _same,
    of_d_hs: Any = _same,
    of_d_own: Any = _same,
    of_marks: Any = _same,
    of_s_prev: Any = _same,
    of_xs: Any = _same,
    of_gradient: Any = _same,
    of_begun: Any = _same,
) -> Callable[[AnyCell, Kept, Outputs], Cotangents]:
    """The backward pass of full() with one of its parts replaced.

    of_s_prev and of_xs reach the gradient of w_h and w_x only; of_marks takes and returns the sequence;
    of_d_hs reaches the sweep only, and of_d_own the contraction; of_begun takes and returns the sequence from
    which the states before the steps are found.
    """

    def backward(cell: AnyCell, kept: Kept, d: Outputs) -> Cotangents:
        run, states = kept.run, kept.states
        s_prev = phases.previous(run._replace(sequence=of_begun(run.sequence)), states)
        slopes = of_slopes(phases.linearise(cell, run, s_prev, states))
        swept_run = run._replace(sequence=of_marks(run.sequence))
        given = {"w_h": of_w_h, "w_p": of_w_p}
        wrong = {name: f(as_dict(run.params)[name]) for name, f in given.items() if f is not _same}
        if wrong:
            swept_run = swept_run._replace(params=_replaced(run.params, **wrong))
        swept = phases.sweep(cell, swept_run, slopes, Outputs(of_d_carry(d.carry), of_d_hs(d.ys)))
        d_start = swept.start if swept.start is not None else zeros_like(run.start)
        d_own = of_d_own(phases.derivatives_by_own(cell, run, d))
        d_params, d_xs = phases.contract(cell, run, s_prev, slopes, swept.lam, d_own)
        if of_s_prev is not _same or of_xs is not _same:
            shifted = run._replace(sequence=run.sequence._replace(xs=of_xs(run.sequence.xs)))
            wrong = as_dict(phases.contract(cell, shifted, of_s_prev(s_prev), slopes, swept.lam)[0])
            name = "w_h" if of_xs is _same else "w_x"
            d_params = _replaced(d_params, **{name: wrong[name]})
        return of_gradient(Cotangents(d_params, swept.carry, d_start, d_xs, swept.starts))

    return backward


def _replaced(params: Any, **fields: Any) -> Any:
    return {**params, **fields} if isinstance(params, dict) else params._replace(**fields)


def _of_params(name: str, f: Any) -> Any:
    def mutated(gradient: Cotangents) -> Cotangents:
        d_params = _replaced(gradient.params, **{name: f(as_dict(gradient.params))})
        return gradient._replace(params=d_params)

    return mutated


def _tree(f: Any) -> Any:
    return lambda tree: jax.tree.map(f, tree)


def _next(z: Any) -> Any:
    """z_{t+1} where z_t belongs."""
    return jnp.concatenate([z[1:], z[:1]])


def _transposed_blocks(w_h: Any) -> Any:
    hidden = w_h.shape[0]
    return w_h.reshape(hidden, -1, hidden).transpose(2, 1, 0).reshape(w_h.shape)


def _to_xs(f: Any) -> Any:
    return lambda g: g._replace(xs=f(g.xs))


MUTATIONS = {
    "dW_h with h_t for h_{t-1}": Mutation(_backward(of_s_prev=_tree(_next)), _recurrent_matrix),
    "dW_h without h_0": Mutation(_backward(of_s_prev=_tree(lambda s: s.at[0].set(0))), _recurrent_matrix),
    "dW_x with x_{t+1}": Mutation(_backward(of_xs=_next), _where("w_x")),
    "W_h transposed": Mutation(_backward(of_w_h=_transposed_blocks), _chain),
    "derivative of the step missing": Mutation(_backward(of_slopes=_tree(jnp.ones_like)), leaves),
    "Jacobians in forward order": Mutation(_backward(of_slopes=_tree(lambda a: a[::-1])), leaves),
    "final-carry cotangent forgotten": Mutation(_backward(of_d_carry=zeros_like), leaves),
    "G_t one step off": Mutation(_backward(of_d_hs=_next), leaves),
    "no way back through W_h": Mutation(_backward(of_w_h=jnp.zeros_like), _chain),
    "mask ignored in the backward pass": Mutation(
        _backward(of_marks=lambda m: m._replace(mask=None)), leaves, ("mask",)
    ),
    "reset ignored in the backward pass": Mutation(
        _backward(of_marks=lambda m: m._replace(reset=jnp.zeros_like(m.reset))),
        lambda name: leaves(name) | _starts(name),
        ("reset",),
    ),
    "cut ignored in the backward pass": Mutation(
        _backward(of_marks=lambda m: m._replace(cut=None)), leaves, ("cut",)
    ),
    "marks one step off": Mutation(
        _backward(of_marks=lambda m: m._replace(mask=_next(m.mask))), leaves, ("mask",)
    ),
    "initial carry's gradient forgotten": Mutation(
        _backward(of_gradient=lambda g: g._replace(start=zeros_like(g.start))), _starts, ("reset",)
    ),
    "gate blocks swapped": Mutation(
        _backward(of_gradient=_of_params("w_h", lambda d: jnp.roll(d["w_h"], d["w_h"].shape[0], 1))), _gated
    ),
    "bias of one step only": Mutation(
        _backward(of_gradient=_of_params("b", lambda d: d["b"] / 2)), _where("b")
    ),
    "b_h dropped": Mutation(_backward(of_gradient=_of_params("b_h", lambda d: 0 * d["b_h"])), _where("b_h")),
    "b_h taken from u": Mutation(_backward(of_gradient=_of_params("b_h", lambda d: d["b"])), _where("b_h")),
    "cell state's cotangent forgotten": Mutation(
        _backward(of_d_carry=lambda d: d._replace(c=jnp.zeros_like(d.c))),
        lambda name: leaves(name) if "carry.c" in leaves(name) else set(),
    ),
    "leak halved": Mutation(_backward(of_gradient=_of_params("rho", lambda d: d["rho"] / 2)), _where("rho")),
    "peepholes of i and f swapped": Mutation(
        _backward(of_gradient=_of_params("p_i", lambda d: d["p_f"])), _where("p_i")
    ),
    "dx one step off": Mutation(_backward(of_gradient=_to_xs(_next)), lambda name: {"xs"}),
    "NaN in one entry": Mutation(
        _backward(of_gradient=_of_params("w_x", lambda d: d["w_x"].at[0, 0].set(jnp.nan))), _where("w_x")
    ),
    "off by one in a million": Mutation(
        _backward(of_gradient=_of_params("w_x", lambda d: d["w_x"] * (1 + 1e-6))), _where("w_x")
    ),
}

OF_FORMS = {  # those that can be made in a form of a cell alone
    "heads crossed on the way back": Mutation(
        _backward(of_w_h=lambda w_h: jnp.roll(w_h, 1, 0)),
        lambda name: _chain(name) if _heads(name) else set(),
    ),
    "dW_h of another head": Mutation(
        _backward(of_gradient=_of_params("w_h", lambda d: d["w_h"][::-1])), _heads
    ),
    "no way back through W_p": Mutation(
        _backward(of_w_p=jnp.zeros_like), lambda name: leaves(name) if _where("w_p")(name) else set()
    ),
    "dW_p with m_{t+1}": Mutation(_backward(of_slopes=lambda a: a._replace(m=_next(a.m))), _where("w_p")),
}

PAIRS = [(m, name) for name in KINDS for m, mutation in MUTATIONS.items() if mutation.spoiled(name)]
PAIRS += [(m, name) for name in FORMS for m, mutation in OF_FORMS.items() if mutation.spoiled(name)]
MUTATIONS |= OF_FORMS

# of the backward pass of `jb.scan`, with the arguments whose gradient they spoil
OF_SCANS = {
    "final-carry cotangent forgotten": (_backward(of_d_carry=zeros_like), "weights, init, xs", ()),
    "derivative of y left out of the sweep": (_backward(of_d_hs=zeros_like), "weights, init, xs", ()),
    "derivative of y left out of the contraction": (_backward(of_d_own=zeros_like), "weights, xs", ()),
    "derivative of y one step off": (_backward(of_d_own=_tree(_next)), "weights, xs", ()),
    "Jacobians in forward order": (_backward(of_slopes=_tree(lambda a: a[::-1])), "weights, init, xs", ()),
    "dx one step off": (_backward(of_gradient=_to_xs(_tree(_next))), "xs", ()),
    "initial carry's gradient forgotten": (
        _backward(of_gradient=lambda g: g._replace(start=zeros_like(g.start))),
        "init",
        ("reset",),
    ),
    **{
        f"{mark} ignored in the backward pass": (
            _backward(of_marks=lambda m, mark=mark, no=no: m._replace(**{mark: no(getattr(m, mark))})),
            "weights, init, xs",
            (mark,),
        )
        for mark, no in (("mask", jnp.ones_like), ("reset", jnp.zeros_like), ("cut", jnp.zeros_like))
    },
}

# of the backward pass of `jb.unroll_states` with starts, with the arguments whose gradient they spoil
OF_STATES = {
    "c of the states forgotten": (
        _backward(of_d_hs=lambda d: d._replace(c=jnp.zeros_like(d.c))),
        "params, carry, xs, starts",
    ),
    "states one step off": (_backward(of_d_hs=_tree(_next)), "params, carry, xs, starts"),
    "final-carry cotangent forgotten": (_backward(of_d_carry=zeros_like), "params, xs, starts"),
    "starts ignored where the step is linearised": (
        _backward(of_begun=lambda m: m._replace(starts=zeros_like(m.starts))),
        "params, xs, starts",
    ),
    "starts taken from the next step": (
        _backward(of_begun=lambda m: m._replace(starts=_tree(_next)(m.starts))),
        "params, xs, starts",
    ),
    "no gradient by starts": (
        _backward(of_gradient=lambda g: g._replace(starts=zeros_like(g.starts))),
        "starts",
    ),
    "gradient by starts one step off": (
        _backward(of_gradient=lambda g: g._replace(starts=_tree(_next)(g.starts))),
        "starts",
    ),
    "h and c of starts swapped": (
        _backward(of_gradient=lambda g: g._replace(starts=type(g.starts)(*reversed(g.starts)))),
        "starts",
    ),
    "reset ignored in the backward pass": (
        _backward(of_marks=lambda m: m._replace(reset=jnp.zeros_like(m.reset))),
        "params, carry, xs, starts",
    ),
}


STEPS, ROWS = 5, 3  # where every mistake matters
_PATTERN = jnp.arange(STEPS * ROWS).reshape(STEPS, ROWS)
PATTERNS = {"mask": _PATTERN % 4 != 1, "reset": _PATTERN % 4 == 3, "cut": _PATTERN % 4 == 2}


def method(mutation: Mutation) -> jb.GradientMethod:
    """full() with the mutated backward pass."""
    return jb.full()._replace(name="mutated", backward=mutation.backward)


def report(mutation: Mutation, name: str) -> jb.Report:
    """What the public checker says of it."""
    given = {n: PATTERNS[n] for n in mutation.marks}
    return jb.check_gradient(CELLS[name].cell, gradient=method(mutation), batch_shape=(ROWS,), **given)


if __name__ == "__main__":
    for mistake, name in PAIRS:
        found = report(MUTATIONS[mistake], name)
        named = set(found.wrong) == MUTATIONS[mistake].spoiled(name)
        verdict = ("caught, " if not found.ok else "MISSED, ") + ("named" if named else "MISNAMED")
        print(f"{mistake:<36} {name:<20} {verdict}: {', '.join(found.wrong)}", flush=True)
