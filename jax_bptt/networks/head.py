"""A head is any function of the features of one step; a tied readout shares its weights with an embedding.

    head     Y_t = apply(θ, h_t),   any pytree of arrays                                      (HE1)
             dE/dθ = Σ_t (∂Y_t/∂θ)ᵀ dE/dY_t,    G_t = (∂Y_t/∂h_t)ᵀ dE/dY_t                    (HE2)

    tied     Y_t = h_t W_y + b_y,   W_y = W_eᵀ                                                (TI1)
             dE/dW_e = (what comes through x_t, see `encoder`) + (dE/dW_y)ᵀ                   (TI2)

Neither feeds a state, so a few steps are read at a time, as with `readout`. JAX differentiates the head of
one step; no gradient goes through time there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import check_key, flag, function, size
from jax_bptt.base.errors import bad, is_array_like, named, running
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import vmap_leading, with_fields
from jax_bptt.base.types import ArrayTree, DType, PRNGKey
from jax_bptt.base.variants import varied
from jax_bptt.cell.activations import activation
from jax_bptt.engine.linear_maps import transposed
from jax_bptt.networks.encoder import AnyEncoder, Embedding
from jax_bptt.networks.params import AnyNetwork, NetworkParams
from jax_bptt.networks.readout import Readout, readout_params

_Net = TypeVar("_Net", bound=AnyNetwork)


@made(run="put it into jb.network([cell], head)")
class Head(NamedTuple):
    """A `Head` is a function of the features of one step and row; `head` makes it.

    Attributes:
      apply: (params, h) -> Y, a pytree of floating arrays; h is [features].
      init: key -> params.
      of_last: whether it reads the last valid step only; see `last`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    apply: Callable[[Any, Array], ArrayTree]
    init: Callable[[PRNGKey], Any]
    of_last: bool = False
    made_by: Call | None = None

    def reads(self, features: int, encoder: AnyEncoder | None) -> int:
        """It reads all features; a ValueError says what is wrong where apply does not fit to so many."""
        with running("init", "init of the head is given one key"):
            params = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        leaves: list[Any] = jax.tree.leaves(params)
        dtype = leaves[0].dtype if leaves else jnp.result_type(float)
        with running("apply", f"it is given the {features} features of one step and row"):
            ys = jax.eval_shape(self.apply, params, jax.ShapeDtypeStruct((features,), dtype))
        made: list[Any] = jax.tree.leaves(ys)
        if not made or not all(is_array_like(y) and jnp.issubdtype(y.dtype, jnp.floating) for y in made):
            fix = "make a class of an output after net.apply, by jnp.argmax for example"
            raise bad("head", "floating arrays from apply(params, h)", ys, fix)
        return features

    def forward(self, params: ArrayTree, hs: Array) -> tuple[tuple[()], Any]:
        """The function is applied to each step and row.

        Args:
          params: from `init`.
          hs: the features, [..., H].

        Returns:
          Nothing that the backward pass needs, and Y, leaves [..., *].
        """
        return (), vmap_leading(hs.ndim - 1, functools.partial(self.apply, params))(hs)  # (HE1)

    def backward(
        self, params: ArrayTree, hs: Array, kept: tuple[()], ys: ArrayTree, d_ys: ArrayTree
    ) -> tuple[Any, Array]:
        """JAX differentiates the function of one step.

        Args:
          params: from `init`.
          hs: the features, [..., H].
          kept, ys: from `forward`.
          d_ys: dE/dY, like ys.

        Returns:
          dE/dparams and G, [..., H].
        """
        # the forward pass is the same as that of `forward`, and XLA computes it once
        d_params, d_hs = jax.vjp(lambda p, hs: self.forward(p, hs)[1], params, hs)[1](d_ys)  # (HE2)
        return d_params, d_hs


@cached(apply=function, init=function)
def head(apply: Callable[[Any, Array], ArrayTree], init: Callable[[PRNGKey], Any]) -> Head:
    """A head is any trained function of the features of one step, in the place of a readout.

    Y_t = apply(θ, h_t)   (HE1, HE2)

    Args:
      apply: (params, h) -> Y, of one step and one row; h is [features], those of the last layer. Y is a
        floating array or a pytree of them, such as the logits of a policy and a value; h may be passed on
        in it, for a loss that reads the features.
      init: key -> params, a pytree of floating arrays of one dtype; {} if nothing is trained.

    Returns:
      The `Head`, for `network`, which then returns such a pytree, leaves [T, *batch, ...]. `last` makes one
      of the last step. apply computes in its own dtype: that of `value_and_grad` does not change it.

    Raises:
      ValueError: apply or init is not a hashable function.

    >>> def init(key):
    ...     return {"policy": jax.random.normal(key, (5, 3)), "value": jnp.zeros(5)}
    >>> def apply(params, h):
    ...     return {"logits": h @ params["policy"], "value": h @ params["value"]}
    >>> net = jb.network([jb.gru(2, 5)], jb.head(apply, init))
    >>> carry, ys = net.apply(net.init(jax.random.key(0)), None, jnp.ones((7, 4, 2)))
    >>> ys["logits"].shape, ys["value"].shape
    ((7, 4, 3), (7, 4))
    """
    return Head(apply, init)


@by_shape
class TiedParams(NamedTuple):
    """These are the parameters of a tied readout that its embedding does not have.

    Attributes:
      b_y: [V], bias.
    """

    b_y: Array


def tied_params(*bias: Array) -> TiedParams:
    """The params with this bias, or without one."""
    if bias:
        return TiedParams(*bias)
    found: TiedParams = varied(TiedParams(jnp.zeros(0)), "WithoutBias", {})
    return found


@made(run="put it into jb.network([cell], readout, jb.embedding(vocabulary, size))")
class TiedReadout(NamedTuple):
    """A `TiedReadout` computes logits with the weights of the embedding; `tied_readout` makes it.

    Attributes:
      vocabulary: V, the number of classes.
      bias: whether its parameters have a b_y.
      of_last: whether it reads the last valid step only; see `last`.
      dtype: as in `Readout`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    vocabulary: int
    bias: bool = True
    of_last: bool = False
    dtype: DType | None = None
    made_by: Call | None = None

    def init(self, key: PRNGKey) -> TiedParams:
        """This makes a zero b_y in the default float dtype; without a bias there are no parameters."""
        named("tied_readout.init")(check_key)(key)
        return tied_params(*([jnp.zeros(self.vocabulary, jnp.result_type(float))] if self.bias else []))

    def reads(self, features: int, encoder: AnyEncoder | None) -> int:
        """It reads as many features as a vector of the embedding has."""
        if not isinstance(encoder, Embedding):
            fix = "pass encoder=jb.embedding(vocabulary, size), or take jb.readout"
            raise bad("encoder", "an embedding, whose weights a tied readout reads", encoder, fix)
        if encoder.vocabulary != self.vocabulary:
            fix = "both must have the same classes"
            raise bad("encoder", f"an embedding of {self.vocabulary} classes, as the readout", encoder, fix)
        return encoder.size


@cached(vocabulary=size, bias=flag)
def tied_readout(vocabulary: int, *, bias: bool = True) -> TiedReadout:
    """A tied readout computes the logits of V classes with the weights of the network's embedding.

    Y_t = h_t W_eᵀ (+ b_y)   (TI1, TI2)

    Args:
      vocabulary: V, as that of the embedding.
      bias: whether there is a b_y; False leaves it out of the params.

    Returns:
      The `TiedReadout`, for a `network` whose encoder is an `embedding`. The last layer must have as many
      features as a vector of the embedding.

    Raises:
      ValueError: vocabulary is below 1, or bias is not a bool.

    Reference: Press & Wolf 2017, Using the output embedding to improve language models; Inan et al. 2017.

    >>> net = jb.network([jb.gru(8, 8)], jb.tied_readout(100), jb.embedding(100, 8))
    >>> params = net.init(jax.random.key(0))
    >>> net.apply(params, None, jnp.array([5, 99, 0]))[1].shape
    (3, 100)
    """
    return TiedReadout(vocabulary, bias)


def with_own_readout(net: _Net, params: NetworkParams) -> tuple[_Net, NetworkParams]:
    """The same network with a readout of its own; other networks, and their params, stay as they are.

    W_y = W_eᵀ   (TI1)
    """
    tied = net.readout
    if not isinstance(tied, TiedReadout):
        return net, params
    w_e = params.encoder.w_e
    own = Readout(w_e.shape[1], tied.vocabulary, activation("identity"), tied.bias, tied.of_last, tied.dtype)
    readout = readout_params(transposed(w_e), *params.readout)  # (TI1)
    return with_fields(net, readout=own), params._replace(readout=readout)


def gradient_of_tied(net: AnyNetwork, grads: NetworkParams) -> NetworkParams:
    """The gradient by the params of `with_own_readout` becomes that by the params of the network.

    dE/dW_e ← dE/dW_e + (dE/dW_y)ᵀ   (TI2)
    """
    if not isinstance(net.readout, TiedReadout):
        return grads
    d_w_y, *d_bias = grads.readout
    # the barrier keeps XLA:CPU from merging the two into a product in bfloat16 that it cannot run
    d_w_e = grads.encoder.w_e + jax.lax.optimization_barrier(d_w_y).T  # (TI2)
    return with_fields(grads, encoder=grads.encoder._replace(w_e=d_w_e), readout=tied_params(*d_bias))
