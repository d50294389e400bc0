"""The documentation builds without a warning, misses no public name, and shows equations as MathML."""

import ast
import html
import importlib
import inspect
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as etree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jax_bptt"
DOCS = ROOT / ".docs"
sys.path.insert(0, str(DOCS))

import derived  # noqa: E402
import equations  # noqa: E402
import written  # noqa: E402

PAIRS = {"msub": "_", "msup": "^", "munder": "_", "mover": "", "msubsup": "_^", "munderover": "_^"}


def _read(element):
    """A <math>, or a part of it, in one line: msub of S and t is S_{t}."""
    parts = [_read(child) for child in element]
    if element.tag == "mspace":
        return " "
    if element.tag == "msqrt":
        return f"√{{{''.join(parts)}}}"
    if element.tag in PAIRS:
        scripts = [f"{sign}{{{part}}}" for sign, part in zip(PAIRS[element.tag], parts[1:], strict=False)]
        return "".join([parts[0], *(scripts or parts[1:])])
    return (element.text or "") + "".join(parts)


def _formulas(text):
    return [_read(etree.fromstring(found)) for found in re.findall(r"<math>.*?</math>", text)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the site is built in."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", DOCS / "mkdocs.yml", "-d", out]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # what the theme says of its successor
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert "warning" not in said.lower(), said
    return out


def _pages(folder):
    return "".join(page.read_text("utf-8") for page in sorted(folder.glob("*.html")))


def test_every_public_name_is_on_one_page(site):
    text = _pages(site / "api")
    times = {}
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        for name in node.names if isinstance(node, ast.ImportFrom) else []:
            public = getattr(importlib.import_module(node.module), name.name)
            path = f"{public.__module__}.{name.name}" if callable(public) else f"{node.module}.{name.name}"
            times[path] = len(re.findall(rf'<h\d id="{re.escape(path)}"', text))
    assert len(times) > 70
    assert [path for path, n in times.items() if n != 1] == []


def test_what_is_new_is_derived(tmp_path):
    files = {
        "__init__.py": """
            from jax_bptt.cells.toy import Toy, toy
            from jax_bptt.rooms.room import room
            __all__ = ["Toy", "room", "toy"]
        """,
        "cells/__init__.py": '"Floor 4: one cell a file."',
        "cells/toy.py": """
            "A toy.\\n\\n    y = 2 x    (T1)"
            class Toy: ...
            def toy(): ...
            def not_public(): ...
        """,
        "rooms/__init__.py": "",
        "rooms/room.py": "def room(): ...",
    }
    for place, text in files.items():
        path = tmp_path / "jax_bptt" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(inspect.cleandoc(text))
    pages = derived.pages(tmp_path)
    assert {place: re.findall(r"^::: jax_bptt\.(\S+)", text, re.M) for place, text in pages.items()} == {
        "derivations/cells.md": ["cells.toy"],
        "api/cells.md": ["cells.toy.toy", "cells.toy.Toy"],
        "api/rooms.md": ["rooms.room.room"],
    }
    assert pages["api/cells.md"].startswith("# Cells: API\n\nOne cell a file. ")
    assert pages["api/rooms.md"].startswith("# Rooms: API\n\n")


def test_a_title_belongs_to_a_folder():
    assert [folder for folder in derived.TITLES if not (PACKAGE / folder).is_dir()] == []


def _stated(path):
    """The numbers of the equations at the top of a module."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.findall(r"(?:^    .*|  )\(([A-Z]{1,2}\d+)\)$", docstring, re.M)


def test_every_derivation_is_on_a_page_and_its_equations_are_mathematics(site):
    text = _pages(site / "derivations") + _pages(site / "api")
    for path in sorted(PACKAGE.rglob("*.py")):
        stated = _stated(path)
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        after = text.partition(f'id="{name}"')[2]
        of_module = re.split(r'<h2 id="|<h3 id="', after)[0]
        shown = re.findall(r'class="number">\(<a href="[^"]*">(\w+)</a>\)', of_module)
        assert shown == stated, name


def test_a_number_leads_to_its_equation(site):
    ids, links = [], set()
    for page in sorted(site.rglob("*.html")):
        text = page.read_text("utf-8")
        ids += [(page, label) for label in re.findall(r'<(?:tr|p) id="(\w+)" class="stated"', text)]
        for place, label in re.findall(r'href="([^"#]*)#([A-Z]{1,2}\d+)"', text):
            links.add(((page.parent / place).resolve() if place else page, label))
    stated = [label for path in PACKAGE.rglob("*.py") for label in _stated(path)]
    assert sorted(label for _, label in ids) == sorted(stated)
    assert links == set(ids)
    article = (ROOT / "README.md").read_text("utf-8").rpartition("| article |")[2]
    named = re.findall(r"(?<=[(, ])[A-Z]{1,2}\d+(?=[,)])", article)
    home = (site / "index.html").read_text("utf-8")
    assert named
    assert [label for label in named if f'#{label}">{label}</a>' not in home] == []


def test_the_links_of_a_page_are_those_of_the_repository(tmp_path):
    there = ("README.md", "LICENSE", "experiments/SPEED.md", "experiments/figures/a.png", ".docs/pages/b.md")
    for place in there:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    text = (
        "[x](../../README.md#y) ![z](../../experiments/figures/a.png) [l](../../LICENSE) [web](https://a.org)"
    )
    shown = "[x](index.md#y) ![z](experiments/figures/a.png) l [web](https://a.org)"
    assert written.on_site(text, "b.md", tmp_path) == shown
    assert written.on_site("[b](../.docs/pages/b.md)", "experiments/SPEED.md", tmp_path) == "[b](../b.md)"


def test_no_equation_is_left_as_it_was_typed(site):
    for folder in ("derivations", "api"):
        prose = re.sub(r"<(pre|code|math|script)\b.*?</\1>", " ", _pages(site / folder), flags=re.S)
        words = html.unescape(re.sub(r"<[^>]*>", " ", prose))
        assert re.findall(r"\S*(?:_\{|ᵀ|\u0303|\b[A-Zλδ]_[a-z]\b)\S*", words) == []


@pytest.mark.parametrize(
    ("page", "formula"),
    [
        ("cells", "S_{t}=g_{1}(W_{x} X_{t}+W_{s} S_{t−1})"),
        ("cells", "h_{t}=g(z_{t})"),
        ("cells", "δz_{t}=a_{t} λ_{t}"),
        ("engine", "λ~_{t−1}=(ds_{t}/ds~_{t−1})^{T} λ_{t}"),
        ("engine", "dE/dW_{h}=∑_{t} h~_{t−1}^{T} δv_{t}"),
        ("networks", "E=∑_{t} ∑ (d_{t}−Y_{t})^{2}"),
        ("networks", "Y_{t}=g_{2}(W_{y} S_{t})"),
        ("networks", "dE/dW_{y}=∑_{t} h_{t}^{T} δz_{t}"),
        ("flow", "dE_{t}/dW_{s}=∑_{k≤t} dE_{t}/dY_{t} dY_{t}/dS_{t} (∏ dS_{i}/dS_{i−1}) dS_{k}/dW_{s}"),
    ],
)
def test_the_equations_of_the_article(site, page, formula):
    assert formula in _formulas((site / "derivations" / f"{page}.html").read_text("utf-8"))


def test_figures_are_there_and_nothing_comes_from_elsewhere(site):
    figures = {path.name for path in (ROOT / "experiments" / "figures").glob("*.png")}
    seen = set()
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="?(?:https?:)?//', text), page
        for image in re.findall(r'<img[^>]*src="([^"]+)"', text):
            assert (page.parent / image).exists(), image
            seen.add(Path(image).name)
    assert seen == figures


@pytest.mark.parametrize(
    ("typed", "formulas"),
    [
        ("λ̃_{t−1} = G_{t−1}", ["λ~_{t−1}=G_{t−1}"]),
        ("λᵗ_{k−1}", ["λ_{k−1}^{t}"]),
        ("x_tᵀ δu", ["x_{t}^{T} δu"]),
        ("‖J_t‖ ≤ ‖J_t‖_F", ["‖J_{t}‖≤‖J_{t}‖_{F}"]),
        ("s_t^{k+1} below √ε m_t", ["s_{t}^{k+1}", "√{ε} m_{t}"]),
        ("ρ_l^(1/l), of one step", ["ρ_{l}^{1/l},"]),
        ("o_t = [h→_t, h←_t]", ["o_{t}=[h→_{t},h←_{t}]"]),
        ("<g, v> = −1/N Σ_t a_t", ["⟨g,v⟩=−1/N ∑_{t} a_{t}"]),
        ("J_k,ff′ where mask_t", ["J_{k,ff′}", "mask_{t}"]),
        ("the last term into `name`, a word", []),
    ],
)
def test_a_line_of_words_and_mathematics(typed, formulas):
    assert _formulas(equations.line(typed)) == formulas


def test_a_table_keeps_columns_and_numbers():
    lines = [
        "    forward   y = g(z)      a remark, s̃      (F1)",
        "              z_t = h_t",
        "",
        "    back   dE/dz",
    ]
    rows = re.findall(r"<tr>(.*?)</tr>", equations.table(lines))
    tags = r"<[^>]*>|\u2060"
    cells = [[re.sub(tags, "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]
    assert cells == [
        ["forward", "y=g(z)", "a remark, s~", "(F1)"],
        ["", "zt=ht", ""],
        ["&nbsp;"],
        ["back", "dE/dz", ""],
    ]
    assert 'class="label"' in rows[0]
