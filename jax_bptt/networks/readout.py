"""The readout maps the state to the output: the article's Y_t = g₂(W_y S_t).

forward   z_t = h_t W_y (+ b_y)                                                           (Y1)
          Y_t = g₂(z_t)                                                                   (Y2)

back      δz_t = dE/dY_t g₂′(z_t)                                                         (Y3)
          dE/dW_y = Σ_t h_tᵀ δz_t           two factors: W_y feeds no state               (Y4)
          dE/db_y = Σ_t δz_t                                                              (Y5)
          G_t = δz_t W_yᵀ                   what the loss says to h_t directly            (Y6)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import check_key, flag, size
from jax_bptt.base.errors import bad, named
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import with_fields
from jax_bptt.base.types import DType, PRNGKey
from jax_bptt.base.variants import varied
from jax_bptt.cell.activations import Activation, ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.engine.devices import ROWS, STEPS
from jax_bptt.engine.linear_maps import broadcast_leading, product, sum_of_outer_products, sum_over_rows
from jax_bptt.networks.encoder import AnyEncoder


class OnTop(Protocol):
    """What a network may have on top: of `readout`, `tied_readout` or `head`."""

    @property
    def of_last(self) -> bool:
        """Whether it reads the last valid step only; see `last`."""

    @property
    def init(self) -> Any:
        """It makes the parameters from a key; pyright would take a callable field for a method."""

    def reads(self, features: int, encoder: AnyEncoder | None) -> int:
        """It says how many features it reads, in a network with this encoder whose last layer has so many."""


class AnyReadout(OnTop, Protocol):
    """What maps features to Y by weights of its own; a tied readout becomes one when the network runs."""

    def forward(self, params: Any, hs: Array) -> tuple[Any, Any]:
        """It computes Y, leaves [..., *], of features [..., H], and what its backward pass needs."""

    def backward(self, params: Any, hs: Array, kept: Any, ys: Any, d_ys: Any, /) -> tuple[Any, Array]:
        """It computes dE/dparams and G = dE/dh, [..., H], from dE/dY."""


@by_shape
class ReadoutParams(NamedTuple):
    """These are the parameters of a readout.

    Attributes:
      w_y: [H, O], output weights (the article's W_y).
      b_y: [O], bias.
    """

    w_y: Array
    b_y: Array


def readout_params(w_y: Array, *bias: Array) -> ReadoutParams:
    """The params with this bias, or without one."""
    if bias:
        return ReadoutParams(w_y, *bias)
    found: ReadoutParams = varied(ReadoutParams(w_y, w_y), "WithoutBias", {"w_y": w_y})
    return found


@made(run="put it into jb.network([cell], readout)")
class Readout(NamedTuple):
    """A `Readout` maps h_t to Y_t = g₂(h_t W_y (+ b_y)); `readout` makes it.

    Attributes:
      hidden_size: H, the number of input features.
      output_size: O, the number of outputs.
      activation: g₂.
      bias: whether its parameters have a b_y.
      of_last: whether it reads the last valid step only; see `last`.
      dtype: the dtype to which the operands of its matrix products are rounded; None for no rounding. See
        `unroll`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    hidden_size: int
    output_size: int
    activation: Activation
    bias: bool = True
    of_last: bool = False
    dtype: DType | None = None
    made_by: Call | None = None

    def init(self, key: PRNGKey) -> ReadoutParams:
        """This makes parameters: a Lecun-normal W_y and a zero b_y.

        Args:
          key: a key from jax.random.key.

        Returns:
          `ReadoutParams` in the default float dtype, of a class without b_y where there is no bias.

        Raises:
          ValueError: key is not a PRNG key.
        """
        named("readout.init")(check_key)(key)
        dtype = jnp.result_type(float)
        w_y = jax.nn.initializers.lecun_normal()(key, (self.hidden_size, self.output_size), dtype)
        return readout_params(w_y, *([jnp.zeros(self.output_size, dtype)] if self.bias else []))

    def reads(self, features: int, encoder: AnyEncoder | None) -> int:
        """It reads H features, whatever the last layer has."""
        return self.hidden_size

    def forward(self, params: ReadoutParams, hs: Array) -> tuple[Array, Array]:
        """The forward pass computes the outputs of any number of steps.

        Args:
          params: from `init`.
          hs: the features, [..., H].

        Returns:
          z and Y, both [..., O].
        """
        zs = product(hs, params.w_y, self.dtype)
        zs = zs + broadcast_leading(params.b_y, hs.ndim) if self.bias else zs  # (Y1)
        return zs, self.activation.g(zs)  # (Y2)

    def backward(
        self, params: ReadoutParams, hs: Array, zs: Array, ys: Array, d_ys: Array
    ) -> tuple[ReadoutParams, Array]:
        """The backward pass computes the gradients by the parameters and by the features.

        Args:
          params: from `init`.
          hs: the features, [..., H].
          zs, ys: from `forward`, [..., O].
          d_ys: dE/dY, [..., O].

        Returns:
          dE/dparams and G, [..., H].
        """
        d_zs = d_ys * self.activation.slope(zs, ys)  # (Y3)
        gradient = {"w_y": sum_of_outer_products(hs, (d_zs,), self.dtype)}  # (Y4)
        if self.bias:
            gradient["b_y"] = sum_over_rows((d_zs,))  # (Y5)
        return with_fields(params, **gradient), product(d_zs, params.w_y.T, self.dtype)  # (Y6)


@cached(hidden_size=size, output_size=size, bias=flag)
def readout(
    hidden_size: int,
    output_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "identity",
    bias: bool = True,
) -> Readout:
    """A readout computes the article's Y_t = g₂(W_y S_t) at every step.

    Y_t = g₂(h_t W_y (+ b_y))   (Y1, Y2)

    Args:
      hidden_size: H, the number of features of the last layer (of both directions together).
      output_size: O, the number of outputs.
      activation: g₂, as for `elman`; keep "identity" for logits.
      bias: whether there is a b_y; False leaves it out of the params.

    Returns:
      The `Readout`; the same object for the same arguments.

    Raises:
      ValueError: a size is below 1, the activation is unknown, or bias is not a bool.

    >>> readout(5, 2).init(jax.random.key(0)).w_y.shape
    (5, 2)
    """
    return Readout(hidden_size, output_size, activation_of(activation), bias)


_OnTop = TypeVar("_OnTop", bound=OnTop)


@cached()
def last(readout: _OnTop) -> _OnTop:
    """This makes a readout of the last valid step only, with one output for each sequence.

    Y = g₂(h W_y (+ b_y)), h where each direction of the last layer ends   (Y1, Y2)

    A direction that reads backwards ends at the first valid step. A row without a valid step does not count
    in a loss.

    Args:
      readout: from `readout`, `tied_readout` or `head`.

    Returns:
      A readout of the same kind. In a network ys and the targets then have no time axis: ys is [..., O].

    Raises:
      ValueError: readout is not a readout or a head.

    >>> net = jb.network([jb.elman(3, 5)], jb.last(jb.readout(5, 2)))
    >>> carry, ys = net.apply(net.init(jax.random.key(0)), None, jnp.ones((7, 3)))
    >>> ys.shape
    (2,)
    """
    check_readout(readout)
    return readout if readout.of_last else with_fields(readout, of_last=True)


def check_readout(readout: object) -> None:
    """This raises a ValueError unless it is a readout or a head."""
    if not (hasattr(readout, "of_last") and hasattr(readout, "made_by")):
        raise bad("readout", "a Readout", readout, "pass jb.readout(hidden_size, output_size) or a jb.head")


def outputs_lie(readout: AnyReadout) -> str:
    """This names the axes of Y and of its targets: [..., O] with `last`, [T, ..., O] otherwise."""
    return ROWS if readout.of_last else STEPS
