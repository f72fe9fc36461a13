"""Words questions about objects, and accepts of the answers only what can be an expression."""

from __future__ import annotations

import dataclasses
import unicodedata

import numpy as np
from jaxtyping import UInt8

from seg_jax.annotation.stages import Answer, Box, Failed

QUESTION = (
    "Describe the {label} in the red box in at most twelve words, so that nobody could take it for "
    "anything else in the image. Write the description alone, as: the small dog on the left. "
    "Do not mention the box."
)
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_RED = np.array([255, 0, 0], np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """How descriptions are asked for, and which are accepted."""

    question: str = QUESTION
    """Text of the question; {label} in it stands for the object's label."""
    max_characters: int = 200
    """Most characters of a description; longer ones are refused."""
    view_px: int = 1024
    """Longest side of the image as the describer sees it."""

    def __post_init__(self):
        if not self.question.strip():
            raise ValueError(
                "wording.question: expected a question, got none; do: give one, or leave the "
                "option out"
            )
        if self.max_characters < 1 or self.view_px < 28:
            raise ValueError(
                "wording: expected max_characters of at least 1 and view_px of at least 28, got "
                f"{self.max_characters} and {self.view_px}"
                "; do: give both at least as much"
            )


def question_text(wording: Wording, label: str) -> str:
    """Returns the question for the description of an object of this label."""
    return wording.question.replace("{label}", label)


def read_description(answer: Answer, wording: Wording) -> str:
    """Returns the expression that an answer is, in one line.

    Quotes around it and the full stop at its end are taken off.

    Raises:
      Failed: it is empty, was cut off, is too long, or holds what no expression does: control
        and other invisible characters, or markup as `<|im_end|>`.
    """
    if not answer.finished:
        raise Failed("expected a whole description, got one that was cut off")
    text = " ".join(unicodedata.normalize("NFC", answer.text).split())
    text = text.strip(_QUOTES + " ").removesuffix(".").strip(_QUOTES + " ")
    if not any(letter.isalpha() for letter in text):
        raise Failed("expected a description in words, got nothing")
    if len(text) > wording.max_characters:
        raise Failed(
            f"expected a description of at most {wording.max_characters} characters, got "
            f"{len(text)}"
        )
    if odd := odd_character(text):
        raise Failed(f"expected a description in plain text, got the character {odd}")
    if "<" in text or ">" in text:
        raise Failed("expected a description in plain text, got markup")
    return text


def odd_character(text: str) -> str:
    """Returns the first control or other invisible character as U+0000, nothing if all are seen."""
    odd = next((one for one in text if unicodedata.category(one)[0] == "C"), None)
    return "" if odd is None else f"U+{ord(odd):04X}"


def draw_view(
    image: UInt8[np.ndarray, "H W 3"], box_px: Box, wording: Wording
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image, scaled down to the size of views, with a red frame around a box."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(1.0, wording.view_px / max(height, width))
    seen = image
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        seen = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    height, width = seen.shape[:2]
    line = max(1, round(max(height, width) / 256))
    x0, y0, x1, y1 = np.array(box_px) * scale + np.array([-line, -line, line, line])
    left, right = (int(np.clip(round(x), 0, width)) for x in (x0, x1))
    top, bottom = (int(np.clip(round(y), 0, height)) for y in (y0, y1))
    framed = seen.copy()
    framed[top:bottom, left:right] = _RED
    inner = np.s_[top + line : max(top + line, bottom - line)]
    across = np.s_[left + line : max(left + line, right - line)]
    framed[inner, across] = seen[inner, across]
    return framed
