"""A model at work: greedy answers to questions about images, read and judged by its task."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from PIL import Image, ImageOps

from seg_jax.data import buckets, image_files, question_lists
from seg_jax.data.encode import TooLong
from seg_jax.data.exports.answers import Answer
from seg_jax.data.image_files import RgbImage
from seg_jax.grammar import automaton, chat
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.inference import segmenter as segmenters
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.inference.results import Result, Results
from seg_jax.inference.segmenter import Segmenter
from seg_jax.models import families
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Prompts, Rollout
from seg_jax.tasks.own_scores import OwnScores
from seg_jax.tasks.task import Example, Judgement, Prediction, judge

Row = tuple[Example, Prompts]
"""A question and its row (no batch axis), as the model reads it."""
Shown = str | Path | np.ndarray | Image.Image
"""A picture: its file, its pixels uint8 [H W 3], or an image of PIL."""
Numbers = Sequence[float | int] | np.ndarray
"""Coordinates."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of images of PIL that a PNG holds."""


class Answered(NamedTuple):
    """An answer to one of many questions."""

    prediction: Prediction
    score: float
    """Geometric mean of the probabilities of its tokens, 0..1; 0 where they are no numbers."""
    tokens: int
    """Tokens of the answer, its end included."""


def mean_probability(logp: float, tokens: int) -> float:
    """Returns the geometric mean of the probabilities of tokens; 0 where it is no number.

    Args:
      logp: sum of the logarithms of the probabilities.
      tokens: their count.
    """
    mean = logp / max(1, tokens)
    return math.exp(mean) if math.isfinite(mean) else 0.0


class Predictor:
    """Asks a model of a bundle; greedy, one answer per prompt."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        grammar: bool = False,
        nothing: bool | None = None,
        refill: sampler.Refill | None = None,
        frozen: Frozen = NOTHING,
        segmenter: Segmenter | None = None,
        own: OwnScores | None = None,
    ):
        """Makes it ready.

        Args:
          bundle: the model.
          grammar: whether answers are held to the grammar, so that each can be read.
          nothing: whether such an answer may say that there is nothing; None: as the task has it.
          refill: how many answers of a batch are decoded at once; None: all.
          frozen: draws what answers point at where they are judged, for a task whose scores are
            of masks; without it these are unknown.
          segmenter: draws the mask of what `predict` finds an answer to point at.
          own: scores of a user, by which answers are judged beside the task's.
        """
        self.bundle = bundle
        self.frozen, self._refill, self._segmenter = frozen, refill, segmenter
        self._add = None if own is None else own.added
        self._reader = bundle.task.reader(bundle.tokenizer.pieces)
        self._grammar = None
        if grammar:
            pieces, ends = bundle.tokenizer.pieces, bundle.end_ids
            self._grammar = bundle.task.grammar(pieces, ends, nothing=nothing)
        self.judged_answer = jax.jit(self._generate_and_judge)
        """(weights, prompts, those of the model that draws, if there is one) -> (rollout,
        judgement)."""
        self._params = bundle.params

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        adapter: Path | str | None = None,
        segmenter: Path | str | None = None,
        grammar: bool = False,
        dtype: Literal["float32", "bfloat16"] | None = None,
        visual_tokens: int | None = None,
    ) -> Predictor:
        """Returns the model of a folder, ready to be asked.

        Args:
          folder: of a trained model, or one of Hugging Face's.
          adapter: folder of an adapter (LoRA, peft's format) that was learnt beside it.
          segmenter: folder of a SAM 2 that draws what a model of boxes and clicks points at.
          grammar: whether answers are held to the grammar, so that each can be read.
          dtype: of weights and products; None: as config.json says.
          visual_tokens: most image tokens of a question; None: as the model was taught.

        Raises:
          ValueError: the folder is none of a model, a file in it is broken, or the segmenter does
            not go with it.
        """
        folder = Path(folder)
        dtype = dtype or families.noted_dtype(folder)
        bundle = bundles.load(
            folder,
            compute=Compute(dtype=dtype, param_dtype=dtype),
            visual_tokens=visual_tokens,
            adapter=None if adapter is None else Path(adapter),
        )
        if segmenter is None:
            return cls(bundle, grammar=grammar)
        frozen_segmenter.check(bundle.task, Path(segmenter))
        return cls(bundle, grammar=grammar, segmenter=segmenters.load(Path(segmenter)))

    def predict(
        self,
        images: Shown | Sequence[Shown],
        texts: str | Sequence[str] = (),
        *,
        point: Numbers | None = None,
        box: Numbers | None = None,
        answer: str | None = None,
        batch: int = 8,
    ) -> Results:
        """Returns a result for each picture: the answers to every question about it, in order.

        `predict("a.png", "the red star")[0].answers[0].mask`. All pictures and masks are in memory:
        about thousands `seg-jax predict --images` asks.

        Args:
          images: one picture or several.
          texts: an expression or several, which all pictures are asked about.
          point: x y in the object, fractions of width and height, in the place of a text.
          box: x0 y0 x1 y1 around it, likewise.
          answer: what is asked for by name: mask, box or point; None: the task's usual one.
          batch: questions that go to the device at once.

        Raises:
          ValueError: a picture cannot be read, or a question does not fit the model.
        """
        shown = _list_of(images)
        clues = _clues(texts, point, box, whole=self.bundle.task.asks_whole)
        kind = self.bundle.task.kind_number(answer)
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}; do: raise it")
        names, pictures, rows = [], [], list[Row]()
        for number, one in enumerate(shown):
            names.append(str(one) if isinstance(one, str | Path) else f"picture {number}")
            pictures.append(_pixels(one, names[-1]))
            for clue in clues:
                asked = clue if isinstance(clue, str) else np.array(clue)
                try:
                    rows.append(self.row(pictures[-1], asked, kind))
                except ValueError as error:
                    raise ValueError(f"{names[-1]}: {error}") from error
        found = iter(self.answer_rows(rows, batch=batch))
        return Results(
            Result(
                image, tuple(_answer(next(found), clue, n) for n, clue in enumerate(clues)), name
            )
            for name, image in zip(names, pictures, strict=True)
        )

    @property
    def draws(self) -> bool:
        """Whether a model draws what answers point at, and so needs their images again."""
        return self._segmenter is not None

    def answer(self, prompts: Prompts, params: Any = None) -> tuple[Rollout, Judgement]:
        """Returns greedy answers to a batch of prompts, judged against their truth.

        Args:
          prompts: rows of the bundle's layout.
          params: other weights of the same model.

        Raises:
          ValueError: with a grammar, its shortest answer is longer than the layout allows.
        """
        task = self.bundle.task
        if self._grammar is not None:
            kinds = np.unique(np.asarray(task.grammar_start(prompts.truth))).tolist()
            longest = self.bundle.layout.max_answer
            automaton.check_max_tokens(self._grammar, longest, kinds, names=task.kind_names)
        params = self._params if params is None else params
        return self.judged_answer(params, prompts, *self.frozen.argument)

    def predict_one(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: int | None = None
    ) -> Prediction:
        """Returns what the model answers about what an expression, point or box refers to.

        Args:
          image: that is asked about.
          clue: an expression, a point or a box.
          kind: number of the kind of answer that is wanted; None: the task's usual one.

        Raises:
          ValueError: the question does not fit the model's rows, or the task has none like it.
        """
        example, prompt = self.row(image, clue, kind)
        rollout, _ = self.answer(jax.tree.map(lambda leaf: np.asarray(leaf)[None], prompt))
        ids = np.asarray(rollout.ids)[0, 0][np.asarray(rollout.used)[0, 0]]
        return self._read(example, self.bundle.tokenizer.decode(ids))

    def row(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: int | None = None
    ) -> Row:
        """Returns a question as `answer_rows` takes it, see `predict_one`; the device rests.

        Raises:
          ValueError: the question does not fit the model's rows, or the task has none like it.
        """
        task = self.bundle.task
        example = task.ask(image, clue, kind)
        try:
            return example, self.bundle.encoder.prompt_row(task, example)
        except TooLong as error:
            reason = str(error).split(";")[0]
            raise ValueError(f"{example.question!r}: {reason}; do: ask in fewer words") from error

    def answer_rows(self, rows: Sequence[Row], *, batch: int) -> list[Answered]:
        """Returns the answers to questions, batch by batch.

        Equal rows in equal batches get equal answers; in other batches sums may be rounded
        otherwise.

        Args:
          rows: of `row`.
          batch: questions at once; what is missing of the last ones is filled up.
        """
        found: list[Answered] = []
        for begin in range(0, len(rows), batch):
            some = [*rows[begin : begin + batch]]
            prompts = [prompt for _, prompt in some]
            prompts += prompts[-1:] * (batch - len(some))
            rollout, _ = self.answer(buckets.batch_of_rows(prompts, self.bundle.layout))
            leaves = rollout.ids, rollout.used, rollout.logp
            ids, used, logp = (np.asarray(leaf)[:, 0] for leaf in leaves)
            for (example, _), each, kept, likely in zip(some, ids, used, logp, strict=False):
                text = self.bundle.tokenizer.decode(each[kept].tolist())
                count = int(kept.sum())
                score = mean_probability(float(likely[kept].sum(dtype=np.float64)), count)
                found.append(Answered(self._read(example, text), score, count))
        return found

    def _read(self, example: Example, text: str) -> Prediction:
        """Returns what an answer says, its mask drawn if there is a model for that."""
        if self._segmenter is None:
            return self.bundle.task.predict(example, text)
        return self.bundle.task.predict(example, text, draw=self._segmenter.union)

    def _generate_and_judge(
        self, params: Any, prompts: Prompts, drawing: Any = None
    ) -> tuple[Rollout, Judgement]:
        """Returns greedy answers and their judgement, as `jax.jit` traces it."""
        bundle = self.bundle
        rollout = sampler.generate(
            nnx.merge(bundle.graph, params),
            prompts.tokens,
            prompts.images,
            answers=1,
            max_tokens=bundle.layout.max_answer,
            sampler=sampler.Greedy(),
            end_ids=bundle.end_ids,
            pad_id=bundle.tokenizer.pad_id,
            key=jax.random.key(0),
            grammar=self._grammar,
            kinds=None if self._grammar is None else bundle.task.grammar_start(prompts.truth),
            refill=self._refill,
        )
        judged = judge(
            bundle.task,
            rollout,
            prompts.truth,
            reader=self._reader,
            segment=self.frozen.bound(drawing),
            by_rows=sharding.map_rows,
            add=self._add,
        )
        return rollout, judged


def _list_of(images: Shown | Sequence[Shown]) -> list[Shown]:
    """Returns the pictures, of one too."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim <= 3:
        return [images]
    return [*images]


def _clues(
    texts: str | Sequence[str],
    point: Numbers | None,
    box: Numbers | None,
    *,
    whole: bool,
) -> list[str | tuple[float, ...]]:
    """Returns what tells the object, or several; a blank where all of a picture is asked for."""
    places = {"point": (point, 2), "box": (box, 4)}
    given = {name: one for name, one in places.items() if one[0] is not None}
    told = [texts] if isinstance(texts, str) else [*texts]
    if len(given) + bool(told) != 1 and not (whole and not given):
        raise ValueError(
            f"predict: expected one of texts, point and box, got {len(given) + bool(told)}; do: "
            'give one, as texts="the red star"'
        )
    for name, (value, count) in given.items():
        assert value is not None
        if len(value) != count:
            raise ValueError(f"{name}: expected {count} numbers, got {len(value)}; do: give these")
        return [question_lists.clean([float(one) for one in value], where=name)]
    for one in told:
        if not one.strip():
            raise ValueError('texts: expected an expression, got none; do: give "the red star"')
    return [question_lists.clean(one, where="texts") for one in told] or [""]


def _pixels(shown: Shown, name: str) -> RgbImage:
    """Returns a picture upright, as files of pictures are read.

    Raises:
      ValueError: it is none, or its file cannot be read.
    """
    if isinstance(shown, np.ndarray):
        if shown.dtype != np.uint8 or shown.ndim != 3 or shown.shape[-1] != 3 or not shown.size:
            raise ValueError(
                f"{name}: expected uint8 [H W 3], got {shown.dtype} {[*shown.shape]}; do: give "
                "colours in 0..255, red first"
            )
        return shown
    if isinstance(shown, Image.Image):
        upright = ImageOps.exif_transpose(shown)
        kept = upright if upright.mode in _MODES else upright.convert("RGB")
        kept.save(buffer := io.BytesIO(), "PNG", exif=b"")
        return image_files.read(buffer.getvalue(), where=name)
    return image_files.read(Path(shown))


def _answer(answered: Answered, clue: str | tuple[float, ...], number: int) -> Answer:
    """Returns an answer of a result."""
    asked = question_lists.Question(key="", path=Path(), clue=clue)
    told = {"number": number, "label": asked.label, "asked": asked.asked_json()}
    told |= answered.prediction.as_json()
    return Answer(told | {"score": answered.score, "tokens": answered.tokens}, number)
