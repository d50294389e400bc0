"""Cells of flax.linen are adopted with their params; `RNN` and `ScannedRNN` run them with a gradient method.

SimpleCell(residual=True) adds h_{t−1} before the activation: W_h + 1 takes the place of W_h. Parameters are
made by the modules of linen, under their names and from their keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import scope
from flax.linen import module as linen_module
from jax import Array

from jax_bptt.adapters.adopted import C_H, H_ALONE, Adopted, adopted, run
from jax_bptt.adapters.flax_sequences import Runner, over_sequence, time_axis_of, without_time
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.adapters.gated import elman_with, gru_with, is_pointwise, lstm_with
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.flax_linen import from_linen

_SCAN_DEFAULTS: dict[str, Foreign] = {  # arguments of nn.scan for which there is nothing here
    "unroll": 1,
    "variable_axes": {},
    "variable_carry": False,
    "split_rngs": {"params": False},
}


class RNN(nn.RNN):
    """`RNN` is flax.linen.RNN with a gradient method; parameters, names and initial numbers are the same.

    (c_t, y_t) = cell(c_{t−1}, x_t)

    Args:
      cell: as for nn.RNN. SimpleCell, GRUCell, LSTMCell and OptimizedLSTMCell run as cells of this library,
        with one product a step; every other cell is called as it is.
      time_major, return_carry, reverse, keep_order, variable_broadcast: as for nn.RNN.
      gradient: the gradient method.

    Returns:
      A module whose call has the arguments and results of nn.RNN, with two differences behind the seq_lengths
      of a row: outputs are zero there, and the last carry of a row of length 0 is its initial carry.

    Raises:
      ValueError: unroll, variable_axes, variable_carry or split_rngs is not what it is by default.

    >>> rnn = RNN(nn.GRUCell(5), gradient=jb.truncated(10))
    >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> rnn.apply(variables, jnp.ones((2, 7, 3)), seq_lengths=jnp.array([7, 4])).shape
    (2, 7, 5)
    """

    gradient: GradientMethod = full()

    @named("flax_linen.RNN")
    def __post_init__(self) -> None:
        check_method(self.gradient)
        for argument, default in _SCAN_DEFAULTS.items():
            value = getattr(self, argument)
            if (dict(value) if isinstance(value, Mapping) else value) != default:
                raise bad(argument, repr(default), repr(value), "leave it out, or use nn.RNN")
        super().__post_init__()

    @named("flax_linen.RNN")
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Foreign = None,
        init_key: PRNGKey | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Foreign:
        if "params" not in self.cell.variables:
            super().__call__(inputs, initial_carry=initial_carry, init_key=init_key, time_major=time_major)
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        feature_axes = self.cell.num_feature_axes
        time_axis = time_axis_of(inputs, feature_axes, time_major)
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, without_time(inputs, time_axis))
        carry, outputs = over_sequence(
            _runner(self.cell, self.variable_broadcast, self.gradient),
            initial_carry,
            inputs,
            seq_lengths,
            time_axis=time_axis,
            batch_axes=inputs.ndim - feature_axes - 1,
            reverse=reverse,
            keep_order=keep_order,
        )
        return (carry, outputs) if return_carry else outputs


class ScannedRNN(nn.Module):
    """`ScannedRNN` is the GRU of purejaxrl and its descendants with a gradient method.

    h_t = GRUCell(h̃_{t−1}, x_t),   h̃_{t−1} = 0 where reset_t, else h_{t−1}

    Args:
      gradient: the gradient method.
      cell_name: under which the params of the GRU lie: "GRUCell_0" or, where a copy of ScannedRNN makes a
        GRUCell for its initial carry first, "GRUCell_1".

    Returns:
      A module that is called with carry [..., H] and (ins [T, ..., I], resets [T, ...]), and returns
      (carry, outputs [T, ..., H]). A reset is a bool, or a number that is not 0.

    Raises:
      ValueError: the params have another name, or the shapes do not fit.

    >>> carry = ScannedRNN.initialize_carry(2, 5)
    >>> x = jnp.ones((7, 2, 5)), jnp.zeros((7, 2), bool)
    >>> variables = ScannedRNN().init(jax.random.key(0), carry, x)
    >>> ScannedRNN().apply(variables, carry, x)[1].shape
    (7, 2, 5)
    """

    gradient: GradientMethod = full()
    cell_name: str = "GRUCell_0"

    @named("flax_linen.ScannedRNN")
    def __post_init__(self) -> None:
        check_method(self.gradient)
        super().__post_init__()

    @named("flax_linen.ScannedRNN")
    @nn.compact
    def __call__(self, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        ins, resets = x
        names = list(self.variables.get("params", {}))
        if names and self.cell_name not in names:
            fix = f"pass cell_name={names[0]!r}"
            raise bad("params", f"the weights of the GRU under the name {self.cell_name}", names, fix)
        cell = nn.GRUCell(features=carry.shape[-1], name=self.cell_name)
        if not names:
            cell(carry, ins[0])
        found = recognised(cell, cell.variables["params"])
        assert found is not None  # as the cell is made here
        last, ys = run(found, carry, ins, self.gradient, reset=jnp.asarray(resets) != 0)
        return last, ys

    @staticmethod
    def initialize_carry(batch_size: int, hidden_size: int) -> Array:
        """The carry with which an episode begins: zeros, [batch_size, hidden_size]."""
        return jnp.zeros((batch_size, hidden_size))


def adopted_cell(cell: Foreign, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of flax.linen, or the cell of an nn.RNN, becomes one of ours, see `adopt`."""
    params = cell.variables if params is None else params
    params = params.get("params", params)
    if isinstance(cell, nn.RNN):
        for argument in ("reverse", "keep_order"):
            if getattr(cell, argument):
                raise bad(f"cell.{argument}", "False", True, f"adopt cell.cell and run it with {argument}")
        params = params.get("cell", params)
        cell = cell.cell
    found = recognised(cell, params)
    if found is not None:
        if cell.carry_init is not nn.initializers.zeros_init():
            fix = "leave it out, and pass the carry of cell.initialize_carry to jb.unroll"
            raise bad("cell.carry_init", "zeros, as the carry of the adopted cell", cell.carry_init, fix)
        return found.cell, found.params
    if input_size is None:
        fix = "pass input_size=I, as a cell of flax.linen does not say it"
        raise bad("input_size", f"the size of the inputs of a {type(cell).__name__}", None, fix)
    return as_step_cell(_CALLS, cell.clone(parent=None, name=None), nn.meta.unbox(params), input_size)


def recognised(cell: Foreign, params: Foreign) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    kind = type(cell)
    if kind not in (nn.SimpleCell, nn.GRUCell, nn.LSTMCell, nn.OptimizedLSTMCell):
        return None
    functions = [cell.activation_fn, *([cell.gate_fn] if hasattr(cell, "gate_fn") else [])]
    if not all(not isinstance(f, nn.Module) and is_pointwise(f) for f in functions):
        return None
    ours = from_linen(nn.meta.unbox(params))
    sizes = ours.w_x.shape[0], ours.w_h.shape[0]
    if kind is nn.SimpleCell:
        if cell.residual:
            ours = ours._replace(w_h=ours.w_h + jnp.eye(len(ours.w_h), dtype=ours.w_h.dtype))
        return adopted(elman_with(*sizes, cell.activation_fn, True), ours, H_ALONE, cell.dtype)
    if kind is nn.GRUCell:
        cell_of_ours = gru_with(*sizes, cell.gate_fn, cell.activation_fn, True)
        return adopted(cell_of_ours, ours, H_ALONE, cell.dtype)
    return adopted(lstm_with(*sizes, cell.gate_fn, cell.activation_fn, True), ours, C_H, cell.dtype)


def _runner(cell: Foreign, broadcast: Foreign, gradient: GradientMethod) -> Runner:
    """The cell runs as one of ours, or as it is."""
    variables = {name: v for name, v in cell.variables.items() if scope.in_filter(broadcast, name)}
    is_intercepted = bool(getattr(linen_module, "_global_interceptor_stack", ()))  # by nn.intercept_methods
    found = None if is_intercepted else recognised(cell, variables.get("params", {}))
    if found is not None:
        return lambda carry, xs, mask, reverse: run(found, carry, xs, gradient, mask=mask, reverse=reverse)
    unbound = cell.clone(parent=None, name=None)

    def runner(carry: ArrayTree, xs: Array, mask: Mark, reverse: bool) -> tuple[ArrayTree, ArrayTree]:
        def body(c: ArrayTree, x: Array) -> tuple[ArrayTree, ArrayTree]:
            made: tuple[ArrayTree, ArrayTree] = unbound.apply(variables, c, x)
            return made

        return scan(body, carry, xs, reverse=reverse, gradient=gradient, mask=mask)

    return runner


def _step(cell: Foreign, params: ArrayTree, state: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    made: tuple[ArrayTree, Array] = cell.apply({"params": params}, state, x)
    return made


def _begin(cell: Foreign, params: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    return cell.initialize_carry(jax.random.key(0), (*batch_shape, input_size))


_CALLS = Calls(_step, _begin)
