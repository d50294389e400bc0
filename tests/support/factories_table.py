"""The arguments of every factory of a cell or a gradient method, read off the package.

A new cell or method needs nothing here, unless it has an argument of a new name: that is one line.
"""

import inspect
import operator

import jax_bptt as jb
import support.argument_kinds as k
from support.reference_calls import H, I

SIZES = {"input_size": (k.SIZE, I), "hidden_size": (k.SIZE, H)}
RECURRENT = {"recurrent": (k.FUNCTION, jb.orthogonal(0.5))}
HEADS = k.SIZE._replace(takes=lambda right, n: k.SIZE.takes(right, n) and H % operator.index(n) == 0)
ACTIVATION = {"activation": (k.ACTIVATION, "relu")}
OF_CELLS = {
    **SIZES,
    **ACTIVATION,
    **RECURRENT,
    "forget_bias": (k.BIAS, 0.5),
    "update_bias": (k.BIAS, 0.5),
    "peephole": (k.FLAG, False),
    "heads": (HEADS, 1),
    "projection": (k.or_none(k.SIZE), None),
    "bias": (k.FLAG, True),
    "reset_after": (k.FLAG, True),
    "rate": (k.number(lambda r: 0 < r < 1), 0.3),
}
OF_METHODS = {
    "chunk": (k.or_none(k.SIZE), 2),
    "recompute": (k.or_none(k.SHARE), 0.5),
    "slots": (k.or_none(k.SIZE), 2),
    "host": (k.FLAG, False),
    "window": (k.SIZE, 3),
    "stride": (k.or_none(k.SIZE), 1),
    "rate": (k.number(lambda c: 0 <= c < 1), 0.25),
    "max_norm": (k.number(lambda c: c > 0), 0.5),
    "newton": (k.or_none(k.NEWTON), jb.newton()),
}


def factories(folder, kinds):
    """name -> (the factory, its arguments with their kinds) of all public ones that a folder defines."""
    public = {name: getattr(jb, name) for name in jb.__all__}
    here = {
        name: factory
        for name, factory in public.items()
        if inspect.isfunction(factory) and factory.__module__.startswith(f"jax_bptt.{folder}.")
    }
    parameters = {name: inspect.signature(factory).parameters for name, factory in here.items()}
    return {
        name: (factory, {one: kinds[one] for one in parameters[name]})
        for name, factory in here.items()
        if name not in ("learn_carry", "newton", "fused")  # they have rows of their own
    }
