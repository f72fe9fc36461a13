"""Asks a trained model about one image, or about many: JSON, and what other tools read."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax import files, schemas
from seg_jax.cli.model_options import ModelOptions
from seg_jax.data import image_files, image_lists, question_lists
from seg_jax.data.exports import overlay
from seg_jax.data.exports.table import Format
from seg_jax.data.findings import Findings
from seg_jax.data.question_lists import Question
from seg_jax.runs import console, prediction_jobs, predictions, run_folder
from seg_jax.tasks.prompted import ClicksPrediction
from seg_jax.tasks.task import Task, Unfit

_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """Questions about one image, many images, or those of a file.

    Tell the object by exactly one of text, texts, point and box. A model of the task prompted is
    asked for all of the foreground without any of them.
    """

    image: Path | None = None
    """Image file: one question about it, its answer printed as JSON."""
    images: tuple[str, ...] = ()
    """Many images: files, folders, patterns as "web/*.jpg", texts with a path a line. Each is asked
    the same; answers go to OUT."""
    questions: Path | None = None
    """File of questions about many images, a JSON object a line: {"image": "a.jpg", "text": "the
    red star"}, paths relative to its folder. Several questions an image, points, boxes and names:
    see the README of seg_jax/data/exports. Answers go to OUT."""
    text: str | None = None
    """An expression, as "the red star"."""
    texts: tuple[str, ...] = ()
    """Several expressions, of each image of --images."""
    point: tuple[float, float] | None = None
    """A point in the object: x y, fractions of width and height."""
    box: tuple[float, float, float, float] | None = None
    """A box around the object: x0 y0 x1 y1, fractions of width and height."""
    answer: str | None = None
    """What is asked for: mask, box or point; left out: a mask, or what the model's task has."""
    out: Path | None = None
    """Folder for the overlay, FILE-overlay.png for an image FILE, and the mask that a segmenter
    draws, FILE-mask.png; for one in a folder the names also have a digest of that folder's path, so
    that equal names do not meet. None is drawn without it. Where many images are asked about, the
    folder for all answers: answers.jsonl, failed.jsonl, summary.json and the formats; the same
    command again goes on where an interrupted one was."""
    formats: tuple[Format, ...] = ()
    """What answers about many images are also written as: coco_results and coco (JSON), folder
    (what `build folder` reads), yolo, labelme, voc (palettes), svg, masks (a PNG each), overlays
    (PNG), gallery (pages to look at, which load nothing). Those that OUT has already are kept up to
    date."""
    batch: int | None = None
    """Questions about many images that go to the device at once; left out: 8."""
    anew: bool = False
    """Whether answers that are in OUT already are replaced."""
    json: Path | None = None
    """File for the answer to one image, or the summary of many, which are printed else; - prints
    them too."""

    @property
    def many(self) -> bool:
        """Whether many images are asked about."""
        return bool(self.images) or self.questions is not None


def main(config: Config) -> int:
    """Prints the prediction, or the folder of many."""
    _check(config)
    task = config.asked_task()
    clues = _clues(config)
    if not clues and config.questions is None and not task.asks_whole:
        raise ValueError(
            f"predict: expected exactly one of {_clue_names(config)}, got 0; "
            'do: give one, as --text "the red star"'
        )
    run_folder.check_json(_file(config))
    if config.many:
        return _answer_many(config, task, clues)
    return _answer_one(config, task, clues)


def _check(config: Config) -> None:
    """Raises ValueError for options that do not go together."""
    given = [config.image is not None, bool(config.images), config.questions is not None]
    if sum(given) != 1:
        raise ValueError(
            f"predict: expected exactly one of --image, --images and --questions, got {sum(given)}"
            "; do: give one, as --image FILE"
        )
    if config.many and config.out is None:
        raise ValueError(
            "out: expected a folder for the answers about many images, got none; do: --out DIR"
        )
    if config.batch is not None and config.batch < 1:
        raise ValueError(f"batch: expected at least 1, got {config.batch}; do: raise --batch")
    lone = {"formats": config.formats, "batch": config.batch, "anew": config.anew}
    lone["texts"] = config.texts
    for name, value in lone.items():
        if value not in ((), None, False) and not config.many:
            raise ValueError(
                f"{name}: expected --images or --questions beside it, got --image; do: leave it "
                "out, or ask about --images"
            )
    if config.questions is not None and (config.answer is not None or _given_clues(config)):
        raise ValueError(
            "questions: expected no --text, --texts, --point, --box or --answer beside them, which "
            "the file says, got one; do: leave it out"
        )


def _given_clues(config: Config) -> list[tuple[str, Any]]:
    """Returns the options that tell the object, with their names."""
    told = {"text": config.text, "point": config.point, "box": config.box}
    found = [(name, value) for name, value in told.items() if value is not None]
    return [*found, *([("texts", config.texts)] if config.texts else [])]


def _clue_names(config: Config) -> str:
    return f"--text,{' --texts,' if config.many else ''} --point and --box"


def _clues(config: Config) -> list[str | tuple[float, ...]]:
    """Returns what tells the object, or several; nothing if nothing does."""
    given = _given_clues(config)
    if len(given) > 1:
        raise ValueError(
            f"predict: expected exactly one of {_clue_names(config)}, got {len(given)}; "
            'do: give one, as --text "the red star"'
        )
    for name, value in given:
        values = value if name == "texts" else (value,)
        if any(isinstance(one, str) and not one.strip() for one in values):
            raise ValueError(
                f"{name}: expected an expression, got an empty --{name}; do: describe what to "
                'find, as "the red star"'
            )
        where = "predict" if name == "point" else name
        return [question_lists.clean(one, where=where) for one in values]
    return []


def _file(config: Config) -> Path | None:
    """Returns the file for what is printed else; None: it is printed."""
    return None if config.json in (None, Path("-")) else config.json


def _answer_one(config: Config, task: Task, clues: Sequence[str | tuple[float, ...]]) -> int:
    """Answers the question about one image."""
    assert config.image is not None
    image = image_files.read(config.image)
    if config.out is not None:  # What cannot be written is known before the model is loaded.
        files.make_folder(config.out, "the overlay")
    kind = task.kind_number(config.answer)
    predictor = config.predictor(asked=task, draws="masks")
    clue = clues[0] if clues else ""
    try:
        prediction = predictor.predict_one(
            image, clue if isinstance(clue, str) else np.array(clue), kind
        )
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
    run_folder.tell_json(result, _file(config))
    return 0


def _answer_many(config: Config, task: Task, clues: Sequence[str | tuple[float, ...]]) -> int:
    """Answers all questions, says what was left out, and prints the folder or the summary."""
    assert config.out is not None
    met = Findings()
    asked = _questions(config, task, clues, met)
    console.say(f"{len(asked)} questions about {len({one.key for one in asked})} pictures")
    for line in met.lines():
        console.say(f"warning: {line}")
    job = prediction_jobs.plan(
        asked,
        out=config.out,
        batch=config.batch or _BATCH,
        formats=config.formats,
        identity=_identity(config, task),
        kinds=task.kind_names,
    )
    files.make_folder(config.out, "the answers")
    summary = predictions.run(
        job, lambda: config.predictor(asked=task, draws="masks"), anew=config.anew
    )
    for line in Findings.from_json(summary["findings"]).lines():
        console.say(f"warning: {line}")
    told = {name: summary[name] for name in ("answered", "failed", "masks")}
    console.say(", ".join(f"{value} {name}" for name, value in told.items()))
    if config.json is None:
        console.tell(config.out)
    else:
        run_folder.tell_json(summary, _file(config))
    return 0


def _questions(
    config: Config, task: Task, clues: Sequence[str | tuple[float, ...]], met: Findings
) -> list[Question]:
    """Returns the questions about many images; one that is named twice is asked once."""
    if config.questions is not None:
        return question_lists.read(config.questions, met, whole=task.asks_whole)
    found: dict[str, Path] = {}
    for source in config.images:
        for _, path in image_lists.list_images(source, met):
            if not schemas.holds(path.as_posix(), schemas.Text):
                reason = "picture left out, as the name of its file is no UTF-8"
                met.add(reason, path.as_posix(), advice="rename it (convmv renames whole folders)")
                continue
            if path.as_posix() in found:
                met.add("image named again, asked about once", path.as_posix())
            found.setdefault(path.as_posix(), path)
    if not found:
        raise ValueError(f"images: expected pictures, got {met.commonest()}; do: rename the files")
    return question_lists.of_images([*found.values()], clues or [""], answer=config.answer)


def _identity(config: Config, task: Task) -> dict[str, Any]:
    """Returns what answers depend on beside pictures and questions, as JSON values."""
    names = ("grammar", "dtype", "visual_tokens", "frame")
    folders = {"model": config.folder, "adapter": config.adapter, "segmenter": config.segmenter}
    return {
        **{name: getattr(config, name) for name in names},
        **{name: None if path is None else _state(path) for name, path in folders.items()},
        "task": task.name,
    }


def _state(path: Path) -> list[Any]:
    """Returns the path of a model, with size and time of each of its files."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(one.name, one.stat()) for one in inside if one.is_file()]
    return [str(path), *([name, told.st_size, told.st_mtime_ns] for name, told in states)]


def _name(image: Path, what: str) -> str:
    """Returns the name of a drawing of an image, which its path as given decides."""
    folder = str(image.parent)
    if folder == ".":
        return f"{image.name}-{what}.png"
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return f"{image.name}-{digest}-{what}.png"
