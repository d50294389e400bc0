"""A kernel for all steps: one launch on the GPU forward and one back, instead of several for each step.

The equations are those of the other method. Only the place of the arrays differs: W_h stays in the shared
memory of the GPU and the state in its registers, see `kernels.forward` and `kernels.backward`. Products
before and after the loops stay with XLA.
"""

from __future__ import annotations

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.engine.engine import AnyEngine, Runnable
from jax_bptt.engine.kernels.limits import say_once
from jax_bptt.engine.kernels.loops import fused_backward, fused_forward
from jax_bptt.engine.phases import engine_of
from jax_bptt.engine.pointwise import POINTWISE
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod

_BY_LOOPS = ("full", "checkpointed", "truncated", "artbp", "clipped")


def _with_time_loops(argument: str, gradient: object) -> GradientMethod:
    expected = f"one of {', '.join(f'jb.{name}' for name in _BY_LOOPS)}"
    if not isinstance(gradient, GradientMethod) or gradient.name not in _BY_LOOPS:
        raise bad(argument, expected, gradient, "its work must be in the two time loops; use jb.full()")
    return gradient


@cached(gradient=_with_time_loops)
def fused(gradient: GradientMethod = full(chunk=256, recompute=True)) -> GradientMethod:
    """This method runs the time loops of another one as kernels of an NVIDIA GPU. It is experimental.

    s_t = step(s̃_{t−1}, x_t),   λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t   all steps of a chunk in one launch

    The numbers are those of the other method up to rounding: where products are in float32 their operands
    have 16 bits, and with dtype=jnp.bfloat16 they have 8, as in the other method. A chunk of 256 steps is
    long enough for kernels; it stores the slopes of 256 steps, 256·B·G·H numbers. For less memory pass a
    smaller chunk, or `checkpointed`.

    The kernels run any pointwise cell, built-in or from `make_cell`, with masks, resets and cuts. They need
    a GPU of compute capability 9.0 (Hopper), JAX 0.11 or newer, float32 arrays, and a W_h that fits into
    shared memory: in bfloat16 up to 512 units of `elman`, `leaky` and `mgu`, 256 of `gru` and `lstm`; in
    float32 256 of the first three, 128 of `gru` and 64 of `lstm`.

    Elsewhere the loops are those of the other method, and a UserWarning says why, once for each cell. So
    they are for a step with an operation that the compiler of kernels lacks (erf, atan, floor), for a cell
    with heads, for a step cell, in `scan`, for a derivative of the gradient, and in the backward pass of
    `clipped` and of `truncated` with a stride.

    Args:
      gradient: the method whose loops become kernels: `full`, `checkpointed`, `truncated`, `artbp` or
        `clipped`.

    Returns:
      The `GradientMethod`; the same object for the same method.

    Raises:
      ValueError: another method.

    Reference: Diamos et al. 2016, Persistent RNNs: stashing recurrent weights on-chip.

    >>> fused(), fused(jb.truncated(20))
    (fused(), fused(gradient=truncated(20)))
    """
    return gradient._replace(engine=_engine)


def _engine(cell: Runnable) -> AnyEngine:
    engine = engine_of(cell)
    if engine != POINTWISE:
        say_once(cell, "its step is not pointwise, or it has an engine of its own")
        return engine
    return engine._replace(forward_loop=fused_forward, backward_loop=fused_backward)
