"""On the page "Put it under your model", a framework's own code and ours have the same loss and gradient.

`KERAS_BACKEND=jax python -m pytest tests/test_under_your_model_page.py` where the frameworks are installed.
"""

import importlib.util
import os
import re
from pathlib import Path

import jax
import pytest
import support.witnesses as w

PAGE = (Path(__file__).parents[1] / ".docs" / "pages" / "under_your_model.md").read_text()
SECTIONS = [section.partition("```diff\n") for section in PAGE.split("\n## ")]
BLOCKS = {head.partition("\n")[0]: rest.partition("```")[0] for head, fence, rest in SECTIONS if fence}
FRAMEWORKS = ("flax", "equinox", "haiku", "keras")


def _one_side(block, left_out):
    """The code before or after the change; every line begins with a blank, a minus or a plus."""
    return "".join(line[1:] or "\n" for line in block.splitlines(True) if line[0] != left_out)


def _results(code):
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        exec(compile(code, "under_your_model.md", "exec"), names)
    return jax.tree.leaves([names.get(name) for name in ("loss", "grads", "weights")])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
@pytest.mark.parametrize("title", BLOCKS)
def test_the_loss_and_the_gradient_are_those_of_the_framework(title, monkeypatch):
    needed = next(
        name for name in FRAMEWORKS if f"import {name}" in BLOCKS[title] or f"from {name}" in BLOCKS[title]
    )
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed; it is in the extra `peers`")
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "jax"))
    before, after = (_results(_one_side(BLOCKS[title], sign)) for sign in "+-")
    assert len(before) > 2
    assert not w.wrong(dict(enumerate(after)), dict(enumerate(before)), 1e-5)


def test_one_line_and_its_import_are_new():
    assert len(BLOCKS) == PAGE.count("```diff") == 7
    for title, block in BLOCKS.items():
        new = [line for line in block.splitlines() if line.startswith("+")]
        imports = [line for line in new if re.match(r"\+(from|import) ", line)]
        assert len(imports) == 1, title
        assert len(new) <= 2, title
