"""A layer runs a cell over the sequence in one or two directions, with dropout and a residual connection.

    h→_t from x_1..x_t                                 by `unroll`                         (H1)
    h←_t from x_T..x_t                                 by `unroll`, reverse                (H2)
    o_t = [o→_t, o←_t],   o→_t = h→_t,   o←_t = h←_t                                       (H3)
    o_t ← o_t m_t / (1 − p),   m_t one with probability 1 − p, from a key for each step and row   (H4)
    (zero where p = 1)
    o_t ← o_t + x_t                                    residual, where mask_t              (H5)

    o_t ← o→_t + o←_t,   or (o→_t + o←_t)/2            merge "sum" or "mean" instead       (H6)

The two directions are merged last, because `last` takes each of them at another step. So that the result is
dropout(merge(h→_t, h←_t)) + x_t, both directions are dropped by the same m_t, and to each is added x_t for a
mean, x_t / 2 for a sum. Units of h_{t−1} that W_h does not read are in `recurrent_dropout`.

The next layer reads o_t as its x_t; its input projection is again one product for all t.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag
from jax_bptt.base.errors import bad
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import select, vmap_leading, zeros_like
from jax_bptt.base.types import ArrayTree, Mark, PRNGKey, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.sequence import Sequence, ends_of
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.dense import Dense
from jax_bptt.unrolling.arguments import parameter_shapes
from jax_bptt.unrolling.unroll import run_checked

Merge: TypeAlias = Literal["concatenate", "sum", "mean"]


@by_shape
class Directions(NamedTuple):
    """These are the params, or the carries, of the two cells of a layer that reads both ways.

    Attributes:
      forward: those of the cell that reads from the first step to the last.
      backward: those of the cell that reads from the last step to the first.
    """

    forward: Any
    backward: Any


@made(run="put it into jb.network([layer], readout)")
class Layer(NamedTuple):
    """A `Layer` is one layer of a network; `layer` makes it.

    Attributes:
      forward: the cell that reads from the first step to the last; or a `Dense` layer, without a state.
      backward: the cell that reads from the last to the first, or None.
      residual: whether the input is added to the output.
      dropout: p, the probability with which an output is set to zero in training.
      merge: how the outputs of two directions become one.
      recurrent_dropout: p, the probability with which a unit is not read by W_h in training.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    forward: AnyCell | Dense
    backward: AnyCell | None = None
    residual: bool = False
    dropout: float = 0.0
    merge: Merge = "concatenate"
    recurrent_dropout: float = 0.0
    made_by: Call | None = None

    @property
    def is_recurrent(self) -> bool:
        """Whether it has a state, unlike a dense layer."""
        return not isinstance(self.forward, Dense)

    @property
    def cells(self) -> tuple[AnyCell, ...]:
        """These are the cells of its directions, one or two; a dense layer has none."""
        directions = (self.forward, self.backward)
        return tuple(c for c in directions if c is not None and not isinstance(c, Dense))

    @property
    def dense(self) -> Dense:
        """This is the map of a layer without a state."""
        assert isinstance(self.forward, Dense)
        return self.forward

    @property
    def maps(self) -> tuple[AnyCell | Dense, ...]:
        """These are its cells, or its dense map: all that has parameters."""
        return (self.forward,) if self.backward is None else (self.forward, self.backward)

    @property
    def input_size(self) -> int:
        """This is I, the number of input features."""
        return self.forward.input_size

    @property
    def output_size(self) -> int:
        """This is the number of features of o_t."""
        return self.forward.hidden_size if self.adds else sum(one.hidden_size for one in self.maps)

    @property
    def adds(self) -> bool:
        """Whether the outputs of its two directions are added, not concatenated."""
        return self.merge != "concatenate"

    def parts(self, of_layer: ArrayTree) -> tuple[Any, ...]:
        """The params, or the carry, of the layer are split into those of each of its cells."""
        return (of_layer,) if self.backward is None else tuple(of_layer)

    def each(self, f: Callable[..., Any], *args: ArrayTree) -> Any:
        """The function f is applied to each of `maps`, with its part of each argument."""
        results = tuple(map(f, self.maps, *map(self.parts, args)))
        return results[0] if self.backward is None else Directions(*results)


def _probability(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise bad(argument, "a probability from 0 to 1", value, "pass the share of outputs to drop")
    return float(value)


def _merge(argument: str, value: object) -> object:
    if not isinstance(value, str) or value not in get_args(Merge):
        raise bad(argument, " or ".join(map(repr, get_args(Merge))), value, "choose one of them")
    return value


@cached(merge=_merge, residual=flag, dropout=_probability, recurrent_dropout=_probability)
def layer(
    cell: AnyCell | Dense,
    *,
    backward: AnyCell | None = None,
    merge: Merge = "concatenate",
    residual: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
) -> Layer:
    """A layer adds a second direction, a residual connection or dropout to a cell.

    o_t = dropout(merge(h→_t, h←_t)) + x_t   (H1-H6)

    Args:
      cell: the cell that reads from the first step to the last, or a layer of `dense`.
      backward: a second cell, which reads from the last step to the first. None for one direction.
      merge: how the outputs of the two become one: "concatenate" for [h→_t, h←_t], or "sum" or "mean" of
        both, which must then have the same size.
      residual: whether the input x_t is added to the output; both must then have the same size.
      dropout: p from 0 to 1, the probability with which an output is set to zero. It acts only where the
        network is given a key.
      recurrent_dropout: p from 0 to 1, the probability with which W_h does not read a unit of h_{t−1}. The
        units are the same for all steps and rows; each key draws others. What W_h reads is divided by 1 − p.
        It acts only where the network is given a key, see the module `recurrent_dropout`.

    Returns:
      The `Layer`, for `network`. With two directions its params and its carry are `Directions`.

    Raises:
      ValueError: cell or backward is not a cell, sizes do not agree, merge is unknown, residual is not a
        bool, a probability is not from 0 to 1, or recurrent_dropout is given for a cell without a matrix W_h
        or for one that is made by `step_cell`, such as an `lstm` with a projection.

    >>> import jax_bptt as jb
    >>> layer(jb.gru(3, 4), backward=jb.gru(3, 4), dropout=0.2).output_size
    8
    """
    for name, c in (("cell", cell), ("backward", backward)):
        is_dense = isinstance(c, Dense) and name == "cell" and backward is None
        if not isinstance(c, (Cell, StepCell)) and not is_dense and not (name == "backward" and c is None):
            raise bad(name, "a Cell", c, "make one such as jb.lstm(input_size, hidden_size)")
    if backward is not None and backward.input_size != cell.input_size:
        came = f"input_size {backward.input_size}"
        raise bad("backward", f"input_size {cell.input_size}, as cell", came, "both cells read the same x_t")
    if merge != "concatenate":
        _check_merge(cell, backward, merge)
    if recurrent_dropout:
        _check_matrices([one for one in (cell, backward) if one is not None])
    result = Layer(cell, backward, residual, dropout, merge, recurrent_dropout)
    if residual and result.input_size != result.output_size:
        sizes = f"{result.input_size} features in and {result.output_size} out"
        raise bad("residual", "as many features out as in", sizes, "choose equal sizes or residual=False")
    return result


def _check_merge(cell: AnyCell | Dense, backward: AnyCell | None, merge: str) -> None:
    if backward is None:
        raise bad(
            "merge", "'concatenate', as there is one direction", repr(merge), "pass backward, a second cell"
        )
    if backward.hidden_size != cell.hidden_size:
        sizes = f"{backward.hidden_size} units"
        raise bad("backward", f"{cell.hidden_size} units, as cell", sizes, f"a {merge} is of equal sizes")


def _check_matrices(cells: list[AnyCell | Dense]) -> None:
    for cell in cells:
        shapes: Any = parameter_shapes(cell) if isinstance(cell, Cell) else None
        if shapes is None or shapes.w_h.ndim < 2:
            fix = "leave it at 0; it needs a matrix w_h that multiplies h, as jb.lstm has"
            raise bad("recurrent_dropout", "0 for a layer without such a matrix", cell, fix)


def run_layers(
    layers: tuple[Layer, ...],
    params: tuple[Any, ...],
    carry: tuple[Any, ...] | None,
    sequence: Sequence,
    gradient: GradientMethod,
    keys: PRNGKey | None,
) -> tuple[tuple[Any, ...], Array]:
    """The layers run one after the other and return s_T of each and o_1..o_T of the last, [T, ..., features].

    The outputs of the last layer are not merged yet. A carry of None stands for the initial carry; keys are
    those of `dropout_keys`.
    """
    last: list[Any] = []
    starts = sequence.starts  # one for each layer, as the carry
    for number, (layer, p) in enumerate(zip(layers, params, strict=True)):
        s_0 = None if carry is None else carry[number]
        of_layer = sequence._replace(starts=None if starts is None else starts[number])
        s_last, hs = _run_layer(layer, p, s_0, of_layer, gradient)
        last.append(s_last)
        outputs = outputs_of(layer, hs, sequence, keys_of_layer(number, keys))
        sequence = sequence._replace(xs=merge_directions(layer, outputs))
    return tuple(last), outputs


def _run_layer(
    layer: Layer, params: Any, carry: Any, sequence: Sequence, gradient: GradientMethod
) -> tuple[State | Directions | tuple[()], Array]:
    if not layer.is_recurrent:
        return (), layer.dense.forward(params, sequence.xs)
    if len(layer.cells) == 1:
        return run_checked(layer.cells[0], params, carry, sequence, gradient)  # (H1)
    to_the_right, to_the_left = layer.cells
    to_right, to_left = Directions(None, None) if carry is None else carry
    starts: Any = Directions(None, None) if sequence.starts is None else sequence.starts
    of_right = sequence._replace(starts=starts.forward)
    right, ahead = run_checked(to_the_right, params.forward, to_right, of_right, gradient)  # (H1)
    # read backwards, a mark between steps t − 1 and t is one of t − 1
    ends = ends_of(sequence._replace(starts=starts.backward))
    left, back = run_checked(to_the_left, params.backward, to_left, ends, gradient, reverse=True)  # (H2)
    return Directions(right, left), jnp.concatenate([ahead, back], -1)  # (H3)


def outputs_of(layer: Layer, hs: Array, sequence: Sequence, keys: PRNGKey | None) -> Array:
    """The outputs o_1..o_T are made from h_1..h_T and the inputs of the layer, each step by itself.

    Those of two directions stand side by side, see `merge_directions`.
    """

    def of_both(z: Array) -> Array:
        return jnp.concatenate([z, z], -1) if layer.adds else z

    if layer.dropout and keys is not None:
        keep_rate, features = 1 - layer.dropout, (layer.output_size,)
        kept = vmap_leading(keys.ndim, lambda key: jax.random.bernoulli(key, keep_rate, features))(keys)
        # where p = 1 nothing is kept, and any divisor but 0 will do
        hs = jnp.where(of_both(kept), hs / (keep_rate or 1.0), jnp.zeros_like(hs))  # (H4)
    if layer.residual:
        xs = select(sequence.mask, sequence.xs, zeros_like(sequence.xs))
        hs = hs + of_both(xs / 2 if layer.merge == "sum" else xs)  # (H5)
    return hs


def merge_directions(layer: Layer, outputs: Array) -> Array:
    """The outputs of two directions become one, if the layer adds them; others stay as they are."""
    if not layer.adds:
        return outputs
    ahead, back = jnp.split(outputs, 2, -1)
    return ahead + back if layer.merge == "sum" else (ahead + back) / 2  # (H6)


def dropout_keys(key: PRNGKey | None, sequence: Sequence) -> PRNGKey | None:
    """The key is split into one key for each step and row, [T, ...]; None stays None.

    So a chunk of the steps, or the rows of one device, draw the same numbers as in a run of the whole.
    """
    return None if key is None else jax.random.split(of_threefry(key), sequence.leading)


def of_threefry(key: PRNGKey) -> PRNGKey:
    """A key of any kind is turned into one of the kind threefry.

    Keys of the kind rbg draw other numbers for another number of keys at once.
    """
    is_raw = key.dtype == jnp.uint32  # made by jax.random.PRNGKey, not by jax.random.key
    numbers = key if is_raw else jax.random.key_data(key)
    two = jax.random.wrap_key_data(numbers[:2], impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, numbers[2:], two)


def keys_of_layer(number: int, keys: PRNGKey | None) -> PRNGKey | None:
    """The keys of one layer are made from those of the network, by the number of the layer."""
    return (
        None if keys is None else vmap_leading(keys.ndim, lambda key: jax.random.fold_in(key, number))(keys)
    )


def at_last_step(layer: Layer, outputs: Array, mask: Mark) -> Array:
    """From outputs [T, ..., *] each direction's last valid one is taken, and merged: [..., features]."""
    # the forward cell ends at the last valid step, the backward cell at the first
    to_right, to_left = jnp.split(outputs, [layer.forward.hidden_size], -1)
    if mask is None:
        return merge_directions(layer, jnp.concatenate([to_right[-1], to_left[0]], -1))
    first_valid, last_valid = jnp.argmax(mask, 0), mask.shape[0] - 1 - jnp.argmax(jnp.flip(mask, 0), 0)

    def at(step: Array, z: Array) -> Array:
        return jnp.take_along_axis(z, step[None, ..., None], 0)[0]

    return merge_directions(layer, jnp.concatenate([at(last_valid, to_right), at(first_valid, to_left)], -1))
