"""Bad input to networks, losses and training is refused at trace time by a ValueError with a remedy."""

import jax
import jax.numpy as jnp
import optax
from support.optimizers import ADAM, lenient
from support.refusals import refused

import jax_bptt as jb

CELL = jb.elman(3, 5)
PARAMS = CELL.init(jax.random.key(0))
CARRY = CELL.initial_carry(PARAMS, (2,))
XS = jnp.ones((7, 2, 3))
NET = jb.network([CELL], jb.readout(5, 2))
NET_PARAMS = NET.init(jax.random.key(0))
NET_CARRY = NET.initial_carry(NET_PARAMS, (2,))
KEY, SGD = jax.random.key(0), optax.sgd(0.1)


def _loss_and_grads(loss=jb.squared_error, xs=XS, targets=None, carry=NET_CARRY, params=NET_PARAMS):
    targets = jnp.zeros((7, 2, 2)) if targets is None else targets
    return jb.value_and_grad(NET, loss)(params, carry, xs, targets)


def _weighted(weight, loss=jb.squared_error, targets=None):
    targets = jnp.zeros((7, 2, 2)) if targets is None else targets
    return jb.value_and_grad(NET, loss)(NET_PARAMS, None, XS, targets, weight=weight)


def _train(batch):
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    return jb.make_train_step(NET, jb.squared_error, SGD)(state, batch)


BAD = {
    "one cell, no list": (
        lambda: jb.network(CELL, jb.readout(5, 2)),
        r"cells: expected a list of cells, got elman",
    ),
    "no cells": (
        lambda: jb.network([], jb.readout(5, 2)),
        r"cells: expected a list of cells, got list of nothing",
    ),
    "sizes that do not meet": (
        lambda: jb.network([jb.elman(3, 5), jb.elman(4, 6)], jb.readout(6, 2)),
        r"cells: expected hidden sizes \[4, 6\], as the next layers read, got \[5, 6\]",
    ),
    "readout that does not fit": (
        lambda: jb.network([CELL], jb.readout(4, 2)),
        r"cells: expected hidden sizes \[4\], .* got \[5\]",
    ),
    "readout of no kind": (lambda: jb.network([CELL], 2), r"readout: expected a Readout, got 2"),
    "network carry of one cell": (
        lambda: _loss_and_grads(carry=(*NET_CARRY, *NET_CARRY)),
        r"carry: expected tuple of Carry\(h=float64\[2,5\]\), got tuple of Carry.*, Carry.*; make it by net",
    ),
    "network params of another net": (
        lambda: _loss_and_grads(params=NET_PARAMS.cells[0]),
        r"params: expected NetworkParams\(.*, got Params\(.*; make them by net.init",
    ),
    "targets that would broadcast": (
        lambda: _loss_and_grads(targets=jnp.zeros((7, 1, 2))),
        r"targets: expected an array like ys, float64\[7, 2, 2\], got float64\[7,1,2\]",
    ),
    "targets of other precision": (
        lambda: _loss_and_grads(targets=jnp.zeros((7, 2, 2), "float32")),
        r"targets: expected an array like ys",
    ),
    "one-hot classes": (
        lambda: _loss_and_grads(jb.softmax_cross_entropy),
        r"targets: expected integer classes \[7, 2\], got float64\[7,2,2\]; pass class indices",
    ),
    "classes of another shape": (
        lambda: _loss_and_grads(jb.softmax_cross_entropy, targets=jnp.zeros((7, 1), int)),
        r"targets: expected integer classes \[7, 2\], got int64\[7,1\]",
    ),
    "list of targets": (
        lambda: _loss_and_grads(targets=[[0.0]]),
        r"targets: expected an array like ys.* got list",
    ),
    "loss that is not a scalar": (
        lambda: _loss_and_grads(lambda ys, d: (ys - d) ** 2),
        r"loss: expected a floating scalar, got float64\[7,2,2\]; sum or average",
    ),
    "loss of no kind": (
        lambda: _loss_and_grads("mse"),
        r"loss: expected a function \(ys, targets\) -> scalar, got mse",
    ),
    "error of no kind": (
        lambda: jb.sum_over_steps(0.5),
        r"error: expected a function \(y, target\) -> scalar",
    ),
    "error of each output": (
        lambda: _loss_and_grads(jb.sum_over_steps(lambda y, d: (y - d) ** 2)),
        r"error: expected a function that returns a floating scalar, got float64\[2\]; .*sum over the",
    ),
    "error that fails": (
        lambda: _loss_and_grads(jb.mean_over_steps(lambda y, d: y["value"])),
        r"raised by error at test_errors_networks.py, .*; error is a function of one step and one row",
    ),
    "targets of other steps": (
        lambda: _loss_and_grads(
            jb.mean_over_steps(lambda y, d: d["a"].sum()), targets={"a": jnp.ones((2, 7))}
        ),
        r"targets\['a'\]: expected an array \[7,2,...\], got float64\[2,7\]",
    ),
    "standard deviations that are missing": (
        lambda: _loss_and_grads(jb.gaussian_nll),
        r"targets: expected float64\[7,2,1\] for these ys, got .*; ys must have 2D numbers for D targets",
    ),
    "quantiles that are missing": (
        lambda: _loss_and_grads(jb.quantile_error([0.1, 0.5, 0.9])),
        r"ys: expected a last axis of 3 numbers for each target, got .*; ys must have 3 numbers for each",
    ),
    "outputs of which nobody says the steps": (
        lambda: jb.sum_over_steps(lambda y, d: y[0].sum())((XS, XS[..., 0]), None),
        r"ys: expected floating arrays \[T, ..., O\] with the same number of axes, .*; or pass a mask",
    ),
    "weights that would broadcast": (
        lambda: _weighted(jnp.ones(7)),
        r"weight: expected float64\[7,2\], got float64\[7\]; .* repeat weights of steps .*jnp.broadcast_to",
    ),
    "weights that are a mask": (
        lambda: jb.softmax_cross_entropy(jnp.zeros((7, 2)), jnp.ones(7, int), weight=jnp.ones(7, bool)),
        r"weight: expected float64\[7\], got bool\[7\]; .* cast it by weight.astype\('float64'\)",
    ),
    "weights of steps for one output": (
        lambda: jb.value_and_grad(jb.network([CELL], jb.last(jb.readout(5, 2))), jb.squared_error)(
            NET_PARAMS, None, XS, jnp.zeros((2, 2)), weight=jnp.ones((7, 2))
        ),
        r"weight: expected float64\[2\], got float64\[7,2\]",
    ),
    "one number as weight": (
        lambda: _weighted(0.5, lambda ys, d, weight: ys.sum()),
        r"weight: expected float64\[7,2\], got 0.5",
    ),
    "loss that takes no weight": (
        lambda: _weighted(jnp.ones((7, 2)), lambda ys, d, mask=None: ys.sum()),
        r"loss: expected a function that takes the weight, .*; give it an argument weight, and multiply",
    ),
    "weights of other precision in a batch": (
        lambda: _train(jb.Batch(XS, XS[..., :2], weight=jnp.ones((7, 2), "float32"))),
        r"weight: expected float64\[7,2\], got float32\[7,2\]",
    ),
    "batch as a tuple": (
        lambda: _train((XS, XS)),
        r"batch: expected a Batch, got tuple of .*; pass jb.Batch",
    ),
    "integer batch": (
        lambda: _train(jb.Batch(jnp.ones((7, 2, 3), int), jnp.zeros((7, 2, 2)))),
        r"xs: expected float64 as params, got int64",
    ),
    "batch of other rows": (
        lambda: _train(jb.Batch(jnp.ones((7, 4, 3)), jnp.zeros((7, 4, 2)))),
        r"batch\.xs: expected \[T, \*batch, I\] with the batch axes \(2,\) of state\.carry, got float64\[7",
    ),
    "cell as network": (
        lambda: jb.make_train_step(CELL, jb.squared_error, SGD),
        r"net: expected a Network, got elman",
    ),
    "number as network key": (lambda: NET.init(0), r"key: expected a PRNG key, got 0"),
    "readout of other precision": (
        lambda: _loss_and_grads(
            params=NET_PARAMS._replace(
                readout=jax.tree.map(lambda p: p.astype("float32"), NET_PARAMS.readout)
            )
        ),
        r"params\.readout\.w_y: expected float64, one dtype throughout, got float32",
    ),
    "second layer's params": (
        lambda: jb.network([CELL, jb.elman(5, 5)], jb.readout(5, 2)).apply(
            jb.NetworkParams((PARAMS, PARAMS), NET_PARAMS.readout), (CARRY, CARRY), XS
        ),
        r"params\.cells\[1\]\.w_x: expected shape \[5,5\], got float64\[3,5\]",
    ),
    "carry of cell params": (
        lambda: NET.initial_carry(PARAMS, (2,)),
        r"params: expected NetworkParams\(.*make them by net.init",
    ),
    "cell in value_and_grad": (lambda: jb.value_and_grad(CELL, jb.squared_error), r"net: expected a Network"),
    "loss that also returns more": (
        lambda: _loss_and_grads(lambda ys, d: (ys.sum(), ys)),
        r"loss: expected a floating scalar, got tuple of float64\[\], float64\[7,2,2\]",
    ),
    "loss of lists": (lambda: jb.squared_error([1.0], [1.0]), r"ys: expected a floating array"),
    "integer logits": (
        lambda: jb.softmax_cross_entropy(jnp.zeros((7, 2), int), jnp.zeros(7, int)),
        r"ys: expected a floating array .* got int64\[7,2\]",
    ),
    "name as gradient of training": (
        lambda: jb.make_train_step(NET, jb.squared_error, SGD, gradient="full"),
        r"gradient: expected a gradient method, got full",
    ),
    "no loss": (lambda: jb.make_train_step(NET, None, SGD), r"loss: expected a function"),
    "params as state": (
        lambda: jb.make_train_step(NET, jb.squared_error, SGD)(NET_PARAMS, jb.Batch(XS, XS[..., :2])),
        r"state: expected a TrainState, got NetworkParams",
    ),
    "state of another optimizer": (
        lambda: jb.make_train_step(NET, jb.squared_error, ADAM)(
            jb.init_train_state(jax.random.key(0), NET, SGD, (2,)), jb.Batch(XS, XS[..., :2])
        ),
        r"state\.opt_state: expected .*use the optimizer and the network",
    ),
    "state of another network": (
        lambda: jb.make_train_step(NET, jb.squared_error, optax.trace(0.9))(
            jb.init_train_state(jax.random.key(0), NET, optax.trace(0.9), (2,))._replace(
                opt_state=optax.trace(0.9).init(jax.tree.map(lambda p: p[None], NET_PARAMS))
            ),
            jb.Batch(XS, XS[..., :2]),
        ),
        r"state\.opt_state\.trace\.cells\[0\]\.w_x: expected shape \[3,5\], got float64\[1,3,5\]",
    ),
    "line search": (
        lambda: jb.make_train_step(NET, jb.squared_error, lenient(optax.lbfgs())),
        r"argument: 'value_fn', raised by optimizer .*; write a loop of your own around jb.value_and_grad",
    ),
    "more calls of the loss": (
        lambda: jb.make_train_step(NET, jb.squared_error, lenient(optax.contrib.sophia(0.1))),
        r"obj_fn must be provided .* raised by optimizer .*; write a loop of your own",
    ),
    "gradient of each row": (  # all first axes are equal, so that optax itself is content
        lambda: jb.make_train_step(
            jb.network([jb.elman(2, 2)], jb.readout(2, 2)),
            jb.squared_error,
            optax.contrib.differentially_private_aggregate(1.0, 0.0, key=0),
        ),
        r"the updates of optimizer\.cells\[0\]\.w_x: expected shape \[2,2\], got float64\[2\]; write a loop",
    ),
    "optimizer that returns no state": (
        lambda: jb.make_train_step(
            NET, jb.squared_error, optax.GradientTransformation(lambda p: p, lambda g, s, p: (g, None))
        ),
        r"the state of optimizer: expected NetworkParams\(.*, got None; return a state like that of init",
    ),
    "optimizer of no kind": (
        lambda: jb.make_train_step(NET, jb.squared_error, 0.1),
        r"optimizer: expected an optax optimizer, got 0.1",
    ),
}

test_messages = refused(BAD)
