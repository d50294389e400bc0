"""An optax optimizer makes the update of one batch.

u, o ← update(dE/dθ, o, θ)                                                                (OP1)
with value = E and grad = dE/dθ besides, where update takes optax's extra arguments       (OP2)

Extra arguments are for optimizers that look at the loss, such as optax.contrib.reduce_on_plateau. Where
optax.lookahead is used, θ is a pair: fast parameters, by which the gradient is taken, and slow ones.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeAlias

import jax
import optax
from jax import Array

from jax_bptt.base.checks import check_like
from jax_bptt.base.errors import bad, running
from jax_bptt.base.trees import wide
from jax_bptt.base.types import Foreign
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkParams

NEEDS_MORE = (
    "write a loop of your own around jb.value_and_grad for an optimizer that needs more than the gradient, "
    "its state, the parameters and value=E, as do line searches (optax.lbfgs), optax.contrib.sophia and "
    "optax.contrib.dpsgd"
)
Trained: TypeAlias = Any  # what an optimizer changes: NetworkParams, or the two of optax.LookaheadParams


def begin(optimizer: optax.GradientTransformation, params: NetworkParams) -> tuple[Trained, optax.OptState]:
    """The result is what the optimizer changes, a pair of params for optax.lookahead, and its first state."""
    with running("optimizer", NEEDS_MORE):
        opt_state = optimizer.init(params)
    return optax.LookaheadParams.init_synced(params) if _has_lookahead(opt_state) else params, opt_state


def _has_lookahead(opt_state: optax.OptState) -> bool:
    def is_lookahead(state: object) -> bool:
        return isinstance(state, optax.LookaheadState)

    return any(map(is_lookahead, jax.tree.leaves(opt_state, is_leaf=is_lookahead)))


def read_by_network(params: Trained) -> NetworkParams:
    """These are the parameters by which the gradient is taken."""
    fast: NetworkParams = params.fast if isinstance(params, optax.LookaheadParams) else params
    return fast


def update(
    optimizer: optax.GradientTransformation,
    grads: NetworkParams,
    opt_state: optax.OptState,
    params: Trained,
    error: Array,
) -> tuple[Any, optax.OptState]:
    """This is what the optimizer adds to the parameters, and its next state."""
    optional = inspect.signature(optimizer.update).parameters.values()
    # asked by the signature, since the type of optax.MultiSteps does not say it
    takes_extra = any(p.kind is p.VAR_KEYWORD for p in optional)
    extra = {"value": error, "grad": grads} if takes_extra else {}  # (OP2)
    with running("optimizer", NEEDS_MORE):
        updates, after = optimizer.update(grads, opt_state, params, **extra)  # (OP1)
    check_like("the updates of optimizer", updates, params, None, NEEDS_MORE)
    check_like("the state of optimizer", after, opt_state, None, "return a state like that of init")
    return updates, after


def check_optimizer(optimizer: Foreign) -> None:
    """This raises a ValueError unless the optimizer has the functions of one of optax's."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise bad("optimizer", "an optax optimizer", optimizer, "pass one such as optax.adam(1e-3)")


def check_update(optimizer: optax.GradientTransformation, net: Network) -> None:
    """This raises a ValueError unless the optimizer can make an update of this network; nothing is run."""
    params = jax.eval_shape(net.init, jax.random.key(0))
    error = jax.ShapeDtypeStruct((), wide(jax.tree.leaves(params)[0].dtype))
    trained, opt_state = jax.eval_shape(functools.partial(begin, optimizer), params)
    jax.eval_shape(functools.partial(update, optimizer), params, opt_state, trained, error)


def check_opt_state(optimizer: optax.GradientTransformation, opt_state: object, params: Trained) -> None:
    """This raises a ValueError unless the state is one of this optimizer, for these parameters."""
    with running("optimizer", NEEDS_MORE):
        expected = jax.eval_shape(optimizer.init, params)
    fix = "use the optimizer and the network of init_train_state"
    check_like("state.opt_state", opt_state, expected, None, fix)
    if _has_lookahead(opt_state) and not isinstance(params, optax.LookaheadParams):
        expected_params = "the optax.LookaheadParams of optax.lookahead"
        raise bad("state.params", expected_params, params, "pass optax.LookaheadParams.init_synced(params)")
