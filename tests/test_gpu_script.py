"""experiments.gpu measures what agrees, refuses what does not, and keeps what it has when a kernel hangs."""

import json
import sys
import time

import jax
import pytest

import jax_bptt as jb
from experiments import gpu
from experiments.support import gpu_cases, gpu_section
from experiments.support.gpu_cases import Case, Section

TINY = (6, 2, 3, 8)
FULL, SCAN, SHORT = (Case("elman", TINY, "float32", name) for name in ("full()", "scan", "full(64)"))


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch):
    """Without the strictness of the tests, which other libraries do not keep to, and quickly."""
    monkeypatch.setattr(gpu_section, "LOT", 1e-9)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_section_times_what_agrees_and_refuses_the_rest(capsys, monkeypatch):
    monkeypatch.setitem(gpu_cases.METHODS, "full(64)", lambda: jb.truncated(2))  # a wrong gradient
    monkeypatch.setitem(gpu_cases.METHODS, "fused()", lambda: 1 / 0)  # a program that fails
    failing = FULL._replace(program="fused()")
    cases = (FULL, FULL._replace(marks=True), SCAN, SHORT, failing, Case("gru", TINY, "bf16", "cudnn"))
    gpu_section.run_section(Section("tiny", 1, cases), {SCAN})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [gpu.case_of(line) for line in lines] == [case for case in cases if case is not SCAN]
    measured, marked, refused, error, absent = lines
    for line in (measured, marked):
        assert line["microseconds"] > 0
        assert line["distance"] < 1e-6
        assert line["repeats"]
    assert refused["refused"]
    assert refused["distance"] > 1e-2
    assert "microseconds" not in refused
    assert error["error"].startswith("ZeroDivisionError")
    assert absent["absent"]
    table = gpu.table([measured, marked, refused])
    assert "full() with marks" in table
    assert " refused |" in table
    verdict = gpu.judge(lines)
    assert verdict == "3 programs; EXPECTATION NOT MET: full(64) is refused in float32, 1 errors"


def test_what_is_slower_than_is_expected_is_named():
    times = {"full()": 3.0, "scan": 2.0, "autodiff()": 3.1}
    lines = [FULL._replace(program=name)._asdict() | {"microseconds": t} for name, t in times.items()]
    slower = "full() is slower than scan at elman, 6x2x3x8, float32"
    assert gpu.judge(lines) == f"3 programs; EXPECTATION NOT MET: {slower}"
    assert gpu.judge(lines[::2]) == "2 programs; as expected"


def test_a_process_that_hangs_is_ended_and_its_lines_are_kept(tmp_path):
    program = "import time; print('{}', flush=True); time.sleep(60)"
    began = time.monotonic()
    first, last = gpu.lines_of_process("kernels", [sys.executable, "-c", program], tmp_path, limit=1)
    assert time.monotonic() - began < 30
    assert first == "{}"
    assert "ended with -9" in json.loads(last)["error"]


def test_the_same_command_again_measures_what_is_missing(tmp_path, capsys, monkeypatch):
    """What failed is tried again, and a line that a kill cut off is left out."""
    kept = SCAN._asdict() | {"section": "machine", "microseconds": 1.0, "distance": 0.0}
    failed = {"section": "machine", "error": "ended"}
    (tmp_path / gpu.LINES).write_text(json.dumps(kept) + "\n" + json.dumps(failed) + "\n{cut")
    monkeypatch.setattr(gpu, "lines_of_process", lambda *_: iter([json.dumps({"section": "machine"})]))
    gpu.main(gpu.options(["--only", "machine", "--out", str(tmp_path)]))
    assert gpu.measured_cases(tmp_path) == {SCAN}
    assert (tmp_path / gpu.LINES).read_text().count("\n") == 2
    assert (tmp_path / "table.md").read_text().count("\n") == 3
    assert capsys.readouterr().out.splitlines()[-1] == "1 programs; as expected"
