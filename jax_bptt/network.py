"""Layers of cells, a readout and a loss, and the gradient from the loss back to the first W_x.

article   Y_t = g₂(W_y S_t),   E = Σ_t (d_t − Y_t)²

forward   h_t = cells(x_t)                  layer by layer, each by `unroll`              (N1)
          z_t = h_t W_y + b_y                                                             (N2)
          Y_t = g₂(z_t)                                                                   (N3)

back      dE/dY_t                           from `loss`                                   (N4)
          δz_t = dE/dY_t g₂′(z_t)                                                         (N5)
          dE/dW_y = Σ_t h_tᵀ δz_t           two factors: W_y feeds no state               (N6)
          dE/db_y = Σ_t δz_t                                                              (N7)
          G_t = δz_t W_yᵀ                   what the loss says to h_t directly            (N8)
          dE/dW_x, dE/dW_h, dE/dx_t         from G_t: the summed rule, in `gradients`     (N9)
          G_t of the layer below = dE/dx_t of this one                                    (N10)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.activations import Activation
from jax_bptt.activations import activation as activation_of
from jax_bptt.arguments import check_inputs, check_method, check_params, check_steps, parameter_shapes
from jax_bptt.cell import Cell, check_batch_shape, check_key, size
from jax_bptt.errors import bad
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.loss import Loss, check_loss, value_and_slope
from jax_bptt.sweep import against, sum_of_outer_products, sum_over_rows
from jax_bptt.unroll import run_checked


class ReadoutParams(NamedTuple):
    """Parameters of a readout.

    Attributes:
      w_y: [H, O], output weights (the article's W_y).
      b_y: [O], bias.
    """

    w_y: Array
    b_y: Array


class Readout(NamedTuple):
    """The map from h_t to Y_t = g₂(h_t W_y + b_y); made by `readout`.

    Attributes:
      hidden_size: H.
      output_size: O.
      activation: g₂.
    """

    hidden_size: int
    output_size: int
    activation: Activation

    def init(self, key: Array) -> ReadoutParams:
        """Lecun-normal W_y and zero b_y, in the default float dtype; key from jax.random.key."""
        check_key(key)
        dtype = jnp.result_type(float)
        w_y = jax.nn.initializers.lecun_normal()(key, (self.hidden_size, self.output_size), dtype)
        return ReadoutParams(w_y, jnp.zeros(self.output_size, dtype))

    def forward(self, params: ReadoutParams, hs: Array) -> tuple[Array, Array]:
        """z and Y, both [T, ..., O], from hs [T, ..., H]."""
        zs = hs @ params.w_y + against(params.b_y, hs.ndim)  # (N2)
        return zs, self.activation.g(zs)  # (N3)

    def backward(
        self, params: ReadoutParams, hs: Array, zs: Array, ys: Array, d_ys: Array
    ) -> tuple[ReadoutParams, Array]:
        """dE/dparams and G_1..G_T, [T, ..., H], from dE/dY, [T, ..., O]."""
        d_zs = d_ys * self.activation.slope(zs, ys)  # (N5)
        d_w_y = sum_of_outer_products(hs, d_zs)  # (N6)
        d_b_y = sum_over_rows(d_zs)  # (N7)
        return ReadoutParams(d_w_y, d_b_y), d_zs @ params.w_y.T  # (N8)


class NetworkParams(NamedTuple):
    """Parameters of a network.

    Attributes:
      cells: one params NamedTuple per layer, the first nearest to the input.
      readout: `ReadoutParams`.
    """

    cells: tuple[Any, ...]
    readout: ReadoutParams


class Network(NamedTuple):
    """Layers of cells and a readout; made by `network`.

    Attributes:
      cells: the first nearest to the input.
      readout: from the last layer's h to Y.
    """

    cells: tuple[Cell, ...]
    readout: Readout

    def init(self, key: Array) -> NetworkParams:
        """Parameters of every layer and of the readout.

        Args:
          key: a key from jax.random.key.

        Returns:
          `NetworkParams` in the default float dtype.
        """
        check_key(key)
        key_readout, *keys = jax.random.split(key, 1 + len(self.cells))
        cells = tuple(cell.init(k) for cell, k in zip(self.cells, keys, strict=True))
        return NetworkParams(cells, self.readout.init(key_readout))

    def initial_carry(self, params: NetworkParams, batch_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """s_0 = 0 for every layer.

        Args:
          params: from `init`; its dtype is the carry's.
          batch_shape: such as (32,), or () for no batch axis.

        Returns:
          One carry per layer, leaves [*batch_shape, H].
        """
        check_batch_shape(batch_shape)
        check_params(params, _parameter_shapes(self), "make them by net.init(key)")
        return tuple(c.initial_carry(p, batch_shape) for c, p in zip(self.cells, params.cells, strict=True))

    def apply(
        self, params: NetworkParams, carry: Any, xs: Array, *, gradient: GradientMethod = full()
    ) -> tuple[tuple[Any, ...], Array]:
        """Y_1..Y_T; differentiable by params, carry and xs.

        Y_t = g₂(h_t W_y + b_y)   (N1-N3)

        Args:
          params: from `init`.
          carry: s_0 of every layer, from `initial_carry` or an earlier call.
          xs: [T, ..., I], time first, dtype of params.
          gradient: the backward pass of each layer, see `unroll`.

        Returns:
          (carry, ys): s_T of every layer, and Y, [T, ..., O].

        Raises:
          ValueError: at trace time, naming the argument, what was expected and what came.
        """
        params, carry, xs = _check(self, params, carry, xs, gradient)
        last = []
        for cell, p, s_0 in zip(self.cells, params.cells, carry, strict=True):
            s_last, xs = run_checked(cell, p, s_0, xs, gradient)  # (N1)
            last.append(s_last)
        return tuple(last), self.readout.forward(params.readout, xs)[1]


def readout(
    hidden_size: int, output_size: int, activation: str | Callable[[Array], Array] = "identity"
) -> Readout:
    """The article's Y_t = g₂(W_y S_t).

    Y_t = g₂(h_t W_y + b_y)   (N2, N3)

    Args:
      hidden_size: H of the last cell.
      output_size: O.
      activation: g₂, as for `elman`; leave "identity" for logits.

    Returns:
      The `Readout`.

    Raises:
      ValueError: a size below 1 or an unknown activation.
    """
    sizes = size("hidden_size", hidden_size), size("output_size", output_size)
    return Readout(*sizes, activation_of(activation))


def network(cells: Sequence[Cell], readout: Readout) -> Network:
    """Layers of cells, each reading the h_t of the one before, and a readout.

    Args:
      cells: at least one; the input size of each is the hidden size of the one before.
      readout: from `readout`, its hidden size that of the last cell.

    Returns:
      The `Network`, with init, initial_carry and apply.

    Raises:
      ValueError: no cell, or sizes that do not meet.

    >>> net = network([jb.elman(3, 5), jb.elman(5, 4)], jb.readout(4, 2))
    >>> params = net.init(jax.random.key(0))
    >>> carry, ys = net.apply(params, net.initial_carry(params, ()), jnp.ones((7, 3)))
    >>> ys.shape
    (7, 2)
    """
    if not (isinstance(cells, (list, tuple)) and cells and all(isinstance(c, Cell) for c in cells)):
        raise bad("cells", "a list of cells", cells, "pass [jb.elman(input_size, hidden_size)]")
    if not isinstance(readout, Readout):
        raise bad("readout", "a Readout", readout, "pass jb.readout(hidden_size, output_size)")
    sizes = [c.hidden_size for c in cells]
    wanted = [c.input_size for c in cells[1:]] + [readout.hidden_size]
    if sizes != wanted:
        raise bad(
            "cells", f"hidden sizes {wanted}, as the next layers read", str(sizes), "make neighbours agree"
        )
    return Network(tuple(cells), readout)


def value_and_grad(net: Network, loss: Loss) -> Callable[..., tuple[tuple[Array, Any], NetworkParams]]:
    """The loss and its gradient by every parameter, by hand from E to W_x.

    dE/dW_y = Σ_t h_tᵀ δz_t;   dE/dW_h, dE/dW_x by the summed rule from G_t = δz_t W_yᵀ   (N4-N10)

    Args:
      net: from `network`.
      loss: `squared_error`, `softmax_cross_entropy`, or any (ys, targets) -> scalar.

    Returns:
      A pure function (params, carry, xs, targets, *, gradient=full()) -> ((loss, carry), grads), with
      loss a scalar, carry s_T of every layer and grads like params. The gradient ends at the carry
      that came in.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    Reference: Werbos 1990; Williams & Zipser 1995 (epochwise BPTT).

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> params = net.init(jax.random.key(0))
    >>> carry = net.initial_carry(params, (2,))
    >>> xs, targets = jnp.ones((3, 2, 1)), jnp.zeros((3, 2, 1))
    >>> (error, carry), grads = value_and_grad(net, jb.squared_error)(params, carry, xs, targets)
    >>> grads.readout.w_y.shape
    (4, 1)
    """
    check_network(net)
    check_loss(loss)

    def run(
        params: NetworkParams, carry: Any, xs: Array, targets: Any, *, gradient: GradientMethod = full()
    ) -> tuple[tuple[Array, Any], NetworkParams]:
        params, carry, xs = _check(net, params, carry, xs, gradient)
        last, kept = [], []
        for cell, p, s_0 in zip(net.cells, params.cells, carry, strict=True):
            (s_last, xs), residuals = gradient.forward(cell, p, s_0, xs)  # (N1)
            last.append(s_last)
            kept.append(residuals)
        zs, ys = net.readout.forward(params.readout, xs)  # (N2, N3)

        error, d_ys = value_and_slope(loss, ys, targets)  # (N4)
        d_readout, d_hs = net.readout.backward(params.readout, xs, zs, ys, d_ys)  # (N5-N8)
        d_cells: list[Any] = []
        for cell, s_last, residuals in reversed(list(zip(net.cells, last, kept, strict=True))):
            end = jax.tree.map(jnp.zeros_like, s_last)
            d_cell, _, d_hs = gradient.backward(cell, residuals, end, d_hs)  # (N9, N10)
            d_cells.insert(0, d_cell)
        return (error, tuple(last)), NetworkParams(tuple(d_cells), d_readout)

    return run


def check_network(net: Any) -> None:
    """ValueError unless net is a network."""
    if not isinstance(net, Network):
        raise bad("net", "a Network", net, "make one by jb.network([cell], readout)")


@functools.lru_cache(maxsize=256)
def _parameter_shapes(net: Network) -> NetworkParams:
    readout = jax.eval_shape(lambda: net.readout.init(jax.random.key(0)))
    return NetworkParams(tuple(map(parameter_shapes, net.cells)), readout)


def _check(net: Network, params: Any, carry: Any, xs: Any, gradient: Any) -> tuple[NetworkParams, Any, Array]:
    """params, carry and xs as arrays, or a ValueError that says which argument is wrong."""
    check_method(gradient)
    shapes, input_size = _parameter_shapes(net), net.cells[0].input_size
    params, carry, xs = check_inputs("net", net, shapes, input_size, params, carry, xs)
    check_steps(gradient, net.cells, params.cells, carry)
    return params, carry, xs
