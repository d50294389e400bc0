"""Cells of flax.linen: those that are recognised, and those that are called as they are."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from support.flax_ways import H, I, T
from support.live import random_like

F64 = {"param_dtype": jnp.float64}


class Doubled(nn.GRUCell):
    """A cell of a user, derived from one that is recognised."""

    @nn.compact
    def __call__(self, carry, x):
        carry, y = super().__call__(carry, x)
        return carry, {"twice": 2 * y, "first": y[..., :1]}


class Around(nn.RNNCellBase):
    """A cell of a user round another cell, with a layer of its own."""

    inner: nn.Module

    @nn.compact
    def __call__(self, carry, x):
        carry, y = self.inner(carry, x)
        return carry, nn.Dense(3, param_dtype=y.dtype)(y)

    @nn.nowrap
    def initialize_carry(self, key, shape):
        return self.inner.initialize_carry(key, shape)

    num_feature_axes = 1


class Slope(nn.Module):
    """An activation with a weight."""

    @nn.compact
    def __call__(self, z):
        return jnp.where(z > 0, z, z * self.param("slope", lambda key: jnp.full((), 0.3)))


@jax.custom_vjp
def sign(z):
    return jnp.sign(z)


sign.defvjp(lambda z: (jnp.sign(z), z), lambda z, d: (jnp.where(abs(z) < 1, d, 0),))

OURS = {  # cells that become cells of this library
    "SimpleCell": nn.SimpleCell(H, **F64),
    "SimpleCell, residual, relu": nn.SimpleCell(H, residual=True, activation_fn=nn.relu, **F64),
    "GRUCell": nn.GRUCell(H, **F64),
    "GRUCell, other functions": nn.GRUCell(H, gate_fn=nn.hard_sigmoid, activation_fn=nn.gelu, **F64),
    "LSTMCell": nn.LSTMCell(H, **F64),
    "LSTMCell, straight through": nn.LSTMCell(H, activation_fn=sign, gate_fn=jax.nn.softplus, **F64),
    "OptimizedLSTMCell": nn.OptimizedLSTMCell(H, **F64),
}
THEIRS = {  # cells that are called as they are
    "MGUCell": nn.MGUCell(H, **F64),
    "MGUCell, no reset gate": nn.MGUCell(H, reset_gate=False, **F64),
    "ConvLSTMCell": nn.ConvLSTMCell(H, (2, 2), **F64),
    "GRUCell, softmax": nn.GRUCell(H, gate_fn=nn.softmax, **F64),
    "GRUCell, activation with a weight": nn.GRUCell(H, activation_fn=Slope(), **F64),
    "GRUCell, subclass": Doubled(H, **F64),
    "GRUCell, remat": nn.remat(nn.GRUCell)(H, **F64),
    "OptimizedLSTMCell in another": Around(nn.OptimizedLSTMCell(H, **F64)),
}
CELLS = OURS | THEIRS


def inputs_of(cell, *rows, seed=0):
    signal = (3, 3) if isinstance(cell, nn.ConvLSTMCell) else ()
    return random_like(seed, jnp.zeros((*rows, T, *signal, I)))


def random_of(cell, *rows):
    """(params of its RNN, carry, inputs)."""
    xs = inputs_of(cell, *rows)
    params = random_like(1, jax.jit(nn.RNN(cell).init)(jax.random.key(0), xs))
    time_axis = len(rows)
    carry = cell.initialize_carry(jax.random.key(0), xs.shape[:time_axis] + xs.shape[time_axis + 1 :])
    return params, random_like(2, carry), xs
