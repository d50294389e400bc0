"""Recurrent networks trained by Backpropagation Through Time, in pure-functional JAX."""

from jax_bptt.cell import Carry as Carry
from jax_bptt.cell import Cell as Cell
from jax_bptt.cell import Params as Params
from jax_bptt.cell import StepCotangent as StepCotangent
from jax_bptt.cell import make_cell as make_cell
from jax_bptt.cells import elman as elman
from jax_bptt.gradients import GradientMethod as GradientMethod
from jax_bptt.gradients import autodiff as autodiff
from jax_bptt.gradients import full as full
from jax_bptt.loss import softmax_cross_entropy as softmax_cross_entropy
from jax_bptt.loss import squared_error as squared_error
from jax_bptt.network import Network as Network
from jax_bptt.network import NetworkParams as NetworkParams
from jax_bptt.network import Readout as Readout
from jax_bptt.network import ReadoutParams as ReadoutParams
from jax_bptt.network import network as network
from jax_bptt.network import readout as readout
from jax_bptt.network import value_and_grad as value_and_grad
from jax_bptt.train import Batch as Batch
from jax_bptt.train import Metrics as Metrics
from jax_bptt.train import TrainState as TrainState
from jax_bptt.train import init_train_state as init_train_state
from jax_bptt.train import make_train_step as make_train_step
from jax_bptt.unroll import unroll as unroll
