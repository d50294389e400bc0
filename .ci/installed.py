"""The wheel alone, without any extra: it is typed, imports and learns."""

import importlib.resources
import importlib.util
import platform

import jax
import jax.numpy as jnp
import optax

import jax_bptt as jb

assert importlib.resources.files(jb).joinpath("py.typed").is_file()
extras = ("tyro", "orbax", "matplotlib", "pytest", "mkdocs")
assert not any(importlib.util.find_spec(name) for name in extras), "this environment is not empty"

net = jb.network([jb.lstm(1, 8)], jb.readout(8, 1))
state = jb.init_train_state(jax.random.key(0), net, optax.sgd(1e-3), (4,))
step = jb.make_train_step(net, jb.squared_error, optax.sgd(1e-3))
losses = []
for _ in range(20):
    state, metrics = step(state, jb.Batch(jnp.ones((5, 4, 1)), jnp.ones((5, 4, 1))))
    losses.append(float(metrics.loss))
assert losses[-1] < losses[0], losses
print(f"the wheel works alone: {jb.__file__}, Python {platform.python_version()}, JAX {jax.__version__}")
