"""Calls that are wrong, a line each, for a type checker alone. Nobody runs this file."""

import jax
import jax.numpy as jnp
import optax

import jax_bptt as jb

key = jax.random.key(0)
xs, targets = jnp.ones((7, 2, 3)), jnp.ones((7, 2, 4))
cell, lstm = jb.elman(3, 5), jb.lstm(3, 5)
params, lstm_params = cell.init(key), lstm.init(key)
net = jb.network([cell], jb.readout(5, 4))
net_params = net.init(key)
optimizer = optax.adam(1e-3)
state = jb.init_train_state(key, net, optimizer, (2,))
train_step = jb.make_train_step(net, jb.squared_error, optimizer)
value_and_grad = jb.value_and_grad(net, jb.squared_error)

# fmt: off
jb.elman("3", 5)  # wrong: a size that is a string
jb.elman(3, 5, activation="tahn")  # wrong: an unknown activation
jb.lstm(3, 5, peephole="yes")  # wrong: a flag that is a string
jb.truncated("20")  # wrong: a window that is a string
jb.unroll(net, net_params, None, xs)  # wrong: a network in the place of a cell
jb.unroll(cell, net_params, None, xs)  # wrong: the params of a network for a cell
jb.unroll(cell, params, xs)  # wrong: the carry is forgotten
jb.unroll(cell, params, lstm.initial_carry(lstm_params, (2,)), xs)  # wrong: the carry of another cell
jb.unroll(cell, params, None, xs, gradient="full")  # wrong: the name of a gradient method
jb.unroll(cell, params, None, xs, gradient=jb.full)  # wrong: a gradient method that is not called
jb.unroll(cell, params, None, xs, masks=None)  # wrong: a misspelt keyword
cell_state = jb.unroll(cell, params, None, xs)[0].c  # wrong: an Elman cell has no cell state
jb.network(cell, jb.readout(5, 4))  # wrong: a cell that is not in a list
jb.network([cell], cell)  # wrong: a cell in the place of the readout
jb.value_and_grad(cell, jb.squared_error)  # wrong: a cell in the place of a network
value_and_grad(net_params, None, xs)  # wrong: the targets are forgotten
value_and_grad(params, None, xs, targets)  # wrong: the params of a cell for a network
value_and_grad(net_params, None, xs, targets, jb.full())  # wrong: the gradient method by place
jb.init_train_state(net, optimizer, key, (2,))  # wrong: the order of the arguments
train_step(state, (xs, targets))  # wrong: a tuple in the place of a Batch
