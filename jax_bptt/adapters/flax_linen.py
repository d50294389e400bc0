"""Cells of flax.linen are adopted with their params; `RNN` and `ScannedRNN` run them with a gradient method.

Parameters are made by the modules of linen, under their names and from their keys.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, lift
from flax.linen import module as linen_module
from flax.linen.transforms import lift_direct_transform
from jax import Array

from jax_bptt.adapters.adopted import Adopted, run
from jax_bptt.adapters.flax_cells import (
    as_ours,
    can_be_ours,
    check_begins_at_zero,
    check_direction,
    known_input_size,
    runner_of,
)
from jax_bptt.adapters.flax_sequences import Runner, arrangement, asked, over_sequence, without_time
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.flax_linen import from_linen

__all__ = ["RNN", "ScannedRNN"]

_DEFAULTS: dict[str, Foreign] = {  # arguments of nn.scan for which there is nothing else here
    "unroll": 1,
    "variable_axes": {},
    "variable_carry": False,
    "split_rngs": FrozenDict({"params": False}),
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

    >>> rnn, xs = RNN(nn.GRUCell(5), gradient=jb.truncated(10)), jnp.ones((2, 7, 3), jnp.float32)
    >>> variables = rnn.init(jax.random.key(0), xs)
    >>> rnn.apply(variables, xs, seq_lengths=jnp.array([7, 4])).shape
    (2, 7, 5)
    """

    gradient: GradientMethod = full()

    @named("flax_linen.RNN")
    def __post_init__(self) -> None:
        check_method(self.gradient)
        for argument, default in _DEFAULTS.items():
            value = getattr(self, argument)
            if value != default:
                raise bad(argument, _shown(default), _shown(value), "leave it out, or use nn.RNN")
        super().__post_init__()

    @named("flax_linen.RNN")
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: ArrayTree | None = None,
        init_key: PRNGKey | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Foreign:
        how = arrangement(self, inputs, time_major=time_major, reverse=reverse, keep_order=keep_order)
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, without_time(inputs, how.time_axis))
        if "params" not in self.cell.variables:
            self.cell(initial_carry, jnp.take(inputs, 0, how.time_axis))  # makes them
        runner = _runner(self, self.cell)
        carry, outputs = over_sequence(runner, initial_carry, inputs, seq_lengths, **how._asdict())
        return (carry, outputs) if asked(self, "return_carry", return_carry) else outputs


class ScannedRNN(nn.Module):
    """`ScannedRNN` is the GRU of purejaxrl and its descendants with a gradient method.

    h_t = GRUCell(h̃_{t−1}, x_t),   h̃_{t−1} = 0 where reset_t, else h_{t−1}

    Args:
      gradient: the gradient method.
      cell_name: the name under which new params of the GRU are made, and by which linen draws them. Most
        copies of ScannedRNN make a GRUCell for the initial carry first, so that the second one has the
        params; where that one has parent=None they are those of "GRUCell_0". Params that exist are read
        under the name that they have.

    Returns:
      A module that is called with carry [..., H] and (ins [T, ..., I], resets [T, ...]), and returns
      (carry, outputs [T, ..., H]). A reset is a bool, or a number that is not 0.

    Raises:
      ValueError: the shapes do not fit, or gradient is no gradient method.

    >>> carry = ScannedRNN.initialize_carry(2, 5)
    >>> x = jnp.ones((7, 2, 5), jnp.float32), jnp.zeros((7, 2), bool)
    >>> variables = ScannedRNN().init(jax.random.key(0), carry, x)
    >>> ScannedRNN().apply(variables, carry, x)[1].shape
    (7, 2, 5)
    """

    gradient: GradientMethod = full()
    cell_name: str = "GRUCell_1"

    @named("flax_linen.ScannedRNN")
    def __post_init__(self) -> None:
        check_method(self.gradient)
        super().__post_init__()

    @named("flax_linen.ScannedRNN")
    @nn.compact
    def __call__(self, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        ins, resets = x
        names = list(self.variables.get("params", {}))
        cell = nn.GRUCell(features=carry.shape[-1], name=names[0] if names else self.cell_name)
        if not names:
            cell(carry, ins[0])
        found = recognised(cell, cell.variables["params"])
        if found is None:
            fix = "pass the carry of initialize_carry(batch_size, hidden_size), and the params of such a GRU"
            raise bad("carry, params", f"a GRU of {carry.shape[-1]} units", cell.variables["params"], fix)
        last, ys = run(found, carry, ins, self.gradient, reset=jnp.asarray(resets).astype(bool))
        return last, ys

    @staticmethod
    def initialize_carry(batch_size: int, hidden_size: int) -> Array:
        """The carry with which an episode begins: zeros, [batch_size, hidden_size]."""
        return jnp.zeros((batch_size, hidden_size), jnp.float32)


def _shown(value: Foreign) -> str:
    return repr(dict(value) if isinstance(value, FrozenDict) else value)


def adopted_cell(cell: nn.RNNCellBase, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of flax.linen, or the cell of an nn.RNN, becomes one of ours, see `adopt`."""
    if params is None:
        if cell.scope is None:
            raise bad("params", "the params of the cell", None, 'pass params=variables["params"]')
        params = cell.variables
    params = params.get("params", params)
    if isinstance(cell, nn.RNN):
        check_direction(cell)
        params = params.get("cell", params)
        cell = cell.cell
    found = recognised(cell, params)
    if found is not None:
        check_begins_at_zero(cell)
        return found.cell, found.params
    input_size = known_input_size(cell, input_size)
    return as_step_cell(_CALLS, cell.clone(parent=None, name=None), nn.meta.unbox(params), input_size)


def recognised(cell: nn.RNNCellBase, params: Foreign) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    names = _PARAMS.get(type(cell), set())
    paths = {jax.tree_util.keystr(path, simple=True, separator=" ") for path, _ in _with_paths(params)}
    if not names or paths != names or not can_be_ours(cell):
        return None
    ours = from_linen(nn.meta.unbox(params))
    return as_ours(cell, ours) if len(ours.w_h) == cell.features else None


def _with_paths(params: Foreign) -> Foreign:
    return jax.tree_util.tree_leaves_with_path(nn.meta.unbox(params))


def _params_of(gates: str, input_biases: str, recurrent_biases: str) -> set[str]:
    """The names of the params of a cell: kernels of all gates, and the biases that it has."""
    kernels = {f"{side}{gate} kernel" for side in "ih" for gate in gates.split()}
    biases = {f"i{gate} bias" for gate in input_biases.split()}
    return kernels | biases | {f"h{gate} bias" for gate in recurrent_biases.split()}


_OF_LSTM = _params_of("i f g o", "", "i f g o")
_PARAMS: dict[type, set[str]] = {
    nn.SimpleCell: {"i kernel", "i bias", "h kernel"},
    nn.GRUCell: _params_of("r z n", "r z n", "n"),
    nn.LSTMCell: _OF_LSTM,
    nn.OptimizedLSTMCell: _OF_LSTM,
}


def _runner(rnn: RNN, cell: nn.RNNCellBase) -> Runner:
    """The cell runs as one of ours, or as it is."""
    is_intercepted = bool(getattr(linen_module, "_global_interceptor_stack", ()))  # by nn.intercept_methods
    found = None if is_intercepted else recognised(cell, cell.variables.get("params", {}))
    if found is not None:
        return runner_of(cell, found, rnn.gradient)

    def runner(carry: ArrayTree, xs: Array, mask: Mark, reverse: bool) -> tuple[ArrayTree, ArrayTree]:
        def over_steps(step: Callable[..., tuple[ArrayTree, ArrayTree]], scopes: Foreign) -> Foreign:
            def run_packed(unpack: Foreign, _: Foreign, variables: Foreign, rngs: Foreign) -> Foreign:
                def body(c: ArrayTree, x: Array) -> tuple[ArrayTree, ArrayTree]:
                    return step(unpack(variables, rngs), c, x)

                return scan(body, carry, xs, reverse=reverse, gradient=rnn.gradient, mask=mask), ()

            return lift.pack(run_packed, (rnn.variable_broadcast,), (), ("params",))(scopes)

        # as nn.scan does it: also where a part of the cell belongs to another module
        made: tuple[ArrayTree, ArrayTree] = lift_direct_transform(over_steps, (_call,), cell)
        return made

    return runner


def _call(cell: nn.RNNCellBase, carry: ArrayTree, x: Array) -> tuple[ArrayTree, ArrayTree]:
    made: tuple[ArrayTree, ArrayTree] = cell(carry, x)
    return made


def _step(cell: nn.RNNCellBase, params: ArrayTree, state: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    made: tuple[ArrayTree, Array] = cell.apply({"params": params}, state, x)
    return made


def _begin(cell: nn.RNNCellBase, params: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    return cell.initialize_carry(jax.random.key(0), (*batch_shape, input_size))


_CALLS = Calls(_step, _begin)
