"""One gradient method a file; each is a value for the `gradient` argument of `unroll`."""

from jax_bptt.gradients.artbp import artbp as artbp
from jax_bptt.gradients.autodiff import autodiff as autodiff
from jax_bptt.gradients.checkpointed import checkpointed as checkpointed
from jax_bptt.gradients.clipped import clipped as clipped
from jax_bptt.gradients.full import full as full
from jax_bptt.gradients.method import GradientMethod as GradientMethod
from jax_bptt.gradients.newton import Newton as Newton
from jax_bptt.gradients.newton import NewtonInfo as NewtonInfo
from jax_bptt.gradients.newton import newton as newton
from jax_bptt.gradients.parallel import parallel as parallel
from jax_bptt.gradients.rtrl import rtrl as rtrl
from jax_bptt.gradients.truncated import truncated as truncated
