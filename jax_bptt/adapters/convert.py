"""These functions convert the weights of one cell to other frameworks and back, without those frameworks.

Each framework has its own file, which says where the framework stores which of our arrays:

* `torch`, PyTorch: `to_torch` and `from_torch`.
* `flax_linen`, Flax's older modules: `to_linen` and `from_linen`.
* `flax_nnx`, Flax's newer modules: `to_nnx` and `from_nnx`.
* `keras`, Keras: `to_keras` and `from_keras`.
* `haiku`, Haiku: `to_haiku` and `from_haiku`.
* `equinox`, Equinox: `to_equinox` and `from_equinox`.
* `onnx`, the nodes of an ONNX model: `to_onnx` and `from_onnx`.

Weights without any bias become the params of a cell with bias=False, and back where the framework has such
cells; where it has none, its biases are zeros. Of two biases a missing one counts as zeros. Activations are
not weights, so make the cell that takes the weights with the same activations. A ValueError names a cell that
the framework lacks, a missing name or a wrong shape. What a from_ function makes of JAX's arrays are JAX's
arrays, also inside jax.jit and jax.grad; of other arrays and tensors NumPy's. A to_ function makes NumPy's.
"""

from jax_bptt.weights.equinox import from_equinox, to_equinox
from jax_bptt.weights.flax_linen import from_linen, to_linen
from jax_bptt.weights.flax_nnx import from_nnx, to_nnx
from jax_bptt.weights.haiku import from_haiku, to_haiku
from jax_bptt.weights.keras import from_keras, to_keras
from jax_bptt.weights.onnx import from_onnx, to_onnx
from jax_bptt.weights.torch import from_torch, to_torch

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_torch",
]
