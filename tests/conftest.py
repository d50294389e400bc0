"""Every test and doctest runs with strict numerics: x64, no silent promotion of dtypes or ranks."""

import gc
import itertools
import os

from support.compile_options import FLAGS

# Before jax is imported; what was chosen outside comes last, and counts.
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where there is a GPU, or the compiler for one

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing takes less time so, and no test reads a file or a line in a program.
jax.config.update("jax_include_full_tracebacks_in_locations", False)
gc.set_threshold(100_000, 20, 20)


_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_programs_at_a_time():
    """Compiled programs hold memory maps; where a process has too many (65,530), XLA ends it."""
    yield
    if next(_TESTS) % 250 == 0:
        jax.clear_caches()


WHOLE = ("test_gpu.py", "test_fused.py")  # what needs the newest JAX, or the compiler for GPUs


def pytest_addoption(parser):
    said = f"every N-th test only, and all of {' and '.join(WHOLE)}"
    parser.addoption("--share", type=int, default=1, metavar="N", help=said)


def pytest_collection_modifyitems(config, items):
    others = [item for item in items if item.path.name not in WHOLE]
    left_out = {*others} - {*others[:: config.getoption("share")]}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
