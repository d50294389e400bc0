"""An initial carry that is trained, for any cell: its h_0 (and c_0) are parameters.

The engine needs nothing for it. What a reset goes back to, and what a missing carry begins with, is
`cell.initial_carry(params, rows)`: where that reads params, the gradient goes on into params.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, overload

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.base.made import by_shape
from jax_bptt.base.types import PRNGKey, S
from jax_bptt.cell.cell import INITIAL, Cell, initial_of
from jax_bptt.cell.step_cell import AnyCell, StepCell


@overload
def learn_carry(cell: Cell[Any, S]) -> Cell[Any, S]: ...
@overload
def learn_carry(cell: StepCell[Any, S]) -> StepCell[Any, S]: ...
@cached()
def learn_carry(cell: AnyCell) -> AnyCell:
    """The same cell with a trained initial carry.

    h_0 = the parameter h_0 [H] in every row, and so for every field of the carry

    It is trained wherever a sequence begins at it: by a reset, or by `None` for the carry. A training
    step of `make_train_step` goes on from the chunk before: say by reset[0] where a row begins anew.

    Args:
      cell: a cell whose params are a NamedTuple and whose carry is zeros [H].

    Returns:
      The cell, its params with one more field, such as h_0, for each field of the carry; zeros at
      first. The same object for the same cell.

    Raises:
      ValueError: a cell that makes its own initial carry, or whose params are no NamedTuple.

    >>> import jax_bptt as jb
    >>> learn_carry(jb.lstm(3, 5)).init(jax.random.key(0))._fields
    ('w_x', 'w_h', 'b', 'h_0', 'c_0')
    """
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "wrap each cell before it goes into a network")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0)))
    fields = getattr(params, "_fields", ())
    if not fields or getattr(cell.initial_carry, "func", None) is not initial_of or "h" + INITIAL in fields:
        fix = "let init make the parameters and initial_carry read them"
        raise bad("cell", "NamedTuple params and an initial carry of zeros", cell, fix)
    carry = jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), ()))
    names = [*fields, *(field + INITIAL for field in carry._fields)]
    extended = _params_class(type(params), tuple(names))

    def init(key: PRNGKey) -> Any:
        params = cell.init(key)
        dtype = jax.tree.leaves(params)[0].dtype
        return extended(*params, *(jnp.zeros(s.shape, dtype) for s in carry))

    return cell._replace(init=init)


@cached()
def _params_class(of_cell: type, names: tuple[str, ...]) -> Any:
    """The class of the longer params; they are pickled as what makes this class again, and their arrays."""
    extended: Any = by_shape(namedtuple(f"{of_cell.__name__}WithCarry", names))
    extended.__reduce__ = lambda params: (_params, (of_cell, names, tuple(params)))
    return extended


def _params(of_cell: type, names: tuple[str, ...], arrays: tuple[Array, ...]) -> Any:
    return _params_class(of_cell, names)(*arrays)
