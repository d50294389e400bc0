"""The result folder of a run: config, versions, device, metrics as JSON lines, checkpoints.

One process at a time has the folder. A run of other options is refused once there is a checkpoint, or, for
scripts without checkpoints, a line of metrics.

A run that was killed goes on from its newest undamaged checkpoint. Metrics written after that checkpoint are
dropped, so the finished folder is the same as that of an uninterrupted run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments.support import folder_lock
from experiments.support.files import append, at_home, read, replace, writing

PACKAGES = ("jax", "jaxlib", "optax", "chex", "jax_bptt")
NUMBERS = ("jax_enable_x64", "jax_default_prng_impl")  # settings of JAX that change every result


class Run:
    """A result folder, opened for a configuration.

    Args:
      folder: created if missing.
      config: everything that the results depend on, by name, as plain values.

    Raises:
      SystemExit: the folder is in use by another process, holds a run of another configuration, or cannot be
        written.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder = _of_its_own(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._lock = folder_lock.lock(folder)
            begun = self._is_begun()
            if begun:
                self._hold_to(config)
            self._describe(config)
            self.keep_metrics(lambda m: begun)

    def _is_begun(self) -> bool:
        """Whether there is anything that a run would go on from; a start that failed leaves nothing."""
        checkpoints = self.folder / "checkpoints"
        if checkpoints.exists():
            return any(path.name.isdecimal() for at in ("*", "*/*") for path in checkpoints.glob(at))
        return bool(self.metrics())

    def _hold_to(self, config: dict[str, Any]) -> None:
        """SystemExit if the run that was begun here has another configuration."""
        path, now = self.folder / "run.json", {**config, **_numbers()}
        try:
            about = json.loads(read(path))
            before = {**dict(about["config"]), **about.get("numbers", _numbers())}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            fix = "choose another folder with --out, or delete this one"
            raise SystemExit(f"{self.folder} holds a run, but {path} is not its record; {fix}") from None
        other = sorted(k for k in before.keys() | now if before.get(k) != now.get(k))
        if other:
            was = ", ".join(f"{k}={before.get(k)} (now {now.get(k)})" for k in other)
            raise SystemExit(
                f"{self.folder} holds a run with {was}; choose another folder with --out or delete it"
            )

    def _describe(self, config: dict[str, Any]) -> None:
        about = {
            "config": config,
            "numbers": _numbers(),
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

    def metrics(self, **kinds: type) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that have these values, each of its kind, such as step=int.

        A line that a kill left incomplete is skipped, as is one that no run wrote.
        """
        path = self.folder / "metrics.jsonl"
        lines = read(path).split("\n") if path.exists() else []
        return [m for m in map(_whole, lines) if m and _has(m, kinds)]

    def keep_metrics_up_to(self, step: int, **of: Any) -> None:
        """Drop what was recorded after this step, of the lines with these values."""
        self.keep_metrics(
            lambda m: not (_has(m, {"step": int}) and m["step"] > step and of.items() <= m.items())
        )

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the lines that are wanted. Incomplete lines are dropped too, since the next is appended."""
        self.write("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in self.metrics() if wanted(m)))

    def record(self, **metrics: Any) -> None:
        """Append a line to metrics.jsonl. Of several processes only the first writes."""
        if jax.process_index() > 0:
            return
        with writing(self.folder):
            append(self.folder / "metrics.jsonl", json.dumps(metrics) + "\n")


def _whole(line: str) -> dict[str, Any]:
    """The JSON object in a line, {} if there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _has(line: dict[str, Any], kinds: dict[str, type]) -> bool:
    """Whether a line has these values, each of its kind; 1 is a float too, but true is no number."""
    return all(
        type(line.get(key)) in ((int, float) if kind is float else (kind,)) for key, kind in kinds.items()
    )


def _numbers() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in NUMBERS}


def _of_its_own(folder: Path) -> Path:
    """The result folder. SystemExit if it holds other things, or if libraries read its name differently."""
    folder = at_home(folder)
    if {folder.resolve(), folder} & {at_home(Path("~")), Path.cwd(), *Path.cwd().parents, Path()}:
        raise SystemExit(f'--out "{folder}" is not a folder of its own; name one such as results/first')
    name = str(folder.absolute())
    if os.fsencode(name) != name.encode(errors="replace"):
        shown = os.fsencode(name).decode(errors="replace")
        fix = "give a name of ASCII letters, or start Python as python -X utf8"
        raise SystemExit(f"--out {shown} is not UTF-8 in this locale; {fix}")
    return folder


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
