"""A gradient method is written as the call that made it, of names and numbers, and made again from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from jax_bptt.base.errors import bad
from jax_bptt.base.types import Foreign
from jax_bptt.gradients.artbp import artbp
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.checkpointed import checkpointed
from jax_bptt.gradients.clipped import clipped
from jax_bptt.gradients.full import full
from jax_bptt.gradients.fused import fused
from jax_bptt.gradients.newton import newton
from jax_bptt.gradients.parallel import parallel
from jax_bptt.gradients.rtrl import rtrl
from jax_bptt.gradients.truncated import truncated

Config: TypeAlias = dict[str, Any] | float | None  # a call, or one of its arguments

_FACTORIES: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (artbp, autodiff, checkpointed, clipped, full, fused, newton, parallel, rtrl, truncated)
}


def to_config(gradient: object) -> Config:
    """A gradient method as its call: {name of the factory: {argument: value}}.

    Args:
      gradient: made by a factory, such as jb.truncated(2).

    Returns:
      What JSON can hold.

    Raises:
      ValueError: a part of it has been replaced, or no factory of this library has made it.

    >>> to_config(jb.truncated(2))
    {'truncated': {'window': 2, 'stride': None}}
    """
    if gradient is None or isinstance(gradient, (int, float)):
        return gradient
    made_by = getattr(gradient, "made_by", None)
    name = next((name for name, f in _FACTORIES.items() if f is getattr(made_by, "factory", None)), None)
    if made_by is None or name is None or made_by.replaced:
        fix = "save the weights alone, and give the gradient again to a new layer"
        raise bad("gradient", "a method as a call such as jb.truncated(2) makes it", gradient, fix)
    return {name: {argument: to_config(value) for argument, value in made_by.arguments}}


def from_config(config: Config) -> Foreign:
    """The gradient method that `to_config` has written.

    Args:
      config: what it returned.

    Returns:
      The method.

    Raises:
      ValueError: it is of no gradient method that is known here.

    >>> from_config({"truncated": {"window": 2, "stride": None}}) is jb.truncated(2)
    True
    """
    if not isinstance(config, dict):
        return config
    if len(config) != 1 or not config.keys() <= _FACTORIES.keys():
        fix = "load it with the version of this library that saved it"
        raise bad("gradient", f"the call of one of {', '.join(_FACTORIES)}", config, fix)
    ((name, arguments),) = config.items()
    return _FACTORIES[name](**{argument: from_config(value) for argument, value in arguments.items()})
