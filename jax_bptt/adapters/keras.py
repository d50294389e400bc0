"""Cells of Keras are adopted; `SimpleRNN`, `LSTM` and `GRU` are its layers with a gradient method.

Where the products are in another dtype than the weights, as in the policy mixed_bfloat16, their operands are
rounded to it and the states are not; Keras rounds the states too.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import keras
from jax import Array
from keras.src.backend.common.variables import AutocastScope

from jax_bptt.adapters.adopted import Adopted, CarryOrder, adopted, run, zero_where_masked
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.adapters.functions_of_numbers import Function, program_of
from jax_bptt.adapters.gated import elman_with, gru_with, lstm_with
from jax_bptt.adapters.gradient_config import from_config, to_config
from jax_bptt.base.errors import bad, named, naming
from jax_bptt.base.trees import select
from jax_bptt.base.types import ArrayTree, Foreign, Mark, Shape
from jax_bptt.cell.cell import Carry
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.cells.gru import gru
from jax_bptt.cells.lstm import LSTMCarry
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.keras import from_keras

__all__ = ["GRU", "LSTM", "SimpleRNN"]

_Mask: TypeAlias = Array | list[Array | None] | None  # as Keras has it

_H = CarryOrder(lambda states: Carry(states[0]), lambda s: [s.h])
_H_C = CarryOrder(lambda states: LSTMCarry(*states), lambda s: [s.h, s.c])

_FUNCTIONS = {
    keras.activations.tanh: jnp.tanh,
    keras.activations.sigmoid: jax.nn.sigmoid,
    keras.activations.relu: jax.nn.relu,
    keras.activations.linear: jax.nn.identity,
}


def adopted_cell(cell: Foreign, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of Keras, or the cell of one of its recurrent layers, becomes one of ours, see `adopt`."""
    cell = _checked(cell)
    if params is None:
        return _found(cell, input_size)
    with _with_weights(cell, params):
        return _found(cell, input_size)


def _checked(cell: Foreign) -> keras.Layer:
    """The cell, of a layer its own, if a step of it is all that there is to know."""
    _check_backend()
    if isinstance(cell, keras.layers.RNN):
        _check_is("cell.go_backwards", cell.go_backwards, False, "pass reverse=True to jb.unroll")
        _check_is("cell.stateful", cell.stateful, False, "keep the carry yourself: jb.unroll returns it")
        cell = cell.cell
    if not (isinstance(cell, keras.Layer) and hasattr(cell, "state_size")):
        fix = "pass the layers of a keras.Sequential or keras.layers.Bidirectional one by one"
        raise bad("cell", "a cell of Keras or a layer that runs one, such as keras.layers.LSTM", cell, fix)
    for part in getattr(cell, "cells", [cell]):
        fix = "make it without, and drop inputs by a keras.layers.Dropout before it"
        _check_is("cell.dropout", getattr(part, "dropout", 0), 0, fix)
        fix = "make it without; jb.layer(cell, recurrent_dropout=p) has its own"
        _check_is("cell.recurrent_dropout", getattr(part, "recurrent_dropout", 0), 0, fix)
    _check_dtype(cell)
    if not cell.built:
        fix = "build it first: call cell.build((None, input_size)), or its layer on some inputs"
        raise bad("cell", "a cell with weights", f"{type(cell).__name__}, which is not built", fix)
    return cell


def recognised(cell: keras.Layer) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    kind = type(cell)
    if kind not in (keras.layers.SimpleRNNCell, keras.layers.GRUCell, keras.layers.LSTMCell):
        return None
    if "call" in vars(cell):  # another function has been put there
        return None
    activation, gate = (_FUNCTIONS.get(f, f) for f in (cell.activation, _of_gates(cell)))
    if any(isinstance(f, keras.Layer) or program_of(f) is None for f in (activation, gate)):
        return None
    sizes, has_bias, dtype = (cell.kernel.shape[0], cell.units), cell.use_bias, jnp.dtype(cell.compute_dtype)
    if kind is not keras.layers.GRUCell:
        params = from_keras(_weights(cell))
        if kind is keras.layers.SimpleRNNCell:
            return adopted(elman_with(*sizes, activation, has_bias), params, _H, dtype)
        return adopted(lstm_with(*sizes, gate, activation, has_bias), params, _H_C, dtype)
    params = from_keras(_weights(cell), None if has_bias else cell.reset_after)
    if cell.reset_after:
        return adopted(gru_with(*sizes, gate, activation, has_bias), params, _H, dtype)
    if (gate, activation) != (jax.nn.sigmoid, jnp.tanh):
        return None
    return adopted(gru(*sizes, reset_after=False, bias=has_bias), params, _H, dtype)


def _of_gates(cell: keras.Layer) -> Function:
    """The function of the gates; a cell without gates has one function only."""
    return getattr(cell, "recurrent_activation", cell.activation)


def _weights(cell: keras.Layer) -> list[Array]:
    """The weights in their own dtype, also inside a layer that computes in another."""
    with AutocastScope(None):
        return [weight.value for weight in cell.weights]


def _with_weights(cell: keras.Layer, params: object) -> keras.StatelessScope:
    """A scope in which the cell has other weights."""
    if not isinstance(params, (list, tuple)) or len(params) != len(cell.weights):
        expected = f"a list of {len(cell.weights)} arrays"
        raise bad("params", expected, params, "pass them as cell.get_weights() returns them")
    with naming("params", "arrays shaped as those of cell.get_weights()"):
        return keras.StatelessScope(zip(cell.weights, params, strict=True))


def _found(cell: keras.Layer, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """The cell as one of ours: of the same kind, or a step cell that calls it."""
    found = recognised(cell)
    if found is not None:
        return found.cell, found.params
    if input_size is None:
        built = (cell.get_build_config() or {}).get("input_shape")
        if built is None:
            raise bad("input_size", "the size of the inputs, which this cell does not say", None, "pass it")
        input_size = built[-1]
    return as_step_cell(_CALLS, cell, _weights(cell), input_size)


def _step(cell: keras.Layer, weights: ArrayTree, states: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    with _with_weights(cell, weights) as scope:
        before = dict(scope.state_mapping)
        inference = {"training": False} if cell._call_has_training_arg else {}
        y, new = cell(x[None], jax.tree.map(lambda s: s[None], states), **inference)
    if any(value is not before.get(variable) for variable, value in scope.state_mapping.items()):
        raise bad("cell", "a step that changes no variable", cell.name, "draw no random numbers in it")
    y, *leaves = (z[0].astype(weights[0].dtype) for z in (y, *keras.tree.flatten(new)))
    return jax.tree.unflatten(jax.tree.structure(states), leaves), y


def _begin(cell: keras.Layer, weights: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    dtype = weights[0].dtype
    with _with_weights(cell, weights):
        if hasattr(cell, "get_initial_state"):
            states = cell.get_initial_state(batch_size=1)
        else:
            states = [jnp.zeros((1, size)) for size in keras.tree.flatten(cell.state_size)]
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    return jax.tree.map(lambda z: jnp.broadcast_to(z[0].astype(dtype), batch_shape + z.shape[1:]), states)


_CALLS = Calls(_step, _begin)


class _WithGradient(keras.layers.RNN):
    """A layer of Keras whose loop over time is ours; all else is Keras'."""

    def __init__(
        self, units: int, *args: object, gradient: GradientMethod = full(), **kwargs: object
    ) -> None:
        super().__init__(units, *args, **kwargs)
        named(f"keras.{type(self).__name__}")(_check_layer)(self, gradient)
        self.gradient = gradient
        self.use_cudnn = False  # or Bidirectional would leave out the loop

    def inner_loop(
        self, sequences: Array, initial_state: list[Array], mask: _Mask, training: bool = False
    ) -> tuple[Array, Array, list[Array]]:
        """The loop over time of [B, T, I]; the results are the last output, all of them, and the states."""
        if training and self.dropout:
            sequences = sequences * self.cell.get_dropout_mask(sequences[:, 0])[:, None]
        found = recognised(self.cell)
        steps, xs = _steps_of(mask), jnp.swapaxes(sequences, 0, 1)
        states, hs = (
            _by_scan(self, initial_state, xs, steps, training)
            if found is None
            else run(found, initial_state, xs, self.gradient, mask=steps, reverse=self.go_backwards)
        )
        if self.zero_output_for_mask:
            hs = zero_where_masked(steps, hs)
        outputs = jnp.swapaxes(jnp.flip(hs, 0) if self.go_backwards else hs, 0, 1)
        return outputs[:, -1], outputs, states

    def get_config(self) -> dict[str, Foreign]:
        """The arguments of the layer, with the gradient as the call that made it."""
        config: dict[str, Foreign] = super().get_config()
        return config | {"gradient": to_config(self.gradient)}

    @classmethod
    def from_config(cls, config: dict[str, Foreign]) -> keras.Layer:
        """A layer with these arguments; those of a layer of Keras have no gradient, which is then full()."""
        gradient = from_config(config.get("gradient"))
        return cls(**config | {"gradient": full() if gradient is None else gradient})


def _by_scan(
    layer: _WithGradient, states: list[Array], xs: Array, steps: Mark, training: bool
) -> tuple[list[Array], Array]:
    """A cell with an activation that ours cannot have runs as it is, over [T, B, I]."""
    inference = {"training": training} if layer.cell._call_has_training_arg else {}
    layer.cell(xs[0], states, **inference)  # a layer as activation makes its weights here, outside the loop

    def step(states: list[Array], at: tuple[Array, Mark]) -> tuple[list[Array], Array]:
        x, is_there = at
        y, new = layer.cell(x, states, **inference)
        new = list(new) if isinstance(new, (list, tuple)) else [new]
        return select(is_there, new, states), select(is_there, y, states[0])

    xs, steps, *_ = without_padding(Sequence(xs, steps))
    return scan(step, states, (xs, steps), reverse=layer.go_backwards, gradient=layer.gradient)


def _steps_of(mask: _Mask) -> Mark:
    """Which steps count, bool [T, B], of a mask of Keras, [B, T] or [B, T, 1], perhaps in a list."""
    mask = mask[0] if isinstance(mask, (list, tuple)) else mask
    if mask is None:
        return None
    steps = jnp.asarray(mask).astype(bool)
    return (steps if steps.ndim == 2 else steps.any(-1)).T


def _check_backend() -> None:
    backend = keras.backend.backend()
    if backend != "jax":
        fix = "set the environment variable KERAS_BACKEND=jax before keras is imported"
        raise bad("keras.backend", "jax", backend, fix)


def _check_is(argument: str, value: object, wanted: object, fix: str) -> None:
    if value != wanted:
        raise bad(argument, repr(wanted), value, fix)


def _check_dtype(cell: keras.Layer) -> None:
    if cell.compute_dtype == "float16" != cell.variable_dtype:
        fix = "in float16 a derivative below 6e-8 is zero; use mixed_bfloat16"
        raise bad("dtype", "a policy such as float32 or mixed_bfloat16", cell.dtype_policy.name, fix)


def _check_layer(layer: keras.Layer, gradient: object) -> None:
    """What a layer cannot do with our loop is refused."""
    _check_backend()
    check_method(gradient)
    _check_dtype(layer.cell)
    _check_is("unroll", layer.unroll, False, "leave it out: it changes no number")
    fix = "use dropout, or a network with jb.layer(cell, recurrent_dropout=p)"
    _check_is("recurrent_dropout", layer.recurrent_dropout, 0, fix)
    if getattr(layer, "use_cudnn", False) is True:
        raise bad("use_cudnn", "'auto' or False, as the loop over time is another", True, "leave it out")
    if layer.dropout == 1:
        raise bad("dropout", "less than 1", layer.dropout, "pass 0 to drop nothing; Keras' LSTM ignores 1")
    if layer.dropout and getattr(layer.cell, "implementation", 2) == 1:
        fix = "leave it out: 2 drops the same inputs for all gates"
        raise bad("implementation", "2 beside dropout", layer.cell.implementation, fix)


@keras.saving.register_keras_serializable("jax_bptt")
class SimpleRNN(_WithGradient, keras.layers.SimpleRNN):
    """keras.layers.SimpleRNN with a gradient method.

    h_t = tanh(x_t W_x + h_{t−1} W_h + b)

    Masks, states, initial weights, files and all arguments are those of Keras; from_config also takes the
    config of its own layer. The gradient by the weights in the policy mixed_bfloat16 is summed in float32.

    Args:
      units: H.
      gradient: the gradient method, such as jb.truncated(50); saved with the layer, as its call.
      *args, **kwargs: as for keras.layers.SimpleRNN.

    Returns:
      A layer from [B, T, I] to [B, H], or [B, T, H] with return_sequences=True.

    Raises:
      ValueError: gradient is no gradient method, Keras does not run on JAX, or one of recurrent_dropout,
        dropout=1 and unroll is asked for.

    Reference: Elman 1990, Finding structure in time.

    >>> layer = SimpleRNN(5, return_sequences=True, gradient=jb.truncated(50))
    >>> layer.gradient, layer.compute_output_shape((2, 9, 3))
    (truncated(50), (2, 9, 5))
    """


@keras.saving.register_keras_serializable("jax_bptt")
class LSTM(_WithGradient, keras.layers.LSTM):
    """keras.layers.LSTM with a gradient method.

    c_t = σ(z_f) c_{t−1} + σ(z_i) tanh(z_g),  h_t = σ(z_o) tanh(c_t),  z = x_t W_x + h_{t−1} W_h + b

    See `SimpleRNN` for what is Keras' and what is not.

    Args:
      units: H.
      gradient: the gradient method, such as jb.truncated(50); saved with the layer, as its call.
      *args, **kwargs: as for keras.layers.LSTM.

    Returns:
      A layer from [B, T, I] to [B, H], or [B, T, H] with return_sequences=True.

    Raises:
      ValueError: gradient is no gradient method, Keras does not run on JAX, or one of recurrent_dropout,
        dropout=1, implementation=1 beside dropout, unroll and use_cudnn=True is asked for.

    Reference: Hochreiter & Schmidhuber 1997, Long short-term memory.

    >>> LSTM(5, gradient=jb.checkpointed()).get_config()["gradient"]
    {'checkpointed': {'slots': None, 'chunk': None, 'host': False}}
    """


@keras.saving.register_keras_serializable("jax_bptt")
class GRU(_WithGradient, keras.layers.GRU):
    """keras.layers.GRU with a gradient method.

    h_t = (1 − z) n + z h_{t−1}, with the reset gate after or before the product, as reset_after says

    See `SimpleRNN` for what is Keras' and what is not.

    Args:
      units: H.
      gradient: the gradient method, such as jb.truncated(50); saved with the layer, as its call.
      *args, **kwargs: as for keras.layers.GRU.

    Returns:
      A layer from [B, T, I] to [B, H], or [B, T, H] with return_sequences=True.

    Raises:
      ValueError: gradient is no gradient method, Keras does not run on JAX, or one of recurrent_dropout,
        dropout=1, implementation=1 beside dropout, unroll and use_cudnn=True is asked for.

    Reference: Cho et al. 2014, Learning phrase representations using RNN encoder-decoder.

    >>> GRU.from_config(keras.layers.GRU(5).get_config()).gradient
    full()
    """
