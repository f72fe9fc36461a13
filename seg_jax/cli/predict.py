"""Asks a trained model about one image: JSON on standard output, an overlay beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np

from seg_jax import files
from seg_jax.cli.model_options import ModelOptions
from seg_jax.data import image_files
from seg_jax.report import overlay
from seg_jax.runs import console
from seg_jax.tasks.prompted import ClicksPrediction
from seg_jax.tasks.task import Task, Unfit

MOST_CHARACTERS = 100_000
"""The longest expression that is asked about, far beyond what rows of models hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """One question about one image; tell the object by exactly one of text, point and box.

    A model of the task prompted is asked for all of the foreground without any of them.
    """

    image: Path
    """Image file."""
    text: str | None = None
    """An expression, as "the red star"."""
    point: tuple[float, float] | None = None
    """A point in the object: x y, fractions of width and height."""
    box: tuple[float, float, float, float] | None = None
    """A box around the object: x0 y0 x1 y1, fractions of width and height."""
    answer: str | None = None
    """What is asked for: mask, box or point; left out: a mask, or what the model's task has."""
    out: Path | None = None
    """Folder for the overlay, FILE-overlay.png for an image FILE, and the mask that a segmenter
    draws, FILE-mask.png; for one in a folder the names also have a digest of that folder's path,
    so that equal names do not meet. None is drawn without it."""


def main(config: Config) -> int:
    """Prints the prediction."""
    clue, task = _clue(config), config.asked_task()
    if clue is None and not task.asks_whole:
        raise ValueError(
            "predict: expected exactly one of --text, --point and --box, got 0; "
            'do: give one, as --text "the red star"'
        )
    image = image_files.read(config.image)
    if config.out is not None:  # What cannot be written is known before the model is loaded.
        files.make_folder(config.out, "the overlay")
    kind = _kind(task, config.answer)
    predictor = config.predictor(asked=task, draws="masks")
    try:
        prediction = predictor.predict(image, "" if clue is None else clue, kind)
    except Unfit as error:
        raise ValueError(f"{config.image}: {error}") from error
    result = prediction.as_json()
    if config.out is not None:
        shown = {"overlay": overlay.draw(image, prediction.rings_unit)}
        if isinstance(prediction, ClicksPrediction) and prediction.mask is not None:
            shown["mask"] = np.repeat(255 * prediction.mask[..., None].astype(np.uint8), 3, -1)
        for what, pixels in shown.items():
            path = config.out / _name(config.image, what)
            image_files.write(path, pixels)
            result[what] = str(path)
    console.tell_json(result, indent=2)
    return 0


def _name(image: Path, what: str) -> str:
    """Returns the name of a drawing of an image, which its path as given decides."""
    folder = str(image.parent)
    if folder == ".":
        return f"{image.name}-{what}.png"
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return f"{image.name}-{digest}-{what}.png"


def _kind(task: Task, answer: str | None) -> int | None:
    """Returns the number of the kind of answer of a name."""
    if answer is None:
        return None
    if answer not in task.kind_names:
        raise ValueError(
            f"answer: expected one of {', '.join(task.kind_names)}, got {answer!r}; "
            "do: choose one, or leave it out"
        )
    return task.kind_names.index(answer)


def _expression(text: str) -> str:
    """Returns an expression, known to be a text that a model can be asked about."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"text: expected an expression of at most {MOST_CHARACTERS} characters, got "
            f"{len(text)}; do: describe the object in fewer words"
        )
    odd = next((one for one in text if unicodedata.category(one) in ("Cc", "Cs")), None)
    if odd is not None and not odd.isspace():
        raise ValueError(
            f"text: expected an expression in plain text, got the character U+{ord(odd):04X}; "
            "do: leave it out"
        )
    return text


def _clue(config: Config) -> str | np.ndarray | None:
    """Returns what tells the object; None if nothing does."""
    clues = [x for x in (config.text, config.point, config.box) if x is not None]
    if not clues:
        return None
    if len(clues) != 1:
        raise ValueError(
            f"predict: expected exactly one of --text, --point and --box, got {len(clues)}; "
            'do: give one, as --text "the red star"'
        )
    if isinstance(clues[0], str):
        if not clues[0].strip():
            raise ValueError(
                "text: expected an expression, got an empty --text; do: describe what to find, as "
                '"the red star"'
            )
        return _expression(clues[0])
    numbers = np.array(clues[0])
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 1:
        raise ValueError(
            f"predict: expected fractions of width and height in 0..1, got {tuple(clues[0])}; "
            "do: divide pixels by the image's size"
        )
    if len(numbers) == 4 and (numbers[:2] >= numbers[2:]).any():
        raise ValueError(
            f"box: expected a box x0 y0 x1 y1 with x0 < x1 and y0 < y1, got {tuple(clues[0])}; "
            "do: give the upper left corner first"
        )
    return numbers
