"""Params with other fields than their class: learned carries are added, biases are left out.

Such params are a NamedTuple as well, of a class that is made once for each choice of fields. Pickle cannot
find a class that a function has made, so the params are pickled as what makes the class again.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.made import by_shape


def varied(params: Any, suffix: str, fields: dict[str, Array]) -> Any:
    """These fields become params of a class named after the class of params.

    Args:
      params: a NamedTuple, perhaps itself from here.
      suffix: what is added to the name of its class.
      fields: the fields of the result, in their order.

    Returns:
      A NamedTuple; of the same class for the same class, suffix and names.

    >>> from jax_bptt.cell.cell import Params
    >>> varied(Params(1, 2, 3), "WithoutBias", {"w_x": 1, "w_h": 2})
    ParamsWithoutBias(w_x=1, w_h=2)
    """
    return _class(root_of(params), type(params).__name__ + suffix, tuple(fields))(*fields.values())


def root_of(params: object) -> type:
    """The class whose fields have been varied, or the class of params where none have been."""
    root: type = getattr(params, "_root", type(params))
    return root


@cached()
def _class(root: type, name: str, names: tuple[str, ...]) -> Any:
    made: Any = by_shape(namedtuple(name, names))
    made._root = root
    made.__reduce__ = lambda params: (_again, (root, name, names, tuple(params)))
    return made


def _again(root: type, name: str, names: tuple[str, ...], arrays: tuple[Array, ...]) -> Any:
    return _class(root, name, names)(*arrays)
