"""Why gradients vanish and explode, and why gated cells help: the article's last paragraph in one figure.

    python -m experiments.vanishing_exploding             about a minute on two CPU cores

Nine networks, not yet trained, read the same noise, and their targets are noise at every step, so that every
step has a loss. The figure shows

* `jb.credit`: for every loss step t and source step k the size of the term of the article's sum
  dE_t/dY_t dY_t/dS_t (Π dS_i/dS_{i−1}) dS_k/dW_s, against the mean of the terms t = k. Below the diagonal,
  blue terms have become smaller by the product of derivatives, and red ones larger;
* `jb.gradient_flow`: the same by lag, ‖λ‖ after l steps against its beginning, with rate and verdict;
* `jb.lyapunov_spectrum`: how each direction of the state grows in the long run, in nats a step.

Expectation: Elman with σ_max(W_s) = 0.5 vanishes at a rate of at most 0.5 a step (Pascanu, Mikolov & Bengio
2013), with gain 2 it explodes and its first Lyapunov exponent is positive (Sompolinsky, Crisanti & Sommers
1988); a linear net with orthogonal W_s has exponents of zero and a profile of one; GRU and LSTM with biases
for a memory of T steps (chrono) keep over all steps 100 times as much of λ as the Elman net with gain 1.

Each network is kept in metrics.jsonl. After an interruption, the same command does the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from matplotlib.figure import Figure, SubFigure
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.findings import Row, conclude
from experiments.support.options import check_counts, check_seed, settings
from experiments.support.runs import Run, StopRequest
from jax_bptt.cell.step_cell import AnyCell

INPUTS, OUTPUTS = 8, 4
NOISE = 0.5  # of the inputs: as strong as the weights' own activity it puts an end to chaos
DRIVEN, TRANSIENT = 600, 100  # steps for the exponents


@dataclasses.dataclass(frozen=True)
class Config:
    """How large, how long."""

    hidden: int = 64
    """Hidden units H of every network."""
    steps: int = 50
    """Steps T; as many lags are shown."""
    rows: int = 8
    """Rows B."""
    seed: int = 0
    """Seed of the parameters and of the noise."""
    out: Path = Path("results/vanishing_exploding")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, hidden=2, steps=10, rows=1)
    check_seed(config)


def cells(config: Config) -> dict[str, AnyCell]:
    """The nine networks by the names that they have in the figure."""
    sizes = INPUTS, config.hidden
    gains = {f"Elman, gain {g:g}": jb.elman(*sizes, recurrent=jb.orthogonal(g)) for g in (0.5, 1.0, 1.5, 2.0)}
    return {
        **gains,
        "linear, orthogonal": jb.elman(*sizes, activation="identity"),
        "ReLU, identity": jb.elman(*sizes, activation="relu", recurrent=jb.identity()),
        "LSTM": jb.lstm(*sizes),
        "GRU, chrono": jb.gru(*sizes, update_bias=jb.chrono(config.steps)),
        "LSTM, chrono": jb.lstm(*sizes, forget_bias=jb.chrono(config.steps)),
    }


def measure(config: Config, cell: AnyCell) -> dict[str, Any]:
    """Credit, profile, verdict and exponents of one network, as plain numbers."""
    net = jb.network([cell], jb.readout(config.hidden, OUTPUTS))
    of_params, *of_noise = jax.random.split(jax.random.key(config.seed), 4)
    params = net.init(of_params)
    xs = NOISE * jax.random.normal(of_noise[0], (config.steps, config.rows, INPUTS))
    targets = jax.random.normal(of_noise[1], (config.steps, config.rows, OUTPUTS))
    terms, flow = jax.jit(functools.partial(_look, net))(params, xs, targets)
    driven = NOISE * jax.random.normal(of_noise[2], (DRIVEN, INPUTS))
    spectrum = jax.jit(functools.partial(jb.lyapunov_spectrum, cell, transient=TRANSIENT))
    exponents = spectrum(params.cells[0], None, driven, key=of_noise[2]).exponents
    layer = flow.layers[0]
    return {
        "verdict": flow.verdicts[0],
        "rate": float(layer.rate),
        "bound": float(layer.bound),
        "horizon": int(flow.horizon),
        "profile": np.asarray(layer.profile).tolist(),
        "terms": np.asarray(jb.by_steps(terms.norm)).tolist(),
        "exponents": np.maximum(np.asarray(exponents), -1e3).tolist(),  # JSON has no infinity
    }


def _look(
    net: jb.Network, params: jb.NetworkParams, xs: Array, targets: Array
) -> tuple[jb.Terms, jb.GradientFlow]:
    found = jb.credit(net, jb.squared_error, params, None, xs, targets)
    flow = jb.gradient_flow(net, jb.squared_error, params, None, xs, targets)
    return found.by_parameter[0].w_h, flow


def measure_all(config: Config, run: Run, stop: StopRequest) -> dict[str, dict[str, Any]]:
    """Measure the networks that metrics.jsonl does not have yet; return all nine."""
    of_each = {"rate": float, "profile": list, "terms": list, "exponents": list, "seconds": float}
    found = {m["net"]: m for m in run.metrics(net=str, verdict=str, **of_each)}
    bar = tqdm(cells(config).items(), unit="net")
    for name, cell in bar:
        if name not in found:
            stop.leave()
            began = time.monotonic()
            found[name] = {"net": name, **measure(config, cell), "seconds": time.monotonic() - began}
            run.record(**found[name])
        bar.set_postfix_str(f"{name}: {found[name]['verdict']}, {found[name]['rate']:.3f} a step")
    return {name: found[name] for name in cells(config)}


def rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    """What the top of this file expects, and what came out."""
    half, double, linear = (found[n] for n in ("Elman, gain 0.5", "Elman, gain 2", "linear, orthogonal"))
    largest = max(map(abs, linear["exponents"]))
    off_one = max(abs(p - 1) for p in linear["profile"])
    ends = {n: found[n]["profile"][-1] for n in ("Elman, gain 1", "GRU, chrono", "LSTM, chrono")}
    elman, gru, lstm = ends.values()
    shown = ", ".join(f"{n} {end:.1e}" for n, end in ends.items())
    pascanu, chaos = "at most 0.5 (Pascanu et al. 2013)", "above 0, chaos (Sompolinsky et al. 1988)"
    return [
        Row(
            "Elman, gain 0.5: growth of λ a step",
            pascanu,
            f"{half['rate']:.3f}",
            half["rate"] <= 0.5 and half["verdict"] == "vanishing",
        ),
        Row(
            "Elman, gain 2: first Lyapunov exponent",
            chaos,
            f"{double['exponents'][0]:.3f}, {double['verdict']}",
            double["exponents"][0] > 0 and double["verdict"] == "exploding",
        ),
        Row("linear, orthogonal: largest |exponent|", "0 (closed form)", f"{largest:.1e}", largest < 1e-5),
        Row("linear, orthogonal: profile", "1 at every lag", f"1 ± {off_one:.0e}", off_one < 1e-4),
        Row("‖λ‖ kept over all steps", "gates keep 100 times Elman's", shown, min(gru, lstm) > 100 * elman),
    ]


def draw(found: dict[str, dict[str, Any]]) -> Figure:
    """Nine maps of terms, and below them the profiles by lag and the spectra; a phone can show its width."""
    figure = Figure(figsize=(4.9, 11), layout="constrained")
    maps, lines = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1))[:, 0]
    _draw_maps(maps, found)
    _draw_lines(lines, found)
    return figure


def _draw_maps(figure: SubFigure, found: dict[str, dict[str, Any]]) -> None:
    """The size of every term by loss step and source step, one map for each network."""
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for axes, (name, of) in zip(grid.flat, found.items(), strict=True):
        terms = np.array(of["terms"])
        terms[np.triu_indices_from(terms, 1)] = np.nan
        terms[:, 0] = np.nan  # W_s reads a state of zero there
        size = np.log10(np.maximum(terms / np.nanmean(np.diag(terms)), 1e-9))
        image = axes.imshow(size, cmap="RdBu_r", vmin=-4, vmax=4, interpolation="nearest")
        axes.set_facecolor("0.8")  # seen where there is no term
        axes.set_title(f"{name}\n{of['verdict']}, × {of['rate']:.2f}", fontsize=9)
    grid[-1, 1].set_xlabel("step k where $W_s$ was used", fontsize=10)
    figure.supylabel("step t of the loss", fontsize=10)
    label = "log₁₀ of the term's size; 0 is the size at t = k; grey: no term"
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=40)
    bar.set_label(label, fontsize=9)
    title = (
        "Which steps does the gradient $dE/dW_s$ come from?\n(×: factor by which it changes in one step back)"
    )
    figure.suptitle(title, fontsize=11)


def _draw_lines(figure: SubFigure, found: dict[str, dict[str, Any]]) -> None:
    """The gradient by lag, and the Lyapunov exponents, with one legend for both."""
    by_lag, spectra = figure.subplots(2, 1)
    for number, (name, of) in enumerate(found.items()):
        style = {"color": f"C{number}", "label": name, "lw": 1.8}
        by_lag.plot(np.maximum(of["profile"], 1e-30), **style)
        exponents = np.sort(of["exponents"])[::-1]
        spectra.plot((np.arange(len(exponents)) + 0.5) / len(exponents), exponents, **style)
    by_lag.set(yscale="log", ylim=(1e-12, 1e8), xlabel="lag l = t − k", ylabel="‖λ‖, 1 at lag 0")
    by_lag.axhline(1, color="0.5", lw=1, ls=":")
    by_lag.set_title("Size of the gradient after l steps back", fontsize=11)
    spectra.axhline(0, color="0.5", lw=1, ls=":")
    spectra.set(ylim=(-3, 0.8), xlim=(0, 1), xlabel="direction of the state, the fastest first")
    spectra.set(ylabel="exponent, nats a step")
    spectra.set_title("Lyapunov exponents (below 0: vanishing)", fontsize=11)
    figure.legend(*by_lag.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)


def main(config: Config) -> None:
    """Measure all nine, draw them, say whether they are as theory has it."""
    check(config)
    run = Run(config.out, settings(config))
    with StopRequest() as stop:
        found = measure_all(config, run, stop)
    run.save_figure("vanishing_exploding.png", draw(found), dpi=190)
    conclude(run, "vanishing_exploding", config, rows(found), 1, sum(of["seconds"] for of in found.values()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
