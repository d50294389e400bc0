"""What a type checker says of code that uses the library: right calls pass, wrong calls do not."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = ROOT / "tests" / "typing"
ALIASES_OF_ANY = {"Foreign", "Targets", "Projected", "Carry", "Weights", "Data"}


@pytest.fixture(scope="module")
def errors():
    """The lines of each file in which pyright finds an error."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(CALLS)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(ran.stdout[ran.stdout.index("{") :])["generalDiagnostics"]
    lines = {path.name: {} for path in CALLS.glob("*.py")}
    for one in found:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"] + 1
            lines[Path(one["file"]).name].setdefault(line, one["message"].splitlines()[0])
    return lines


def test_right_calls_pass(errors):
    assert errors["right_calls.py"] == {}


def test_at_least_18_of_20_wrong_calls_are_caught(errors):
    text = (CALLS / "wrong_calls.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(text, 1) if "# wrong: " in line}
    caught = errors["wrong_calls.py"].keys()
    assert len(wrong) == 20
    assert caught <= wrong, "a line that is not wrong"
    missed = [text[number - 1] for number in sorted(wrong - caught)]
    assert len(missed) <= 2, missed


def _parameters():
    """(where it stands, its annotation) of every parameter in the package."""
    for path in sorted((ROOT / "jax_bptt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                for one in every:
                    if one.arg not in ("self", "cls"):
                        annotation = "" if one.annotation is None else ast.unparse(one.annotation)
                        yield f"{path.name}: {node.name}({one.arg})", annotation


def test_a_bare_any_is_an_exception():
    """At most 5 %; with the aliases that say what a value is for, 9 %."""
    found = list(_parameters())
    bare = [where for where, annotation in found if re.fullmatch(r"Any|", annotation)]
    aliases = [where for where, annotation in found if annotation in ALIASES_OF_ANY]
    assert len(found) > 1000
    assert len(bare) <= 0.05 * len(found), bare
    assert len(bare) + len(aliases) <= 0.09 * len(found), aliases
