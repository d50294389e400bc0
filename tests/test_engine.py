"""Another engine is another value: loops that are not jax.lax.scan, inherited by every gradient method."""

import cases
import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w

import jax_bptt as jb
from jax_bptt.base.trees import add_to_h, plus, select, zeros_like
from jax_bptt.engine.engine import Forward, Swept
from jax_bptt.engine.loops import begin_of_step, step_back_of
from jax_bptt.engine.pointwise import POINTWISE

CALLS = []


def _at(tree, t):
    return jax.tree.map(lambda z: z[t], tree)


def _stacked(trees):
    return jax.tree.map(lambda *z: jnp.stack(z), *trees)


def _forward_in_python(engine, cell, run, u, keep_slopes):
    """A loop of Python over the steps: what stands in a test for a kernel."""
    CALLS.append("forward")
    s, states, slopes = run.carry, [], []
    for t in range(len(run.sequence.xs)):
        marks, u_t = _at(run.sequence.marks, t), _at(u, t)
        s_prev = begin_of_step(marks, run.start, s)
        v = engine.recur(cell, run.params, s_prev)
        s = select(marks.mask, engine.step(cell, run.params, s_prev, u_t, v).state, s_prev)
        states.append(s)
        slopes.append(engine.linearise(cell, run.params, s_prev, u_t, v, s) if keep_slopes else None)
    return Forward(s, _stacked(states), (), _stacked(slopes))


def _backward_in_python(engine, cell, run, slopes, d, transform):
    CALLS.append("backward")
    step_back = step_back_of(engine, cell, run.params, transform)
    d_s, d_start, lams = d.carry, None if run.sequence.reset is None else zeros_like(d.carry), []
    for t in reversed(range(len(d.ys))):
        found = step_back(add_to_h(d_s, d.ys[t]), (), _at(slopes, t), _at(run.sequence.marks, t))
        d_s, d_start = found.carry, plus(d_start, found.start)
        lams.insert(0, found.lam)
    return Swept(d_s, d_start, None, _stacked(lams))


IN_PYTHON = POINTWISE._replace(forward_loop=_forward_in_python, backward_loop=_backward_in_python)
ENGINES = {"in Python": lambda cell: IN_PYTHON}  # cell -> the engine, as of `GradientMethod`


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "method",
    [
        jb.full(2),
        jb.full(recompute=False),
        jb.checkpointed(2, 2),
        jb.truncated(3),
        jb.artbp(0.2),
        jb.clipped(0.5),
    ],
    ids=repr,
)
def test_a_gradient_method_runs_on_other_loops(method, engine):
    """unroll layer by layer, and value_and_grad by chunks, with all marks."""
    case = cases.make("lstm", 5, (2,), marks=("mask", "reset", "cut"))
    net = jb.network([case.row.cell], jb.readout(cases.H, 2))
    params = jb.NetworkParams((case.params,), net.readout.init(jax.random.key(0)))
    targets = jnp.ones((5, 2, 2))

    def both(gradient):
        of_cell = jax.grad(lambda *primals: w.error(case, w.unrolled(case, gradient)(*primals)), (0, 1, 2))
        data = params, (case.carry,), case.xs, targets
        return of_cell(*case.primals()), jb.value_and_grad(net, jb.squared_error)(
            *data, gradient=gradient, **case.marks
        )

    CALLS.clear()
    other = method._replace(name=f"{method} {engine}", engine=ENGINES[engine])
    found = jax.jit(both, static_argnums=0)(other)
    assert engine != "in Python" or {"forward", "backward"} <= set(CALLS)
    assert not w.wrong(found, jax.jit(both, static_argnums=0)(method), 1e-12)


@pytest.mark.parametrize("engine", [lambda cell: 3, lambda cell: IN_PYTHON])
def test_an_engine_that_cannot_run_the_cell_is_refused(engine):
    cell = jb.gru(3, 4, reset_after=False)
    method = jb.full()._replace(name="wrong", engine=engine)
    with pytest.raises(ValueError, match=r"gradient\.engine: expected an Engine for gru"):
        jb.unroll(cell, cell.init(jax.random.key(0)), None, jnp.ones((2, 3)), gradient=method)
