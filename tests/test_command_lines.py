"""Scripts print UTF-8 to every terminal, go on where nobody reads on, and read paths as one means them."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.every_script import SCRIPTS

from experiments.support import command_line, processes

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Config:
    text: Path | None = None
    out: Path = Path("results/one")


def test_every_script_prints_and_writes_utf_8_whatever_locale_and_terminal(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "tests/support/every_script.py", tmp_path / "out"]
    environment = {**os.environ, **ascii_only, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    said = done.stdout.decode()
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert said.count("usage: ") == len(SCRIPTS) > 10
    assert {"‖", "λ", "θ", "√", "–"} < set(said)  # of the helps
    assert "λ 1921–1955: θ* (known: ½)" in said.splitlines()
    assert (tmp_path / "out" / "page.md").read_text(encoding="utf-8") == "λ 1921–1955\n"


def test_what_nobody_reads_does_not_end_a_run(monkeypatch):
    """As after `| head -1`: a buffer that is full, the end, and what is printed after it."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="ascii") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with command_line.lasting_output():
            for _ in range(3):
                print(10_000 * "λ")
            print("the end", flush=True)
        assert sys.stdout is pipe


def test_a_closed_output_and_that_of_a_notebook(monkeypatch):
    """A stream that was closed before Python began is None; that of a notebook cannot be set up anew."""
    monkeypatch.setattr(sys, "stdout", None)
    with command_line.lasting_output():
        print("λ")
        sys.stdout.flush()
    with contextlib.redirect_stdout(io.StringIO()) as notebook, command_line.lasting_output():
        print("λ")
    assert notebook.getvalue() == "λ\n"


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--text", "", "--out", "x"], ["--text="]])
def test_an_empty_option_is_refused(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *words])
    with pytest.raises(SystemExit, match=f'^{words[0].rstrip("=")} "" is empty: give a value'):
        command_line.run_script(lambda config: None, Config, None)


def test_a_quoted_home_folder_is_found(monkeypatch):
    seen = []
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.setattr(sys, "argv", ["script", "--out", "~/x", "--text=~/y"])
    command_line.run_script(seen.append, Config, None)
    assert seen == [Config(Path("/home/one/y"), Path("/home/one/x"))]
    monkeypatch.setattr(sys, "argv", ["script", "--out", "~nobody-of-this-name/x"])
    with pytest.raises(SystemExit, match="this home folder is not known; give the path without ~"):
        command_line.run_script(seen.append, Config, None)


@pytest.mark.parametrize(
    ("error", "ends", "said"),
    [
        (KeyboardInterrupt(), SystemExit, "^stopped; run the same command again"),
        (MemoryError("Unable to allocate 745. GiB"), SystemExit, "^the memory is too small .*choose smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED:\nOut of memory"), SystemExit, "^the memory is too small .*D: Out"),
        (RuntimeError("a slip"), RuntimeError, "a slip"),
    ],
)
def test_what_ends_a_script_is_one_line(error, ends, said, monkeypatch):
    def fail(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(ends, match=said):
        command_line.run_script(fail, Config, None)


@pytest.mark.parametrize("more", [{}, {"JAX_NUM_PROCESSES": "two"}, {"JAX_NUM_PROCESSES": "2"}])
def test_a_process_that_is_not_told_all_refuses(more, monkeypatch):
    monkeypatch.setattr(processes.jax.config, "update", lambda *_: None)
    for name, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **more}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(SystemExit, match=r"cannot join the other processes .*; set JAX_COORDINATOR_ADDRESS"),
        processes.joined(),
    ):
        pass
