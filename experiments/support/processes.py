"""Training by several processes that share the rows: on one machine, or one on each of many.

    python -m experiments.char_lm --processes 2         two here, each with its part of the rows

    JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=N JAX_PROCESS_ID=i python -m experiments.char_lm
                                                        the i-th of N, i = 0..N−1, on a machine of its own

HOST is where process 0 runs; it prints and writes metrics. All take part in each checkpoint, so --out is a
folder that all of them see. The rows are split over all devices of all processes, the parameters are on each;
how many there are makes no difference to a checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import chex
import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding

import jax_bptt as jb
from experiments.support.command_line import no_memory, nowhere
from experiments.support.files import read
from experiments.support.runs import StopRequest

GRACE = 10.0  # seconds in which processes end by themselves once one has
REFUSED, LOST = 1, 3  # exit codes: it has said why; another process gave no answer
PARENT = "JAX_BPTT_PARENT"  # environment variable: the number of the process that started this one
AGAIN = "run the same command again to go on from the last checkpoint"


def is_member() -> bool:
    """Whether this process is one of several."""
    return "JAX_COORDINATOR_ADDRESS" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if there are any, before JAX does anything else. Only process 0 prints.

    An error ends this process at once: JAX by itself would wait for all the others first.
    """
    if not is_member():
        yield
        return
    _join()
    try:
        with nowhere() as file, contextlib.redirect_stdout(file if jax.process_index() > 0 else sys.stdout):
            yield
    except SystemExit as error:
        _end(REFUSED, str(error.code))
    except BaseException as error:
        if refused := no_memory(error):
            _end(REFUSED, str(refused))
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            _end(LOST, f"another process does not answer ({str(error).splitlines()[0]}); {AGAIN}")
        _end(REFUSED, traceback.format_exc().strip())


def _join() -> None:
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # gloo waits for ever on another order
    number, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if number is None else int(number),
            process_id=None if index is None else int(index),
        )
    except (ValueError, IndexError, RuntimeError) as error:
        fix = "set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or none of them"
        raise SystemExit(f"cannot join the other processes ({error}); {fix}") from None


def _end(code: int, why: str) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def check_rows(rows: int) -> None:
    """SystemExit unless every device gets the same number of rows."""
    if rows % jax.device_count():
        raise SystemExit(f"--rows {rows}: give a multiple of {jax.device_count()}, the number of devices")


def agree(what: str, value: object) -> None:
    """SystemExit unless this value is the same in all processes. Every process has to call this."""
    own = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(own) != own).any():
        raise SystemExit(
            f"the processes differ in {what}: start all of them with the same command and the same --out"
        )


def by_rows(tree: chex.ArrayTree, axis: int) -> chex.ArrayTree:
    """Split arrays over the devices along their axis of rows. A process reads only its own part."""
    return _placed(tree, jb.by_rows(_mesh(), tree, axis))


def data_parallel(state: jb.TrainState) -> jb.TrainState:
    """Split the carry by rows, and put all else on every device."""
    return _placed(state, jb.data_parallel(_mesh(), state))


def _placed(tree: chex.ArrayTree, shardings: chex.ArrayTree) -> chex.ArrayTree:
    def place(whole: Array, sharding: NamedSharding) -> Array:
        array = np.asarray(whole)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(place, tree, shardings)


@functools.cache
def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))


def any_process(came: bool) -> bool:
    """Whether any process was asked to stop or lost its parent. Every process has to call this."""
    parent = str(os.getppid())
    alone = os.environ.get(PARENT, parent) != parent
    return bool(multihost_utils.process_allgather(np.int32(came or alone)).any())


def start(count: int, module: str) -> None:
    """Run this command as `count` processes on this machine, until all have ended.

    Raises:
      SystemExit: not all ended well. Where one was lost, the others are ended too.
    """
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        address = f"127.0.0.1:{_free_port()}"
        logs = [Path(folder) / str(i) for i in range(count)]
        processes = [_process(module, address, count, i, log) for i, log in enumerate(logs)]
        try:
            codes = _wait(processes, stop)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        lost = min(range(count), key=lambda i: (codes[i] or math.inf, i))  # a killed one before others
        if codes[0] == REFUSED and codes[lost] in (REFUSED, -signal.SIGABRT):  # JAX aborts without process 0
            raise SystemExit(REFUSED)  # which has said why
        if codes[lost]:
            said = read(logs[lost]).strip().splitlines()[-1:] if lost else []
            raise SystemExit(
                "; ".join([f"process {lost} of {count} ended with exit code {codes[lost]}", *said, AGAIN])
            )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _process(module: str, address: str, count: int, index: int, log: Path) -> subprocess.Popen[bytes]:
    """Start one process, in a session of its own: Ctrl-C reaches it only through this process."""
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "JAX_LOCAL_DEVICE_IDS": str(index),  # of the GPUs, one each
        PARENT: str(os.getpid()),
    }
    command, environment = [sys.executable, "-m", module, *sys.argv[1:]], os.environ | variables
    if index == 0:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with log.open("wb") as said:
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=said)


def _wait(processes: list[subprocess.Popen[bytes]], stop: StopRequest) -> list[int | None]:
    """Their exit codes; None of one that still runs although another was lost."""
    told, deadline = False, math.inf
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            killed = any(code < 0 for code in codes if code)
            deadline = min(deadline, time.monotonic() + (0 if killed else GRACE))
        if None not in codes or time.monotonic() >= deadline:
            return codes
        if stop.came and not told:
            told = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
