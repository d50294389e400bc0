"""The article's three steps, worked out: first with scalars, then with matrices.

    S_t = g₁(W_x X_t + W_s S_{t−1}),   Y_t = g₂(W_y S_t),   E_3 = (d_3 − Y_3)²,   t = 1, 2, 3

    dE_3/dW_y = dE_3/dY_3 dY_3/dW_y                                       two factors

    dE_3/dW_s = dE_3/dY_3 dY_3/dS_3 dS_3/dW_s                             i = 3
              + dE_3/dY_3 dY_3/dS_3 dS_3/dS_2 dS_2/dW_s                   i = 2
              + dE_3/dY_3 dY_3/dS_3 dS_3/dS_2 dS_2/dS_1 dS_1/dW_s         i = 1

and dE_3/dW_x with W_x in the place of W_s. The last factor is the immediate derivative: S_{i−1} is
held fixed in it. Here g₁ = tanh and g₂ = sigmoid. The terms below are arithmetic in NumPy, without
autodiff; beside their sums stand jax.grad of the recurrence and this library's value_and_grad. The script
prints the scalar example once more with four digits, as a reader would compute it by hand; the picture
shows the same numbers.

Expectation: all agree to 1e-12.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.runs import Run
from experiments.support.worked_figure import Line, draw, number


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the results go."""

    out: Path = Path("results/worked_example")
    """Folder of the results."""


class Example(NamedTuple):
    """Everything the article's three steps need; weights are (in, out), so W_x X reads X @ W_x."""

    w_x: np.ndarray
    w_s: np.ndarray
    w_y: np.ndarray
    s_0: np.ndarray
    x: np.ndarray  # X_1, X_2, X_3
    d_3: np.ndarray


class Worked(NamedTuple):
    """Every quantity of the chain rule by its name, and the terms for i = 1, 2, 3."""

    values: dict[str, Any]  # S_1 .. E_3, then the factors
    terms_w_s: list[Any]
    terms_w_x: list[Any]
    dw_y: Any


SCALARS = Example(*(np.array(v) for v in (0.8, 0.9, 1.4, 0.5, [0.6, -0.4, 0.7], 0.2)))


def matrices(inputs: int = 2, hidden: int = 3, outputs: int = 2) -> Example:
    """The same with vectors for X, S, Y and random matrices."""
    draw = np.random.default_rng(0).normal
    w_x, w_s, w_y = draw(size=(inputs, hidden)), draw(size=(hidden, hidden)), draw(size=(hidden, outputs))
    return Example(w_x, w_s, w_y, draw(size=hidden), draw(size=(3, inputs)), draw(size=outputs))


def sigmoid(z: Any) -> Any:
    """g₂."""
    return 1 / (1 + np.exp(-z))


def work_scalars(e: Example) -> Worked:
    """The article line by line; every symbol is a number."""
    x_1, x_2, x_3 = e.x
    s_1 = np.tanh(e.w_x * x_1 + e.w_s * e.s_0)
    s_2 = np.tanh(e.w_x * x_2 + e.w_s * s_1)
    s_3 = np.tanh(e.w_x * x_3 + e.w_s * s_2)
    y_1, y_2, y_3 = sigmoid(e.w_y * s_1), sigmoid(e.w_y * s_2), sigmoid(e.w_y * s_3)
    e_3 = (e.d_3 - y_3) ** 2

    de_3_dy_3 = -2 * (e.d_3 - y_3)
    dy_3_ds_3 = y_3 * (1 - y_3) * e.w_y
    dy_3_dw_y = y_3 * (1 - y_3) * s_3
    ds_3_ds_2 = (1 - s_3**2) * e.w_s
    ds_2_ds_1 = (1 - s_2**2) * e.w_s
    ds_3_dw_s, ds_2_dw_s, ds_1_dw_s = (1 - s_3**2) * s_2, (1 - s_2**2) * s_1, (1 - s_1**2) * e.s_0
    ds_3_dw_x, ds_2_dw_x, ds_1_dw_x = (1 - s_3**2) * x_3, (1 - s_2**2) * x_2, (1 - s_1**2) * x_1

    terms_w_s = [
        de_3_dy_3 * dy_3_ds_3 * ds_3_ds_2 * ds_2_ds_1 * ds_1_dw_s,
        de_3_dy_3 * dy_3_ds_3 * ds_3_ds_2 * ds_2_dw_s,
        de_3_dy_3 * dy_3_ds_3 * ds_3_dw_s,
    ]
    terms_w_x = [
        de_3_dy_3 * dy_3_ds_3 * ds_3_ds_2 * ds_2_ds_1 * ds_1_dw_x,
        de_3_dy_3 * dy_3_ds_3 * ds_3_ds_2 * ds_2_dw_x,
        de_3_dy_3 * dy_3_ds_3 * ds_3_dw_x,
    ]
    dw_y = de_3_dy_3 * dy_3_dw_y
    values = {
        **{"S_1": s_1, "S_2": s_2, "S_3": s_3, "Y_1": y_1, "Y_2": y_2, "Y_3": y_3, "E_3": e_3},
        **{"dE_3/dY_3": de_3_dy_3, "dY_3/dS_3": dy_3_ds_3, "dY_3/dW_y": dy_3_dw_y},
        **{"dS_3/dS_2": ds_3_ds_2, "dS_2/dS_1": ds_2_ds_1},
        **{"dS_3/dW_s": ds_3_dw_s, "dS_2/dW_s": ds_2_dw_s, "dS_1/dW_s": ds_1_dw_s},
        **{"dS_3/dW_x": ds_3_dw_x, "dS_2/dW_x": ds_2_dw_x, "dS_1/dW_x": ds_1_dw_x},
    }
    return Worked(values, terms_w_s, terms_w_x, dw_y)


def work_matrices(e: Example) -> Worked:
    """The same sums with vectors: a factor becomes a Jacobian, a term an outer product.

    dS_i/dW_s is a tensor; (dE_3/dS_i)(dS_i/dW_s) is the outer product of S_{i−1} with dE_3/dZ_i,
    Z_i = X_i W_x + S_{i−1} W_s being what g₁ is applied to, and with X_i in the place of S_{i−1} for W_x.
    """
    s = [e.s_0]
    for x_t in e.x:
        s.append(np.tanh(x_t @ e.w_x + s[-1] @ e.w_s))
    y_1, y_2, y_3 = (sigmoid(s_t @ e.w_y) for s_t in s[1:])
    e_3 = np.sum((e.d_3 - y_3) ** 2)

    de_3_dy_3 = -2 * (e.d_3 - y_3)
    dy_3_ds_3 = np.diag(y_3 * (1 - y_3)) @ e.w_y.T
    ds_3_ds_2 = np.diag(1 - s[3] ** 2) @ e.w_s.T
    ds_2_ds_1 = np.diag(1 - s[2] ** 2) @ e.w_s.T
    de_3_ds_3 = de_3_dy_3 @ dy_3_ds_3
    de_3_ds_2 = de_3_dy_3 @ dy_3_ds_3 @ ds_3_ds_2
    de_3_ds_1 = de_3_dy_3 @ dy_3_ds_3 @ ds_3_ds_2 @ ds_2_ds_1
    de_3_dz = [d * (1 - s_i**2) for d, s_i in zip((de_3_ds_1, de_3_ds_2, de_3_ds_3), s[1:], strict=True)]

    terms_w_s = [np.outer(s_before, d) for s_before, d in zip(s[:3], de_3_dz, strict=True)]
    terms_w_x = [np.outer(x_i, d) for x_i, d in zip(e.x, de_3_dz, strict=True)]
    dw_y = np.outer(s[3], de_3_dy_3 * y_3 * (1 - y_3))
    values = {
        **{"S_1": s[1], "S_2": s[2], "S_3": s[3], "Y_1": y_1, "Y_2": y_2, "Y_3": y_3, "E_3": e_3},
        **{"dE_3/dY_3": de_3_dy_3, "dY_3/dS_3": dy_3_ds_3, "dS_3/dS_2": ds_3_ds_2, "dS_2/dS_1": ds_2_ds_1},
        **{"dE_3/dS_3": de_3_ds_3, "dE_3/dS_2": de_3_ds_2, "dE_3/dS_1": de_3_ds_1},
        **{"dE_3/dZ_3": de_3_dz[2], "dE_3/dZ_2": de_3_dz[1], "dE_3/dZ_1": de_3_dz[0]},
    }
    return Worked(values, terms_w_s, terms_w_x, dw_y)


def by_jax(e: Example) -> tuple[np.ndarray, ...]:
    """jax.grad of E_3 by W_s, W_x and W_y."""

    def e_3(w_s: Array, w_x: Array, w_y: Array) -> Array:
        s = jnp.asarray(e.s_0)
        for x_t in e.x:
            s = jnp.tanh(jnp.dot(x_t, w_x) + jnp.dot(s, w_s))
        return jnp.sum((e.d_3 - jax.nn.sigmoid(jnp.dot(s, w_y))) ** 2)

    return tuple(
        np.asarray(g) for g in jax.grad(e_3, argnums=(0, 1, 2))(*map(jnp.asarray, (e.w_s, e.w_x, e.w_y)))
    )


def by_library(e: Example) -> tuple[np.ndarray, ...]:
    """jb.value_and_grad of E_3 by W_s, W_x and W_y: an Elman cell and a readout, biases zero."""
    w_x, w_s, w_y = (jnp.atleast_2d(w) for w in (e.w_x, e.w_s, e.w_y))
    s_0, d_3 = jnp.atleast_1d(e.s_0), jnp.atleast_1d(e.d_3)
    (inputs, hidden), outputs = w_x.shape, w_y.shape[1]
    net = jb.network(
        [jb.elman(inputs, hidden, activation="tanh")], jb.readout(hidden, outputs, activation="sigmoid")
    )
    cell = jb.Params(w_x=w_x, w_h=w_s, b=jnp.zeros(hidden))
    params = jb.NetworkParams((cell,), jb.ReadoutParams(w_y=w_y, b_y=jnp.zeros(outputs)))

    def last_error(ys: Array, d_3: Array) -> Array:
        return jb.squared_error(ys[-1], d_3)

    xs = jnp.asarray(e.x).reshape(3, inputs)
    _, grads = jb.value_and_grad(net, last_error)(params, (jb.Carry(s_0),), xs, d_3)
    found = grads.cells[0].w_h, grads.cells[0].w_x, grads.readout.w_y
    return tuple(np.asarray(g).reshape(w.shape) for g, w in zip(found, (e.w_s, e.w_x, e.w_y), strict=True))


def show(title: str, e: Example, w: Worked) -> float:
    """Print one example; returns the largest difference, as a ratio of norms."""
    print(f"\n{title}\n{'=' * len(title)}")
    for name, value in numbers(e, w).items():
        print(f"{name:9s} = {_text(value, 12)}")

    from_jax, from_library = by_jax(e), by_library(e)
    rows = (("W_s", w.terms_w_s), ("W_x", w.terms_w_x), ("W_y", [w.dw_y]))
    differences = []
    for (weight, terms), by_grad, by_hand in zip(rows, from_jax, from_library, strict=True):
        print(f"\ndE_3/d{weight}")
        for i, term in enumerate(terms, start=1):
            print(f"  {f'term i = {i}' if len(terms) > 1 else 'two factors':16s} {_text(term)}")
        if len(terms) > 1:
            print(f"  sum of terms     {_text(sum(terms))}")
        print(f"  jax.grad         {_text(by_grad)}")
        print(f"  value_and_grad   {_text(by_hand)}")
        differences += [_ratio(sum(terms), by_grad), _ratio(by_hand, by_grad)]
    print(f"\nlargest difference, ratio of norms: {max(differences):.1e}")
    return max(differences)


def numbers(e: Example, w: Worked) -> dict[str, Any]:
    """Every number of an example by its name: what is given, then what is computed."""
    given = {"W_x": e.w_x, "W_s": e.w_s, "W_y": e.w_y, "S_0": e.s_0}
    return given | {f"X_{t}": x_t for t, x_t in enumerate(e.x, start=1)} | {"d_3": e.d_3} | w.values


FORMULAS = {
    **{f"S_{t}": f"tanh(W_x · X_{t} + W_s · S_{t - 1})" for t in (1, 2, 3)},
    "Y_3": "1 / (1 + exp(−W_y · S_3))",
    "E_3": "(d_3 − Y_3)²",
    "dE_3/dY_3": "−2 · (d_3 − Y_3)",
    "dY_3/dS_3": "Y_3 · (1 − Y_3) · W_y",
    "dY_3/dW_y": "Y_3 · (1 − Y_3) · S_3",
    **{f"dS_{t}/dS_{t - 1}": f"(1 − S_{t}²) · W_s" for t in (3, 2)},
    **{f"dS_{t}/dW_s": f"(1 − S_{t}²) · S_{t - 1}" for t in (3, 2, 1)},
    **{f"dS_{t}/dW_x": f"(1 − S_{t}²) · X_{t}" for t in (3, 2, 1)},
}


def filled(formula: str, values: dict[str, Any]) -> str:
    """A formula with a number in the place of each name."""

    def text(name: re.Match[str]) -> str:
        found = number(float(values[name[0]]))
        return f"({found})" if found.startswith("−") else found

    return re.sub(r"d\w_\d/d\w_\w|\b[A-Zd]_\w", text, formula)


def terms_by_hand(e: Example, w: Worked) -> dict[str, list[Line]]:
    """For each weight the terms as products of the printed factors, and their sum."""
    values, lines = numbers(e, w), {}
    for weight, terms in (("W_s", w.terms_w_s), ("W_x", w.terms_w_x)):
        found = []
        for i in (3, 2, 1):
            links = "".join(f" · dS_{j}/dS_{j - 1}" for j in range(3, i, -1))
            formula = f"dE_3/dY_3 · dY_3/dS_3{links} · dS_{i}/d{weight}"
            found.append(Line(f"i = {i}", formula, filled(formula, values), float(terms[i - 1])))
        total = " + ".join(number(line.value) for line in found).replace("+ −", "− ")
        lines[weight] = [*found, Line("sum", "", total, float(sum(terms)))]
    formula = "dE_3/dY_3 · dY_3/dW_y"
    lines["W_y"] = [Line("", formula, filled(formula, values), float(w.dw_y))]
    return lines


def show_by_hand(e: Example, w: Worked) -> None:
    """Print the numbers of the picture, with the arithmetic that makes them."""
    values = numbers(e, w)
    print("\nThe same by hand, four digits after the point; each line uses the numbers printed above it.")
    for name in ("W_x", "W_s", "W_y", "S_0", "X_1", "X_2", "X_3", "d_3"):
        print(f"{name} = {number(float(values[name]))}")
    for name, formula in FORMULAS.items():
        print(f"{name} = {formula} = {filled(formula, values)} = {number(float(values[name]))}")
    for weight, lines in terms_by_hand(e, w).items():
        for line in lines:
            left = f"dE_3/d{weight}" + f", {line.name}" * bool(line.name)
            print(f"{left}: {f'{line.formula} = ' * bool(line.formula)}{line.numbers} = {number(line.value)}")


def _text(value: Any, indent: int = 19) -> str:
    return np.array2string(np.asarray(value), precision=10, floatmode="fixed", prefix=" " * indent)


def _ratio(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main(config: Config) -> None:
    """Work both examples, draw the first."""
    jax.config.update("jax_enable_x64", True)
    run = Run(config.out, {})
    scalars, vectors = SCALARS, matrices()
    worked = work_scalars(scalars), work_matrices(vectors)
    largest = max(show("Scalars", scalars, worked[0]), show("Matrices", vectors, worked[1]))
    show_by_hand(scalars, worked[0])
    lines = [
        {
            "example": name,
            "i": i,
            "dE3_dW_s": np.asarray(w.terms_w_s[i - 1]).tolist(),
            "dE3_dW_x": np.asarray(w.terms_w_x[i - 1]).tolist(),
        }
        for name, w in zip(("scalars", "matrices"), worked, strict=True)
        for i in (1, 2, 3)
    ]
    run.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    print()
    values = {name: float(value) for name, value in numbers(scalars, worked[0]).items()}
    figure = draw(values, terms_by_hand(scalars, worked[0]))
    run.save_figure("worked_example.png", figure, dpi=200)
    met = "met" if largest < 1e-12 else "NOT MET"
    print(f"the terms sum to jax.grad, largest difference {largest:.1e} (expected below 1e-12: {met})")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
