"""A model at work: greedy answers to questions about images, read and judged."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int, UInt8

from seg_jax.data.encode import TooLong
from seg_jax.geometry import bitmask
from seg_jax.geometry.host_raster import fill
from seg_jax.grammar import automaton, chat, outline, reader
from seg_jax.inference.bundle import Bundle
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Array, Kind, Prompts, Ring, Rollout, Verdict
from seg_jax.tasks import task as tasks
from seg_jax.tasks.task import Judgement, judge


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An answer to one question (host)."""

    question: str
    text: str
    """What the model wrote."""
    kind: Kind
    verdict: Verdict
    rings_unit: tuple[Ring, ...]
    """The outline, or a single point, or the corners of a box."""
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    mask: np.ndarray
    """bool[H, W]; empty unless the answer is an outline."""
    says_nothing: bool = False
    """Whether it is that there is no such object."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain values: text, verdict, polygons, box and COCO RLE."""
        height, width = self.size
        scale = np.array([width, height])
        rle = bitmask.to_rle(self.mask)
        rle["counts"] = rle["counts"].decode("ascii")
        corners = np.concatenate(self.rings_unit) if self.rings_unit else np.zeros((0, 2))
        box = [*corners.min(0), *corners.max(0)] if len(corners) else None
        return {
            "question": self.question,
            "text": self.text,
            "kind": self.kind.name.lower(),
            "verdict": self.verdict.name,
            "says_nothing": self.says_nothing,
            "polygons_unit": [_rounded(ring, 6) for ring in self.rings_unit],
            "polygons_px": [_rounded(ring * scale, 3) for ring in self.rings_unit],
            "box_unit": None if box is None else _rounded(np.array(box), 6),
            "box_px": None if box is None else _rounded(np.array(box) * np.tile(scale, 2), 3),
            "area_px": int(self.mask.sum()),
            "size": {"height": height, "width": width},
            "rle": rle,
        }


class Predictor:
    """Asks a model of a bundle; greedy, one answer per prompt."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        grammar: bool = False,
        nothing: bool | None = None,
        refill: sampler.Refill | None = None,
    ):
        """Makes it ready.

        Args:
          bundle: the model.
          grammar: whether answers are held to the grammar, so that each can be read.
          nothing: whether such an answer may say that there is nothing; None: as the task has it.
          refill: how many answers of a batch are decoded at once; None: all.
        """
        self.bundle = bundle
        self._refill = refill
        self._table = reader.table(bundle.tokenizer.pieces)
        self._grammar = None
        if grammar:
            pieces, ends = bundle.tokenizer.pieces, bundle.end_ids
            self._grammar = tasks.grammar(bundle.task, pieces, ends, nothing=nothing)
        self.judged_answer = jax.jit(self._traced)
        """(weights, prompts) -> (rollout, judgement, verdicts)."""
        self._params = bundle.params

    def answer(
        self, prompts: Prompts, params: Any = None
    ) -> tuple[Rollout, Judgement, Int[Array, "B 1"]]:
        """Returns greedy answers to a batch of prompts, judged against their truth.

        Args:
          prompts: rows of the bundle's layout.
          params: other weights of the same model.

        Raises:
          ValueError: with a grammar, its shortest answer is longer than the layout allows.
        """
        if self._grammar is not None:
            kinds = [Kind(kind) for kind in np.unique(np.asarray(prompts.truth.kind))]
            automaton.check_max_tokens(self._grammar, self.bundle.layout.max_answer, kinds)
        return self.judged_answer(self._params if params is None else params, prompts)

    def predict(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: Kind = Kind.MASK
    ) -> Prediction:
        """Returns the point, box or outline of what an expression, point or box refers to.

        Raises:
          ValueError: the question does not fit the model's rows.
        """
        task, encoder = self.bundle.task, self.bundle.encoder
        question = chat.question(kind, clue, digits=task.digits)
        try:
            tokens, images = encoder.question(image, question)
        except TooLong as error:
            reason = str(error).split(";")[0]
            raise ValueError(f"{question!r}: {reason}; ask in fewer words") from error
        truth = encoder.blank_truth(kind)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], Prompts(tokens, images, truth))
        rollout, _, _ = self.answer(rows)
        ids = np.asarray(rollout.ids)[0, 0][np.asarray(rollout.used)[0, 0]]
        text = self.bundle.tokenizer.decode(ids)
        reading = outline.read(text, kind)
        rings = _rings(reading)
        mask = np.zeros(image.shape[:2], bool)
        if kind == Kind.MASK and rings:
            mask = fill(rings, height=image.shape[0], width=image.shape[1], rule=task.rule)
        return Prediction(
            question=question,
            text=text,
            kind=kind,
            verdict=reading.verdict,
            says_nothing=reading.says_nothing,
            rings_unit=rings,
            size=(image.shape[0], image.shape[1]),
            mask=mask,
        )

    def _traced(self, params: Any, prompts: Prompts):
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
            kinds=prompts.truth.kind,
            refill=self._refill,
        )
        judge_rows = sharding.map_rows(functools.partial(judge, bundle.task, self._table))
        judged, verdict = judge_rows(rollout, prompts.truth)
        return rollout, judged, verdict


def _rings(reading: outline.Reading) -> tuple[Ring, ...]:
    """Returns what was read as rings: a point is one vertex, a box two corners."""
    if reading.rings:
        return tuple(np.asarray(ring, np.float64) for ring in reading.rings)
    if reading.point is not None:
        return (np.asarray(reading.point, np.float64).reshape(1, 2),)
    if reading.box is not None:
        return (np.asarray(reading.box, np.float64).reshape(2, 2),)
    return ()


def _rounded(values: np.ndarray, digits: int) -> list:
    return np.round(values, digits).tolist()
