"""k-grams count rightly, byte pairs are lossless, and a finished language model writes what it predicts."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_bptt as jb
from experiments import char_lm, word_lm
from experiments.support import corpora, samples, texts
from experiments.support.byte_pairs import BYTES, WORD, learn_byte_pairs
from experiments.support.kgrams import kgram_nats, kneser_ney_nats

WORDS = " ".join(["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3)  # of Sennrich et al. 2016

# k-grams.


def _witten_bell(train, text, classes, k):
    """The same by dictionaries, one character at a time."""
    seen = defaultdict(Counter)
    for i in range(len(train)):
        for length in range(min(i, k) + 1):
            seen[tuple(train[i - length : i])][train[i]] += 1

    nats = 0.0
    for i in range(1, len(text)):
        p = 1 / classes
        for length in range(min(i, k) + 1):
            here = seen[tuple(text[i - length : i])]
            if here:
                p = (here[text[i]] + len(here) * p) / (here.total() + len(here))
        nats -= math.log(p)
    return nats / (len(text) - 1)


def _kneser_ney(train, text, classes, k):
    """By dictionaries; below k it is counted after how many different symbols a gram stands."""
    grams = [Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)) for n in range(k + 3)]
    seen = [defaultdict(Counter) for _ in range(k + 1)]  # by the length of the context
    for length in range(k + 1):
        last = length == k
        for gram, n in (grams[k + 1] if last else Counter(g[1:] for g in grams[length + 2])).items():
            seen[length][gram[:-1]][gram[-1]] = n

    nats = 0.0
    for i in range(1, len(text)):
        p = 1 / classes
        for length in range(min(i, k) + 1):
            counts = [n for of in seen[length].values() for n in of.values()]
            d = (counts.count(1) + 1) / (counts.count(1) + 2 * counts.count(2) + 2)
            here = seen[length].get(tuple(text[i - length : i]))
            if here:
                p = (max(here[text[i]] - d, 0) + d * len(here) * p) / here.total()
        nats -= math.log(p)
    return nats / (len(text) - 1)


@pytest.mark.parametrize(("nats", "one_by_one"), [(kgram_nats, _witten_bell), (kneser_ney_nats, _kneser_ney)])
def test_kgrams_equal_counting_one_by_one(nats, one_by_one):
    draw = np.random.default_rng(0)
    train, text = draw.integers(0, 4, 300), draw.integers(0, 6, 80)  # classes 4 and 5 were never seen
    found = nats(train, text, 6, 3)
    assert np.allclose(found, [one_by_one(train.tolist(), text.tolist(), 6, k) for k in range(4)], rtol=1e-12)


@pytest.mark.parametrize("nats", [kgram_nats, kneser_ney_nats])
def test_kgram_probabilities_sum_to_one(nats):
    train, context = np.random.default_rng(0).integers(0, 5, 200), [3, 1, 4]
    p = [np.exp(-3 * nats(train, np.array([*context, c]), 5, 3)[3]) for c in range(5)]
    start = np.exp(-2 * nats(train, np.array(context), 5, 3)[3])
    assert abs(sum(p) / start - 1) < 1e-12


# Texts, and what they are made of.


def _merges(text, number):
    """Byte pairs by counting all of them anew for each."""
    words = [list(word.encode()) for word in WORD.findall(text)]
    merges = []
    for new in range(BYTES, BYTES + number):
        n = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = min(n, key=lambda pair: (-n[pair], pair))
        merges.append(best)
        words = [_replaced(word, best, new) for word in words]
    return tuple(merges)


def _replaced(word, pair, new):
    out, i = [], 0
    while i < len(word):
        hit = tuple(word[i : i + 2]) == pair
        out.append(new if hit else word[i])
        i += 2 if hit else 1
    return out


def test_byte_pairs_are_the_most_frequent_neighbours_one_after_the_other():
    text = WORDS + " aaaa aaaaa " + "".join(texts.topics()["lambda"])
    found = learn_byte_pairs(text, BYTES + 60)
    assert found.merges == _merges(text, 60)
    pairs = learn_byte_pairs(WORDS, 10_000)
    assert [pairs.decode([code]) for code in pairs.encode(" lower newest")] == [" lower", " newest"]
    assert pairs.size < 300  # none occurs twice any more


@pytest.mark.parametrize("text", ["", "x", " a  b\n\n\tc_d 12.5! ", "naïve λ ‖x‖ 🙂\r\n", "\0\u2028 \x1f"])
def test_every_text_is_read_again_from_its_symbols(text):
    pairs = learn_byte_pairs(WORDS + text, 300)
    assert pairs.decode(pairs.encode(text)) == text
    assert pairs.encode(text).dtype == np.int32
    assert "".join(WORD.findall(text)) == text


def test_bytes_that_are_no_character_are_shown():
    assert learn_byte_pairs("", 256).decode([0xCE, 65]) == "�A"


def test_no_paragraph_is_twice_in_the_text():
    once = texts.each_paragraph_once({"a": "x y\n\nz", "b": "z\n\n\nx\n y", "c": "new\n\nz"})
    assert once == {"a": "x y\n\nz", "c": "new"}
    assert sorted(texts.mixed(once).split("\n\n\n")) == ["new", "x y\n\nz"]


def test_the_docstrings_of_a_library(tmp_path, monkeypatch):
    module = (
        '"""A module."""\nclass C:\n    def f():\n        """Indented,\n\n        as it is."""\n# A comment.'
    )
    for name in ("one.py", "a/two.py", "test/three.py", "site-packages/four.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(module)
    monkeypatch.setattr(texts.sysconfig, "get_path", lambda name: str(tmp_path))
    assert texts.docstrings() == dict.fromkeys(("a/two.py", "one.py"), "A module.\n\nIndented,\n\nas it is.")


# What a network writes.


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_each_symbol_is_drawn_from_what_is_predicted_after_all_before_it(temperature):
    alphabet, key, length = corpora.Alphabet("abcdef"), jax.random.key(3), 5
    net = jb.network([jb.gru(4, 4), jb.gru(4, 4)], jb.tied_readout(6), jb.embedding(6, 4))
    params = jax.tree.map(lambda p: 3 * p, net.init(jax.random.key(0)))
    codes = np.zeros(3 + length, int)
    codes[:3] = alphabet.encode("fad")
    for i, one in enumerate(jax.random.split(key, length), 3):
        _, ys = net.apply(params, None, codes)
        codes[i] = jax.random.categorical(one, ys[i - 1] / temperature)
    written = samples.write_text(net, params, alphabet, "fad", length, temperature, key)
    assert written == alphabet.decode(codes)


SMALL = {"vocabulary": 300, "embedding": 8, "hidden": 8, "rows": 8, "window": 8, "epochs": 1, "every": 10}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("To be, or not to be, that is the question. " * 100)
    return word_lm.Config(text=folder / "text.txt", out=folder / "out", **SMALL)


@pytest.fixture(scope="module")
def finished(config):
    """What a run says, and what it says when it is finished already."""

    def said():
        with contextlib.redirect_stdout(io.StringIO()) as output, jax.numpy_dtype_promotion("standard"):
            word_lm.main(config)
        return output.getvalue().splitlines()

    found = said(), said()
    config.text.unlink()  # a finished run has all that is needed in its folder
    return found


def test_word_lm_ends_with_what_it_showed(config, finished):
    first, again = finished
    said = (
        r"validation perplexity [\d.]+ \([\d.]+ nats/char\); k-grams k=0 .*; EXPECTATION NOT MET: a k-gram "
    )
    assert re.match(said, first[-1])
    assert again[-3:] == first[-3:]  # with the seconds: it is not run again
    results = json.loads((config.out / "results.json").read_text())
    assert results["command"].startswith("python -m experiments.word_lm --text ")
    assert [row["met"] for row in results["rows"]] == [False]
    assert (config.out / "word_lm.png").stat().st_size > 10_000


def _written(capsys, config, **how):
    word_lm.main(dataclasses.replace(config, **how))
    return capsys.readouterr().out


@pytest.mark.usefixtures("finished")
def test_a_finished_run_writes(config, capsys):
    begin = _written(capsys, config, sample=1)[:40]
    assert begin in "To be, or not to be, that is the question. " * 3
    prompt = {"sample": 7, "prompt": "not λ"}
    first = _written(capsys, config, **prompt)
    assert first.startswith("not λ")
    from_its_folder = word_lm.Config(out=config.out)
    assert first == _written(capsys, from_its_folder, **prompt)
    assert first != _written(capsys, config, seed=1, **prompt)
    assert first != _written(capsys, config, temperature=0.01, **prompt)


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("script", "change", "message"),
    [
        (word_lm, {"cell": "lstm"}, "out holds a run with --cell gru; leave out --cell lstm"),
        (word_lm, {"sample": 0}, "--sample 0: give a number of at least 1"),
        (word_lm, {"temperature": 0.0}, "--temperature 0.0: give a positive number"),
        (word_lm, {"embedding": 9}, r"--embedding 9: give 8 \(--hidden\), or --no-tied"),
        (
            word_lm,
            {"out": Path("nowhere")},
            "nowhere holds no finished run; train first, by the same command",
        ),
        (word_lm, {"sample": None, "vocabulary": 255}, "--vocabulary 255: give a number of at least 256"),
        (
            char_lm,
            {},
            r"out holds no run of this script \(TypeError: .*merges.*\); choose another with --out",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(script, change, message, config):
    if script is char_lm:
        config = char_lm.Config(out=config.out)
    with pytest.raises(SystemExit, match=message):
        script.main(dataclasses.replace(config, **{"sample": 5, **change}))
    assert not Path("nowhere").exists()


def test_a_prompt_with_what_was_never_read_is_refused():
    with pytest.raises(SystemExit, match="the network has never read 'z'; give a text without it"):
        corpora.Alphabet("abc").encode("abz")
