"""The weights of one cell go to other frameworks and come back, in NumPy alone.

Each framework has a file of its own, which says where it keeps which of our arrays:

* `torch`, PyTorch: `to_torch` and `from_torch`.
* `flax_linen`, Flax's older modules: `to_linen` and `from_linen`.
* `flax_nnx`, Flax's newer modules: `to_nnx` and `from_nnx`.
* `keras`, Keras: `to_keras` and `from_keras`.
* `haiku`, Haiku: `to_haiku` and `from_haiku`.
* `equinox`, Equinox: `to_equinox` and `from_equinox`.

Biases that are absent are zeros. Activations are not weights, so the cell that takes the weights has to be
made with the same ones. A cell that the framework lacks, a name that is absent and a shape that does not
fit are ValueErrors.
"""

from jax_bptt.adapters.equinox import from_equinox, to_equinox
from jax_bptt.adapters.flax_linen import from_linen, to_linen
from jax_bptt.adapters.flax_nnx import from_nnx, to_nnx
from jax_bptt.adapters.haiku import from_haiku, to_haiku
from jax_bptt.adapters.keras import from_keras, to_keras
from jax_bptt.adapters.torch import from_torch, to_torch

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
]
