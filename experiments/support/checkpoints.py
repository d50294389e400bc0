"""Checkpoints of a training run: its two newest states, written by orbax, each with the sha256 of its files.

A checkpoint gets its name when all of it is written. One with files that are torn, missing or differ by a bit
is renamed, and the run goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Protocol, TypeVar

import jax
import orbax.checkpoint as ocp
from jax import Array
from jax.experimental import multihost_utils

from experiments.support.files import read, replace, writing
from experiments.support.processes import agree

KEPT = 2
SUMS = "sha256.json"
MARGIN = 2**17  # bytes of a checkpoint that are no arrays, and more


class State(Protocol):
    """A pytree of arrays that knows the number of its step, such as a `jb.TrainState`."""

    @property
    def step(self) -> Array: ...


S = TypeVar("S", bound=State)


class Checkpoints:
    """The folder of the checkpoints, as a context manager.

    Args:
      folder: created if missing.

    Raises:
      SystemExit: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for torn in self.folder.glob("*.new*") if jax.process_index() == 0 else []:
                shutil.rmtree(torn, ignore_errors=True)
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def save(self, state: State) -> None:
        """Write one more and keep the two newest. SystemExit if there is no room, with the old ones kept."""
        step, first = int(state.step), jax.process_index() == 0
        new = self.folder / f"{step}.new"
        with writing(self.folder):
            if first:
                self._find_room(state)
            try:
                self._orbax.save(new, args=ocp.args.StandardSave(state), force=True)
            except ValueError as error:
                if "os_error_code" not in str(error):  # so tensorstore says an OSError
                    raise
                raise OSError(" ".join(str(error).split())) from None
            if first:
                replace(new / SUMS, json.dumps(_sums(new)))
                new.rename(self.folder / str(step))
                for old in self._steps()[:-KEPT]:
                    shutil.rmtree(self.folder / str(old))

    def restore(self, state: S) -> S:
        """Read the newest undamaged checkpoint. Newer ones, which are damaged, are renamed, with a message.

        Args:
          state: what a new run begins with.

        Returns:
          The state that was saved; `state` itself where there is no checkpoint.

        Raises:
          SystemExit: there are checkpoints, but all are damaged, or the newest is of another network.
        """
        steps = self._steps()
        whole = [step for step in steps if _is_whole(self.folder / str(step))]
        agree("their checkpoints", (steps, whole))
        if not steps:
            return state
        if not whole:
            fix = "restore a copy of the folder, or delete it to train from the beginning"
            raise SystemExit(f"every checkpoint in {self.folder} is damaged (steps {steps}); {fix}")
        self._put_aside([step for step in steps if step > whole[-1]], whole[-1])
        newest = self.folder / str(whole[-1])
        try:
            return self._orbax.restore(newest, args=ocp.args.StandardRestore(state))
        except (ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split())[:200]
            fix = "choose another folder with --out, or delete this checkpoint"
            raise SystemExit(f"{newest} is not a checkpoint of this network ({said}); {fix}") from None

    def _steps(self) -> list[int]:
        names = [path.name for path in self.folder.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def _put_aside(self, steps: list[int], start: int) -> None:
        """Rename damaged checkpoints, so that their steps can be saved again."""
        multihost_utils.sync_global_devices("all have read the sums")
        for step in steps if jax.process_index() == 0 else []:
            aside = self.folder / f"{step}.damaged"
            with writing(self.folder):
                shutil.rmtree(aside, ignore_errors=True)
                aside.unlink(missing_ok=True)  # a file of this name
                (self.folder / str(step)).rename(aside)
            print(
                f"the checkpoint of step {step} is damaged and was renamed; the run goes on from step {start}"
            )
        multihost_utils.sync_global_devices("they are put aside")

    def _find_room(self, state: State) -> None:
        """OSError if there is no room for a checkpoint, where orbax would log an error for each array."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(bytes(size))


def _sums(checkpoint: Path) -> dict[str, str]:
    """The sha256 of every file but that of the sums, by path."""
    sums = {}
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.name != SUMS:
            with path.open("rb") as file:
                sums[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _is_whole(checkpoint: Path) -> bool:
    try:
        return json.loads(read(checkpoint / SUMS)) == _sums(checkpoint)
    except (OSError, ValueError, RecursionError):
        return False
