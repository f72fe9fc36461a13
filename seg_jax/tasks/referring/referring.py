"""Referring: what a text, point or box means is pointed at, boxed or outlined, or denied."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.geometry import boxes
from seg_jax.grammar import automaton, chat, outline, outline_automaton, reader
from seg_jax.records import Array, Automaton, Kind, Polygons, Sample
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks import task
from seg_jax.tasks.referring import boundaries, outlines, reading, scores, several
from seg_jax.tasks.referring.mixture import Mixture
from seg_jax.tasks.referring.outlines import OutlineStyle
from seg_jax.tasks.referring.reading import RegionPrediction
from seg_jax.tasks.referring.scores import Truth
from seg_jax.tasks.task import Judgement, Metric, Outcome, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionExample(task.Example):
    """A question about a region of an image with its true answer (host)."""

    kind: Kind | None
    """What the answer is: a point, a box or a mask; None: words, which nothing judges."""
    mask: Bool[np.ndarray, "H W"] | None
    """The true region, whatever the kind of answer; empty where nothing is meant, None where
    nobody knows."""
    things: tuple[Bool[np.ndarray, "H W"], ...] | None = None
    """Where an outline of several things is asked for, their masks one by one, if they are
    known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referring(OutlineStyle, Task):
    """The task of SimpleSeg: (text | point | box) -> (point | box | mask).

    Where nothing in the image is meant the answer is "[]", whatever was asked for.

    Source: SimpleSeg, arXiv 2601.19228, task set and grammar.
    """

    name: ClassVar[str] = "referring"
    kind_names: ClassVar[tuple[str, ...]] = tuple(kind.name.lower() for kind in Kind)
    reward_weights: ClassVar[Mapping[str, float]] = {"iou": 1.0, "distance": 0.2, "format": 0.1}

    mixture: Mixture = Mixture()
    rule: Literal["coco", "center"] = "coco"
    """How an outline is filled when it is judged."""
    wordings: Literal["one", "many", "more"] = "many"
    """One fixed question and answer template, all released templates at random, or these and our
    own paraphrases of the questions."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of answers that are asked for, names aside."""
        shares = vars(self.mixture).items()
        wanted = {name.partition("_")[2] for name, share in shares if share > 0}
        return tuple(kind for kind in Kind if kind.name.lower() in wanted)

    @property
    def decimals(self) -> int:
        """The decimals of numbers for which a tokenizer of our own has tokens."""
        return self.digits

    @property
    def needs(self) -> dict[str, task.Need]:
        """The questions of the mixture, with what each needs of a sample."""
        return self.mixture.needs

    def without_unjudged(self) -> Referring:
        """Returns the task without the questions for names."""
        return dataclasses.replace(self, mixture=self.mixture.without_names())

    def with_questions_of(self, before: Task) -> Referring:
        """Returns the task with the questions that the model was taught before, too."""
        if not isinstance(before, Referring):
            return self
        return dataclasses.replace(self, mixture=before.mixture.with_absent_of(self.mixture))

    @property
    def nothing(self) -> bool:
        """Whether an answer may say that there is nothing."""
        return self.mixture.absent > 0

    def example(self, sample: Sample, rng: np.random.Generator) -> task.Example:
        """Returns a random question about a random object of the sample and its true answer.

        Of the mixture's questions those are asked that the sample allows for: text tells of masks
        with expressions, points and boxes of single objects.

        Raises:
          Unfit: it allows for none of them, or lacks names that are asked for.
        """
        objects = [m for m, mask in enumerate(sample.masks) if mask.any()]
        named = [m for m in objects if sample.phrases[m]]
        alone = [m for m in objects if not (sample.together and sample.together[m])]
        shares = self._shares(text=bool(named), place=bool(alone))
        usual, absent = sum(shares.values()), self._absent(sample, objects)
        if not usual and not absent:
            raise task.Unfit(
                f"sample {sample.key}: expected an object with a mask and, if told by text, a "
                f"phrase, for one of {', '.join(shares)}, got {len(objects)} masks, "
                f"{len(named)} with phrases"
                "; do: leave the sample out, or give other questions a share in task.mixture"
            )
        if absent and rng.random() * (usual + self.mixture.absent) >= usual:
            kind = Kind(_draw_key(dict(enumerate(self.mixture.text_shares)), rng))
            which, phrase = _pick_expression(sample, absent, rng)
            return self.region_example(
                sample, which, clue="text", kind=kind, phrase=phrase, rng=rng
            )
        which, phrase = _pick_expression(sample, named, rng) if named else (0, "")
        clue, wanted = _draw_key(shares, rng).split("_")
        if clue != "text" and alone != named:
            which = int(rng.choice(alone))
        if wanted == "name":
            return self.naming_example(sample, which, clue=clue, rng=rng)
        kind = Kind[wanted.upper()]
        return self.region_example(sample, which, clue=clue, kind=kind, phrase=phrase, rng=rng)

    def region_example(
        self,
        sample: Sample,
        which: int,
        *,
        clue: str,
        kind: Kind,
        phrase: str,
        rng: np.random.Generator,
    ) -> RegionExample:
        """Returns a question about mask `which` of the sample and its true answer.

        Args:
          sample: of the image.
          which: of its masks; an empty one is denied.
          clue: "text", "point" or "box", how the question points at the object.
          kind: of the answer.
          phrase: the expression, used if the clue is text.
          rng: draws the point, with many wordings the templates, and where rings start if that is
            random.
        """
        mask = sample.masks[which]
        place = phrase if clue == "text" else _place(mask, clue, rng)
        template_rng = None if self.wordings == "one" else rng
        question = self.question(place, kind, rng=template_rng)
        if mask.any():
            written = outlines.outline_text(mask, kind, self, rng=rng)
            answer = chat.answer(written, kind, rng=template_rng)
        else:
            answer = chat.denial(rng=template_rng)
        together = kind == Kind.MASK and bool(sample.together) and sample.together[which]
        return RegionExample(
            key=sample.key,
            image=sample.image,
            question=question,
            answer=answer,
            category=sample.categories[which] if sample.categories else "",
            kind=kind,
            mask=mask,
            things=several.things_of(sample, which) if together else None,
        )

    def naming_example(
        self, sample: Sample, which: int, *, clue: str, rng: np.random.Generator
    ) -> RegionExample:
        """Returns a question for the name of mask `which` of the sample and the answer.

        Args:
          sample: of the image.
          which: of its masks.
          clue: "point" or "box", how the question points at the object.
          rng: draws the point and, with many wordings, the template.

        Raises:
          Unfit: the sample has no names.
        """
        if len(sample.names) != len(sample.masks):
            raise task.Unfit(
                f"sample {sample.key}: expected a name for each of {len(sample.masks)} masks, got "
                f"{len(sample.names)}; do: set the shares of naming in task.mixture to 0"
            )
        template_rng = None if self.wordings == "one" else rng
        place = _place(sample.masks[which], clue, rng)
        return RegionExample(
            key=sample.key,
            image=sample.image,
            question=chat.naming_question(place, rng=template_rng, digits=self.digits),
            answer=f"{sample.names[which]}.",
            kind=None,
            mask=sample.masks[which],
        )

    def question(
        self, clue: chat.Clue, kind: Kind, *, form: int = 0, rng: np.random.Generator | None = None
    ) -> str:
        """Returns the words of a question.

        Args:
          clue: an expression, a point or a box.
          kind: of the answer.
          form: number of the form when nothing is drawn.
          rng: draws the form; None: `form` is taken.
        """
        return chat.question(
            kind,
            clue,
            rng=rng,
            index=form,
            digits=self.digits,
            paraphrases=self.wordings == "more",
        )

    def ask(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: int | None = None
    ) -> RegionExample:
        """Returns the question of a user, for the outline if no kind of answer is named."""
        kind = Kind.MASK if kind is None else Kind(kind)
        question = self.question(clue, kind)
        return RegionExample(
            key="", image=image, question=question, answer="", kind=kind, mask=None
        )

    def truth(self, example: task.Example, *, canvas: tuple[int, int]) -> Truth:
        """Returns the mask, packed, the size of the image and the kind of answer."""
        example = _region(example)
        if example.kind is None:
            raise ValueError(
                f"sample {example.key}: expected a question whose answer is judged, "
                f"got {example.question!r}; do: ask another question"
            )
        if example.mask is None:
            words = np.zeros((canvas[0] // 32, canvas[1]), np.uint32)
            size = canvas
        else:
            words, size = packed_masks.pack(example.mask, canvas), example.mask.shape
        return Truth(words, np.array(size, np.int32), np.array(example.kind, np.int32))

    def sentences(self, expressions: Iterable[str]) -> Iterator[str]:
        """Yields every form of question and answer with every expression."""
        return chat.sentences(expressions, denials=self.nothing)

    def _shares(self, *, text: bool, place: bool) -> dict[str, float]:
        """Returns the shares of questions about objects, 0 for those that cannot be asked."""
        shares = {n: share for n, share in vars(self.mixture).items() if "_" in n}
        allowed = {"text": text, "point": place, "box": place}
        return {name: share * allowed[name.split("_")[0]] for name, share in shares.items()}

    def _absent(self, sample: Sample, objects: list[int]) -> list[int]:
        """Returns the masks of what is not in the image, if that is asked about."""
        if not self.nothing:
            return []
        return [m for m, some in enumerate(sample.phrases) if some and m not in objects]

    def reader(self, pieces: Sequence[bytes | None]) -> task.Reader:
        """Returns the reader of outlines within the limits of the task."""
        table = reader.table(pieces)

        def read(ids: Array, used: Array, truth: Truth) -> tuple[Polygons, Array]:
            return reader.read(
                ids,
                used,
                table,
                kind=truth.kind,
                rings=self.max_rings,
                points=self.max_points,
            )

        return read

    def judge(
        self, answer: Polygons, verdict: Int[Array, "*n"], truth: Truth, *, masks: Any = None
    ) -> Judgement:
        """Returns `iou`, `distance` and `format` of each answer by its kind: see `scores.judge`."""
        del masks
        return scores.judge(answer, verdict, truth, rule=self.rule)

    def grammar(
        self, pieces: Sequence[bytes | None], ends: Sequence[int], *, nothing: bool | None = None
    ) -> Automaton:
        """Returns the automaton of points, boxes and outlines within the limits of the task."""
        return automaton.table(
            pieces,
            ends=ends,
            machine=outline_automaton.machine(
                digits=self.digits,
                rings=self.max_rings,
                points=self.max_points,
                nothing=self.nothing if nothing is None else nothing,
            ),
        )

    def grammar_start(self, truth: Truth) -> Int[Array, " B"]:
        """Returns the kind of answer that each prompt asks for."""
        return truth.kind

    def predict(
        self, example: task.Example, text: str, *, draw: task.Draw | None = None
    ) -> RegionPrediction:
        """Returns the point, box or outline of an answer at the image's own resolution."""
        del draw
        example = _region(example)
        kind = Kind.MASK if example.kind is None else example.kind
        height, width = example.image.shape[:2]
        drawn = reading.draw(text, kind, (height, width), rule=self.rule)
        return RegionPrediction(
            question=example.question,
            text=text,
            kind=kind,
            verdict=drawn.verdict,
            says_nothing=drawn.says_nothing,
            rings_unit=tuple(drawn.rings_unit),
            size=(height, width),
            mask=drawn.mask,
        )

    def agreement(
        self, example: task.Example, text: str, *, truth: Truth | None = None
    ) -> float | None:
        """Returns IoU with the mask or its box, of a point whether it lies in the mask.

        Where nothing is meant it is 1 for the answer that says so.
        """
        example = _region(example)
        if example.kind is None or example.mask is None:
            return None
        mask = example.mask
        drawn = reading.draw(text, example.kind, mask.shape, rule=self.rule)
        found = reading.agreement(drawn, example.kind, mask)
        if truth is None:
            return found
        height, width = (int(side) for side in truth.size)
        stored = packed_masks.unpack(np.asarray(truth.words), (height, width))
        return min(found, float(stored.shape == mask.shape and reading.iou(stored, mask)))

    def losses(self, example: task.Example) -> tuple[str, ...]:
        """Returns what the outline lacks beside what its tolerance takes."""
        example = _region(example)
        if example.kind != Kind.MASK or example.mask is None or not example.mask.any():
            return ()
        return outlines.losses(example.mask, self)

    def metrics(self, outcome: Outcome) -> list[Metric]:
        """Returns the numbers of referring.

        gIoU, cIoU, P@0.5 and Boundary IoU are over mask answers; box and point answers have their
        own lines. Of questions about what is not there the IoU is 1 where the answer says so, else
        0; with such questions n_acc_said is the share of these answers, t_acc_said of the others
        that do not. With questions for outlines of several things several_giou is the gIoU of
        these, several_recall the share of these things that are outlined, and several_duplicates
        the outlines of an answer that repeat another of it.
        """
        examples = [_region(example) for example in outcome.examples]
        kinds = np.array([example.kind for example in examples])
        iou, mask = outcome.scores["iou"], kinds == Kind.MASK
        metrics = []
        if mask.any():
            shared, union = outcome.measures["intersection"], outcome.measures["union"]
            metrics = [
                Metric("giou", iou[mask]),
                Metric("ciou", shared[mask], union[mask]),
                Metric("p_at_0.5", (iou[mask] > 0.5).astype(np.float64)),
                Metric("boundary_iou", self._boundary_ious(outcome.texts, examples, mask)),
            ]
        for kind, name in ((Kind.BOX, "box_iou"), (Kind.POINT, "point_in_mask")):
            if (kinds == kind).any():
                metrics.append(Metric(name, iou[kinds == kind]))
        metrics += self._several(outcome, examples)
        absent = np.array([not np.any(example.mask) for example in examples])
        if absent.any():
            said = _says_nothing(outcome.texts, kinds).astype(np.float64)
            metrics.append(Metric("n_acc_said", said[absent]))
            if not absent.all():
                metrics.append(Metric("t_acc_said", 1 - said[~absent]))
        error = outcome.measures["centroid_error"]
        error = error[np.isfinite(error)]
        return [*metrics, Metric("centroid_error", error)] if error.size else metrics

    def _several(self, outcome: Outcome, examples: Sequence[RegionExample]) -> list[Metric]:
        """Returns the numbers of the questions about several things, none if there are none."""
        asked = [(row, one.image.shape[:2], one.things) for row, one in enumerate(examples)]
        rows, meant, counted = [], [], []
        for row, size, things in asked:
            if things:
                drawn = reading.draw(outcome.texts[row], Kind.MASK, size, rule=self.rule)
                counted.append(several.count(drawn.rings_unit, things, rule=self.rule))
                meant.append(float(len(things)))
                rows.append(row)
        if not rows:
            return []
        found, duplicates = np.array(counted, np.float64).T
        return [
            Metric("several_giou", outcome.scores["iou"][rows]),
            Metric("several_recall", found, np.array(meant)),
            Metric("several_duplicates", duplicates),
        ]

    def _boundary_ious(
        self,
        texts: Sequence[str],
        examples: Sequence[RegionExample],
        chosen: Bool[np.ndarray, " n"],
    ) -> Float[np.ndarray, " _"]:
        """Returns the Boundary IoU of the chosen answers, all of them outlines."""
        rows = np.flatnonzero(chosen).tolist()
        truths = [mask for row in rows if (mask := examples[row].mask) is not None]
        return boundaries.ious([texts[row] for row in rows], truths, rule=self.rule)

    def answer_rings(self, text: str, truth: Truth, *, mask: Any = None) -> list[np.ndarray]:
        """Returns the rings that are read: a point is one vertex, a box its four corners."""
        del mask
        kind = Kind(int(truth.kind))
        read = outline.read(text, kind, rings=self.max_rings, points=self.max_points)
        if read.point is not None:
            return [np.asarray(read.point, np.float64)[None]]
        if read.box is not None:
            return [boxes.corners(np.asarray(read.box, np.float64))]
        return [np.asarray(ring, np.float64) for ring in read.rings]

    def truth_rings(self, truth: Truth) -> list[np.ndarray]:
        """Returns the true point, box or outline; nothing where nothing is meant."""
        height, width = (int(side) for side in truth.size)
        mask = packed_masks.unpack(np.asarray(truth.words), (height, width))
        if not mask.any():
            return []
        kind = Kind(int(truth.kind))
        if kind == Kind.POINT:
            return [np.array([outlines.central_point_unit(mask)])]
        if kind == Kind.BOX:
            return [boxes.corners(np.array(outlines.box_unit(mask)))]
        return outlines.rings_unit(mask, self)


def _region(example: task.Example) -> RegionExample:
    """Returns an example that this task has made."""
    if not isinstance(example, RegionExample):
        raise TypeError(
            f"referring: expected an example of its own, got {type(example).__name__}; "
            "do: judge examples by the task that made them"
        )
    return example


def _says_nothing(texts: Sequence[str], kinds: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Returns which answers say that there is no such object."""
    pairs = zip(texts, kinds, strict=True)
    return np.array([outline.read(text, Kind(kind)).says_nothing for text, kind in pairs])


def _draw_key(shares: Mapping[Any, float], rng: np.random.Generator) -> Any:
    """Returns one of the keys, each with the chance of its share."""
    edges = np.cumsum(list(shares.values()))
    return list(shares)[np.searchsorted(edges, rng.random() * edges[-1], side="right")]


def _pick_expression(sample: Sample, masks: list[int], rng: np.random.Generator) -> tuple[int, str]:
    """Returns one of the masks and one of its expressions."""
    which = int(rng.choice(masks))
    phrases = sample.phrases[which]
    return which, phrases[int(rng.integers(len(phrases)))]


def _place(mask: Bool[np.ndarray, "H W"], clue: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a point in the mask or its box, as clues to it."""
    if clue == "point":
        return np.array(outlines.interior_point_unit(mask, rng))
    return np.array(outlines.box_unit(mask))
