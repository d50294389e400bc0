"""A cell of one's own has the heads of its init; what reads its whole W_h finds zeros beside the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from support.forms import with_whole_matrix

import jax_bptt as jb
from jax_bptt.checking.parts import parts_of
from jax_bptt.engine.phases import forward, linearise, previous
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.jacobians import UNITS, jacobians

H, N, G = 6, 3, 2
XS = jax.random.normal(jax.random.key(1), (5, 2, 3))


def _step(units, s, u, v):
    return jb.Carry(jnp.tanh(u[0] * v[1] + v[0] + u[1]))


def _blocks(key):
    of_x, of_h, of_b = jax.random.split(key, 3)
    w_h = 0.5 * jax.random.normal(of_h, (N, H // N, G * H // N))
    return jb.Params(jax.random.normal(of_x, (3, G * H)), w_h, jax.random.normal(of_b, (G * H,)))


def _whole(key):
    params = _blocks(key)
    return params._replace(w_h=with_whole_matrix(jnp, params.w_h, G))


HEADS, WHOLE = (jb.make_cell(3, H, _step, gates=G, init=init) for init in (_blocks, _whole))


def _diagnosed(cell):
    """States, the flow of gradients, Lyapunov exponents, and the Jacobians of the units."""

    def of(params):
        net = jb.network([cell], jb.readout(H, 2))
        of_net = jb.NetworkParams((params,), net.readout.init(jax.random.key(2)))
        flow = jb.gradient_flow(net, jb.squared_error, of_net, None, XS, XS[..., :2]).layers[0]
        run = Run(params, cell.initial_carry(params, (2,)), None, Sequence(XS))
        states = forward(cell, run).states
        slopes = linearise(cell, run, previous(run, states), states)
        spectrum = jb.lyapunov_spectrum(cell, params, None, XS)
        return states, flow, spectrum, jacobians(cell, params, slopes, states, UNITS)

    return jax.jit(of)(cell.init(jax.random.key(0)))


def test_diagnostics_of_heads_are_those_of_the_whole_matrix():
    found, wanted = _diagnosed(HEADS), _diagnosed(WHOLE)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    blocks = np.split(np.asarray(HEADS.init(jax.random.key(0)).w_h), G, axis=-1)
    largest = [np.linalg.norm(gate, 2, axis=(1, 2)).max() for gate in blocks]
    np.testing.assert_allclose(found[1].sigma_max, largest, rtol=1e-12)


def test_gates_are_parts_of_the_blocks_of_heads_and_of_a_projected_lstm():
    for cell, wide in ((HEADS, H // N), (jb.lstm(3, 5, projection=2), 5)):
        params = cell.init(jax.random.key(0))
        names, labels = parts_of(cell, (params, (), XS[:, 0]))
        of_w_h = labels[params.w_x.size :][: params.w_h.size].reshape(-1, len(cell.gate_names), wide)
        wanted = [("params.w_h", f"gate {gate}") for gate in cell.gate_names]
        assert [names[label] for label in of_w_h[0, :, 0]] == wanted
        assert (of_w_h == of_w_h[:1, :, :1]).all()
