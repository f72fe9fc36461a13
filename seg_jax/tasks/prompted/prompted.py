"""Prompted: boxes and clicks are answered, and judged by the masks that a model draws of them.

Axes here: `E` rows and columns of the frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from seg_jax.grammar import automaton, clicks, clicks_automaton, clicks_reader
from seg_jax.grammar.chat import Clue
from seg_jax.records import Array, Automaton, Clicks, Sample, Verdict, check_least
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks import task
from seg_jax.tasks.prompted import answers, pointing, questions, scores, views
from seg_jax.tasks.prompted.mixture import Mixture
from seg_jax.tasks.prompted.questions import Question, Stage
from seg_jax.tasks.prompted.scores import Truth
from seg_jax.tasks.task import Judgement, Metric, Outcome, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClicksExample(task.Example):
    """A question that is answered by boxes and clicks (host)."""

    whole_image: UInt8[np.ndarray, "rows columns 3"]
    """The image itself, which a model draws on; `image` is what is shown with the question."""
    mask: Bool[np.ndarray, "rows columns"] | None
    """All that is meant; None where nobody knows, and of a written conversation."""
    judged: bool = True
    """False for a written conversation, which no mask stands behind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClicksPrediction(task.Prediction):
    """Boxes and clicks that a user asked for (host)."""

    boxes_unit: Float[np.ndarray, "n 4"]
    points_unit: Float[np.ndarray, "m 2"]
    labels: Int[np.ndarray, " m"]
    """1 for a click on the object, 0 for one beside it."""
    thought: str | None
    """The words of the answer's thought; None where it has none that is closed."""
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    grey: UInt8[np.ndarray, "H W"] | None = None
    """What a model drew of it, 255 where the object is; None: there was no such model."""

    @property
    def mask(self) -> Bool[np.ndarray, "H W"] | None:
        """The pixels that a model drew."""
        return None if self.grey is None else self.grey > 128  # As the release has it.

    def as_json(self) -> dict[str, Any]:
        """Returns plain values: text, verdict, thought, boxes and clicks in the image's pixels.

        Of a mask that was drawn also its polygons, to the pixel, its box and COCO's run lengths.
        """
        scale = np.array(self.size[::-1], np.float64)
        boxes_px, points_px = self.boxes_unit * np.tile(scale, 2), self.points_unit * scale
        drawn = {} if self.mask is None else answers.mask_json(self.mask)
        return {
            **super().as_json(),
            **drawn,
            "thought": self.thought,
            "boxes_unit": np.round(self.boxes_unit, 6).tolist(),
            "boxes_px": np.round(boxes_px, 3).tolist(),
            "points_unit": np.round(self.points_unit, 6).tolist(),
            "points_px": np.round(points_px, 3).tolist(),
            "labels": self.labels.tolist(),
            "size": {"height": self.size[0], "width": self.size[1]},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(Task):
    """The task of Seg-R1: an image, perhaps with an expression -> thought, boxes and clicks.

    Source: Seg-R1, arXiv 2506.22624, its stages, grammar and reward.
    Differs: the image stands before the question in stage sft too.
    """

    name: ClassVar[str] = "prompted"
    kind_names: ClassVar[tuple[str, ...]] = ("clicks",)
    reward_weights: ClassVar[Mapping[str, float]] = {"iou": 0.7, "structure": 0.3, "format": 1.0}
    needs_segmenter: ClassVar[bool] = True
    asks_whole: ClassVar[bool] = True

    stage: Stage = "rl"
    """Which question is asked in whose words: prerl, for clicks alone; rl, for a thought, boxes
    and clicks; sft, the same without the meaning of labels."""
    frame: int = 768
    """Side of the square that every image is stretched to, in which numbers are written and masks
    compared; a multiple of 32. A model keeps the frame that it was taught: 768, for what was
    released about referring 1024."""
    square: bool = False
    """Whether the model that answers sees images stretched to the frame too, as what was released
    does; else in their own shape."""
    boxes: int = 4
    """Boxes of an answer that are read."""
    points: int = 16
    """Clicks of an answer that are read."""
    clicks: int = 6
    """Clicks of a true answer, at most; of several objects at least one each."""
    released: bool = False
    """Whether answers are read and scored with the quirks of the release, masks drawn on blue
    first and in the frame, and users' images shown square, through JPEG."""
    brief: bool = False
    """Whether questions are our own, of few words and without a system turn, for models too small
    to read those of the release; stage prerl may then ask for what an expression means too."""
    mixture: Mixture = Mixture()

    def __post_init__(self):
        check_least(self, "task", frame=32, boxes=1, points=1, clicks=1)
        clicks.check_frame(self.frame)
        if self.frame % 32:
            raise ValueError(
                f"task.frame: expected a multiple of 32, got {self.frame}; do: take "
                f"{self.frame // 32 * 32}"
            )
        if self.clicks > self.points:
            raise ValueError(
                f"task.clicks: expected at most the {self.points} clicks that are read, got "
                f"{self.clicks}; do: raise task.points"
            )
        clicks_alone = ("trace",) if self.brief else ("text", "trace")
        wrong = {"prerl": clicks_alone, "rl": ("trace",), "sft": ()}[self.stage]
        for share in wrong:
            if getattr(self.mixture, share):
                raise ValueError(
                    f"task.mixture.{share}: expected 0 in stage {self.stage!r}, which has no such "
                    f"questions, got {getattr(self.mixture, share)}; do: leave it out"
                )

    @property
    def needs(self) -> dict[str, task.Need]:
        """The questions of the mixture, with what each needs of a sample."""
        return self.mixture.needs

    def without_unjudged(self) -> Prompted:
        """Returns the task without written conversations."""
        return dataclasses.replace(self, mixture=self.mixture.without_traces())

    @property
    def channels(self) -> Literal["rgb", "bgr"]:
        """The order of colours that a model which draws is shown: the release has blue first."""
        return "bgr" if self.released else "rgb"

    @property
    def boxed(self) -> bool:
        """Whether answers have boxes, and a thought before them."""
        return self.stage != "prerl"

    def example(self, sample: Sample, rng: np.random.Generator) -> ClicksExample:
        """Returns a random question of the mixture that the sample allows for.

        Raises:
          Unfit: it allows for none of them, or its conversation cannot be read.
        """
        objects = [m for m, mask in enumerate(sample.masks) if mask.any()]
        named = [m for m in objects if sample.phrases[m]]
        there = {"whole": objects, "text": named, "trace": sample.traces}
        shares = {name: share * bool(there[name]) for name, share in vars(self.mixture).items()}
        if not sum(shares.values()):
            raise task.Unfit(
                f"sample {sample.key}: expected what one of {', '.join(self.needs)} asks about, "
                f"got {len(objects)} masks, {len(named)} with phrases, {len(sample.traces)} "
                "conversations; do: leave the sample out, or give other questions a share in "
                "task.mixture"
            )
        edges = np.cumsum(list(shares.values()))
        drawn = list(shares)[np.searchsorted(edges, rng.random() * edges[-1], side="right")]
        if drawn == "trace":
            return self._conversation(sample, int(rng.integers(len(sample.traces))))
        if drawn == "text":
            which = int(rng.choice(named))
            phrase = sample.phrases[which][int(rng.integers(len(sample.phrases[which])))]
            question = questions.referring(self.stage, phrase, brief=self.brief)
            return self._about(sample, [which], question, rng, meant=phrase)
        question = questions.everything(self.stage, brief=self.brief)
        if self.stage == "prerl":
            objects = [max(objects, key=lambda one: int(sample.masks[one].sum()))]
        return self._about(sample, objects, question, rng)

    def _about(
        self,
        sample: Sample,
        objects: Sequence[int],
        question: Question,
        rng: np.random.Generator,
        *,
        meant: str = "",
    ) -> ClicksExample:
        """Returns a question about some masks of a sample with its true answer."""
        masks = sample.masks[list(objects)]
        if not meant and len(sample.names) == len(sample.masks):
            meant = ", ".join(sample.names[one] for one in objects)
        answer = answers.write(
            masks,
            frame=self.frame,
            clicks=self.clicks,
            boxes=self.boxes if self.boxed else 0,
            meant=meant,
            rng=rng,
        )
        known = len(objects) == 1 and bool(sample.categories)
        return ClicksExample(
            key=sample.key,
            image=self._seen_image(sample.image),
            whole_image=sample.image,
            question=question.text,
            system=question.system,
            answer=answer,
            category=sample.categories[objects[0]] if known else "",
            mask=np.asarray(masks.any(0)),
        )

    def _conversation(self, sample: Sample, which: int) -> ClicksExample:
        """Returns a conversation of a sample as it was written."""
        asked, thought, answer = sample.traces[which]
        question = questions.conversation(self.stage, asked, brief=self.brief)
        text = answers.conversation_text(thought, answer)
        verdict = clicks.read(text, frame=self.frame).verdict
        if verdict not in (Verdict.OK, Verdict.CLAMPED):
            raise task.Unfit(
                f"sample {sample.key}: expected a written answer of boxes or clicks, got one that "
                f"is {verdict.name}; do: mend the conversation or leave it out"
            )
        return ClicksExample(
            key=sample.key,
            image=self._seen_image(sample.image),
            whole_image=sample.image,
            question=question.text,
            system=question.system,
            answer=text,
            mask=None,
            judged=False,
        )

    def ask(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        clue: Clue,
        kind: int | None = None,
        *,
        wording: questions.Wording = "expression",
    ) -> ClicksExample:
        """Returns the question of a user: for an expression or, if it is blank, the foreground."""
        if not isinstance(clue, str):
            raise ValueError(
                f"prompted: expected an expression, got {np.asarray(clue).tolist()}; do: tell by "
                "--text what is meant"
            )
        question = questions.of_user(self.stage, clue, wording, brief=self.brief)
        return ClicksExample(
            key="",
            image=views.as_evaluated(image, self.frame)
            if self.released
            else self._seen_image(image),
            whole_image=image,
            question=question.text,
            system=question.system,
            answer="",
            mask=None,
        )

    def _seen_image(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image as it is shown with its question."""
        return views.stretched(image, self.frame) if self.square or self.released else image

    def truth(self, example: task.Example, *, canvas: tuple[int, int]) -> Truth:
        """Returns the true mask and the image, both stretched to the frame; blank if unknown.

        The frame takes the place of the canvas, which is not read.
        """
        del canvas
        example = _own(example)
        if not example.judged:
            raise ValueError(
                f"sample {example.key}: expected a question whose answer is judged, got a written "
                "conversation; do: set task.mixture.trace to 0"
            )
        edge = self.frame
        words: UInt32[np.ndarray, "K E"] = np.zeros((edge // 32, edge), np.uint32)
        if example.mask is not None:
            words = packed_masks.pack(self._in_frame(example.mask), (edge, edge))
        return Truth(words, views.stretched(example.whole_image, edge))

    def sentences(self, expressions: Iterable[str]) -> Iterator[str]:
        """Yields the words of the stage's questions and of answers."""
        systems = [questions.system(self.stage, brief=self.brief)]
        yield questions.everything(self.stage, brief=self.brief).text
        if self.boxed and not self.brief:
            systems.append(questions.SYSTEM_OF_USERS)
        yield from (system for system in systems if system is not None)
        yield answers.EXAMPLE
        for expression in expressions:
            yield questions.referring(self.stage, expression, brief=self.brief).text
            yield answers.thought_about(expression, 1)

    def reader(self, pieces: Sequence[bytes | None]) -> task.Reader:
        """Returns the reader of boxes and clicks within the limits of the task."""
        table = clicks_reader.table(pieces)

        def read(ids: Array, used: Array, truth: Truth) -> tuple[Clicks, Array]:
            del truth
            return clicks_reader.read(
                ids,
                used,
                table,
                frame=self.frame,
                boxes=self.boxes,
                points=self.points,
                released=self.released,
            )

        return read

    def size_px(self, truth: Truth) -> Int[Array, "*n 2"]:
        """Returns the sides of the frame that answers are judged in."""
        edge = truth.words.shape[-1]
        return jnp.full((*truth.words.shape[:-2], 2), edge, jnp.int32)

    def judge(
        self, answer: Clicks, verdict: Int[Array, "*n"], truth: Truth, *, masks: Any = None
    ) -> Judgement:
        """Returns `iou`, `structure` and `format` of each answer: see `scores.judge`."""
        return scores.judge(
            answer,
            verdict,
            truth,
            masks=masks,
            boxes=self.boxed,
            thoughts=self.boxed,
            released=self.released,
        )

    def grammar(
        self, pieces: Sequence[bytes | None], ends: Sequence[int], *, nothing: bool | None = None
    ) -> Automaton:
        """Returns the automaton of the answers of the stage within the limits of the task."""
        if nothing:
            raise ValueError(
                "grammar: expected answers with boxes or clicks, got nothing=True; do: leave it "
                "out, as these answers cannot say that there is nothing"
            )
        machine = clicks_automaton.machine(
            frame=self.frame,
            boxes=self.boxes if self.boxed else 0,
            points=self.points,
            thinks=self.boxed,
        )
        return automaton.table(pieces, ends=ends, machine=machine)

    def predict(
        self,
        example: task.Example,
        text: str,
        *,
        draw: task.Draw | None = None,
        together: bool = False,
    ) -> ClicksPrediction:
        """Returns the boxes and clicks of an answer with the mask that is drawn of them.

        To be shown: the mask with lines for boxes and dots for clicks; without a mask the corners
        of boxes, and dots.

        Args:
          example: the question.
          text: of the answer.
          draw: draws the mask; None: nobody does.
          together: the first box of the answer counts alone, whether it is closed or not, with all
            clicks, as the release does it with ReasonSeg.
        """
        image = _own(example).whole_image
        read = self._read(pointing.only_first_box(text) if together else text)
        grey, rings = None, answers.shown_rings(read.boxes_unit, read.points_unit)
        if draw is not None:
            asked = pointing.prompts(read, together=together)
            if self.released:
                grey = pointing.grey_map_as_released(image, asked, draw, frame=self.frame)
            else:
                grey = pointing.grey_map(image, asked, draw)
            rings = answers.shown_rings(read.boxes_unit, read.points_unit, mask=grey > 128)
        return ClicksPrediction(
            question=example.question,
            text=text,
            verdict=read.verdict,
            rings_unit=tuple(rings),
            boxes_unit=read.boxes_unit,
            points_unit=read.points_unit,
            labels=read.labels,
            thought=answers.thought_of(text) if read.thought else None,
            size=image.shape[:2],
            grey=grey,
        )

    def agreement(
        self, example: task.Example, text: str, *, truth: Truth | None = None
    ) -> float | None:
        """Returns the share of clicks that lie right, or if less of the mask's pixels in boxes.

        Of a truth record it is the share of the pixels of the frame that are the mask's.
        """
        mask = _own(example).mask
        if mask is None or not mask.any():
            return None
        found = answers.agreement(self._read(text), mask)
        if truth is None:
            return found
        stored = packed_masks.unpack(np.asarray(truth.words), (self.frame, self.frame))
        return min(found, float(np.mean(stored == self._in_frame(mask))))

    def _in_frame(self, mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "E E"]:
        """Returns a mask stretched to the frame."""
        return views.stretched(mask.astype(np.uint8) * 255, self.frame) > 127

    def _read(self, text: str) -> clicks.Reading:
        return clicks.read(
            text, frame=self.frame, boxes=self.boxes, points=self.points, released=self.released
        )

    def metrics(self, outcome: Outcome) -> list[Metric]:
        """Returns gIoU, cIoU, S and mean absolute error of the masks, and the share of formats.

        A mask counts as it was drawn, whatever the answer lacks; without masks there is the last
        number alone.
        """
        shape = Metric("format", outcome.scores["format"])
        if "union" not in outcome.measures:
            return [shape]
        shared, union = (
            np.asarray(outcome.measures[name], np.float64) for name in ("intersection", "union")
        )
        return [
            Metric("giou", np.divide(shared, union, out=np.zeros_like(union), where=union > 0)),
            Metric("ciou", shared, union),
            Metric("structure", outcome.measures["drawn_structure"]),
            Metric("error", outcome.measures["error"]),
            shape,
        ]

    def answer_rings(self, text: str, truth: Any, *, mask: Any = None) -> list[np.ndarray]:
        """Returns the corners of boxes, and clicks as rings of one vertex; see `predict`."""
        del truth
        read = self._read(text)
        if mask is not None:
            mask = packed_masks.unpack(np.asarray(mask), (self.frame, self.frame))
        return answers.shown_rings(read.boxes_unit, read.points_unit, mask=mask)

    def truth_rings(self, truth: Truth) -> list[np.ndarray]:
        """Returns the outlines of the true mask."""
        mask = packed_masks.unpack(np.asarray(truth.words), (self.frame, self.frame))
        return answers.outlines(mask)


def _own(example: task.Example) -> ClicksExample:
    """Returns an example that this task has made."""
    if not isinstance(example, ClicksExample):
        raise TypeError(
            f"prompted: expected an example of its own, got {type(example).__name__}; "
            "do: judge examples by the task that made them"
        )
    return example
