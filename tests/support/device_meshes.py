"""Meshes of several devices, arrays placed on them, and networks whose rows they share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from experiments.support.collectives import collectives

T, B, I, H, O = 7, 8, 3, 8, 2  # noqa: E741
MODES = ["auto", "explicit", "shard_map"]  # the last one is the caller's own
ALL, ROWS, STEPS = P(), P("data"), P(None, "data")


def mesh_of(mode: str, shape: tuple[int, ...] = (4,), names: tuple[str, ...] = ("data",)) -> Any:
    kind = AxisType.Auto if mode == "auto" else AxisType.Explicit
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def put(mesh: Any, tree: Any, spec: P) -> Any:
    return jax.tree.map(lambda z: jax.device_put(z, NamedSharding(mesh, spec)), tree)


def spread_over_devices(mode: str, f: Any, inputs: tuple, outputs: Any, args: tuple) -> tuple[Any, tuple]:
    """f jitted for a mesh of 4 devices, and its arguments placed there."""
    mesh = mesh_of(mode)
    placed = tuple(put(mesh, arg, spec) for arg, spec in zip(args, inputs, strict=True))
    run = jax.shard_map(f, mesh=mesh, in_specs=inputs, out_specs=outputs) if mode == "shard_map" else f
    return jax.jit(run), placed


LEARNED = jb.learn_carry(jb.lstm(I, H))
NETS = {
    "begun": jb.network([jb.elman(I, H)], jb.readout(H, O)),
    "one layer": jb.network([LEARNED], jb.readout(H, O)),
    "plain": jb.network([LEARNED, jb.gru(H, H)], jb.readout(H, O)),
    "dropout": jb.network(
        [LEARNED, jb.layer(jb.gru(H, H), residual=True, dropout=0.3, recurrent_dropout=0.5)], jb.readout(H, O)
    ),
    "both ways": jb.network([jb.layer(LEARNED, backward=LEARNED)], jb.readout(2 * H, O)),
    "last": jb.network([LEARNED, jb.gru(H, H)], jb.last(jb.readout(H, O))),
}


def own_loss(ys, targets, mask=None, weight=None):
    """A loss of all rows together: no sum over rows."""
    each = jnp.square(ys - targets).sum(-1)
    return jnp.sqrt((each if weight is None else jnp.square(weight) * each).sum())


class Problem(NamedTuple):
    run: Any  # value_and_grad of arrays alone
    args: tuple
    lie: tuple


def problem(name: str, loss: Any, method: Any, marked: bool = False, weighed: bool = False) -> Problem:
    net, k = NETS[name], jax.random.split(jax.random.key(1), 7)
    params, of_outputs = net.init(k[0]), (B,) if name == "last" else (T, B)
    carry = (
        None
        if name in ("begun", "both ways")
        else jax.tree.map(lambda s: s + 0.3, net.initial_carry(params, (B,)))
    )
    xs = jax.random.normal(k[1], (T, B, I))
    targets = jax.random.normal(k[2], (*of_outputs, O))
    if loss is jb.softmax_cross_entropy:
        targets = (targets[..., 0] > 0).astype(int)
    marks = {"mask": jax.random.bernoulli(k[3], 0.7, (T, B)).at[:, :2].set(False)} if marked else {}
    key = k[4] if name == "dropout" else None
    weight = jnp.maximum(jax.random.normal(k[6], of_outputs), 0.0) if weighed else None  # half of them are 0

    def run(params, carry, xs, judged, marks):
        targets, weight = judged
        given = {"gradient": method, "key": key, "weight": weight, **marks}
        return jb.value_and_grad(net, loss)(params, carry, xs, targets, **given)

    args, of_outputs = (params, carry, xs, (targets, weight), marks), ROWS if name == "last" else STEPS
    return Problem(run, args, (ALL, ROWS, STEPS, of_outputs, STEPS))


def collectives_of(compiled: Any) -> tuple[list[str], list[str]]:
    """The collectives outside of loops, and those in them."""
    found = collectives(compiled)
    return [c.kind for c in found if not c.in_loop], [c.kind for c in found if c.in_loop]
