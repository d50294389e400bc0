"""A linear network whose gradient is known in closed form."""

import jax
import jax.numpy as jnp

import jax_bptt as jb


def linear_network(gain, hidden=4, steps=20):
    """A linear net whose gradient is multiplied by the gain at every step, exactly."""
    cell = jb.elman(2, hidden, activation="identity", recurrent=jb.orthogonal(gain))
    net = jb.network([cell], jb.last(jb.readout(hidden, 2)))
    xs = jax.random.normal(jax.random.key(0), (steps, 3, 2))
    return net, net.init(jax.random.key(1)), xs, jnp.ones((3, 2))
