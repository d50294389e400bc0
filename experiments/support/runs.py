"""The result folder of a run: config, versions, device, metrics as JSON lines, checkpoints.

A run that was killed goes on from its newest undamaged checkpoint. Metrics written after that checkpoint are
dropped, so the finished folder is the same as that of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

PACKAGES = ("jax", "jaxlib", "optax", "chex", "jax_bptt")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """SystemExit if the folder cannot be written or its disk is full."""
    try:
        yield
    except OSError as error:
        fix = "run the same command again when the cause is removed, or choose another folder with --out"
        raise SystemExit(f"cannot write to {folder}: {error.strerror or error}; {fix}") from None


class Run:
    """A result folder, opened for a configuration.

    Args:
      folder: created if missing.
      config: everything that the results depend on, by name, as plain values.

    Raises:
      SystemExit: the folder holds a run of another configuration, or cannot be written.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        if folder == Path():
            raise SystemExit('--out "" or "." is not a folder of its own; name one such as results/first')
        self.folder = folder = folder.expanduser()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._hold_to(config)
        self.keep_metrics(lambda m: True)

    def _hold_to(self, config: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        if path.exists():
            try:
                before = dict(json.loads(path.read_text())["config"])
            except (ValueError, KeyError, TypeError):
                fix = "choose another folder with --out, or delete this file if the options were the same"
                raise SystemExit(f"{path} is not the record of a run; {fix}") from None
            other = sorted(k for k in before.keys() | config if before.get(k) != config.get(k))
            if other:
                was = ", ".join(f"{k}={before.get(k)} (now {config.get(k)})" for k in other)
                raise SystemExit(
                    f"{self.folder} holds a run with {was}; choose another folder with --out or delete it"
                )
        about = {
            "config": config,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": str(jax.devices()[0].device_kind),
            "machine": platform.machine(),
        }
        self.write("run.json", json.dumps(about, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder, all of it at once. Of several processes only the first writes."""
        if jax.process_index() > 0:
            return
        with writing(self.folder):
            replace(self.folder / name, text)

    def save_figure(self, name: str, figure: Figure, dpi: int = 120) -> None:
        """Write a figure into the folder and print its path."""
        with writing(self.folder):
            figure.savefig(self.folder / name, dpi=dpi)
        print(self.folder / name)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. A line that a kill left incomplete is skipped."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [m for m in map(_whole, lines) if m]

    def keep_metrics_up_to(self, step: int) -> None:
        """Drop what was recorded after this step."""
        self.keep_metrics(lambda m: m["step"] <= step)

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the lines that are wanted. Incomplete lines are dropped too, since the next is appended."""
        self.write("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in self.metrics() if wanted(m)))

    def record(self, **metrics: Any) -> None:
        """Append a line to metrics.jsonl. Of several processes only the first writes."""
        if jax.process_index() > 0:
            return
        with writing(self.folder):
            _write_through(self.folder / "metrics.jsonl", "a", json.dumps(metrics) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a text file as a whole: at any moment it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    _write_through(new, "w", text)
    new.replace(path)


def _write_through(path: Path, mode: str, text: str) -> None:
    """Write, and wait until it is on the disk."""
    with path.open(mode) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _whole(line: str) -> dict[str, Any]:
    """The JSON object in a line, {} if there is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class StopRequest:
    """Notes Ctrl-C and SIGTERM in `came`, so that a run stops between two steps and not within one."""

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
