"""`learn_carry` trains the initial carry of any cell: its h_0 (and c_0) become parameters.

No engine change is needed. A reset, or a carry of None, starts from cell.initial_carry(params, rows); where
that reads params, the gradient reaches them.
"""

from __future__ import annotations

from typing import Any, overload

import jax
import jax.numpy as jnp

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.base.types import PRNGKey, S
from jax_bptt.base.variants import varied
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.initial_carry import INITIAL, initial_of
from jax_bptt.cell.step_cell import AnyCell, StepCell


@overload
def learn_carry(cell: Cell[Any, S]) -> Cell[Any, S]: ...
@overload
def learn_carry(cell: StepCell[Any, S]) -> StepCell[Any, S]: ...
@cached()
def learn_carry(cell: AnyCell) -> AnyCell:
    """`learn_carry` returns the same cell with an initial carry that is trained.

    h_0 = the parameter h_0 [H] in every row, and so for every field of the carry

    It is trained wherever a sequence starts from it: after a reset, or if the carry is None, as in a training
    step whose state has no batch shape. A state with a batch shape continues from the carry of the batch
    before; there, set reset[0] in the rows where a new sequence starts.

    Args:
      cell: a cell whose params are a NamedTuple and whose initial carry is zeros.

    Returns:
      The cell, whose params have one more field, such as h_0 [H], for each field of the carry; init makes
      it zero. The same object for the same cell.

    Raises:
      ValueError: a cell that makes its own initial carry, or whose params are not a NamedTuple.

    >>> import jax_bptt as jb
    >>> learn_carry(jb.lstm(3, 5)).init(jax.random.key(0))._fields
    ('w_x', 'w_h', 'b', 'h_0', 'c_0')
    """
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "call it on each cell of a network")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0)))
    fields = getattr(params, "_fields", ())
    if not fields or getattr(cell.initial_carry, "func", None) is not initial_of or "h" + INITIAL in fields:
        fix = "let init make the parameter h_0, and let your own initial_carry return it for every row"
        raise bad("cell", "NamedTuple params and an initial carry of zeros", cell, fix)
    carry = jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), ()))

    def init(key: PRNGKey) -> Any:
        params: Any = cell.init(key)
        dtype = jax.tree.leaves(params)[0].dtype
        zeros = {field + INITIAL: jnp.zeros(s.shape, dtype) for field, s in carry._asdict().items()}
        return varied(params, "WithCarry", params._asdict() | zeros)

    return cell._replace(init=init)
