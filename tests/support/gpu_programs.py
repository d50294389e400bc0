"""The programs that tests/test_gpu.py compiles for H100s: loss and gradient of a layer with a readout."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from experiments.support.compiled_for_gpu import Program, compile_for_gpu, h100s

T, B, I, H, O = 256, 64, 128, 256, 64  # noqa: E741  B rows on each GPU


class Two(NamedTuple):
    h: jax.Array
    c: jax.Array


def own_step(units, s, u, v):
    """The step of no cell of the library; its derivatives are by jax.vjp."""
    c = jax.nn.sigmoid(u[0] + v[0]) * s.c + jnp.sin(u[1] + v[1])
    return Two(jnp.tanh(c), c)


def by_library(cell: Any, gradient: Any) -> Callable[..., Any]:
    """Loss and gradient by value_and_grad."""

    def run(params, xs, targets):
        return jb.value_and_grad(_network(cell), jb.squared_error)(
            params, None, xs, targets, gradient=gradient
        )

    return run


def by_scan(cell: Any) -> Callable[..., Any]:
    """Loss and gradient of an Elman network by jax.grad of the scan that one writes."""

    def error(params, xs, targets):
        (p,), readout = params

        def step(h, x):
            h = jnp.tanh(x @ p.w_x + h @ p.w_h + p.b)
            return h, h

        _, hs = jax.lax.scan(step, jnp.zeros((xs.shape[1], H)), xs)
        return jnp.square(hs @ readout.w_y + readout.b_y - targets).sum()

    return jax.value_and_grad(error)


CELLS = {
    "elman": jb.elman(I, H),
    "lstm": jb.lstm(I, H),
    "gru": jb.gru(I, H),
    "own": jb.make_cell(I, H, own_step, gates=2, carry_type=Two),
}
METHODS = {  # another gradient method is one more line here, and lines in BUDGETS of tests/test_gpu.py
    "full": lambda cell: by_library(cell, jb.full(recompute=True)),  # full() on a machine with a GPU
    "fused": lambda cell: by_library(cell, jb.fused()),
    "scan": by_scan,
}


def program(name: str, gpus: int, kind: AxisType = AxisType.Explicit) -> Program:
    """The program of "CELL METHOD", with its rows split over GPUs."""
    cell, method = name.split()
    with as_in_a_script():
        params = jax.eval_shape(_network(CELLS[cell]).init, jax.random.key(0))
        data = [jax.ShapeDtypeStruct((T, B * gpus, n), jnp.float32) for n in (I, O)]
        mesh = h100s(gpus, kind)
        lie = NamedSharding(mesh, P()), *jb.by_rows(mesh, data)
        return compile_for_gpu(METHODS[method](CELLS[cell]), (params, *data), lie)


def program_that_sums_in_its_loop(turns: int) -> Program:
    """Every step of a loop needs a sum over two GPUs."""
    mesh = h100s(2)

    def run(x):
        def step(x, _):
            return jnp.tanh(x - jax.lax.psum(x, "data")), None

        return jax.lax.scan(step, x, length=turns)[0]

    spread = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with as_in_a_script():
        x = jax.ShapeDtypeStruct((8,), jnp.float32)
        return compile_for_gpu(spread, (x,), (NamedSharding(mesh, P("data")),))


@contextlib.contextmanager
def as_in_a_script() -> Iterator[None]:
    """JAX as users have it, without the strict numerics of the tests."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("default"),
    ):
        yield


def _network(cell: Any) -> jb.Network:
    return jb.network([cell], jb.readout(H, O))
