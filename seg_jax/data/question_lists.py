"""Reads what pictures are asked: one clue for all of them, or a question a line of JSON.

A line of a file of questions is a JSON object:

    {"image": "web/cup.jpg", "text": "the red cup"}
    {"image": "web/cup.jpg", "questions": [{"text": "the red cup"}, {"point": [0.4, 0.6]},
                                           {"box": [0.1, 0.2, 0.6, 0.9], "name": "cup"}]}

`image` is relative to the folder of the file, and is the picture's identity as it stands there.
Points x, y and boxes x0, y0, x1, y1 are fractions of width and height. Left out may be `id` (a text
or an integer, which the answer carries), `name` (what the object is called; else the expression),
`answer` (the kind of answer: mask, box or point), and `image_id` and `category_id`, the numbers
that COCO's files then have. A line or question that is wrong costs itself, and is told. Only a
task that asks about pictures as a whole takes one without text, point and box.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.findings import Findings
from seg_jax.grammar.chat import Clue

MOST_CHARACTERS = 100_000
"""The longest expression that is asked about, far beyond what rows of models hold."""
MOST_BYTES = 1 << 30
"""The largest file of questions: some millions."""
UNNAMED = "object"
"""What an object is called that a point or box tells."""
_ADVICE = "correct the line"
_Unit = Annotated[float, Meta(ge=0, le=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture."""

    key: str
    """The picture's path as the user gave it: its identity."""
    path: Path
    """Where it lies."""
    clue: str | tuple[float, ...]
    """An expression, a point x y, or a box x0 y0 x1 y1; blank: all that the picture shows."""
    answer: str | None = None
    """Name of the kind of answer; None: as the model's task has it."""
    name: str | None = None
    """What the object is called; None: as it is asked about."""
    id: str | int | None = None
    image_id: int | None = None
    category_id: int | None = None

    @property
    def label(self) -> str:
        """What the object is called."""
        told = self.name if self.name is not None and self.name.strip() else self.clue
        return " ".join(told.split()) or UNNAMED if isinstance(told, str) else UNNAMED

    @property
    def asked_clue(self) -> Clue:
        """The clue as a task takes it."""
        return self.clue if isinstance(self.clue, str) else np.array(self.clue, np.float64)

    def asked_json(self) -> dict[str, Any]:
        """Returns what is asked, as JSON values."""
        if isinstance(self.clue, str):
            return {"text": self.clue} if self.clue else {}
        return {"point" if len(self.clue) == 2 else "box": [*self.clue]}


class _One(schemas.Record, frozen=True, forbid_unknown_fields=True):
    text: schemas.Text | None = None
    point: tuple[_Unit, _Unit] | None = None
    box: tuple[_Unit, _Unit, _Unit, _Unit] | None = None
    answer: Annotated[str, Meta(max_length=40)] | None = None
    name: schemas.Text | None = None
    id: schemas.Text | schemas.Id | None = None
    image_id: schemas.Id | None = None
    category_id: schemas.Id | None = None


class _Line(_One, frozen=True, kw_only=True, forbid_unknown_fields=True):
    image: schemas.FileName
    questions: Annotated[list[Any], Meta(min_length=1)] | None = None


def read(path: Path, findings: Findings, *, whole: bool = False) -> list[Question]:
    """Returns the questions of a file, in its order.

    Args:
      path: of the file.
      findings: are told of lines and questions that are left out.
      whole: whether a picture may be asked about as a whole, without a clue.

    Raises:
      ValueError: the file cannot be read, or no question is left.
    """
    text = files.read_text(path, most=MOST_BYTES, expected="questions, a JSON object a line")
    found: list[Question] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = files.parse_json(line, where=where, advice=_ADVICE)
            told = schemas.check(value, _Line, where=where, advice=_ADVICE)
            parts = [*_parts(told, where)]
        except ValueError as error:
            findings.add_error("line left out", error)
            continue
        for place, one in parts:
            try:
                found.append(_question(one, told, path.parent, where=place, whole=whole))
            except ValueError as error:
                findings.add_error("question left out", error)
    if not found:
        why = f": {findings.commonest()}" if findings.counts else ""
        raise ValueError(
            f"{path}: expected questions, a JSON object a line, got none{why}; do: write "
            '{"image": "FILE", "text": "the red star"} a line'
        )
    return found


def _parts(line: _Line, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the questions of a line, each after its place; a line may be one itself."""
    if line.questions is None:
        yield where, line
        return
    if any(clue is not None for clue in (line.text, line.point, line.box)):
        raise ValueError(
            f"{where}: expected text, point or box in questions, got one beside them; do: move it "
            "there"
        )
    yield from ((f"{where}, questions[{n}]", one) for n, one in enumerate(line.questions))


def _question(value: Any, line: _Line, folder: Path, *, where: str, whole: bool) -> Question:
    """Returns a question; what it does not say itself its line says for all of them.

    Raises:
      ValueError: it is none.
    """
    one = value
    if not isinstance(value, _Line):
        one = schemas.check(value, _One, where=where, advice=_ADVICE)
    clues = [clue for clue in (one.text, one.point, one.box) if clue is not None]
    if len(clues) > 1:
        raise ValueError(
            f"{where}: expected one of text, point and box, got {len(clues)}; do: write a question "
            "for each"
        )

    if not whole and not any(str(clue).strip() for clue in clues):
        raise ValueError(
            f'{where}: expected text, point or box, got none; do: tell the object, as "text": "the '
            'red star"'
        )

    def told(name: str) -> Any:
        own = getattr(one, name)
        return getattr(line, name) if own is None else own

    return Question(
        key=line.image,
        path=folder / line.image,
        clue=clean(clues[0] if clues else "", where=where),
        **{name: told(name) for name in ("answer", "name", "id", "image_id", "category_id")},
    )


def of_images(
    images: Sequence[Path], clues: Sequence[str | tuple[float, ...]], *, answer: str | None
) -> list[Question]:
    """Returns each clue as a question about each picture, picture by picture."""
    return [
        Question(key=path.as_posix(), path=path, clue=clue, answer=answer)
        for path in images
        for clue in clues
    ]


def clean(clue: str | Sequence[float], *, where: str) -> str | tuple[float, ...]:
    """Returns a clue that a model can be asked about.

    Args:
      clue: an expression, a point or a box.
      where: names it in errors.

    Raises:
      ValueError: the expression is no plain text or too long, or the numbers are no point or box.
    """
    if isinstance(clue, str):
        return _expression(clue, where)
    numbers = np.array(clue, np.float64)
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 1:
        raise ValueError(
            f"{where}: expected fractions of width and height in 0..1, got {tuple(clue)}; "
            "do: divide pixels by the image's size"
        )
    if len(numbers) == 4 and (numbers[:2] >= numbers[2:]).any():
        raise ValueError(
            f"{where}: expected a box x0 y0 x1 y1 with x0 < x1 and y0 < y1, got {tuple(clue)}; "
            "do: give the upper left corner first"
        )
    return tuple(numbers.tolist())


def _expression(text: str, where: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{where}: expected an expression of at most {MOST_CHARACTERS} characters, got "
            f"{len(text)}; do: describe the object in fewer words"
        )
    odd = next((one for one in text if unicodedata.category(one) in ("Cc", "Cs")), None)
    if odd is not None and not odd.isspace():
        raise ValueError(
            f"{where}: expected an expression in plain text, got the character U+{ord(odd):04X}; "
            "do: leave it out"
        )
    return text
