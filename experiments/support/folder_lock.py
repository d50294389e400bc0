"""A result folder belongs to one process at a time: the one that holds the lock on its file `run.lock`.

The operating system holds the lock until the process ends, however it ends. What a killed run leaves behind
is a file and no lock, so it stops nobody. The file says who holds the lock. On Windows, and on network drives
that have no locks, folders are not locked.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

NAME = "run.lock"


class FolderLock:
    """The lock of a folder, held as long as this object is in use.

    Args:
      folder: has to exist.

    Raises:
      SystemExit: another process holds the lock. Nothing in the folder was changed.
    """

    def __init__(self, folder: Path) -> None:
        if sys.platform == "win32":
            return
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 10_000, 0).decode(errors="replace").strip() or "another process"
            fix = "wait until it has ended, or choose another folder with --out"
            raise SystemExit(f"{folder} is in use by {holder}; {fix}") from None
        except OSError:  # no locks on this drive
            return
        os.ftruncate(file, 0)
        os.pwrite(file, f"{_this_process()}\n".encode(errors="backslashreplace"), 0)


_HELD: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


def lock(folder: Path) -> FolderLock:
    """Lock a folder; a process that holds the lock already gets the same one."""
    held = _HELD.get(folder.resolve()) or FolderLock(folder)
    return _HELD.setdefault(folder.resolve(), held)


def _this_process() -> str:
    since, command = time.strftime("%Y-%m-%d %H:%M:%S"), shlex.join(sys.orig_argv)
    return f"process {os.getpid()} on {platform.node()} since {since} ({command})"
