"""`adopt` makes a cell of another framework one of ours, with its weights as they are at that moment."""

from __future__ import annotations

import importlib
from typing import Any

from jax_bptt.base.checks import or_none, size
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import ArrayTree, Foreign
from jax_bptt.cell.step_cell import AnyCell

_FILES = {  # where the classes of a framework are defined, and which file of ours knows them
    "flax.nnx": "flax_nnx",
    "flax.linen": "flax_linen",
    "equinox": "equinox",
    "haiku": "haiku",
    "keras": "keras",
}


@named()
def adopt(cell: Foreign, params: Foreign = None, *, input_size: int | None = None) -> tuple[AnyCell, Any]:
    """`adopt` turns a cell of Flax, Equinox, Haiku or Keras into one of ours, and its weights into params.

    h_t of our cell = output of theirs at step t

    It is differentiable: call it inside the loss, and the gradient reaches the weights of the framework. Of a
    layer the cell alone is adopted: the gradient method, the direction and the like are said to `unroll`.

    Args:
      cell: a cell, or a layer with one cell. Simple cells, LSTMs and GRUs become `elman`, `lstm` and `gru`,
        with one product a step, and with the activations, biases and dtype of theirs; any other cell becomes
        a `step_cell`.
      params: the weights, if the cell does not hold them, or others in their place: the "params" of a cell of
        flax.linen, an nnx.State, the arrays of an Equinox module, the params of a Haiku core, a list of the
        weights of Keras.
      input_size: I, for a cell that is none of the three kinds and that does not say it, such as those of
        flax.linen.

    Returns:
      (cell, params), for `unroll`, `network` and all else.

    Raises:
      ValueError: the cell is of no framework that is known here, or holds something that cannot be adopted;
        the message says what.

    >>> try:
    ...     adopt(jb.lstm(3, 5))
    ... except ValueError as error:
    ...     print(str(error)[:60])
    adopt: cell: expected a cell of flax.nnx, flax.linen, equino
    """
    input_size = or_none(size)("input_size", input_size)
    if isinstance(cell, type):
        raise bad("cell", "a cell", f"the class {cell.__name__}", "make one of it, and pass that")
    for base in type(cell).__mro__:
        for framework, file in _FILES.items():
            if f"{base.__module__}.".startswith(f"{framework}."):
                adapter = importlib.import_module(f"jax_bptt.adapters.{file}")
                found: tuple[AnyCell, ArrayTree] = adapter.adopted_cell(cell, params, input_size)
                if input_size not in (None, found[0].input_size):
                    expected = f"{found[0].input_size}, the size of the inputs of the cell"
                    raise bad("input_size", expected, input_size, "leave it out")
                return found
    fix = "pass the cell itself, made, not its class; a loop of your own is run by jb.scan"
    raise bad("cell", f"a cell of {', '.join(_FILES)}", cell, fix)
