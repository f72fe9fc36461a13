"""Tokenizers and written answers, good and bad, that the grammar's tests share."""

import random

import moonshot
import pytest

from seg_jax.grammar import chat, outline
from seg_jax.grammar.tokenizer import tokens
from seg_jax.records import Kind

EXPRESSIONS = ("red star", "the big blue circle", "small green moon on the left")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Two decimals, each number one token."""
    return _trained(tmp_path_factory, "whole", 2)


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """Three decimals, each digit one token."""
    return _trained(tmp_path_factory, "digits", 3)


@pytest.fixture(scope="session")
def moonshots(tmp_path_factory):
    """Returns a folder, a table of ranks and their tokenizer: digits by threes, as Kimi has it."""
    rng = random.Random(0)
    corpus = [_written(rng, Kind.MASK, 3) for _ in range(300)]
    corpus += [*chat.sentences(EXPRESSIONS)] * 3 + ["漢字 汉字 don't I'LL \n\n  \t 🦊🦊"] * 30
    found = moonshot.table(corpus, 2000)
    folder = moonshot.write(tmp_path_factory.mktemp("moonshot"), found)
    return folder, found, tokens.Tokenizer.load(folder)


def _trained(tmp_path_factory, numbers, digits):
    folder = tmp_path_factory.mktemp(numbers)
    tokens.train(chat.sentences(EXPRESSIONS), folder=folder, numbers=numbers, digits=digits)
    return folder, tokens.Tokenizer.load(folder)


@pytest.fixture(scope="session")
def answers():
    """Draws (text, kind) pairs: valid answers, cut ones, ones with a few characters changed."""
    return _answers


def _answers(count, digits, seed=0):
    rng = random.Random(seed)
    return [_answer(rng, digits) for _ in range(count)]


_NOISE = ["", "[", "]", ",", ".", "-", " ", "\n", "1", "7", "00", "123456789", "[[", "]]", "x", "é"]
_NOISE += ["0.5, ", "[0.1, 0.2], ", "[[0.1, 0.2], ", "nan", "-0.3", "2.5", "[0.1, 0.2, 0.3, 0.4]"]


def _answer(rng, digits):
    kind = Kind(rng.choice([0, 1, 2, 2, 2]))
    written = _written(rng, kind if rng.random() < 0.9 else Kind(rng.randrange(3)), digits)
    if rng.random() < 0.1:
        written = written[1:-1]
    text = chat.answer(written, kind, index=rng.randrange(5))
    if rng.random() < 0.3:
        text = text[: rng.randrange(len(text) + 1)]
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(_NOISE) + text[at + rng.randint(0, 2) :]
    return text, kind


def _written(rng, kind, digits):
    def point():
        return [rng.random(), rng.random()]

    if kind == Kind.POINT:
        return outline.write_point(point(), digits=digits)
    if kind == Kind.BOX:
        corners = point() + point()
        return "[" + ", ".join(f"{value:.{digits}f}" for value in corners) + "]"
    rings = []
    for _ in range(rng.randint(0, 4)):
        few = [point() for _ in range(rng.randint(1, 7))]
        rings.append([rng.choice(few) for _ in range(rng.randint(1, 7))])
    decimals = [[[f"{c:.{digits}f}" for c in p] for p in ring] for ring in rings]
    return str(decimals).replace("'", "")
