"""Which slopes does `full` keep from the forward pass, and which does it compute again in the backward pass?

To keep the slopes of a step costs memory traffic, to compute them again costs products. Let P be the number
of parameters of a cell, N = G H + S about the number of its slopes in a step and row (S of them are of the
state), and T B N all of them, in a dtype of b bytes:

    B H b < 512, T ≥ 512  all are computed again                small writes are slow        (KS1)
    T B N b ≤ 8 MiB       one chunk of all steps                they stay in the caches      (KS2)
    T B N b ≤ 16 MiB      all are kept                          they fit the caches          (KS3)
    2 P / N ≥ 500         all are kept                          products cost more           (KS4)
    otherwise             all are computed again, by chunks     traffic costs more           (KS5)

The first line that holds decides; where (KS1) holds, the chunk is still that of (KS2). B H b are the bytes of
an array of one step: XLA:CPU is slow to write so few into the arrays of all steps, the more so the longer
they are.
2 P / N is how many floating-point operations a slope costs: the intensity of the recomputation. The limits
lie between sizes that were measured on two machines, one with fast products and one with slow ones, see
experiments/MEASURED.md, "Recomputed slopes". On a GPU all are computed again at every size.
"""

from __future__ import annotations

import jax

from jax_bptt.base.checks import is_known
from jax_bptt.base.trees import num_parameters
from jax_bptt.engine import chunks
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.phases import is_pointwise
from jax_bptt.engine.platform import probably_on_a_gpu
from jax_bptt.engine.run import Run

IN_ONE_CHUNK = 2**23  # bytes
IN_THE_CACHES = 2**24  # bytes
INTENSE = 500  # floating-point operations for each slope
SMALL = 512  # bytes
LONG = 512  # steps


def chunk_of(cell: Runnable, run: Run) -> int:
    """This is K if the user does not choose it."""
    found = _bytes_and_intensity(cell, run)
    if found is not None and found[0] <= IN_ONE_CHUNK:
        return run.sequence.steps  # (KS2)
    return chunks.chunk_of_run(run)


def share_recomputed(cell: Runnable, run: Run, chunk: int) -> float:
    """This is the fraction of steps whose slopes are computed again if the user does not choose it."""
    if probably_on_a_gpu() or _writes_little(cell, run):
        return 1  # (KS1)
    if chunk == run.sequence.steps or chunk >= chunks.fixed(run.sequence.steps):
        return 0  # all slopes exist together in any case
    found = _bytes_and_intensity(cell, run)
    if found is None:
        return 2 / 3 if num_parameters(run.params) >= 1e6 else 1
    all_bytes, intensity = found
    return 0 if all_bytes <= IN_THE_CACHES or intensity >= INTENSE else 1  # (KS3, KS4, KS5)


def _writes_little(cell: Runnable, run: Run) -> bool:
    """B H b < 512 and T ≥ 512."""
    steps = run.sequence.steps
    if not is_known(steps) or steps < LONG or not is_pointwise(cell):
        return False
    rows, dtype = chunks.rows_of_a_step(run.sequence.rows), jax.tree.leaves(run.carry)[0].dtype
    return rows * cell.hidden_size * dtype.itemsize < SMALL


def _bytes_and_intensity(cell: Runnable, run: Run) -> tuple[int, float] | None:
    """T B N b and 2 P / N; None on a GPU, for an unknown T, and for cells whose N or whose cost is unknown.

    With one gate the slopes often follow from the state, as those of tanh, without any product.
    """
    steps = run.sequence.steps
    if probably_on_a_gpu() or not is_known(steps) or not is_pointwise(cell) or cell.gates == 1:
        return None
    fields = jax.tree.leaves(run.carry)
    slopes = (cell.gates + len(fields)) * cell.hidden_size
    of_all = steps * chunks.rows_of_a_step(run.sequence.rows) * slopes * fields[0].dtype.itemsize
    return of_all, 2 * num_parameters(run.params) / slopes
