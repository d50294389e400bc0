"""The examples in the docstrings run as they stand."""

import doctest
import importlib.util
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_bptt as jb

FRAMEWORKS = {"flax_linen", "flax_nnx", "equinox", "haiku", "keras"}  # of the extra `peers`


def _is_here(module):
    """Whether it can be imported: an adapter imports its framework."""
    adapter = module.partition(".adapters.")[2]
    return adapter not in FRAMEWORKS or importlib.util.find_spec(adapter.partition("_")[0]) is not None


MODULES = [m.name for m in pkgutil.walk_packages(jb.__path__, "jax_bptt.") if _is_here(m.name)]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "jb": jb}
    failed, _ = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert failed == 0


def test_there_are_examples():
    tested = sum(
        len(t.examples) for m in MODULES for t in doctest.DocTestFinder().find(importlib.import_module(m))
    )
    assert tested > 20
