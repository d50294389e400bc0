"""The contenders of `benchmark`: one layer, a readout and the squared error, by us and by others.

    ours       jb.value_and_grad, jb.make_train_step
    scan       jax.grad of the scan that one writes, x W_x in the loop
    hoisted    the same with x W_x + b in front of the loop
    flax       linen.RNN of SimpleCell, OptimizedLSTMCell (one product for its gates) or GRUCell
    equinox    jax.lax.scan of a vmapped LSTMCell or GRUCell; it has no Elman cell
    torch      torch.nn.RNN, LSTM or GRU
    cudnn      jax.experimental.rnn, an LSTM in float32 and TF32 on a GPU; elsewhere its plain reference

Every gradient is converted to our layout: dE/db once, though PyTorch has two biases, and in a GRU
dE/db_h = dE/db for r and z, which Flax and Equinox have one bias for.

In the lane bf16 the parameters of all but torch are float32. The scans and Equinox cast the parameters in
every step (so that dE/dW is summed in float32), and the inputs too; they compute all but the error in
bfloat16. Flax has dtype=bfloat16. The module of torch is itself in bfloat16: on the CPU that was measured,
its LSTM is as fast as under autocast with float32 parameters, and its other cells are up to a tenth faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jax_bptt as jb

OUTPUTS = 8


class Problem(NamedTuple):
    """What is computed: a cell of H units over T steps of B rows of I inputs, in a lane."""

    cell: str
    size: tuple[int, ...]  # T, B, I, H
    lane: str
    net: jb.Network
    params: jb.NetworkParams
    xs: Array
    targets: Array

    @property
    def dtype(self) -> Any:
        """The float dtype of this lane."""
        return jnp.bfloat16 if self.lane == "bf16" else jnp.float32

    @property
    def zeros(self) -> Array:
        """Zeros for h_0 or c_0."""
        _, rows, _, hidden = self.size
        return jnp.zeros((rows, hidden), self.dtype)

    @property
    def weights(self) -> tuple[Any, jb.ReadoutParams]:
        """The parameters of the cell, and of the readout."""
        return self.params.cells[0], self.params.readout

    @property
    def flops(self) -> int:
        """FLOPs of the products: those of the forward pass, and twice as many for the way back."""
        steps, rows, inputs, hidden = self.size
        gates = self.params.cells[0].w_h.shape[1]
        return 3 * 2 * steps * rows * ((inputs + hidden) * gates + hidden * OUTPUTS)


def problem_of(cell: str, size: tuple[int, ...], lane: str) -> Problem:
    """A problem with random biases, so that a program without one of them is noticed."""
    steps, rows, inputs, hidden = size
    net = jb.network([getattr(jb, cell)(inputs, hidden)], jb.readout(hidden, OUTPUTS))
    k_params, k_biases, k_xs, k_targets = jax.random.split(jax.random.key(0), 4)
    params = net.init(k_params)
    noise = optax.tree.random_like(k_biases, params)
    params = jax.tree.map(lambda p, n: p + 0.1 * n if p.ndim == 1 else p, params, noise)
    xs = jax.random.normal(k_xs, (steps, rows, inputs))
    targets = jax.random.normal(k_targets, (steps, rows, OUTPUTS))
    return Problem(cell, size, lane, net, params, xs, targets)


class Peer(NamedTuple):
    """The same error, computed in JAX by another program."""

    weights: Any
    error: Callable[[Any, Array, Array], Array]  # (weights, xs, targets) -> E
    back: Callable[[Any], jb.NetworkParams]  # from their gradient to ours


def squares(readout: jb.ReadoutParams, hs: Array, targets: Array) -> Array:
    """E, from the outputs of the layer."""
    ys = (hs @ readout.w_y.astype(hs.dtype)).astype(jnp.float32) + readout.b_y
    return jnp.sum((targets - ys) ** 2)


def network_params(cell: Any, readout: Any) -> jb.NetworkParams:
    """Of one cell."""
    return jb.NetworkParams((cell,), readout)


def scan(problem: Problem, hoisted: bool = False, unroll: int = 1) -> Peer:
    """The scan that one writes; unroll steps in an iteration."""
    two = problem.cell == "lstm"

    def error(weights: Any, xs: Array, targets: Array) -> Array:
        params, readout = weights

        def body(s: Any, x: Array) -> Any:
            p = cast(params, problem.dtype)
            u = x if hoisted else x @ p.w_x + p.b
            s = STEPS[problem.cell](p, s, u)
            return s, s[0]

        xs = xs.astype(problem.dtype)
        if hoisted:
            xs = xs @ params.w_x.astype(problem.dtype) + params.b.astype(problem.dtype)
        _, hs = jax.lax.scan(body, (problem.zeros,) * (1 + two), xs, unroll=unroll)
        return squares(readout, hs, targets)

    return Peer(problem.weights, error, lambda grads: network_params(*grads))


def elman_step(p: Any, s: Any, u: Array) -> Any:
    """(h_t,)."""
    (h,) = s
    return (jnp.tanh(u + h @ p.w_h),)


def lstm_step(p: Any, s: Any, u: Array) -> Any:
    """(h_t, c_t)."""
    h, c = s
    i, f, g, o = jnp.split(u + h @ p.w_h, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_step(p: Any, s: Any, u: Array) -> Any:
    """(h_t,), the reset after the product."""
    (h,) = s
    (u_r, u_z, u_n), (v_r, v_z, v_n) = jnp.split(u, 3, -1), jnp.split(h @ p.w_h + p.b_h, 3, -1)
    r, z = jax.nn.sigmoid(u_r + v_r), jax.nn.sigmoid(u_z + v_z)
    return ((1 - z) * jnp.tanh(u_n + r * v_n) + z * h,)


def cast(tree: Any, dtype: Any) -> Any:
    """Its arrays in another dtype."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def flax(problem: Problem) -> Peer:
    """flax.linen."""
    from flax import linen

    dtype = problem.dtype
    module = {"elman": linen.SimpleCell, "lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}[problem.cell]
    rnn = linen.RNN(module(problem.size[-1], dtype=dtype), time_major=True)
    begin = {"initial_carry": problem.zeros} if problem.cell == "elman" else {}  # its own is float32

    def error(weights: Any, xs: Array, targets: Array) -> Array:
        cell, readout = weights
        return squares(readout, rnn.apply({"params": {"cell": cell}}, xs.astype(dtype), **begin), targets)

    def back(grads: Any) -> jb.NetworkParams:
        return network_params(unfolded(jb.convert.from_linen(grads[0])), grads[1])

    cell, readout = problem.weights
    return Peer((jax.tree.map(jnp.asarray, jb.convert.to_linen(cell)), readout), error, back)


def equinox(problem: Problem) -> Peer | None:
    """equinox.nn."""
    import equinox as eqx

    if problem.cell == "elman":
        return None
    _, _, inputs, hidden = problem.size
    kind, carry = {
        "lstm": (eqx.nn.LSTMCell, (problem.zeros, problem.zeros)),
        "gru": (eqx.nn.GRUCell, problem.zeros),
    }[problem.cell]

    def error(weights: Any, xs: Array, targets: Array) -> Array:
        module, readout = weights

        def body(s: Any, x: Array) -> Any:
            s = jax.vmap(cast(module, problem.dtype))(x, s)
            return s, jax.tree.leaves(s)[0]

        _, hs = jax.lax.scan(body, carry, xs.astype(problem.dtype))
        return squares(readout, hs, targets)

    cell, readout = problem.weights
    arrays = {key: jnp.asarray(w) for key, w in jb.convert.to_equinox(cell).items()}
    module = kind(inputs, hidden, key=jax.random.key(0))
    module = eqx.tree_at(lambda m: [getattr(m, key) for key in arrays], module, [*arrays.values()])

    def back(grads: Any) -> jb.NetworkParams:
        return network_params(unfolded(jb.convert.from_equinox(vars(grads[0]))), grads[1])

    return Peer((module, readout), error, back)


def unfolded(grads: Any) -> Any:
    """A GRU's dE/db_h where r and z have one bias: that by b."""
    if not hasattr(grads, "b_h"):
        return grads
    of_n = np.arange(len(grads.b)) >= 2 * len(grads.b) // 3
    return grads._replace(b_h=np.where(of_n, grads.b_h, grads.b))


def cudnn(problem: Problem) -> Peer | None:
    """jax.experimental.rnn, whose sequences are batch-major."""
    from jax.experimental import rnn

    if problem.cell != "lstm" or problem.lane == "bf16":
        return None
    steps, rows, inputs, hidden = problem.size
    precision = jax.lax.Precision.HIGHEST if problem.lane == "float32" else jax.lax.Precision.HIGH

    def error(weights: Any, xs: Array, targets: Array) -> Array:
        flat, readout = weights
        begin, lengths = problem.zeros[None], jnp.full(rows, steps, jnp.int32)
        xs = xs.swapaxes(0, 1)
        if jax.default_backend() == "gpu":
            out = rnn.lstm(xs, begin, begin, flat, lengths, inputs, hidden, 1, 0.0, False, precision)
        else:
            apart = rnn.unpack_lstm_weights(flat, inputs, hidden, 1, False)
            out = rnn.lstm_ref(xs, begin, begin, *apart, lengths, inputs, hidden, 1, 0.0, False)
        return squares(readout, out[0].swapaxes(0, 1), targets)

    def back(grads: Any) -> jb.NetworkParams:
        w_x, w_h, b, _ = rnn.unpack_lstm_weights(grads[0], inputs, hidden, 1, False)
        named = {"weight_ih_l0": w_x[0], "weight_hh_l0": w_h[0], "bias_ih_l0": b[0]}
        return network_params(jb.convert.from_torch(named), grads[1])

    cell, readout = problem.weights
    flat = jnp.concatenate([jnp.ravel(w) for w in jb.convert.to_torch(cell).values()])
    return Peer((flat, readout), error, back)


STEPS = {"elman": elman_step, "lstm": lstm_step, "gru": gru_step}
PEERS: dict[str, Callable[[Problem], Peer | None]] = {
    "scan": scan,
    "hoisted": functools.partial(scan, hoisted=True),
    "flax": flax,
    "equinox": equinox,
    "cudnn": cudnn,
}
