"""Reads conversations about images, with boxes, points and polygons in their answers.

SPLIT.json (a list) or SPLIT.jsonl, as LLaVA, ShareGPT, Qwen, ms-swift and EasyR1 write them:

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> The red cup?"},
                                         {"from": "gpt", "value": "[0.1, 0.2, 0.4, 0.5]"}]}
    {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image> Where is the cup?"},
                                       {"role": "assistant", "content": "<box>(1,2),(3,4)</box>"}]}

What the numbers mean is found out for all answers of one form together (`conventions.py`), and
told. An answer's labels are expressions of its regions; without labels the question is one that
means all of them: what it marks by <ref>, what stands for {} in a form that the user gives, or
all of it. "[]" says that there is nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax import files, schemas
from seg_jax.data import image_files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import (
    annotations,
    conventions,
    drawn,
    foreign,
    picture_paths,
    table_rows,
)
from seg_jax.data.formats import text_regions as regions
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    BadAnnotation,
    Expression,
    Outline,
    Polygons,
    UnitPolygons,
)
from seg_jax.data.formats.conventions import Numbers, Taken, Written

ADVICE = "correct the conversation"
LEFT_OUT = "answer left out"
COLUMN = "the column objects"
"""Form of boxes and outlines that stand in a column of a table."""
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant", "model", "chatgpt", "bot")
_NAMED_IMAGES = 100
"""Images of a conversation that are counted; one is taken."""
PAIRS = (
    ("query", "response"),
    ("problem", "solution"),
    ("question", "answer"),
    ("prompt", "completion"),
)
_IMAGE_MARK = re.compile(
    r"<image>|<\|?vision_start\|?>|<\|?vision_end\|?>|<\|?image_pad\|?>|<image_\d+>"
)


class _Image(schemas.Record, frozen=True):
    image: schemas.FileName


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How conversations are read."""

    numbers: Numbers = Numbers()
    questions: tuple[str, ...] = ()
    """Forms of questions, {} for what is asked about."""
    boxes: bool = False
    """Whether boxes are taken for outlines, and points for the pixels that they lie in."""
    upright: bool | None = None
    """As in `annotations.AnnotatedImage`."""


class Picture(NamedTuple):
    """An image that is talked about."""

    key: str
    path: Path
    row: int | None = None
    """As in `annotations.AnnotatedImage`."""
    column: str = "image"


class _Answer(NamedTuple):
    """An answer with regions, or one that says that there are none."""

    picture: Picture
    phrase: str
    """What was asked about, where the question marks it; else nothing."""
    question: str | None
    """None: nothing was asked; labels alone are expressions."""
    told: list[regions.Told]
    where: str


_OF_SPLITS = re.compile("train|val|test|dev|eval", re.IGNORECASE)
"""How the names of files of splits begin."""


def read(source: Path, *, images: Path | None = None, rules: Rules) -> Annotations:
    """Returns the images of the conversations of every SPLIT.json and SPLIT.jsonl in a folder.

    One file alone that is not named as a split, as dataset.json, is of train.

    Args:
      source: the folder.
      images: folder of the images; None: the source.
      rules: how they are read.

    Raises:
      ValueError: there is no such file.
    """
    every = sorted(path for path in source.glob("*.json*") if path.suffix in (".json", ".jsonl"))
    found, any_ = Annotations([]), False
    for path in every:
        book = Book(rules, found.findings)
        for where, value in _records(path, found.findings):
            any_ = True
            book.add(value, where, folders=[images or source, source, path.parent])
        split = re.sub(r"\W", "_", path.stem)
        if len(every) == 1 and not _OF_SPLITS.match(split):
            split = "train"
        found.images += book.images(split)
    if not any_:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected SPLIT.json or SPLIT.jsonl with conversations, got {what}; do: "
            f"{advice}"
        )
    return found


def _records(path: Path, met: Findings) -> Iterator[tuple[str, Any]]:
    """Yields the conversations of a file, each after how messages name it."""
    data = files.read_bytes(path, advice=ADVICE)
    if path.suffix == ".json":
        try:
            value = annotations.parse_json(data, where=str(path), advice=ADVICE)
        except ValueError as error:
            if b"\n{" not in data:
                met.add_error("file left out", error)
                return
        else:
            if isinstance(value, Mapping):
                value = next((one for one in value.values() if isinstance(one, list)), [])
            if not isinstance(value, list) or not value:
                told = f"{path}: expected a list of conversations, got {schemas.short_repr(value)}"
                met.add("file left out: it has no list of conversations", told, advice=ADVICE)
                return
            yield from ((f"{path}, [{place}]", one) for place, one in enumerate(value))
            return
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, annotations.parse_json(line, where=where, advice=ADVICE)
        except ValueError as error:
            met.add_error("conversation left out", error)


class Book:
    """The conversations of a split, read together."""

    def __init__(self, rules: Rules, met: Findings):
        self._rules, self._met = rules, met
        self._answers: list[_Answer] = []
        self._forms = [_form(one) for one in rules.questions]
        self._taken: dict[str, Taken | None] = {}

    def add(
        self, value: Any, where: str, *, folders: list[Path], picture: Picture | None = None
    ) -> None:
        """Adds a conversation; what of it cannot be taken is told.

        Args:
          value: as it was read.
          where: tells file and place.
          folders: where its image may lie.
          picture: its image, where the row of a table holds it.
        """
        try:
            if not isinstance(value, Mapping):
                raise BadAnnotation(
                    f"{where}: expected an object, got {schemas.short_repr(value)}; do: {ADVICE}",
                    "it is no object",
                )
            turns = list(_turns(value, where))
            picture = picture or _picture(value, folders, where)
        except ValueError as error:
            self._met.add_error("conversation left out", error)
            return
        placed = _placeholders(value, turns, where, self._met)
        for number, (question, answer) in enumerate(turns):
            place = f"{where}, answer {number}"
            try:
                told = placed.get(number) or regions.find(answer, where=place)
                texts = [question, *(one.label for one in told or ())]
                schemas.check(texts, list[schemas.Text], where=place, advice=ADVICE)
            except ValueError as error:
                self._met.add_error(LEFT_OUT, error)
                continue
            if told is None:
                self._met.add(
                    f"{LEFT_OUT}: it tells of no place",
                    f"{place}: {schemas.short_repr(answer)}",
                    advice="nothing, if it is talk; else write boxes, points or polygons",
                )
                continue
            phrase = self._phrase(question)
            self._answers.append(_Answer(picture, phrase, question, told, place))

    def add_objects(self, told: list[regions.Told], where: str, *, picture: Picture) -> None:
        """Adds objects that a table has in a column of its own.

        Args:
          told: their boxes, of the form `COLUMN`, and outlines, with their names as labels.
          where: tells file and row.
          picture: that they are of.
        """
        self._answers.append(_Answer(picture, "", None, told, where))

    def images(self, split: str) -> list[AnnotatedImage]:
        """Returns the images of all conversations that were added, each once."""
        written: dict[str, list[Written]] = {}
        sizes: dict[Picture, tuple[int, int] | None] = {}
        for answer in self._answers:
            if answer.picture not in sizes:
                sizes[answer.picture] = self._size(answer.picture)
        self._answers = self._with_corners(sizes)
        for answer in self._answers:
            if (size := sizes[answer.picture]) is None:
                continue
            for told in answer.told:
                written.setdefault(told.form, []).append(Written(told, size, answer.where))
        self._taken = {form: self._decide(form, some) for form, some in written.items()}
        pages: dict[str, _Page] = {}
        for answer in self._answers:
            page = pages.setdefault(answer.picture.key, _Page(answer.picture))
            self._fill(page, answer, sizes[answer.picture])
        found = []
        for page in pages.values():
            if page.objects or page.expressions:
                found.append(page.image(split, len(found), self._rules.upright))
            else:
                self._met.add(annotations.NONE_TAKEN, f"{split}: {page.picture.key}")
        return found

    def _with_corners(self, sizes: Mapping[Picture, tuple[int, int] | None]) -> list[_Answer]:
        """Returns the answers with boxes as two corners, and tells of a guess."""
        boxes = [
            Written(told, size, answer.where)
            for answer in self._answers
            for told in answer.told
            if (size := sizes[answer.picture]) and told.kind == "box" and told.form == COLUMN
        ]
        numbers, left_out = self._rules.numbers, False
        form: conventions.BoxForm = "sizes" if numbers.boxes == "sizes" else "corners"
        columns = form
        if boxes:
            try:
                columns, why = conventions.box_form(boxes, numbers)
            except BadAnnotation as error:
                told, _, advice = str(error).partition("; do: ")
                reason = f"region left out: {error.reason}"
                self._met.add(reason, told, count=len(boxes), advice=advice)
                left_out, why = True, ""
            if why:
                what = {"corners": "their corners", "sizes": "a corner, width and height"}
                self._met.add(
                    f"boxes of {COLUMN} are taken for {what[columns]}",
                    f"{boxes[0].where}: {why}",
                    count=len(boxes),
                    advice=f"say so by --numbers.boxes {columns}, or that they are not",
                )

        def read(told: regions.Told) -> regions.Told:
            its_form = columns if told.form == COLUMN else form
            is_size = told.kind == "box" and its_form == "sizes"
            return conventions.with_corners(told) if is_size else told

        return [
            answer._replace(
                told=[read(one) for one in answer.told if not left_out or one.form != COLUMN]
            )
            for answer in self._answers
        ]

    def _size(self, picture: Picture) -> tuple[int, int] | None:
        """Returns height and width of an image; None of one that cannot be read."""
        try:
            return _size_of(picture, self._rules.upright)
        except image_files.Unreadable as error:
            reason = f"image left out: {error.reason}"
            self._met.add(
                reason, f"{picture.key} ({picture.path}): {error.fault}", advice=error.advice
            )
            return None

    def _decide(self, form: str, some: Sequence[Written]) -> Taken | None:
        """Returns what the numbers of a form mean, and tells of a guess; None: nobody knows."""
        try:
            taken = conventions.decide(form, some, self._rules.numbers)
        except ValueError as error:
            reason = getattr(error, "reason", "its numbers fit no convention")
            told, _, advice = str(error).partition("; do: ")
            self._met.add(f"{LEFT_OUT}: {reason}", told, count=len(some), advice=advice)
            return None
        if taken.why:
            order = {"xy": "x first", "yx": "y first"}[taken.order]
            self._met.add(
                f"numbers of {form} are taken for {conventions.WORDS[taken.meaning]}, {order}",
                f"{some[0].where}: {taken.why}",
                count=len(some),
                advice=f"say so by --numbers.meaning {taken.meaning}, or what else they are by it "
                "and --numbers.order",
            )
        return taken

    def _phrase(self, question: str) -> str:
        """Returns what a question marks as what it asks about; else nothing."""
        for form in self._forms:
            if phrase := _between(question, form):
                return phrase
        return regions.reference(question)

    def _fill(self, page: _Page, answer: _Answer, size: tuple[int, int] | None) -> None:
        """Adds the regions of an answer to the page of its image; bad ones are told."""
        if size is None:
            return
        meant: dict[str, list[int]] = {}
        for number, told in enumerate(answer.told):
            where = f"{answer.where}, region {number}"
            if (taken := self._taken.get(told.form)) is None:
                continue
            try:
                outline = self._outline(Written(told, size, where), taken)
            except ValueError as error:
                self._met.add_error("region left out", error)
                continue
            meant.setdefault(told.label, []).append(page.place(outline, told.label))
        if answer.question is None:
            for label, places in meant.items():
                if label:
                    page.say(label, places)
            return
        if answer.told and not meant:
            return
        if answer.phrase or not meant or "" in meant:
            every = [place for some in meant.values() for place in some]
            text = answer.phrase or answer.question
            if not answer.phrase:
                self._met.add(
                    "question taken whole, as an expression of what is answered",
                    f"{answer.where}: {schemas.short_repr(text)}",
                    advice="give its form by --questions 'Where is {}?', or label the regions",
                )
            page.say(text, every, sentence=not answer.phrase)
            return
        for label, places in meant.items():
            page.say(label, places)

    def _outline(self, one: Written, taken: Taken) -> Outline:
        """Returns the outline of a region."""
        rings = conventions.rings_unit(one, taken, self._rules.numbers)
        if one.told.kind == "polygon":
            return UnitPolygons(rings)
        if not self._rules.boxes:
            kind = one.told.kind
            raise BadAnnotation(
                f"{one.where}: expected an outline, got a {kind}; do: give --boxes, which takes "
                "boxes for outlines and points for pixels, and ask for boxes or points when "
                "training: --task.mixture.text-box, --task.mixture.text-point",
                f"a {kind} is no outline",
            )
        height, width = one.size
        if one.told.kind == "point":
            x, y = rings[0]
            left, top = min(int(x * width), width - 1), min(int(y * height), height - 1)
            ring = (left, top, left + 1, top, left + 1, top + 1, left, top + 1)
            return Polygons((tuple(map(float, ring)),))
        return UnitPolygons((drawn.rectangle(rings[0]),))


class _Page:
    """What is said of an image."""

    def __init__(self, picture: Picture):
        self.picture = picture
        self.objects: list[AnnotatedObject] = []
        self.expressions: list[Expression] = []
        self._places: dict[Any, int] = {}

    def place(self, outline: Outline, name: str) -> int:
        """Returns the place of an object, which is added unless it is there."""
        place = self._places.setdefault((outline, name), len(self.objects))
        if place == len(self.objects):
            self.objects.append(AnnotatedObject(place, outline, name=name))
        return place

    def say(self, text: str, places: Sequence[int], *, sentence: bool = False) -> None:
        """Adds an expression that means some objects, or nothing."""
        number = len(self.expressions)
        which = tuple(dict.fromkeys(places))
        self.expressions.append(Expression(number, text, which, sentence=sentence))

    def image(self, split: str, number: int, upright: bool | None) -> AnnotatedImage:
        """Returns the image with its objects and expressions."""
        return AnnotatedImage(
            key=f"{split}/{self.picture.key}",
            split=split,
            image=self.picture.path,
            image_id=number,
            objects=tuple(self.objects),
            expressions=tuple(self.expressions),
            upright=upright,
            row=self.picture.row,
            column=self.picture.column,
        )


@functools.lru_cache(maxsize=4096)
def _size_of(picture: Picture, upright: bool | None) -> tuple[int, int]:
    """Returns height and width of an image, as it is stored or turned."""
    if picture.row is None:
        header = image_files.read_header(picture.path)
    else:
        data = table_rows.image_bytes(picture.path, picture.row, picture.column)
        header = image_files.read_header(data, where=picture.key)
    return header.upright_size if upright else (header.height, header.width)


def _form(text: str) -> tuple[str, str]:
    """Returns what a form of questions has before and after what is asked about.

    Raises:
      ValueError: it has no {}, or several.
    """
    if text.count("{}") != 1:
        raise ValueError(
            f"questions: expected a form with {{}} once, got {text!r}; do: write it for what is "
            "asked about, as 'Where is {}?'"
        )
    before, after = (" ".join(part.split()) for part in text.split("{}"))
    return before, after


def _between(question: str, form: tuple[str, str]) -> str:
    """Returns what a question, its words parted by single blanks, has in the place of {}."""
    before, after = form
    _, there, rest = question.partition(before) if before else ("", "{}", question)
    return rest.removesuffix(after).strip() if there and rest.endswith(after) else ""


def _turns(value: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Yields the questions of a conversation, each with its answer.

    Raises:
      BadAnnotation: there are none.
    """
    named = [value.get(name) for name in ("conversations", "messages")]
    turns = next((one for one in named if one is not None), None)
    if turns is None:
        for ask, answer in PAIRS:
            if isinstance(value.get(ask), str) and isinstance(value.get(answer), str):
                yield _without_marks(value[ask]), value[answer]
                return
    if not isinstance(turns, list):
        names = ", ".join(sorted(schemas.short_repr(one) for one in value)[:6])
        raise BadAnnotation(
            f"{where}: expected conversations or messages, got an object with "
            f"{names or 'nothing'}; do: {ADVICE}",
            "it has no conversations and no messages",
        )
    question, any_ = None, False
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        role = turn.get("from", turn.get("role"))
        text = _text(turn.get("value", turn.get("content")))
        if role in _ASKS:
            question = text
        elif role in _ANSWERS and question is not None:
            any_ = True
            yield _without_marks(question), text
    if not any_:
        raise BadAnnotation(
            f"{where}: expected turns of a user and an assistant, got none; do: {ADVICE}",
            "it has no question with an answer",
        )


def _text(content: Any) -> str:
    """Returns the text of a turn, of its pieces that are texts."""
    if isinstance(content, str):
        return content
    pieces = content if isinstance(content, list) else []
    found = [one.get("text") for one in pieces if isinstance(one, Mapping)]
    return "\n".join(one for one in found if isinstance(one, str))


def _without_marks(text: str) -> str:
    """Returns a question without the marks of images."""
    return " ".join(_IMAGE_MARK.sub(" ", text).split())


def _named_images(value: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the images that a conversation names."""
    for name in ("image", "images", "image_path", "img"):
        some = value.get(name)
        yield from (some if isinstance(some, list) else [some] if some else [])
    for turn in value.get("messages") or value.get("conversations") or ():
        content = turn.get("content") if isinstance(turn, Mapping) else None
        for piece in content if isinstance(content, list) else ():
            if isinstance(piece, Mapping):
                yield from (one for name in ("image", "image_url") if (one := piece.get(name)))


def _picture(value: Mapping[str, Any], folders: list[Path], where: str) -> Picture:
    """Returns the one image of a conversation.

    Raises:
      BadAnnotation: it has none, several, or one within the text.
    """
    named = []
    for one in _named_images(value):
        if isinstance(one, Mapping):
            one = next((one[key] for key in ("path", "url", "image") if one.get(key)), None)
        if one not in named:
            named.append(one)
        if len(named) == _NAMED_IMAGES:
            break
    if len(named) != 1:
        raise BadAnnotation(
            f"{where}: expected one image, got {len(named) or 'none'}; do: leave one image in each "
            "conversation",
            "it has several images" if named else "it has no image",
        )
    (told,) = named
    if not isinstance(told, str) or told.startswith("data:"):
        got = "one within the text" if isinstance(told, str) else schemas.short_repr(told)
        raise BadAnnotation(
            f"{where}: expected the path of an image, got {got}; do: save it as a file",
            "its image has no path",
        )
    schemas.check({"image": told}, _Image, where=where, advice=ADVICE)
    return Picture(told, picture_paths.find(told, folders=folders))


def _placeholders(
    value: Mapping[str, Any], turns: Sequence[tuple[str, str]], where: str, met: Findings
) -> dict[int, list[regions.Told]]:
    """Returns the regions of answers that have <bbox> for what stands in `objects` (ms-swift)."""
    told = value.get("objects")
    if not isinstance(told, Mapping) or not isinstance(told.get("bbox"), list):
        return {}
    boxes, refs = [*told["bbox"]], told.get("ref")
    labels = [one for one in refs if isinstance(one, str)] if isinstance(refs, list) else []
    if len(labels) != len(boxes):
        labels = labels * len(boxes) if len(labels) == 1 else [""] * len(boxes)
    found: dict[int, list[regions.Told]] = {}
    at = 0
    for number, (question, answer) in enumerate(turns):
        at += question.count("<bbox>")
        for _ in range(answer.count("<bbox>")):
            box = boxes[at] if at < len(boxes) else None
            at += 1
            if not (
                isinstance(box, list)
                and len(box) in (2, 4)
                and all(isinstance(one, int | float) and abs(one) < 1e9 for one in box)
            ):
                told_ = f"{where}, objects.bbox[{at - 1}]: {schemas.short_repr(box)}"
                met.add("region left out: expected a box for <bbox>", told_, advice=ADVICE)
                continue
            kind: regions.Kind = "box" if len(box) == 4 else "point"
            one = regions.Told("objects.bbox", kind, (tuple(map(float, box)),), labels[at - 1])
            found.setdefault(number, []).append(one)
    return found
