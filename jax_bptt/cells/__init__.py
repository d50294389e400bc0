"""One cell a file: forward equations and hand-derived adjoint, numbered, above the code."""

from jax_bptt.cells.elman import elman as elman
from jax_bptt.cells.gru import GRUParams as GRUParams
from jax_bptt.cells.gru import gru as gru
from jax_bptt.cells.indrnn import indrnn as indrnn
from jax_bptt.cells.leaky import LeakyParams as LeakyParams
from jax_bptt.cells.leaky import leaky as leaky
from jax_bptt.cells.lstm import LSTMCarry as LSTMCarry
from jax_bptt.cells.lstm import PeepholeParams as PeepholeParams
from jax_bptt.cells.lstm import lstm as lstm
from jax_bptt.cells.mgu import mgu as mgu
