"""Recurrent networks trained by Backpropagation Through Time, in pure-functional JAX.

Begin with `network`, `init_train_state` and `make_train_step`; or with a cell such as `lstm`, and `unroll`.
For a loop of your own write `scan` in place of jax.lax.scan.
Print a cell, a network or a gradient method to see the call that made it.

The names in `__all__` are public and stay. The folders below may change.
"""

from jax_bptt.adapters import convert
from jax_bptt.adapters.adopt import adopt
from jax_bptt.cell.cell import Carry, Cell, Params, StepCotangent, make_cell
from jax_bptt.cell.initializers import chrono, identity, orthogonal
from jax_bptt.cell.step_cell import StepCell, step_cell
from jax_bptt.cells.elman import elman
from jax_bptt.cells.gru import GRUParams, gru
from jax_bptt.cells.indrnn import indrnn
from jax_bptt.cells.leaky import LeakyParams, leaky
from jax_bptt.cells.learn_carry import learn_carry
from jax_bptt.cells.lstm import LSTMCarry, PeepholeParams, lstm
from jax_bptt.cells.lstm_projected import ProjectedParams
from jax_bptt.cells.mgu import mgu
from jax_bptt.checking.gradient_check import check_cell, check_gradient
from jax_bptt.checking.report import Report
from jax_bptt.engine.sequence import mask_of_lengths
from jax_bptt.flow.clipped_share import clipped_share
from jax_bptt.flow.credit import Credit, Terms, by_steps, credit
from jax_bptt.flow.gradient_flow import GradientFlow, LayerFlow, gradient_flow
from jax_bptt.flow.lag_profile import lag_profile
from jax_bptt.flow.lyapunov import Lyapunov, lyapunov_spectrum
from jax_bptt.flow.regularisers import flossing, omega
from jax_bptt.gradients.artbp import artbp
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.checkpointed import checkpointed
from jax_bptt.gradients.clipped import clipped
from jax_bptt.gradients.full import full
from jax_bptt.gradients.fused import fused
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.gradients.newton import Newton, NewtonInfo, newton
from jax_bptt.gradients.parallel import parallel
from jax_bptt.gradients.rtrl import rtrl
from jax_bptt.gradients.truncated import truncated
from jax_bptt.networks.dense import Dense, DenseParams, dense
from jax_bptt.networks.encoder import Embedding, EmbeddingParams, Encoder, embedding, encoder
from jax_bptt.networks.head import Head, TiedParams, TiedReadout, head, tied_readout
from jax_bptt.networks.layers import Directions, Layer, layer
from jax_bptt.networks.losses import softmax_cross_entropy, squared_error
from jax_bptt.networks.network import Network, network
from jax_bptt.networks.params import NetworkParams
from jax_bptt.networks.readout import Readout, ReadoutParams, last, readout
from jax_bptt.networks.ready_losses import (
    binary_cross_entropy,
    gaussian_nll,
    huber_error,
    quantile_error,
)
from jax_bptt.networks.step_errors import mean_over_steps, sum_over_steps
from jax_bptt.networks.value_and_grad import value_and_grad
from jax_bptt.training.fastest import Fastest, fastest
from jax_bptt.training.sharding import by_rows, data_parallel, fully_sharded
from jax_bptt.training.state import Batch, Metrics, TrainState
from jax_bptt.training.train import init_train_state, make_train_step, make_train_steps
from jax_bptt.unrolling.online_rtrl import RTRLState, rtrl_gradient, rtrl_init, rtrl_step
from jax_bptt.unrolling.scan import scan
from jax_bptt.unrolling.step import step
from jax_bptt.unrolling.unroll import unroll, unroll_states
from jax_bptt.unrolling.unroll_by_newton import unroll_by_newton

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Carry",
    "Cell",
    "Credit",
    "Dense",
    "DenseParams",
    "Directions",
    "Embedding",
    "EmbeddingParams",
    "Encoder",
    "Fastest",
    "GRUParams",
    "GradientFlow",
    "GradientMethod",
    "Head",
    "LSTMCarry",
    "Layer",
    "LayerFlow",
    "LeakyParams",
    "Lyapunov",
    "Metrics",
    "Network",
    "NetworkParams",
    "Newton",
    "NewtonInfo",
    "Params",
    "PeepholeParams",
    "ProjectedParams",
    "RTRLState",
    "Readout",
    "ReadoutParams",
    "Report",
    "StepCell",
    "StepCotangent",
    "Terms",
    "TiedParams",
    "TiedReadout",
    "TrainState",
    "adopt",
    "artbp",
    "autodiff",
    "binary_cross_entropy",
    "by_rows",
    "by_steps",
    "check_cell",
    "check_gradient",
    "checkpointed",
    "chrono",
    "clipped",
    "clipped_share",
    "convert",
    "credit",
    "data_parallel",
    "dense",
    "elman",
    "embedding",
    "encoder",
    "fastest",
    "flossing",
    "full",
    "fully_sharded",
    "fused",
    "gaussian_nll",
    "gradient_flow",
    "gru",
    "head",
    "huber_error",
    "identity",
    "indrnn",
    "init_train_state",
    "lag_profile",
    "last",
    "layer",
    "leaky",
    "learn_carry",
    "lstm",
    "lyapunov_spectrum",
    "make_cell",
    "make_train_step",
    "make_train_steps",
    "mask_of_lengths",
    "mean_over_steps",
    "mgu",
    "network",
    "newton",
    "omega",
    "orthogonal",
    "parallel",
    "quantile_error",
    "readout",
    "rtrl",
    "rtrl_gradient",
    "rtrl_init",
    "rtrl_step",
    "scan",
    "softmax_cross_entropy",
    "squared_error",
    "step",
    "step_cell",
    "sum_over_steps",
    "tied_readout",
    "truncated",
    "unroll",
    "unroll_by_newton",
    "unroll_states",
    "value_and_grad",
]


def __dir__() -> list[str]:
    """What completion and help() list: the public names, without the folders below."""
    return [*__all__, "__version__"]
