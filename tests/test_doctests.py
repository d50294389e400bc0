"""The examples in the docstrings run as they stand."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_bptt as jb

MODULES = [m.name for m in pkgutil.walk_packages(jb.__path__, "jax_bptt.")]


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
