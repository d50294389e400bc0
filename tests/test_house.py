"""Imports only go down from floor to floor, dependencies are few, and importing has no side effects."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jax_bptt"
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _floor(room):
    """The floor that the docstring of a folder says; the package itself is above all of them."""
    if room in ("__init__", "__main__"):
        return {"__init__": 100, "__main__": 101}[room]
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    return int(re.match(r"Floor (\d+): ", docstring)[1])


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (
                [node.module] if node.module != "jax_bptt" else [f"jax_bptt.{n.name}" for n in node.names]
            )
        elif isinstance(node, ast.Import):
            yield from (n.name for n in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_folder_imports_only_folders_below_it(path):
    for name in _imports(path):
        package, _, rest = name.partition(".")
        if package == "jax_bptt":
            room = rest.split(".")[0] or "__init__"
            assert room == _room(path) or _floor(room) < _floor(_room(path)), name
        else:
            own = {path.stem.partition("_")[0]} if _room(path) == "adapters" else set()  # its framework
            assert package in {*sys.stdlib_module_names, "jax", "numpy", "optax", "chex", *own}, name


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle():
    below = {}
    for path in FILES:
        module = "jax_bptt." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        below[module] = {name for name in _imports(path) if name.startswith("jax_bptt.")}
    for _ in below:
        done = {module for module, names in below.items() if not names & below.keys()}
        below = {module: names for module, names in below.items() if module not in done}
    assert not below


def test_a_folder_exports_nothing():
    """The one list of public names is the package's; so no module is shadowed by a function of its name."""
    for path in PACKAGE.glob("*/__init__.py"):
        (docstring,) = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path
    import jax_bptt as jb

    public = {name for name in vars(jb) if not name.startswith("_")}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert public - folders == set(jb.__all__)
    assert not folders & set(jb.__all__)


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_equation_of_a_derivation_labels_a_line_of_code(path):
    text = path.read_text()
    derivation = ast.get_docstring(ast.parse(text)) or ""
    stated = set(re.findall(r"\(([A-Z]{1,2}\d+)\)", derivation))
    labelled = {
        label for comment in re.findall(r"#(.*)", text) for label in re.findall(r"\b[A-Z]{1,2}\d+", comment)
    }
    assert stated == labelled


def test_a_number_names_one_equation_of_the_package():
    where = {}
    for path in FILES:
        derivation = ast.get_docstring(ast.parse(path.read_text())) or ""
        for label in re.findall(r"\(([A-Z]{1,2}\d+)\)$", derivation, re.M):
            where.setdefault(label, set()).add(path)
    assert len(where) > 100
    assert [label for label, paths in where.items() if len(paths) > 1] == []


def test_every_public_function_has_its_docstring():
    import jax_bptt as jb

    functions = {name: getattr(jb, name) for name in jb.__all__ if inspect.isfunction(getattr(jb, name))}
    assert len(functions) > 40
    for name, function in functions.items():
        parts = ("Args:", "Returns:", "Raises:") if inspect.signature(function).parameters else ("Returns:",)
        assert all(part in function.__doc__ for part in parts), name


def test_run_time_dependencies():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(n.split(">")[0] for n in needs) == ["chex", "jax", "jaxlib", "optax"]


def _unsafe(program):
    """What in a program makes code of data."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
            yield from {n.split(".")[0] for n in names} & {
                "pickle",
                "cloudpickle",
                "dill",
                "joblib",
                "shelve",
            }
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = name in ("eval", "exec", "yaml.load", "joblib.load") or name.endswith("read_pickle")
            unsafe |= name == "torch.load" and given.get("weights_only") != "True"
            if unsafe or given.get("allow_pickle", "False") != "False":
                yield name


@pytest.mark.parametrize(
    "program",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import os, joblib.hashing",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "pandas.read_pickle(path)",
    ],
)
def test_unsafe_calls_are_found(program):
    assert list(_unsafe(program))
    assert not list(_unsafe("torch.load(path, weights_only=True); np.load(path); yaml.safe_load(text)"))


def test_no_file_runs_data_as_code():
    """But the tests of the README and of a page, which run their examples."""
    paths = [path for room in ("jax_bptt", "experiments", "tests") for path in (ROOT / room).rglob("*.py")]
    found = {(path.name, name) for path in paths for name in _unsafe(path.read_text())}
    assert len(paths) > 100
    assert found == {("test_readme.py", "exec"), ("test_under_your_model_page.py", "exec")}


def test_importing_does_no_work_and_changes_no_configuration():
    program = """
import sys, jax
before = dict(jax.config.values)
import jax_bptt
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
assert dict(jax.config.values) == before, "the configuration changed"
extras = {"tyro", "tqdm", "matplotlib", "orbax"} & sys.modules.keys()
assert not extras, extras
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_top_level_holds_what_it_should():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    shown = {name for name in top if not name.startswith(".")}
    assert shown == {"pyproject.toml", "README.md", "LICENSE", "jax_bptt", "tests", "experiments"}
