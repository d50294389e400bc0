"""The examples of the README and of the how-to page run one by one and print what stands under them."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README, "how_to.md": (ROOT / ".docs" / "pages" / "how_to.md").read_text()}
NUMBER = r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"
EXAMPLES = [
    pytest.param(code, printed, id=f"{page}, example {number}")
    for page, text in PAGES.items()
    for number, (code, printed) in enumerate(
        re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", text, re.S), start=1
    )
]


def _words_and_numbers(text):
    return re.sub(NUMBER, "#", text), [float(n.replace(",", "")) for n in re.findall(NUMBER, text)]


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_an_example_runs_alone_and_prints_what_stands_under_it(code, printed):
    """In JAX's own precision; rounding differs between machines, so that numbers may a little, too."""
    out = io.StringIO()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    words, numbers = _words_and_numbers(out.getvalue())
    expected_words, expected_numbers = _words_and_numbers(printed)
    assert words == expected_words
    assert numbers == pytest.approx(expected_numbers, rel=0.1, abs=0.1)


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
