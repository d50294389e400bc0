"""Checkpoints of a training run: its two newest states, written by orbax, each with the sha256 of its files.

These are written last. A checkpoint without them, or with files that are torn, missing or differ by a bit, is
put aside, and the run goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import jax_bptt as jb
from experiments.runs import replace, writing

SUMS = "sha256.json"
MARGIN = 2**17  # bytes of a checkpoint that are no arrays, and more


class Checkpoints:
    """The folder of them; a context, closed at its end.

    Args:
      folder: created if missing.

    Raises:
      SystemExit: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        with writing(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: jb.TrainState) -> None:
        """One more, the third newest is removed; SystemExit where there is no room, the others are kept."""
        step, first = int(state.step), jax.process_index() == 0
        with writing(self.folder):
            if first:
                self._find_room(state)
            try:
                self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
            except ValueError as error:
                if "os_error_code" not in str(error):  # so tensorstore says an OSError
                    raise
                raise OSError(" ".join(str(error).split())) from None
            if first:
                replace(self.folder / str(step) / SUMS, json.dumps(self._sums(step)))

    def restore(self, state: jb.TrainState) -> jb.TrainState:
        """The newest whole checkpoint; one that is newer is put aside, and this is said.

        Args:
          state: what a new run begins with.

        Returns:
          The state that was saved; `state` itself where no checkpoint was ever finished.

        Raises:
          SystemExit: there are finished checkpoints, none of them whole.
        """
        steps = sorted(self._manager.all_steps())
        whole = [step for step in steps if self._is_whole(step)]
        if not whole and any((self.folder / str(step) / SUMS).exists() for step in steps):
            fix = "bring back a copy, or delete it to begin anew"
            raise SystemExit(f"no checkpoint in {self.folder} is whole (steps {steps} are damaged); {fix}")
        start = whole[-1] if whole else 0
        self._put_aside([step for step in steps if step > start], start)
        return self._manager.restore(start, args=ocp.args.StandardRestore(state)) if whole else state

    def _is_whole(self, step: int) -> bool:
        try:
            return json.loads((self.folder / str(step) / SUMS).read_text()) == self._sums(step)
        except (OSError, ValueError):
            return False

    def _sums(self, step: int) -> dict[str, str]:
        """sha256 of every other file of a checkpoint, by its path."""
        sums = {}
        for path in (self.folder / str(step)).rglob("*"):
            if path.is_file() and path.name != SUMS:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                sums[str(path.relative_to(self.folder))] = digest
        return sums

    def _put_aside(self, steps: list[int], start: int) -> None:
        """Under other names, so that they can be saved anew."""
        multihost_utils.sync_global_devices("all have read the sums")
        for step in steps if jax.process_index() == 0 else []:
            aside = self.folder / f"{step}.damaged"
            with writing(self.folder):
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
            print(f"the checkpoint of step {step} is torn or damaged, and put aside; on from step {start}")
        multihost_utils.sync_global_devices("they are put aside")
        self._manager.reload()

    def _find_room(self, state: jb.TrainState) -> None:
        """OSError where a checkpoint has no room; orbax would go on to log an error for each array."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(bytes(size))
