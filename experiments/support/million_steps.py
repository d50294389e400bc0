"""One training step of a million steps, for `gradient_methods`: each method in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.gradient_costs import AGREE, is_exact
from experiments.support.runs import Run, StopRequest

MILLION = 1_000_000
OF_A_MILLION = jb.checkpointed(slots=16), jb.checkpointed(), jb.truncated(1000), jb.full()


def step_of(gradient: jb.GradientMethod, steps: int) -> dict[str, Any]:
    """One training step of an LSTM in this process: its seconds and its peak memory."""
    net, optimizer = jb.network([jb.lstm(1, 64)], jb.readout(64, 1)), optax.adam(1e-3)
    train_step = jb.make_train_step(net, jb.squared_error, optimizer, gradient=gradient)
    state = jb.init_train_state(jax.random.key(0), net, optimizer, (1,))
    batch = jb.Batch(jax.random.normal(jax.random.key(1), (steps, 1, 1)), jnp.zeros((steps, 1, 1)))
    compiled = train_step.lower(state, batch).compile()  # type: ignore[attr-defined] # it is jitted
    before, began = peak_memory(), time.perf_counter()
    _, metrics = jax.block_until_ready(compiled(state, batch))
    took = time.perf_counter() - began
    norm = float(metrics.grad_norm)
    return {"seconds": took, "peak": peak_memory(), "before": before, "grad_norm": norm}


def peak_memory() -> int:
    """The largest number of bytes that this process had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take_the_million(run: Run, stop: StopRequest) -> list[dict[str, Any]]:
    """A training step by each method, each in a process of its own. Methods in `found` are not run again."""
    kinds = {"million": str, "steps": int, "seconds": float, "peak": int, "before": int, "grad_norm": float}
    found = {m["million"]: m for m in run.metrics(**kinds)}
    for name in tqdm([repr(m) for m in OF_A_MILLION], desc="a million steps ", unit="process"):
        if name not in found:
            found[name] = {"million": name, "steps": MILLION, **_in_a_process(name, stop)}
            run.record(**found[name])
    wanted = found["full()"]["grad_norm"]
    for name, m in found.items():
        distance = abs(m["grad_norm"] / wanted - 1)
        if is_exact(name) and not distance < AGREE:
            raise SystemExit(
                f"{name}: after a million steps its gradient differs from that of full() by {distance:.0e}"
            )
    return list(found.values())


def _in_a_process(name: str, stop: StopRequest) -> dict[str, Any]:
    """`step_of` in a new process, which Ctrl-C does not reach but by way of this one."""
    command = [sys.executable, "-m", "experiments.gradient_methods", "--peak", name, "--steps", str(MILLION)]
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            while True:
                try:
                    printed, errors = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    stop.leave()
        finally:
            process.kill()
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{name}: its process ended with exit code {process.returncode} {' '.join(said)}")
    return json.loads(printed.splitlines()[-1])
