"""The examples of the README and of the written pages run one by one and print what stands under them."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WRITTEN = sorted((ROOT / ".docs" / "pages").glob("*.md"))
PAGES = {"README.md": README} | {path.name: path.read_text() for path in WRITTEN}
NUMBER = r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"
EXAMPLES = [
    pytest.param(code, printed, id=f"{page}, example {number}")
    for page, text in PAGES.items()
    for number, (code, printed) in enumerate(
        re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", text, re.S), start=1
    )
]


def _words(text):
    return re.sub(NUMBER, "#", text)


def _numbers(text):
    """Each number, and what it may be off by: a tenth of it, two units of its last digit, or rounding."""
    for n in re.findall(NUMBER, text):
        digits, _, exponent = n.replace(",", "").partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        number = float(n.replace(",", ""))
        yield number, max(0.1 * abs(number), 2 * unit, 1e-6)


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_an_example_runs_alone_and_prints_what_stands_under_it(code, printed):
    """In JAX's own precision; rounding differs between machines, so that numbers may a little, too."""
    out = io.StringIO()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    assert _words(out.getvalue()) == _words(printed)
    for (found, _), (expected, off) in zip(_numbers(out.getvalue()), _numbers(printed), strict=True):
        assert abs(found - expected) <= off


def test_the_readme_is_short_and_its_first_example_too():
    assert len(README.splitlines()) <= 200
    assert len(EXAMPLES[0].values[0].splitlines()) <= 20


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^```\n(python.*)\n```$", README, re.M)
    assert commands == [
        'python -m pip install -e ".[experiments]" && python -m experiments.char_lm',
        'python -m pip install -e ".[test]" && python -m pytest',
    ]


def test_the_equations_are_where_the_readme_says():
    package = ROOT / "jax_bptt"
    for file, labels in re.findall(r"`([\w/]+\.py)` \(([A-Z]{1,2}\d[^)]*)\)", README):
        text = (package / file).read_text()
        for label in labels.split(", "):
            assert f"({label})" in text, (file, label)
            assert re.search(rf"#.*\b{label}\b", text), f"no code line of {file} ends in {label}"
