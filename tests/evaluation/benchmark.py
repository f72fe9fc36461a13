"""A small benchmark by hand with fixed answers, and what pycocotools makes of them."""

from __future__ import annotations

import json
import re

import numpy as np
import pycocotools.mask as coco

from seg_jax.evaluation.referring import judging, protocols
from seg_jax.grammar import outline
from seg_jax.records import Kind, Sample
from seg_jax.tasks.referring import Referring

HEIGHT, WIDTH = 40, 50


class Listed(list):
    """Samples as a source."""


def rectangle(x0, y0, x1, y1, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def sample(key, masks, phrases=None, **more):
    masks = np.stack(masks)
    if phrases is None:
        phrases = tuple((f"thing {number}",) for number in range(len(masks)))
    image = np.random.default_rng(len(key)).integers(0, 256, (*masks.shape[1:], 3), np.uint8)
    return Sample(key=key, image=image, masks=masks, phrases=phrases, **more)


def rows(name, samples, answers):
    """Returns the judged answers: one text for each question in order, or a function of it."""
    protocol = protocols.PROTOCOLS[name]
    asked = list(protocols.questions(protocol, samples, task=Referring(digits=3)))
    if callable(answers):
        answers = [answers(question) for question in asked]
    assert len(asked) == len(answers)
    return [
        judging.judge(protocol, question, text, tokens=len(text))
        for question, text in zip(asked, answers, strict=True)
    ]


def scattered(seed, count):
    """Returns samples of odd sizes with blobs that overlap, parts, and masks without a pixel."""
    rng = np.random.default_rng(seed)
    found = Listed()
    for number in range(count):
        height, width = (int(side) for side in rng.integers(20, 90, 2))
        masks = []
        for _ in range(int(rng.integers(1, 4))):
            mask = np.zeros((height, width), bool)
            for _ in range(int(rng.integers(0, 3))):
                mask |= pixels([rng.random((6, 2))], height, width)
            masks.append(mask)
        phrases = tuple(("one", "the one")[: 1 + int(rng.integers(2))] for _ in masks)
        found.append(sample(f"s{number}", masks, phrases))
    return found


def random_answer(rng):
    """Returns a function of questions to answers: exact, random, clipped, broken or none at all."""

    def answer(question):
        style = int(rng.integers(7))
        if question.kind == Kind.BOX:
            box = np.sort(rng.random((2, 2)).round(3), axis=0).ravel().tolist()
            return ["", "nothing", "[0.2, 0.1]"][style] if style < 3 else f"It is {box}."
        rings = [rng.random((int(rng.integers(3, 9)), 2)).round(3) for _ in range(1 + style % 3)]
        text = json.dumps([ring.tolist() for ring in rings])
        if style == 0:
            return ["", "[]", "no idea", "[[[0.1, 0.2], [0.3"][int(rng.integers(4))]
        if style == 1:
            return text[: int(rng.integers(len(text)))]
        if style == 2:
            return text.replace("0.9", "1.9").replace("[0.1", "[-0.1")
        if style == 3 and question.truth.any():
            y, x = np.argwhere(question.truth).mean(0) / question.truth.shape
            return outline.write_mask([[x, y] + 0.2 * (ring - 0.5) for ring in rings])
        return f"Sure, it is at {text}."

    return answer


# Independent of the package: decimals out of the text, pycocotools for masks and boxes.


def numbers_of(text):
    """Returns rings of complete points, numbers clipped to the image, up to where it breaks."""
    rings, depth, found = [], 0, []
    for token in re.findall(r"\[\s*-?\d+\.\d+(?:e-\d+)?\s*,\s*-?\d+\.\d+\s*\]|\[|\]", text):
        if len(token) == 1:
            depth += 1 if token == "[" else -1
            if token == "]" and found:
                rings.append(found)
                found = []
        else:
            found.append([min(max(float(part), 0.0), 1.0) for part in token[1:-1].split(",")])
    return [ring for ring in [*rings, found] if len({tuple(point) for point in ring}) >= 3]


def pixels(rings, height, width):
    """Returns the even-odd sum of what pycocotools draws of each ring."""
    mask = np.zeros((height, width), bool)
    for ring in rings:
        flat = (np.asarray(ring, np.float64) * [width, height]).ravel().tolist()
        mask ^= coco.decode(coco.frPyObjects([flat], height, width))[..., 0].astype(bool)
    return mask


def encoded(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def box_of(mask):
    """Returns x, y, width, height as pycocotools has them."""
    return coco.toBbox(encoded(mask))


def mask_iou(one, other):
    if not one.any() and not other.any():
        return 1.0  # The one convention that pycocotools does not share.
    return float(coco.iou([encoded(one)], [encoded(other)], [0])[0, 0])


def box_iou(one, other):
    if not one[2:].prod() and not other[2:].prod():
        return 0.0
    return float(coco.iou([one.tolist()], [other.tolist()], [0])[0, 0])


def areas(one, other):
    merged = coco.merge([encoded(one), encoded(other)], intersect=True)
    return coco.area(merged), coco.area(coco.merge([encoded(one), encoded(other)]))
