"""The result folder of a run: config, versions, device, metrics as JSON lines, checkpoints.

Killed at any moment, a run goes on from its newest whole checkpoint: metrics written after it are
dropped, so the finished folder is that of an uninterrupted run.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "optax", "chex", "jax_bptt")


class Run:
    """A result folder, opened for a configuration.

    Args:
      folder: created if missing.
      config: all that the results depend on, by name, plain values.

    Raises:
      SystemExit: the folder holds a run of another configuration, or cannot be written.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hold_to(config)
        except OSError as error:
            raise SystemExit(f"cannot write results to {folder}: {error}; choose another --out") from None

    def _hold_to(self, config: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        if path.exists():
            try:
                before = dict(json.loads(path.read_text())["config"])
            except (ValueError, KeyError, TypeError):
                raise SystemExit(f"{path} is not the record of a run; choose another --out") from None
            other = sorted(k for k in before.keys() | config if before.get(k) != config.get(k))
            if other:
                was = ", ".join(f"{k}={before.get(k)} (now {config.get(k)})" for k in other)
                raise SystemExit(f"{self.folder} holds a run with {was}; choose another --out or delete it")
        about = {
            "config": config,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": str(jax.devices()[0].device_kind),
            "machine": platform.machine(),
        }
        self.write("run.json", json.dumps(about, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """A text file of the folder, replaced as a whole."""
        new = self.folder / (name + ".new")
        new.write_text(text)
        new.replace(self.folder / name)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics so far; a line torn by a kill is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def keep_metrics_up_to(self, step: int) -> None:
        """Drop what was recorded after this step."""
        self.keep_metrics(lambda m: m["step"] <= step)

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop what is not wanted, and a torn line, which the next one would be joined to."""
        self.write("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in self.metrics() if wanted(m)))

    def record(self, **metrics: Any) -> None:
        """One more line of metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")


class StopRequest:
    """True once Ctrl-C or SIGTERM has come, so that a run stops between two steps, not within one."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> StopRequest:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    def leave(self) -> None:
        """SystemExit if a stop was asked for."""
        if self.came:
            raise SystemExit("stopped; run the same command again to do the rest")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
