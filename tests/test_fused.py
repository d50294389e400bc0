"""The kernels of jb.fused() give the numbers of the scan, in an interpreter; else a warning says why not."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, H, I, make
from support import witnesses as w

import jax_bptt as jb
from jax_bptt.engine import phases
from jax_bptt.engine.kernels import both, limits, plan, step
from jax_bptt.engine.kernels.table import GROUP, TABLE, Blocks, choose
from jax_bptt.engine.run import Outputs
from jax_bptt.engine.sequence import Sequence
from jax_bptt.unrolling.unroll import begin

HAS_INTERPRETER = jax.__version_info__ >= (0, 11)
interpreted = pytest.mark.skipif(not HAS_INTERPRETER, reason="the interpreter needs JAX 0.11 or newer")


class Kernel(NamedTuple):
    """A cell, its sequence, and how its kernels are cut; the limit is a ratio of norms."""

    name: str
    marks: tuple[str, ...]
    blocks: Blocks
    limit: float
    rows: int = 3
    factor: bool = False
    starts: bool = False


KERNELS = {
    "bfloat16": Kernel("lstm-peephole", ("mask", "reset", "cut"), Blocks(8, 1, 1, 1), 1e-6),
    "float32": Kernel("gru", ("mask", "reset", "cut"), Blocks(8, 1, 1, 2), 1e-5, factor=True),
    "starts and two warpgroups": Kernel("own-pointwise", ("reset",), Blocks(8, 2, 1, 2), 1e-5, starts=True),
    "two tiles, no marks": Kernel("elman-relu", (), Blocks(8, 1, 1, 1), 1e-6, rows=9),
}


@interpreted
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_numbers_of_the_scan(name):
    kernel = KERNELS[name]
    case = make(kernel.name, 3, (kernel.rows,), "float32", kernel.marks)
    cell, sequence = case.row.cell, Sequence(case.xs, **case.marks)
    if kernel.blocks.parts == 1:
        cell = cell._replace(dtype=jnp.dtype(jnp.bfloat16))
    if kernel.factor:
        sequence = sequence._replace(factor=jnp.full(sequence.cut.shape, 1.25, jnp.float32))
    if kernel.starts:
        starts = jax.tree.map(lambda z: jnp.sin(jnp.arange(3 * z.size, dtype=z.dtype)), case.carry)
        starts = jax.tree.map(lambda z, s: z.reshape(3, *s.shape), starts, case.carry)
        sequence = sequence._replace(starts=starts, reset=sequence.reset.at[0, 1].set(False))
    run, d = begin(cell, case.params, case.carry, sequence), Outputs(case.d_carry, case.d_hs)
    engine = phases.engine_of(cell)
    u = engine.project(cell, run.params, run.sequence.xs)
    forward = jax.jit(lambda run, u: engine.forward_loop(engine, cell, run, u, True))
    backward = jax.jit(lambda run, a, d: engine.backward_loop(engine, cell, run, a, d, None))
    wanted = forward(run, u)
    planned = plan.plan_of(cell, run.carry, kernel.blocks)
    with_interpreter = functools.partial(functools.partial, interpret=_interpreter())
    forward_by_kernel = with_interpreter(both.forward_by_kernel, cell, planned, keep_slopes=True)
    backward_by_kernel = with_interpreter(both.backward_by_kernel, cell, planned)
    assert not w.wrong(jax.jit(forward_by_kernel)(run, u), wanted, kernel.limit)
    found = jax.jit(backward_by_kernel)(run, wanted.slopes, d)
    assert not w.wrong(found, backward(run, wanted.slopes, d), kernel.limit)


def _interpreter() -> Any:
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
    except ImportError:  # before JAX 0.12
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    return InterpretGPUParams()


def test_every_row_of_the_table_fits_into_the_shared_memory_of_a_block():
    for row in TABLE:
        blocks = choose(row.gates, row.units, row.parts)
        own, both = GROUP * blocks.groups, 2 * blocks.tile
        assert blocks.units >= row.units
        assert 2 * row.parts * row.gates * blocks.units * (own + both) <= 227 * 1024
        # 65,536 registers for the threads of a block, of which each has at most 255
        assert 128 * blocks.groups <= 512
        assert blocks.tile == (8 if blocks.blocks == 1 else 16)


def test_the_fewest_blocks_that_hold_a_cell_are_chosen():
    assert choose(4, 100, 1) == Blocks(8, 2, 1, 1)
    assert choose(4, 130, 1) == Blocks(16, 1, 4, 1)
    assert choose(1, 300, 1) == Blocks(16, 1, 8, 1)
    assert choose(4, 64, 2) == Blocks(8, 1, 1, 2)
    assert choose(4, 65, 2) is None


def _softened(z):
    return jax.scipy.special.erf(z)


OUTSIDE = np.linspace(0, 1, H, dtype=np.float32)[None]


REWRITTEN = {
    "a power with a whole number": lambda x: x**2.0 + x**3.0,
    "a power with a broken number": lambda x: jnp.abs(x) ** 1.5,
    "powers with numbers of the state": lambda x: x ** jax.lax.stop_gradient(jnp.round(x)),
    "no power": lambda x: x**0 + x**1 + x**0.0,
    "negative powers": lambda x: (x + 5) ** -2.0,
    "sinh": jnp.sinh,
    "expm1": jnp.expm1,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_function_that_is_written_again_has_the_same_numbers(name):
    """And so has its derivative: also at zero, near it and below it."""
    f = REWRITTEN[name]
    x = jnp.array([[-3, -1.5, -1e-4, 1e-4, 0.3, 2, 3]], "float32")
    x = x if name == "powers with numbers of the state" else jnp.append(x, jnp.zeros((1, 1), "float32"), 1)

    def both(x):
        y, back = jax.vjp(f, x)
        return y, back(jnp.ones_like(y))[0]

    made = step.rewritten(both, x)
    assert made.foreign() is None
    for found, wanted in zip(made(x), both(x), strict=True):
        np.testing.assert_allclose(found, wanted, 1e-5, 1e-7)


def _by_its_units(units, s, u, v):
    return jb.Carry(jnp.tanh(u[0] + v[0]) / s.h.shape[-1])


INSIDE = np.ones((1, 1), np.float32)


def _with_a_compiled_function(units, s, u, v):
    return jb.Carry(jax.jit(lambda z: z * jnp.asarray(INSIDE))(u[0] + v[0]))


def _with_an_array(units, s, u, v):
    return jb.Carry(jnp.tanh(u[0] + v[0]) * OUTSIDE)


REFUSED = {  # cell, dtype of its arrays, why
    "indrnn": (jb.indrnn(I, H), "float32", "no recurrent product"),
    "float64": (jb.elman(I, H), "float64", "made for float32 arrays"),
    "many units": (jb.lstm(1, 65), "float32", "4 gates of 65 units does not fit in float32"),
    "erf": (jb.elman(I, H, activation=_softened), "float32", "operation erf"),
    "array": (jb.make_cell(I, H, _with_an_array), "float32", "another number of units than 4"),
    "units": (jb.make_cell(I, H, _by_its_units), "float32", "follows from how many units there are"),
    "compiled": (jb.make_cell(I, H, _with_a_compiled_function), "float32", "an array that the step reads"),
    "heads": (jb.gru(I, H, heads=2), "float32", "this one has heads"),
    "step cell": (CELLS["own-layer-norm"].cell, "float32", "not pointwise"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_cannot_do_is_done_by_the_scan_and_said_once(name):
    cell, dtype, why = REFUSED[name]
    gradient = functools.partial(_gradient, cell, dtype)
    limits._say.cache_clear()
    with pytest.warns(UserWarning, match=why) as said:
        found = gradient(jb.fused())
    assert len({str(one.message) for one in said}) == len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gradient(jb.fused())
    wanted = gradient(jb.fused()._replace(engine=None))
    assert not w.wrong(found, wanted, 1e-12)
    assert not w.wrong(again, wanted, 1e-12)


def _gradient(cell, dtype, gradient):
    params = jax.tree.map(lambda z: z.astype(dtype), cell.init(jax.random.key(0)))
    xs = jnp.sin(jnp.arange(4 * 2 * cell.input_size, dtype=dtype)).reshape(4, 2, cell.input_size)
    carry = cell.initial_carry(params, (2,))
    return jax.jit(jax.grad(lambda p: jb.unroll(cell, p, carry, xs, gradient=gradient)[1].sum()))(params)


@pytest.mark.parametrize("version", [None, (0, 10, 2)])
def test_a_machine_that_cannot_is_said(version, monkeypatch):
    if version is not None:
        monkeypatch.setattr(jax, "__version_info__", version)
    elif not HAS_INTERPRETER:
        pytest.skip("this JAX makes no kernels")
    limits._say.cache_clear()
    why = "JAX 0.11" if version else "no NVIDIA GPU .* that is compiled for one has the kernels"
    with pytest.warns(UserWarning, match=rf"jb.fused\(\) runs the time loops of elman\(3, \d\) by .*{why}"):
        # another cell each time: a program that is compiled once is not traced again
        _gradient(jb.elman(I, H + bool(version)), "float32", jb.fused())


def test_another_gpu_runs_the_scan(monkeypatch):
    monkeypatch.setattr(limits, "_capabilities", lambda: {"8.0"})
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert "but one of 8.0" in limits.reason_of_machine()
    monkeypatch.setattr(limits, "_capabilities", lambda: {"9.0"})
    assert limits.reason_of_machine() is limits.reason_of_this_run() is None


@pytest.mark.filterwarnings("ignore:jb.fused")
def test_vmap_and_second_derivatives_are_those_of_the_scan():
    """Of data, which become rows; of parameters, one after the other; and of both, with marks."""
    cell = jb.gru(I, H)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.tree.map(lambda z: z.astype("float32"), jax.vmap(cell.init)(keys))
    xs = jnp.sin(jnp.arange(2 * 4 * 3 * I, dtype="float32")).reshape(2, 4, 3, I)
    reset = (jnp.arange(12) % 5 == 0).reshape(4, 3)
    one = jax.tree.map(lambda z: z[0], params)

    def everything(gradient):
        def found(p, xs):
            def loss(p, xs):
                return jnp.square(jb.unroll(cell, p, None, xs, gradient=gradient, reset=reset)[1]).sum()

            return jax.grad(loss)(p, xs)

        def of_second(xs):
            return jax.grad(lambda xs: jnp.square(found(one, xs).w_h).sum())(xs)

        of_data = jax.vmap(found, (None, 0))(one, xs)
        return of_data, jax.vmap(found)(params, xs), of_second(xs[0]), jax.vmap(of_second)(xs)

    fused, scan = jb.fused(), jb.fused()._replace(engine=None)
    assert not w.wrong(jax.jit(lambda: everything(fused))(), jax.jit(lambda: everything(scan))(), 1e-5)


def test_another_method_is_refused():
    for gradient in (jb.autodiff(), jb.rtrl(), jb.parallel(), "full"):
        with pytest.raises(ValueError, match=r"^fused: gradient: expected one of jb.full, jb.checkpointed"):
            jb.fused(gradient)


def test_fused_is_one_object_for_one_method():
    assert jb.fused() is jb.fused() is jb.fused(jb.full(chunk=256, recompute=True))
    assert jb.fused(jb.checkpointed()) != jb.fused(jb.truncated(3)) != jb.truncated(3)
