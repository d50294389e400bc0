"""Cores of Haiku are adopted with their parameters; `dynamic_unroll` is Haiku's with a gradient method.

A core finds its parameters by its name in the hk.transform around it, and so does this file. A custom getter,
an interceptor or a policy of mixed precision can change what a core computes; such a core runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp
from haiku._src import base, mixed_precision, module, stateful
from jax import Array

from jax_bptt.adapters.adopted import H_ALONE, Adopted, CarryOrder, adopted, run, run_states
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.base.checks import check_like, flag, is_array, is_floating
from jax_bptt.base.errors import bad, named, naming, running
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.cells.elman import elman
from jax_bptt.cells.gru import gru
from jax_bptt.cells.lstm import LSTMCarry, lstm
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.haiku import from_haiku

__all__ = ["dynamic_unroll"]

Bundles: TypeAlias = Mapping[str, Mapping[str, Array]]  # parameters by the name of their module

_HIDDEN_AND_CELL = CarryOrder(lambda s: LSTMCarry(h=s.hidden, c=s.cell), lambda s: hk.LSTMState(s.h, s.c))
_ACTIVATIONS = jnp.tanh, jax.nn.relu, jax.nn.sigmoid


def adopted_cell(core: hk.RNNCore, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A core of Haiku becomes one of ours, see `adopt`; params are of an hk.transform or of the core."""
    if isinstance(core, hk.ResetCore):
        fix = "adopt the core inside it, and pass should_reset as reset to jb.unroll"
        raise bad("cell", "a core that reads one array", core, fix)
    if _is_hooked(core):
        came = "a custom getter, an interceptor or a policy of mixed precision around it"
        raise bad("cell", "a core that computes what it says", came, "run it by haiku.dynamic_unroll")
    if params is None:
        params = base.current_frame().params if base.inside_transform() else {}
    if not isinstance(params, Mapping):
        raise bad("params", "those of an hk.transform", params, "pass what its init returned")
    found = recognised(core, params) or recognised(core, _with_name(core, params))
    if found is not None:
        return found.cell, found.params
    if _names(core) or not params:
        fix = "call the core once before, core(x, core.initial_state(batch_size)), or pass params"
        raise bad("params", f"the parameters of the core {core.module_name}", {**params}, fix)
    if input_size is None:
        raise bad("input_size", "a size, as this core does not say it", None, "pass input_size=I")
    return as_step_cell(_CALLS, core, _used(core, params, input_size), input_size)


def recognised(core: hk.RNNCore, params: Bundles) -> Adopted | None:
    """A core whose equations are those of one of our cells, or None.

    Args:
      core: any core.
      params: those of the hk.transform around it.

    Returns:
      The `Adopted`; None also where the core would not find its parameters.
    """
    names = _names(core)
    if not names or _is_hooked(core):
        return None
    bundles = {part: params.get("/".join(filter(None, (core.module_name, part))), {}) for part in names}
    weights = {part: {name: bundles[part].get(name) for name in names[part]} for part in names}
    if not all(is_floating(w) for part in weights.values() for w in part.values()):
        return None
    ours = from_haiku(weights.get("", weights))
    sizes = ours.w_x.shape[0], core.hidden_size
    if type(core) is hk.LSTM:
        return adopted(lstm(*sizes), ours, _HIDDEN_AND_CELL)
    if type(core) is hk.GRU:
        return adopted(gru(*sizes, reset_after=False), ours, H_ALONE)
    return adopted(elman(*sizes, activation="relu"), ours, H_ALONE)


def _names(core: hk.RNNCore) -> dict[str, tuple[str, ...]]:
    """The parameters of a core that is one of ours, by the name of the module inside it; {} for another."""
    if type(core) is hk.VanillaRNN:
        return {"linear": ("w", "b"), "linear_1": ("w", "b") if core.double_bias else ("w",)}
    if type(core) is hk.LSTM:
        return {"linear": ("w", "b")}
    return {"": ("w_i", "w_h", "b")} if type(core) is hk.GRU else {}


def _with_name(core: hk.RNNCore, params: Mapping[str, Foreign]) -> Bundles:
    """Parameters of a core alone, as `to_haiku` makes them, get the names of an hk.transform."""
    if any(map(is_array, params.values())):
        return {core.module_name: params}
    return {f"{core.module_name}/{part}": bundle for part, bundle in params.items()}


def _is_hooked(core: hk.RNNCore) -> bool:
    """Whether something around a core may change what it computes.

    The first policy of mixed precision puts an interceptor in place for good, which does nothing for modules
    without a policy.
    """
    of_policies = mixed_precision._mixed_precision_interceptor
    others = [hook for hook in module.interceptor_stack if hook is not of_policies]
    policies = map(hk.mixed_precision.get_policy, (type(core), hk.Linear))
    return bool(base.param_getter_stack or others or any(policies))


@named("haiku.dynamic_unroll")
def dynamic_unroll(
    core: hk.RNNCore,
    input_sequence: ArrayTree,
    initial_state: ArrayTree,
    time_major: bool = True,
    reverse: bool = False,
    return_all_states: bool = False,
    unroll: int = 1,
    gradient: GradientMethod = full(),
) -> tuple[Any, Any]:
    """`dynamic_unroll` is hk.dynamic_unroll, with a gradient method.

    (y_t, s_t) = core(x_t, s_{t−1})

    hk.VanillaRNN, hk.LSTM and hk.GRU, also inside hk.ResetCore, run as `elman`, `lstm` and `gru`, and an
    hk.DeepRNN of them layer by layer; any other core, or function of (input, state), runs as it is, with its
    hk.get_state and its hk.next_rng_key. In init Haiku's own function runs, so that a key makes the same
    parameters.

    Args:
      core: an hk.RNNCore, or a function (input, state) -> (output, state).
      input_sequence: a pytree of arrays [T, ...], or [B, T, ...] if not time_major; for hk.ResetCore the pair
        (inputs, should_reset).
      initial_state: of the core, such as core.initial_state(batch_size).
      time_major: whether the time is the first axis, of outputs and states too, and not the second.
      reverse: whether to go from the last step to the first, as jax.lax.scan does.
      return_all_states: whether to return the states of all steps, and not the last one.
      unroll: 1; other numbers are refused.
      gradient: the gradient method that jax.grad uses.

    Returns:
      (outputs, state): the outputs of all steps, leaves [T, ...] or [B, T, ...], and the last state, or all.

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what came.

    >>> import haiku as hk
    >>> def model(xs):
    ...     core = hk.LSTM(5)
    ...     return dynamic_unroll(core, xs, core.initial_state(2))
    >>> model = hk.without_apply_rng(hk.transform(model))
    >>> params = model.init(jax.random.key(0), jnp.ones((7, 2, 3)))
    >>> outputs, state = model.apply(params, jnp.ones((7, 2, 3)))
    >>> outputs.shape, state.cell.shape
    ((7, 2, 5), (2, 5))
    """
    check_method(gradient)
    flags = {"time_major": time_major, "reverse": reverse, "return_all_states": return_all_states}
    for name, value in flags.items():
        flag(name, value)
    if not callable(core):
        raise bad("core", "an hk.RNNCore", core, "pass a core that was made, or a function (input, state)")
    if type(unroll) is not int or unroll != 1:
        raise bad("unroll", "1", unroll, "leave it out; it changes no number")
    if base.inside_transform() and hk.running_init():
        return hk.dynamic_unroll(core, input_sequence, initial_state, **flags)
    inputs = input_sequence if time_major else _swapped(input_sequence)
    options = _Options(gradient, reverse, return_all_states)
    outputs, state = _unrolled(core, inputs, initial_state, options)
    if time_major:
        return outputs, state
    return _swapped(outputs), _swapped(state) if return_all_states else state


def _swapped(tree: ArrayTree) -> ArrayTree:
    """The first two axes, time and batch, change places."""
    return jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), tree)


class _Options(NamedTuple):
    """How a core is unrolled, see `dynamic_unroll`."""

    gradient: GradientMethod
    reverse: bool
    return_all_states: bool


def _unrolled(core: hk.RNNCore, inputs: ArrayTree, state: ArrayTree, options: _Options) -> tuple[Any, Any]:
    """Outputs, and the last state or all states, of a sequence with the time first."""
    if _is_stack(core, state):
        return _by_layers(core, inputs, state, options)
    known = _known(core, inputs, state)
    if known is None:
        return _by_scan(core, inputs, state, options)
    given = known.core, state, known.xs, options.gradient
    if options.return_all_states:
        _, states = run_states(*given, reset=known.reset, reverse=options.reverse)
        return jax.tree.leaves(states)[0], states
    last, outputs = run(*given, reset=known.reset, reverse=options.reverse)
    return outputs, last


def _is_stack(core: hk.RNNCore, state: ArrayTree) -> bool:
    """Whether a core can run layer by layer: an hk.DeepRNN of cores that are ours, and of activations."""
    if type(core) is not hk.DeepRNN or _is_hooked(core) or not isinstance(state, tuple):
        return False
    cores = [layer for layer in core.layers if isinstance(layer, hk.RNNCore)]
    are_known = all(layer in _ACTIVATIONS or _names(layer) for layer in core.layers)
    return are_known and len(cores) == len(state)


def _by_layers(core: hk.RNNCore, xs: ArrayTree, state: ArrayTree, options: _Options) -> tuple[Any, Any]:
    """The outputs of all steps of a layer are the inputs of the next."""
    before, after = iter(state), []
    for layer in core.layers:
        if isinstance(layer, hk.RNNCore):
            xs, made = _unrolled(layer, xs, next(before), options)
            after.append(made)
        else:
            xs = layer(xs)
    return xs, tuple(after)


class _Known(NamedTuple):
    """A run of one of our cells.

    Attributes:
      core: what stands for the core.
      xs: [T, ..., I].
      reset: bool [T, ...] or None.
    """

    core: Adopted
    xs: Array
    reset: Mark


def _known(core: hk.RNNCore, inputs: ArrayTree, state: ArrayTree) -> _Known | None:
    """What one of our cells runs; None for what only the core itself can run, or refuse."""
    reset = None
    if type(core) is hk.ResetCore and not _is_hooked(core) and _are_pair_of_arrays(inputs):
        core, (inputs, reset) = core.core, inputs
    found = recognised(core, base.current_frame().params) if base.inside_transform() else None
    if found is None or not _fits(core, found, inputs, state):
        return None
    leading = inputs.shape[:-1]
    if reset is not None:
        if not 0 < reset.ndim <= len(leading) or reset.shape != leading[: reset.ndim]:
            return None  # it resets single units
        reset = reset.astype(bool).reshape(*reset.shape, *(1,) * (len(leading) - reset.ndim))
        reset = jnp.broadcast_to(reset, leading)
    return _Known(found, jnp.asarray(inputs), reset)


def _fits(core: hk.RNNCore, found: Adopted, inputs: ArrayTree, state: ArrayTree) -> bool:
    """Whether inputs and state are what such a core takes."""
    if not is_array(inputs) or inputs.ndim < 2 or 0 in inputs.shape:
        return False
    is_real = not jnp.issubdtype(inputs.dtype, jnp.complexfloating)
    rows = inputs.shape[1:-1]
    is_lstm = type(core) is hk.LSTM
    is_rank = len(rows) < 2 or type(core) is hk.VanillaRNN
    parts: Foreign = (state,) if not is_lstm else state if isinstance(state, hk.LSTMState) else (None,)
    is_state = all(is_floating(part) and part.shape == (*rows, core.hidden_size) for part in parts)
    return is_real and is_rank and is_state and inputs.shape[-1] == found.cell.input_size


def _are_pair_of_arrays(inputs: ArrayTree) -> bool:
    return isinstance(inputs, (tuple, list)) and len(inputs) == 2 and all(map(is_array, inputs))


def _by_scan(core: hk.RNNCore, inputs: ArrayTree, state: ArrayTree, options: _Options) -> tuple[Any, Any]:
    """Any core runs as it is; its state of Haiku and its keys go from step to step, as in hk.scan."""

    going: Foreign = {"reverse": options.reverse, "gradient": options.gradient}
    made_by = "make it by core.initial_state(batch_size)"

    def plain(state: ArrayTree, x: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
        with running("core", f"initial_state: {made_by}"):
            output, made = core(x, state)
        check_like("initial_state", state, made, None, made_by)
        return made, (output, made if options.return_all_states else None)

    def step(carry: ArrayTree, x: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
        state, of_haiku = carry
        with stateful.temporary_internal_state(of_haiku), base.push_jax_trace_level():
            state, made = plain(state, x)
            stateful.reserve_up_to_full_rng_block()
            return (state, stateful.internal_state(params=False)), made

    if not base.inside_transform():
        last, (outputs, states) = scan(plain, state, inputs, **going)
        return outputs, states if options.return_all_states else last
    stateful.reserve_up_to_full_rng_block()
    init = state, stateful.internal_state(params=False)
    (last, of_haiku), (outputs, states) = scan(step, init, inputs, **going)
    stateful.update_internal_state(of_haiku)
    return outputs, states if options.return_all_states else last


def _used(core: hk.RNNCore, params: Bundles, input_size: int) -> dict[str, dict[str, Array]]:
    """Those of the parameters that a core reads."""
    used: dict[str, dict[str, Array]] = {}

    def note(next_getter: Callable[[Array], Array], value: Array, context: hk.GetterContext) -> Array:
        bundle, _, name = context.full_name.rpartition("/")
        used.setdefault(bundle, {})[name] = params[bundle][name]
        return next_getter(value)

    def once() -> ArrayTree:
        with hk.custom_getter(note):
            return core(jnp.zeros((1, input_size), dtype), _one_row(core, dtype))

    dtype = jax.tree.leaves(params)[0].dtype
    fix = "run it by haiku.dynamic_unroll; or call it once before, core(x, core.initial_state(batch_size))"
    with naming("cell", "a core with parameters, for one array [batch, I], without random numbers", fix):
        jax.eval_shape(lambda: _pure(once)(params))
    return used


def _pure(f: Callable[[], ArrayTree]) -> Callable[[Bundles], ArrayTree]:
    """A function of modules as one of their parameters."""
    return lambda params: hk.transform(f).apply(params, None)


def _step(core: hk.RNNCore, params: Bundles, state: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    state = jax.tree.map(lambda z: z[None], state)
    output, state = _pure(lambda: core(x[None], state))(params)
    return jax.tree.map(lambda z: z[0], (state, output))


def _begin(core: hk.RNNCore, params: Bundles, batch_shape: Shape, input_size: int) -> ArrayTree:
    state = _pure(lambda: _one_row(core, jax.tree.leaves(params)[0].dtype))(params)
    return jax.tree.map(lambda z: jnp.broadcast_to(z[0], (*batch_shape, *z.shape[1:])), state)


def _one_row(core: hk.RNNCore, dtype: DType) -> ArrayTree:
    """The initial state of a batch of one row, in this dtype."""
    return jax.tree.map(lambda z: z.astype(dtype) if is_floating(z) else z, core.initial_state(1))


_CALLS = Calls(_step, _begin)
