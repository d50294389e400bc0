"""PyTorch, Flax, Keras, Haiku and Equinox have the same outputs and the same gradients as we have.

Each row runs a cell of a framework on random weights in that framework's own layout, and ours on what
`convert` makes of them: float64, nonzero initial carry, a cotangent on every output and on the final
carry. Ours is the hand-derived gradient. It is compared in the layout of the framework, by every weight
that the framework has: where p = from_framework(w) is affine in w, dE/dw = (∂p/∂w)ᵀ dE/dp, and the
columns of ∂p/∂w are the differences p(e_k) − p(0).

`python tests/test_peers.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.peers import ROWS, B, H, I, Peer, T
from support.witnesses import ratios

from jax_bptt.adapters import convert

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'

TOLERANCE = 1e-12


def compared(peer: Peer) -> dict[str, dict[str, float]]:
    """‖ours − theirs‖ / ‖theirs‖ by leaf, of outputs and gradients."""
    random = np.random.default_rng(0)
    weights, carry = (_like(random, tree) for tree in (peer.weights, peer.carry))
    xs = random.normal(size=(T, B, I))
    params = peer.back(weights)
    outputs, pullback = jax.vjp(jax.jit(peer.ours), params, carry, xs)
    cotangents = d_carry, d_hs = _like(random, outputs)
    d_params, d_initial, d_xs = pullback((jax.tree.map(jnp.asarray, d_carry), jnp.asarray(d_hs)))
    wanted, d_wanted = peer.theirs((weights, carry, xs), cotangents)
    own = peer.held(_like(random, params))
    there, _ = peer.theirs((peer.to(own), carry, xs), cotangents)
    d_weights = _pulled(peer.back, weights, d_params)
    return {
        "outputs": ratios(_named(("final", "hs"), outputs), _named(("final", "hs"), wanted)),
        "outputs of ours": ratios(
            _named(("final", "hs"), jax.jit(peer.ours)(own, carry, xs)), _named(("final", "hs"), there)
        ),
        "gradients": ratios(
            _named(("weights", "carry", "xs"), (d_weights, d_initial, d_xs)),
            _named(("weights", "carry", "xs"), d_wanted),
        ),
    }


def _named(names: tuple[str, ...], trees: Any) -> dict[str, Any]:
    return dict(zip(names, trees, strict=True))


def _like(random: Any, tree: Any) -> Any:
    return jax.tree.map(lambda a: random.normal(size=np.shape(a)), tree)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _pulled(back: Callable[[Any], Any], weights: Any, d_params: Any) -> Any:
    """(∂p/∂w)ᵀ dE/dp for the affine p = back(w), shaped as w."""
    leaves, tree = jax.tree.flatten(weights)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def shaped(flat: np.ndarray) -> Any:
        parts = zip(np.split(flat, ends[:-1]), leaves, strict=True)
        return tree.unflatten([part.reshape(leaf.shape) for part, leaf in parts])

    origin, d_p = _flat(back(shaped(np.zeros(ends[-1])))), _flat(d_params)
    return shaped(np.array([(_flat(back(shaped(e))) - origin) @ d_p for e in np.eye(ends[-1])]))


def peer_of(row: str) -> Peer:
    module, make, args, options = ROWS[row]
    pytest.importorskip(module, reason=f"{module} is not installed; it is in the extra `peers`")
    return make(*args, **options)


@pytest.mark.parametrize("row", ROWS)
def test_outputs_and_gradients_are_those_of_the_framework(row):
    found = compared(peer_of(row))
    assert len(found["gradients"]) >= 4  # the matrices, the carry and xs
    wrong = {
        f"{kind} {key}": r for kind, by_leaf in found.items() for key, r in by_leaf.items() if r >= TOLERANCE
    }
    assert not wrong


@pytest.mark.parametrize("row", ROWS)
def test_the_layout_is_that_of_the_framework(row):
    peer = peer_of(row)
    made = peer.to(peer.back(peer.weights))
    assert jax.tree.structure(made) == jax.tree.structure(peer.weights)
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, peer.weights)


def test_tensors_in_bfloat16_become_arrays_in_bfloat16():
    """NumPy has no such numbers, so PyTorch gives it none; ours are those of JAX."""
    torch = pytest.importorskip("torch", reason="torch is not installed; it is in the extra `peers`")
    tensors = torch.nn.GRU(I, H, dtype=torch.bfloat16).state_dict()
    params = convert.from_torch(tensors)
    assert {p.dtype.name for p in params} == {"bfloat16"}
    back = {name: torch.tensor(w.astype("float32")) for name, w in convert.to_torch(params).items()}
    assert all((back[name] == tensors[name].float()).all() for name in tensors)


@pytest.mark.parametrize("row", ["PyTorch LSTM", "Keras GRU, reset after", "Haiku GRU", "Flax linen GRUCell"])
def test_gates_in_another_order_are_noticed(row):
    peer = peer_of(row)

    def rolled(weights):
        params = peer.back(weights)
        return jax.tree.map(lambda a: np.roll(a, H, axis=-1), params)

    found = compared(peer._replace(back=rolled))
    assert min(found["outputs"].values()) > 1e-3
    assert min(found["gradients"].values()) > 1e-3


def table() -> str:
    """The largest ratio of norms of every row whose framework is installed."""
    lines = [f"{'':46} outputs  gradients"]
    for row, (module, *_) in ROWS.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f"{row:46} {module} is not installed")
            continue
        found = compared(peer_of(row))
        gradients = max(found.pop("gradients").values())
        outputs = max(r for of_kind in found.values() for r in of_kind.values())
        lines.append(f"{row:46} {outputs:.1e}  {gradients:.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
