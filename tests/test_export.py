"""By jax.export one program serves every number of rows and, where the method allows it, of steps."""

import functools

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from jax import export

import jax_bptt as jb

I, H, O = 3, 4, 2  # noqa: E741
CELL = jb.learn_carry(jb.elman(I, H))
SCALED = jb.encoder(lambda scale, x: scale * x, lambda key: jnp.full(I, 1.5))
NET = jb.network([CELL], jb.readout(H, O), SCALED)
PARAMS = NET.init(jax.random.key(0))


def _run(method, params, xs, classes):
    """Value and gradient of a loss with masks and resets, outputs, and the gradient of unroll."""
    marks = {"mask": jb.mask_of_lengths(classes[0] + 4, xs.shape[0]), "reset": classes == 0}
    weight = classes.astype(xs.dtype) + 0.5

    def squares(params, xs):
        carry, ys = NET.apply(params, None, xs, gradient=method)
        return jnp.sum(jb.unroll(CELL, params.cells[0], carry[0], xs, gradient=method)[1] ** 2), ys

    loss = jb.value_and_grad(NET, jb.softmax_cross_entropy)
    return {
        "loss": loss(params, None, xs, classes, gradient=method, weight=weight, **marks),
        "squares": jax.grad(squares, (0, 1), has_aux=True)(params, xs),
    }


def _exported(method, shape):
    xs = jax.ShapeDtypeStruct((*shape, I), "float64")
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    run = jax.jit(functools.partial(_run, method))
    return export.export(run)(shapes, xs, jax.ShapeDtypeStruct(shape, "int64"))


OPEN = [  # the method, the shape of an export, and a size at which it is run
    (jb.full(), "t, b", (11, 2)),
    (jb.full(), "t", (6,)),
    (jb.full(recompute=True), "t, 2", (6, 2)),
    (jb.autodiff(), "t, b", (6, 3)),
    (jb.checkpointed(2, 3), "7, b", (7, 3)),
    (jb.parallel(jb.newton()), "7, b", (7, 3)),
]


@pytest.mark.parametrize(("method", "shape", "size"), OPEN, ids=repr)
def test_what_was_exported_has_the_gradient_of_a_direct_call(method, shape, size):
    xs, classes = jax.random.normal(jax.random.key(1), (*size, I)), jnp.arange(size[0]) % O
    args = PARAMS, xs, jnp.broadcast_to(classes.reshape(-1, *[1] * (len(size) - 1)), size)
    found = _exported(method, export.symbolic_shape(shape)).call(*args)
    assert not w.wrong(found, jax.jit(functools.partial(_run, method))(*args), 1e-12)


DIVIDED = [
    jb.full(3),
    jb.full(recompute=0.5),
    jb.checkpointed(),
    jb.truncated(3),
    jb.truncated(3, 1),
    jb.parallel(),
    jb.parallel(jb.newton()),
]


@pytest.mark.parametrize("method", DIVIDED, ids=repr)
def test_a_method_that_divides_the_steps_must_know_their_number(method):
    wanted = r"xs: expected a fixed number of steps for this gradient method, got T = t; export with a fixed"
    with pytest.raises(ValueError, match=wanted):
        _exported(method, export.symbolic_shape("t, 2"))
