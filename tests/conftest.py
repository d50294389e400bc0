"""Strict numerics for every test and doctest: x64, no silent promotion of dtypes or ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_bptt as jb

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp, np=np, optax=optax, jb=jb)
