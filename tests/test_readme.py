"""The examples, the commands and the equation references of the README are right."""

import re
from pathlib import Path

import jax
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_blocks_run_as_they_stand():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks[0].strip().splitlines()) <= 15
    scope = {}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        for block in blocks:
            exec(compile(block, "README.md", "exec"), scope)
    assert float(scope["metrics"].loss) < 0.2 * 16 * 20  # 1 per number is knowing nothing
    assert np.isfinite(scope["hs"]).all()


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^```\n(python.*)\n```$", README, re.M)
    assert commands == [
        'python -m pip install -e ".[experiments]" && python -m experiments.char_lm',
        'python -m pip install -e ".[test]" && python -m pytest',
    ]


def test_the_equations_are_where_the_readme_says():
    package = Path(__file__).parents[1] / "jax_bptt"
    for file, labels in re.findall(r"`([\w/]+\.py)` \(([A-Z]{1,2}\d[^)]*)\)", README):
        text = (package / file).read_text()
        for label in labels.split(", "):
            assert f"({label})" in text, (file, label)
            assert re.search(rf"#.*\b{label}\b", text), f"no code line of {file} ends in {label}"
