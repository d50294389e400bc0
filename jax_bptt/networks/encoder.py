"""An encoder turns the input of each step into the x_t that the first layer reads.

    embedding   x_t = row d_t of W_e,    d_t an integer                                       (EN1)
                dE/dW_e[v] = Σ_t dE/dx_t over the t with d_t = v                              (EN2)

    any other   x_t = apply(θ, input of step t)                                               (EN3)
                dE/dθ = Σ_t (∂x_t/∂θ)ᵀ dE/dx_t      two factors: θ feeds no state             (EN4)

An encoder knows of no other step, so no gradient goes through time here. JAX makes (EN2) of the gather, as a
sum by segments: neither a one-hot vector nor an array of T × vocabulary ever exists. In (EN3) and (EN4) a few
steps are read at a time and computed again for the backward pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import check_key, function, is_array
from jax_bptt.base.checks import size as _size
from jax_bptt.base.errors import bad, describe, named, running
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import num_parameters, vmap_leading
from jax_bptt.base.types import ArrayTree, Foreign, PRNGKey
from jax_bptt.engine import chunks
from jax_bptt.engine.sequence import Unencoded

AT_ONCE = 2**20  # so many numbers of inputs or features exist together while they are computed


class AnyEncoder(Protocol):
    """An encoder of a network, of `embedding` or `encoder`."""

    @property
    def init(self) -> Any:
        """It makes the parameters from a key; pyright would take a callable field for a method."""

    def read(
        self, name: str, params: ArrayTree, xs: Foreign, wanted: jax.ShapeDtypeStruct, batch_axes: int | None
    ) -> Unencoded:
        """It checks the inputs xs, leaves [T, *batch, ...].

        Args:
          name: what the argument is called, for an error.
          params: the parameters of the encoder.
          xs: the inputs.
          wanted: x_t of one row, as the first layer reads it.
          batch_axes: how many there are, if that is known.

        Returns:
          The inputs with the number of their batch axes.
        """

    def forward(self, params: Any, xs: Unencoded) -> Array:
        """It computes x_1..x_T, [T, *batch, I]."""


@by_shape
class EmbeddingParams(NamedTuple):
    """These are the parameters of an embedding.

    Attributes:
      w_e: [V, I], a row for each class.
    """

    w_e: Array


@made(run="put it into jb.network(cells, readout, encoder)")
class Embedding(NamedTuple):
    """An `Embedding` has a trained vector for each of V classes; `embedding` makes it.

    Attributes:
      vocabulary: V, the number of classes.
      size: I, the length of a vector.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    vocabulary: int
    size: int
    made_by: Call | None = None

    def init(self, key: PRNGKey) -> EmbeddingParams:
        """This makes parameters: normal numbers of variance 1/I, so that each row has a length near 1.

        Args:
          key: a key from jax.random.key.

        Returns:
          `EmbeddingParams` in the default float dtype.

        Raises:
          ValueError: key is not a PRNG key.
        """
        named("embedding.init")(check_key)(key)
        w_e = jax.random.normal(key, (self.vocabulary, self.size), jnp.result_type(float))
        return EmbeddingParams(w_e / math.sqrt(self.size))

    def read(
        self, name: str, params: ArrayTree, xs: Foreign, wanted: jax.ShapeDtypeStruct, batch_axes: int | None
    ) -> Unencoded:
        """The inputs must be one array of integers, [T, *batch]."""
        is_integer = is_array(xs) and jnp.issubdtype(xs.dtype, jnp.integer) and xs.ndim
        if not is_integer or batch_axes not in (None, xs.ndim - 1):
            axes = "T, *batch" if batch_axes is None else ", ".join(["T", *["B"] * batch_axes])
            fix = "pass the number of each class, time first; no one-hot rows and no axis of features"
            raise bad(name, f"integers [{axes}] from 0 to {self.vocabulary - 1}", xs, fix)
        return Unencoded(xs, xs.ndim - 1)

    def forward(self, params: EmbeddingParams, xs: Unencoded) -> Array:
        """The rows of W_e are looked up.

        Args:
          params: from `init`.
          xs: integers [T, *batch].

        Returns:
          x_1..x_T, [T, *batch, I]; NaN where a number is no class.
        """
        ids: Array = xs.tree
        ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids  # V may exceed 8 or 16 bits
        beyond = jnp.asarray(self.vocabulary, ids.dtype)  # a negative number would count from the end
        ids = jnp.where(ids < 0, beyond, ids)
        return jnp.take(params.w_e, ids, axis=0, mode="fill", fill_value=jnp.nan)  # (EN1, EN2)


@cached(vocabulary=_size, size=_size)
def embedding(vocabulary: int, size: int) -> Embedding:
    """An embedding is an encoder that has a trained vector for each of V classes, such as words.

    x_t = W_e[d_t];   dE/dW_e[v] = Σ_t dE/dx_t over the t with d_t = v   (EN1, EN2)

    Args:
      vocabulary: V, the number of classes.
      size: I, the length of a vector, which is the input size of the first layer.

    Returns:
      The `Embedding`, for `network`; the inputs xs are then integers, [T, *batch], from 0 to V − 1. Another
      number gives NaN, except at steps whose mask is False. `tied_readout` reads the same W_e.

    Raises:
      ValueError: a size is below 1.

    Reference: Bengio et al. 2003, A neural probabilistic language model.

    >>> net = jb.network([jb.gru(8, 16)], jb.readout(16, 100), jb.embedding(100, 8))
    >>> params = net.init(jax.random.key(0))
    >>> carry, ys = net.apply(params, None, jnp.array([5, 99, 0]))
    >>> params.encoder.w_e.shape, ys.shape
    ((100, 8), (3, 100))
    """
    return Embedding(vocabulary, size)


@made(run="put it into jb.network(cells, readout, encoder)")
class Encoder(NamedTuple):
    """An `Encoder` is a function of the input of one step and row; `encoder` makes it.

    Attributes:
      apply: (params, input of one step and row) -> x_t, [I].
      init: key -> params.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    apply: Callable[[Any, Any], Array]
    init: Callable[[PRNGKey], Any]
    made_by: Call | None = None

    def read(
        self, name: str, params: ArrayTree, xs: Foreign, wanted: jax.ShapeDtypeStruct, batch_axes: int | None
    ) -> Unencoded:
        """The inputs are a pytree of arrays [T, *batch, ...] of which apply makes I features a row."""
        leaves: list[Any] = jax.tree.leaves(xs)
        if not leaves or not all(is_array(z) and z.ndim for z in leaves):
            raise bad(name, "a pytree of arrays [T, *batch, ...]", xs, "pass what apply reads, time first")
        axes_of_all = range(min(z.ndim for z in leaves))
        agree = [k for k in axes_of_all if len({z.shape[: 1 + k] for z in leaves}) == 1]
        if not agree or batch_axes not in (None, *agree):
            axes = "T" if batch_axes is None else ", ".join(["T", *["B"] * batch_axes])
            fix = "time comes first, then the batch, in every array"
            raise bad(name, f"arrays whose first axes are all [{axes}]", xs, fix)
        known = agree if batch_axes is None else [batch_axes]
        fitting = [k for k in known if self._fits(params, xs, k, wanted)]
        # what scales its input takes a single number as well; a row is that only where nothing else fits
        fitting = [k for k in fitting if any(z.ndim > 1 + k for z in leaves)] or fitting
        if len(fitting) > 1:
            counts = " or ".join(map(str, fitting))
            fix = "pass the carry, a mask or a reset as well: they tell how many there are"
            raise bad(name, "inputs with one possible number of batch axes", f"{counts} of them", fix)
        if not fitting:
            # where all arrays have one number of axes, the last axis is most often one of features
            likely = known[-2:] if len({z.ndim for z in leaves}) == 1 else known[-1:]
            self._refuse(params, xs, likely[0], wanted)
        return Unencoded(xs, fitting[0])

    def _made_of(self, params: ArrayTree, xs: ArrayTree, batch_axes: int) -> Any:
        return jax.eval_shape(self.apply, params, _row_of(xs, 1 + batch_axes))

    def _fits(self, params: ArrayTree, xs: ArrayTree, k: int, wanted: jax.ShapeDtypeStruct) -> bool:
        try:
            x = self._made_of(params, xs, k)
        except Exception:  # of whatever kind: this is then not the number of batch axes
            return False
        return getattr(x, "shape", None) == wanted.shape and x.dtype == wanted.dtype

    def _refuse(self, params: ArrayTree, xs: ArrayTree, k: int, wanted: jax.ShapeDtypeStruct) -> None:
        """A ValueError says why apply does not fit to a row of inputs with k batch axes."""
        row = describe(_row_of(xs, 1 + k))
        hint = f"it is given the input of one step and row, read as {row}: without {1 + k} axes of xs"
        with running("apply", hint):
            x = self._made_of(params, xs, k)
        fix = "apply(params, x) must return the x_t of one step and row, in the dtype of the params"
        raise bad("encoder", f"{describe(wanted)}, as the first layer reads", x, fix)

    def forward(self, params: ArrayTree, xs: Unencoded) -> Array:
        """The function is applied to each step and row, a few steps at a time.

        Args:
          params: from `init`.
          xs: leaves [T, *batch, ...].

        Returns:
          x_1..x_T, [T, *batch, I].
        """
        leading = 1 + xs.batch_axes
        of_each = vmap_leading(leading, functools.partial(self.apply, params))
        row = _row_of(xs.tree, leading)
        numbers = max(num_parameters(z) for z in (row, jax.eval_shape(self.apply, params, row)))
        at_once = chunks.steps_at_once(AT_ONCE, numbers, xs.shape[1:-1], xs.shape[0])
        of_chunk = jax.checkpoint(of_each)  # (EN4): only the inputs are kept for it

        def read_chunk(none: tuple[()], first: chunks.First, here: ArrayTree) -> tuple[tuple[()], Array]:
            return none, of_chunk(here)  # (EN3)

        return chunks.scan(read_chunk, (), xs.tree, at_once)[1]


def _row_of(tree: ArrayTree, leading: int) -> Any:
    """The shapes of one row of arrays that have so many axes of time and batch."""
    return jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape[leading:], z.dtype), tree)


@cached(apply=function, init=function)
def encoder(apply: Callable[[Any, Any], Array], init: Callable[[PRNGKey], Any]) -> Encoder:
    """An encoder is any trained function of the input of one step, applied before the first layer.

    x_t = apply(θ, input of step t);   dE/dθ = Σ_t (∂x_t/∂θ)ᵀ dE/dx_t   (EN3, EN4)

    Args:
      apply: (params, x) -> [I], of one step and one row; x is an array, or a pytree of arrays such as an
        image, an action and a reward. I is the input size of the first layer.
      init: key -> params, a pytree of floating arrays of one dtype; {} if nothing is trained.

    Returns:
      The `Encoder`, for `network`; the inputs xs are then such a pytree with leaves [T, *batch, ...]. How
      many batch axes there are is known from a carry or a mark, or else from what apply can read. apply
      computes in its own dtype: the dtype of `value_and_grad` does not change it.

    Raises:
      ValueError: apply or init is not a hashable function.

    >>> def init(key):
    ...     return {"w": jax.random.normal(key, (4, 8)), "b": jnp.zeros(8)}
    >>> def apply(params, x):
    ...     return jnp.tanh(x["seen"] @ params["w"] + params["b"]) * x["light"]
    >>> net = jb.network([jb.gru(8, 16)], jb.readout(16, 2), jb.encoder(apply, init))
    >>> xs = {"seen": jnp.ones((7, 3, 4)), "light": jnp.ones((7, 3))}
    >>> carry, ys = net.apply(net.init(jax.random.key(0)), None, xs)
    >>> ys.shape
    (7, 3, 2)
    """
    return Encoder(apply, init)


def check_encoder(encoder: Foreign) -> None:
    """This raises a ValueError unless encoder is an encoder or None."""
    if encoder is not None and not isinstance(encoder, (Embedding, Encoder)):
        fix = "pass jb.embedding(vocabulary, size) or jb.encoder(apply, init)"
        raise bad("encoder", "an encoder", encoder, fix)
