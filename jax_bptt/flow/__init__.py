"""Where the gradient through time comes from: one question a file, all read the three phases of `sweep`."""

from jax_bptt.flow.credit import Credit as Credit
from jax_bptt.flow.credit import Terms as Terms
from jax_bptt.flow.credit import by_steps as by_steps
from jax_bptt.flow.credit import credit as credit
from jax_bptt.flow.gradient_flow import GradientFlow as GradientFlow
from jax_bptt.flow.gradient_flow import LayerFlow as LayerFlow
from jax_bptt.flow.gradient_flow import gradient_flow as gradient_flow
from jax_bptt.flow.lag_profile import lag_profile as lag_profile
from jax_bptt.flow.lyapunov import Lyapunov as Lyapunov
from jax_bptt.flow.lyapunov import lyapunov_spectrum as lyapunov_spectrum
from jax_bptt.flow.regularisers import flossing as flossing
from jax_bptt.flow.regularisers import omega as omega
from jax_bptt.flow.share import clipped_share as clipped_share
