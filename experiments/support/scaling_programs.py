"""The programs of `experiments.scaling`, each on any mesh of one axis, "data"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb

if TYPE_CHECKING:
    from experiments.scaling import Config


class Problem(NamedTuple):
    """A program on a mesh: a function, its arguments, where they lie, and W_h's gradient in its result."""

    run: Callable[..., Any]
    args: Any
    lie: Any
    d_w_h: Callable[[Any], Array]


def network(config: Config) -> jb.Network:
    """The LSTM and its readout."""
    return jb.network([jb.lstm(config.inputs, config.hidden)], jb.readout(config.hidden, config.outputs))


def data(config: Config, devices: int) -> jb.Batch:
    """A batch for this many devices."""
    keys, rows = jax.random.split(jax.random.key(1)), config.rows * devices
    xs = jax.random.normal(keys[0], (config.steps, rows, config.inputs))
    return jb.Batch(xs, jax.random.normal(keys[1], (config.steps, rows, config.outputs)))


def ours(place: Callable[..., Any], config: Config, mesh: Any) -> Problem:
    """The training step, sgd with rate 1: the difference of the parameters is the gradient."""
    net, optimizer, batch = network(config), optax.sgd(1.0), data(config, mesh.size)
    state = jb.init_train_state(jax.random.key(0), net, optimizer, (batch.xs.shape[1],))
    before = np.asarray(state.params.cells[0].w_h)
    train_step = jb.make_train_step(net, jb.squared_error, optimizer)
    lie = place(mesh, state), jb.by_rows(mesh, batch)
    return Problem(train_step, (state, batch), lie, lambda made: before - made[0].params.cells[0].w_h)


def lstm_step(p: Any, state: tuple[Array, Array], x: Array, everyone: Callable[[Array], Array]) -> Any:
    """One step as one writes it; weights are [.., 4, units], everyone makes h of all units from one's own."""
    h, c = state
    z = jnp.einsum("bi,igk->bgk", x, p["w_x"]) + jnp.einsum("bh,hgk->bgk", everyone(h), p["w_h"]) + p["b"]
    i, f, g, o = (z[:, k] for k in range(4))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def plain_params(config: Config) -> dict[str, Array]:
    """The same parameters, gates as an axis of their own."""
    (cell,), readout = network(config).init(jax.random.key(0))
    by_gate = {name: getattr(cell, name).reshape(-1, 4, config.hidden) for name in ("w_x", "w_h")}
    return by_gate | {"b": cell.b.reshape(4, config.hidden), "w_y": readout.w_y}


def plain_error(everyone: Any, all_of: Any, params: Any, zero: Array, batch: jb.Batch) -> Array:
    """E by the scan; zero is h_0 and c_0, all_of sums Y over units."""
    step = functools.partial(lstm_step, params, everyone=everyone)
    _, hs = jax.lax.scan(step, (zero, zero), batch.xs)
    ys = all_of(hs @ params["w_y"])
    return jnp.square(ys - batch.targets).sum()


def plain_scan(config: Config, mesh: Any) -> Problem:
    """jax.grad of it, rows split, all else left to XLA."""
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))
    batch, params = data(config, mesh.size), plain_params(config)
    zero = jnp.zeros((batch.xs.shape[1], config.hidden))
    alone = functools.partial(plain_error, lambda h: h, lambda ys: ys)
    lie = NamedSharding(mesh, P()), NamedSharding(mesh, P("data")), jb.by_rows(mesh, batch)
    return Problem(jax.grad(alone), (params, zero, batch), lie, lambda d: d["w_h"])


def hidden_units(config: Config, mesh: Any) -> Problem:
    """jax.grad of it, units split: h gathered forward, its cotangent summed and scattered back."""
    batch, params = data(config, mesh.size), plain_params(config)
    zero = jnp.zeros((batch.xs.shape[1], config.hidden))
    everyone = functools.partial(jax.lax.all_gather, axis_name="data", axis=1, tiled=True)
    all_of = functools.partial(jax.lax.psum, axis_name="data")
    units = P(None, None, "data")
    split = {"w_x": units, "w_h": units, "b": P(None, "data"), "w_y": P("data")}
    spread = jax.shard_map(
        jax.grad(functools.partial(plain_error, everyone, all_of)),
        mesh=mesh,
        in_specs=(split, P(None, "data"), P()),
        out_specs=split,
    )
    lie = jax.tree.map(functools.partial(NamedSharding, mesh), (split, P(None, "data"), P()))
    return Problem(spread, (params, zero, batch), lie, lambda d: d["w_h"])


def in_shard_map(program: Callable[..., Problem], config: Config, mesh: Any) -> Problem:
    """A program inside a jax.shard_map; its result lies as its first argument does."""
    problem = program(config, mesh)
    specs = jax.tree.map(lambda to: to.spec, problem.lie)
    made = (specs[0], P()) if isinstance(specs[0], jb.TrainState) else specs[0]
    mesh = jax.tree.leaves(problem.lie)[0].mesh
    return problem._replace(run=jax.shard_map(problem.run, mesh=mesh, in_specs=specs, out_specs=made))


PROGRAMS: dict[str, Callable[[Config, Any], Problem]] = {
    "ours": functools.partial(ours, jb.data_parallel),
    "fully sharded": functools.partial(ours, jb.fully_sharded),
    "plain scan": plain_scan,
    "hidden units": hidden_units,
}


ON_GPUS: dict[str, tuple[Callable[[Config, Any], Problem], AxisType]] = {
    "ours, Explicit axes": (PROGRAMS["ours"], AxisType.Explicit),
    "ours, Auto axes": (PROGRAMS["ours"], AxisType.Auto),
    "ours, in a jax.shard_map": (functools.partial(in_shard_map, PROGRAMS["ours"]), AxisType.Explicit),
    "fully sharded, Explicit axes": (PROGRAMS["fully sharded"], AxisType.Explicit),
    "fully sharded, Auto axes": (PROGRAMS["fully sharded"], AxisType.Auto),
    "plain scan, Auto axes": (plain_scan, AxisType.Auto),
    "plain scan, in a jax.shard_map": (functools.partial(in_shard_map, plain_scan), AxisType.Auto),
    "hidden units": (hidden_units, AxisType.Explicit),
}
