"""Bad input to `jb.scan` is refused at trace time by a ValueError that names the argument."""

import jax
import jax.numpy as jnp
import pytest
from support.bodies import BODIES
from support.body import H, S, T, W, X, tanh_step
from support.refusals import refused

import jax_bptt as jb

F = tanh_step(W)
YES = jnp.ones(T, bool)


def _scan(f=F, init=S, xs=X, **given):
    return jb.scan(f, init, xs, **given)


def _of_body(name, **given):
    body = BODIES[name]
    return jb.scan(body.build(body.weights), body.init, body.xs, length=body.length, **given)


def _of_complex(gradient):
    """A scan with complex numbers, as a function of real ones."""

    def run(s):
        return jb.scan(lambda s, x: (1j * s, s), jax.lax.complex(s, s), None, 3, gradient=gradient)[0].real

    return run


def _rows(**given):
    """A carry of 2 rows, and x of 2 rows."""
    return jb.scan(F, jnp.stack([S, S]), jnp.stack([X, X], 1), **given)


def _changes(new):
    """A body whose carry comes back as something else."""
    return _scan(lambda s, x: (new(s), s))


BAD = {
    "f is no function": (lambda: _scan(f=W), r"^scan: f: expected a .*function"),
    "f is a cell": (lambda: _scan(f=jb.elman(3, 3)), r"elman\(3, 3\) is not a function; .*jb\.unroll.* f$"),
    "f returns one array": (lambda: _scan(f=lambda s, x: s), r"^scan: f: .*\(carry, y\)"),
    "f returns three": (lambda: _scan(f=lambda s, x: (s, x, x)), r"^scan: f: .*\(carry, y\)"),
    "another dtype": (
        lambda: _changes(lambda s: s.astype("float32")),
        r"^scan: f: .*float64\[3\].*float32\[3\]",
    ),
    "another shape": (lambda: _changes(lambda s: s[:2]), r"^scan: f: .*float64\[3\].*float64\[2\]"),
    "another tree": (lambda: _changes(lambda s: (s, s)), r"^scan: f: .*float64\[3\].*tuple"),
    "no carry any more": (lambda: _changes(lambda s: None), r"^scan: f: .*float64\[3\].*None"),
    "an integer init": (
        lambda: _scan(lambda s, x: (x[0], s), jnp.zeros((), int)),
        r"^scan: f: .*int64\[\].*float64\[\]",
    ),
    "xs of two lengths": (lambda: _scan(lambda s, x: (s, s), xs=(X, X[:5])), r"^scan: xs: .*7.*5"),
    "xs without a time axis": (lambda: _scan(xs=jnp.array(1.0)), r"^scan: xs: "),
    "xs of another length": (lambda: _scan(length=5), r"^scan: length: .*(7.*5|5.*7)"),
    "neither xs nor length": (lambda: _scan(xs=None), r"^scan: length: "),
    "xs without leaves": (lambda: _scan(xs=()), r"^scan: length: "),
    "length of a half": (lambda: _scan(xs=None, length=2.5), r"^scan: length: .*2\.5"),
    "negative length": (lambda: _scan(xs=None, length=-1), r"^scan: length: .*-1"),
    "gradient is a name": (lambda: _scan(gradient="full"), r"^scan: gradient: .*full"),
    "gradient is not called": (lambda: _scan(gradient=jb.full), r"^scan: gradient: "),
    "newton": (lambda: _scan(gradient=jb.newton()), r"^scan: gradient: "),
    "newton with a counter": (
        lambda: _of_body("counter", gradient=jb.parallel(jb.newton())),
        r"^scan: newton: .*int64",
    ),
    "newton with a key": (
        lambda: _of_body("key in the carry", gradient=jb.parallel(jb.newton())),
        r"^scan: newton: .*key",
    ),
    "rtrl of complex numbers": (
        lambda: jax.jacrev(_of_complex(jb.rtrl()))(jnp.ones(2)),
        r"gradient: .*rtrl.*complex",
    ),
    "parallel of complex numbers": (
        lambda: jax.jacrev(_of_complex(jb.parallel()))(jnp.ones(2)),
        r"gradient: .*parallel.*complex",
    ),
    "artbp without cuts": (lambda: _scan(gradient=jb.artbp(0.1)), r"^scan: cut: .*artbp"),
    "reverse is no bool": (lambda: _scan(reverse="yes"), r"^scan: reverse: .*yes"),
}
for _name in ("mask", "reset", "cut"):
    BAD |= {
        f"{_name} of numbers": (
            lambda n=_name: _scan(**{n: jnp.ones(T)}),
            rf"^scan: {_name}: .*bool.*float64\[7\]",
        ),
        f"{_name} of another length": (
            lambda n=_name: _scan(**{n: YES[:5]}),
            rf"^scan: {_name}: .*bool\[5\]",
        ),
        f"{_name} of one step": (lambda n=_name: _scan(**{n: True}), rf"^scan: {_name}: "),
        f"{_name} of other rows": (
            lambda n=_name: _rows(**{n: jnp.ones((T, 4), bool)}),
            rf"^scan: {_name}: .*bool\[7,4\]",
        ),
        f"{_name} by row, rows first": (
            lambda n=_name: _rows(**{n: jnp.ones((2, T), bool)}),
            rf"^scan: {_name}: .*bool\[2,7\]",
        ),
        f"{_name} by row of a carry without rows": (
            lambda n=_name: _of_body("counter", **{n: jnp.ones((T, H), bool)}),
            rf"^scan: {_name}: .*bool\[7,3\]",
        ),
    }

test_messages = refused(BAD)


def test_an_error_in_f_says_so():
    with pytest.raises(ValueError, match=r"raised by f at test_scan_errors\.py, line \d+: .*@"):
        jb.scan(lambda s, x: (s @ x[:2], None), S, X)


@pytest.mark.parametrize(
    "gradient", [jb.truncated(3, stride=1), jb.parallel(jb.newton()), jb.checkpointed(host=True)], ids=repr
)
def test_a_second_derivative_that_does_not_exist(gradient):
    def error(s):
        return jb.scan(F, s, X, gradient=gradient)[1].sum()

    with pytest.raises(ValueError, match="gradient: "):
        jax.grad(lambda s: jax.grad(error)(s).sum())(S)
