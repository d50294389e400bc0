"""One cell a file: forward equations and hand-derived adjoint, numbered, above the code."""

from jax_bptt.cells.elman import elman as elman
