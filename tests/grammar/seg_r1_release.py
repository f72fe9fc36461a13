"""What the released Seg-R1 reads in an answer, as facts of its parser, and answers to try it on."""

from __future__ import annotations

import ast
import random
import re

import numpy as np

from seg_jax.grammar import clicks

FRAME = 768

_GAP, _INTEGER = r"\s*", r"\d+"


def _spaced(*parts):
    return _GAP.join(parts)


_POINT = _spaced(r"\[", _INTEGER, ",", _INTEGER, r"\]", "(?:,)?") + _GAP
POINTS = _spaced("<points>", _spaced(r"(\[", f"(?:{_POINT})+") + r"\])", "</points>")
LABELS = _spaced(
    "<labels>", _spaced(r"(\[", f"(?:{_spaced(_INTEGER, '(?:,)?')}{_GAP})+") + r"\])", "</labels>"
)
BOX = _spaced("<bbox>", _spaced(r"(\[", ",".join([_GAP + _INTEGER + _GAP] * 4)) + r"\])", "</bbox>")
THOUGHT = r"<think>[\s\S]*?</think>"


def parse(text):
    """Returns (boxes, points, labels, thought) as the release reads them; None where it raises.

    Facts: the first list of points and of labels and every box that match; what matches is read as
    Python; both lists are dropped where their counts differ; whatever raises loses everything.
    """
    try:
        lists = [re.search(pattern, text) for pattern in (POINTS, LABELS)]
        points, labels = (ast.literal_eval(m.group(1)) if m else None for m in lists)
        boxes = [ast.literal_eval(match) for match in re.findall(BOX, text)]
    except (SyntaxError, ValueError):
        return None
    if points is None or labels is None or len(points) != len(labels):
        points, labels = [], []
    thought = re.search(THOUGHT, text) is not None
    return boxes, points, labels, thought


_NOISE = ["", "[", "]", ",", ".", "-", " ", "\n", "1", "7", "0", "00", "123456789", "[[", "]]", "x"]
_NOISE += [
    "<",
    ">",
    "/",
    "é",
    "<points>",
    "</points>",
    "<labels>",
    "</labels>",
    "<bbox>",
    "</bbox>",
]
_NOISE += [
    "<think>",
    "</think>",
    "[1,2]",
    "[1,2],",
    "<bbox>[1,2,3,4]</bbox>",
    "<labels>[1]</labels>",
]
_NOISE += [
    "<points>[[5,6]]</points>",
    "</",
    "po",
    "], [",
    "0,1",
    "nan",
    "-3",
    "9" * 12,
    "]</points>",
]


def written(rng):
    """Returns a random answer as `clicks` writes it, or with the faults of numbers and labels."""
    count = rng.choice([1, 1, 2, 3, 5, 9])
    boxes = [[rng.random() for _ in range(4)] for _ in range(rng.choice([0, 1, 1, 1, 2, 4]))]
    points = [[rng.random(), rng.random()] for _ in range(count)]
    labels = [rng.randrange(2) for _ in range(count)]
    thought = rng.choice(
        ["", "", "a red star on the left", "look, 3 things: [1, 2]", "> in </"[:4]]
    )
    text = clicks.write(boxes, points, labels, frame=FRAME, thought=thought)
    if rng.random() < 0.25:
        text = text.replace(",", rng.choice([", ", " ,", "\n, "]))
    if rng.random() < 0.1:
        numbers = [match.span() for match in re.finditer(r"\d+", text)]
        start, end = rng.choice(numbers)
        text = (
            text[:start]
            + rng.choice(["769", "2", "0" + text[start:end], "768", "1024"])
            + text[end:]
        )
    if rng.random() < 0.05:
        corners = rng.choice([r"\3,\2,\1,\4", r"\1,\2,\1,\4"])
        text = re.sub(r"<bbox>\[(\d+),(\d+),(\d+),(\d+)\]", rf"<bbox>[{corners}]", text)
    return text


def mutated(count, seed=0):
    """Returns answers: good ones, cut ones, ones with a few characters changed."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = written(rng)
        if rng.random() < 0.15:
            text = text[: rng.randrange(len(text) + 1)]
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(_NOISE) + text[at + rng.randint(0, 2) :]
        texts.append(text)
    return texts


def clamped(numbers, width):
    """Returns numbers as unit coordinates, those above the frame on its edge."""
    flat = [min(n, FRAME) for row in numbers for n in row]
    return np.array(flat, np.float64).reshape(-1, width) / FRAME
