"""Referring: one object named by text, point or box is to be pointed at, boxed or outlined."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.geometry import bitmask, contour, overlap, polygon, raster
from seg_jax.grammar import chat, outline
from seg_jax.records import Array, Kind, Polygons, Sample, Truth, Verdict
from seg_jax.tasks.task import Example, Judgement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the questions, what is told before what is asked, relative to each other."""

    text_point: float = 0.0
    text_box: float = 0.0
    text_mask: float = 1.0
    point_mask: float = 0.0
    box_mask: float = 0.0
    point_name: float = 0.0
    """The object at a point is to be named. Supervised training only."""
    box_name: float = 0.0
    """The object in a box is to be named. Supervised training only."""

    def __post_init__(self):
        shares = dataclasses.astuple(self)
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(
                f"task.mixture: expected shares >= 0 with a positive sum, got {shares}; "
                "give at least one question a share"
            )

    def check_judged(self) -> None:
        """Raises ValueError if names are asked for: no score judges such an answer."""
        shares = dataclasses.asdict(self).items()
        asked = {name: share for name, share in shares if name.endswith("_name") and share}
        if asked:
            raise ValueError(
                f"mixture: expected points, boxes and outlines, got {asked}, whose answers are "
                "words that nothing judges; set these shares to 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referring:
    """The task of SimpleSeg: (text | point | box) -> (point | box | mask).

    Source: SimpleSeg, arXiv 2601.19228, task set and grammar.
    """

    mixture: Mixture = Mixture()
    digits: int = 3
    """Decimals of a coordinate."""
    epsilon: float = 0.005
    """Douglas-Peucker tolerance as a share of the ring's length (the paper's best is 0.005)."""
    max_points: int = 64
    """Vertex budget of a true answer, all its rings together; the tolerance grows until it fits."""
    max_rings: int = 4
    """Rings of an answer that are read; in true answers the largest are kept."""
    min_area: float = 2.0
    """Rings enclosing fewer square pixels are left out of true answers."""
    rule: Literal["coco", "center"] = "coco"
    """How an outline is filled when it is judged."""
    wordings: Literal["one", "many"] = "many"
    """One fixed question and answer template, or all templates at random."""

    def __post_init__(self):
        for name, low in (("digits", 1), ("max_points", 3), ("max_rings", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"task.{name}: expected >= {low}, got {getattr(self, name)}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What kinds of answers are asked for, names aside."""
        asked = {name.split("_")[1] for name, share in vars(self.mixture).items() if share > 0}
        return tuple(kind for kind in Kind if kind.name.lower() in asked)

    def example(self, sample: Sample, rng: np.random.Generator) -> Example:
        """Returns a random question about a random object of the sample and its true answer."""
        named = [m for m, phrases in enumerate(sample.phrases) if phrases and sample.masks[m].any()]
        if not named:
            raise ValueError(
                f"sample {sample.key}: expected an object with a mask and a phrase, got none"
            )
        which = int(rng.choice(named))
        phrases = sample.phrases[which]
        phrase = phrases[int(rng.integers(len(phrases)))]
        given, asked = self._question_kind(rng)
        if asked == "name":
            return self.ask_name(sample, which, given=given, rng=rng)
        kind = Kind[asked.upper()]
        return self.ask(sample, which, given=given, kind=kind, phrase=phrase, rng=rng)

    def ask(
        self,
        sample: Sample,
        which: int,
        *,
        given: str,
        kind: Kind,
        phrase: str,
        rng: np.random.Generator,
    ) -> Example:
        """Returns a question about mask `which` of the sample and its true answer.

        Args:
          sample: of the picture.
          which: of its masks.
          given: "text", "point" or "box", how the object is told.
          kind: of the answer.
          phrase: the expression, used if text is given.
          rng: draws the point and, with many wordings, the templates.
        """
        mask = sample.masks[which]
        clue = phrase if given == "text" else _place(mask, given, rng)
        template_rng = rng if self.wordings == "many" else None
        written = outline_text(mask, kind, self)
        return Example(
            key=sample.key,
            image=sample.image,
            question=chat.question(kind, clue, rng=template_rng, digits=self.digits),
            answer=chat.answer(written, kind, clue, rng=template_rng, digits=self.digits),
            kind=kind,
            mask=mask,
        )

    def ask_name(
        self, sample: Sample, which: int, *, given: str, rng: np.random.Generator
    ) -> Example:
        """Returns a question for the name of mask `which` of the sample and the answer.

        Args:
          sample: of the picture.
          which: of its masks.
          given: "point" or "box", how the object is told.
          rng: draws the point and, with many wordings, the template.

        Raises:
          ValueError: the sample has no names.
        """
        if len(sample.names) != len(sample.masks):
            raise ValueError(
                f"sample {sample.key}: expected a name for each of {len(sample.masks)} masks, got "
                f"{len(sample.names)}; set the shares of naming in task.mixture to 0"
            )
        template_rng = rng if self.wordings == "many" else None
        clue = _place(sample.masks[which], given, rng)
        return Example(
            key=sample.key,
            image=sample.image,
            question=chat.naming(clue, rng=template_rng, digits=self.digits),
            answer=f"{sample.names[which]}.",
            kind=None,
            mask=sample.masks[which],
        )

    def _question_kind(self, rng: np.random.Generator):
        shares = vars(self.mixture)
        edges = np.cumsum(list(shares.values()))
        drawn = np.searchsorted(edges, rng.random() * edges[-1], side="right")
        return list(shares)[drawn].split("_")

    def judge(self, answer: Polygons, verdict: Int[Array, "*n"], truth: Truth) -> Judgement:
        """Returns `iou`, `distance` and `format` of each answer by its kind.

        iou: mask IoU; IoU of the boxes; 1 for a point inside the region. distance: 1 minus half
        the squared distance of the centroids (of a point: to the true centroid), 0 without an
        answer. format: 1 if the whole answer follows the grammar.

        Source: SimpleSeg's rewards (mask IoU, centroid MSE, format); the exact distance formula
        is unpublished, this is its bounded form.
        """
        height = truth.words.shape[-2] * 32
        width = truth.words.shape[-1]
        points_px = raster.to_pixels(answer.points_unit, truth.size)
        drawn = answer.used & (truth.kind == Kind.MASK)[..., None, None]
        words = raster.fill(
            points_px, drawn, height=height, width=width, rule=self.rule, rings="evenodd"
        )
        intersection, union = overlap.counts(words, truth.words)
        by_kind = [
            _point_score(points_px, truth),
            _box_score(points_px, truth),
            jnp.where(union > 0, intersection / jnp.maximum(union, 1), 0.0),
        ]
        usable = verdict < Verdict.EMPTY
        iou = jnp.where(usable, jnp.select([truth.kind == k for k in Kind], by_kind), 0.0)
        centre, found = _centre_px(points_px, words, truth)
        scale = truth.size[..., ::-1].astype(jnp.float32)
        offset = (centre - bitmask.centroid_px(truth.words)) / scale
        squared = jnp.sum(jnp.square(offset), -1)
        found = found & usable
        scores = {
            "iou": iou.astype(jnp.float32),
            "distance": jnp.where(found, 1.0 - jnp.minimum(squared, 2.0) / 2.0, 0.0),
            "format": (verdict == Verdict.OK).astype(jnp.float32),
        }
        is_mask = truth.kind == Kind.MASK
        return Judgement(
            scores,
            jnp.where(is_mask, intersection, 0),
            jnp.where(is_mask, union, 0),
            jnp.where(found, jnp.sqrt(squared), jnp.nan),
        )


def _place(mask: Bool[np.ndarray, "H W"], given: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a point in the mask or its box, as clues to it."""
    if given == "point":
        return np.array(interior_point_unit(mask, rng))
    return np.array(box_unit(mask))


def outline_text(mask: Bool[np.ndarray, "H W"], kind: Kind, task: Referring) -> str:
    """Returns the true answer of the kind for a mask, in the grammar's text."""
    if kind == Kind.POINT:
        return outline.write_point(central_point_unit(mask), digits=task.digits)
    if kind == Kind.BOX:
        return outline.write_box(box_unit(mask), digits=task.digits)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return outline.write_mask([], digits=task.digits)
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = int(rows[0]), int(columns[0])
    return _mask_text(part.tobytes(), part.shape, corner, mask.shape, task)


@functools.lru_cache(maxsize=32)
def _mask_text(
    part: bytes,
    size: tuple[int, int],
    corner: tuple[int, int],
    shape: tuple[int, int],
    task: Referring,
) -> str:
    """Returns the outline of a mask; several questions about a picture ask for the same one.

    Args:
      part: its pixels within its box.
      size: rows and columns of the box.
      corner: first row and column of the box.
      shape: of the mask.
      task: whose budgets hold.
    """
    mask = np.zeros(shape, bool)
    inside = tuple(slice(at, at + side) for at, side in zip(corner, size, strict=True))
    mask[inside] = np.frombuffer(part, bool).reshape(size)
    return outline.write_mask(rings_unit(mask, task), digits=task.digits)


def rings_unit(mask: Bool[np.ndarray, "H W"], task: Referring) -> list[np.ndarray]:
    """Returns the simplified rings of a mask in unit coordinates, within the task's budgets."""
    size = np.array([mask.shape[1], mask.shape[0]], np.float64)
    traced = contour.trace(mask, min_area=task.min_area) or contour.trace(mask)
    traced = traced[: min(task.max_rings, task.max_points // 3)]
    rings = [polygon.simplify(ring, task.epsilon * polygon.arc_length(ring)) for ring in traced]
    total = sum(len(ring) for ring in rings)
    if total > task.max_points:
        spare = task.max_points - 3 * len(rings)
        shares = [3 + spare * (len(ring) - 3) // (total - 3 * len(rings)) for ring in rings]
        rings = [
            polygon.simplify_to(ring, share) for ring, share in zip(traced, shares, strict=True)
        ]
    return [polygon.canonical(ring) / size for ring in rings]


def box_unit(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
    """Returns the tight half-open box x0 y0 x1 y1 of a mask in unit coordinates."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


def central_point_unit(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Returns the centre of the mask's pixel that is nearest to its centroid, unit x and y."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return (columns[nearest] + 0.5) / mask.shape[1], (rows[nearest] + 0.5) / mask.shape[0]


def interior_point_unit(
    mask: Bool[np.ndarray, "H W"], rng: np.random.Generator
) -> tuple[float, float]:
    """Returns the centre of a random pixel of the mask, off its border where it can, unit x, y."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    rows, columns = np.nonzero(inner if inner.any() else mask)
    pick = int(rng.integers(len(rows)))
    return (columns[pick] + 0.5) / mask.shape[1], (rows[pick] + 0.5) / mask.shape[0]


def _point_score(points_px: Float[Array, "*n R P 2"], truth: Truth) -> Float[Array, "*n"]:
    point = points_px[..., 0, 0, :]
    column = jnp.clip(point[..., 0].astype(jnp.int32), 0, truth.size[..., 1] - 1)
    row = jnp.clip(point[..., 1].astype(jnp.int32), 0, truth.size[..., 0] - 1)
    at_row = jnp.take_along_axis(truth.words, (row // 32)[..., None, None], -2)[..., 0, :]
    word = jnp.take_along_axis(at_row, column[..., None], -1)[..., 0]
    return ((word >> (row % 32).astype(word.dtype)) & 1).astype(jnp.float32)


def _box_score(points_px: Float[Array, "*n R P 2"], truth: Truth) -> Float[Array, "*n"]:
    corners = points_px[..., 0, :2, :]
    box = jnp.concatenate([corners.min(-2), corners.max(-2)], -1)
    return overlap.box_iou(box, bitmask.box(truth.words).astype(jnp.float32))


def _centre_px(points_px, words, truth):
    """Returns the centre of each answer in pixels and whether it has one."""
    corners = points_px[..., 0, :2, :]
    by_kind = [corners[..., 0, :], corners.mean(-2), bitmask.centroid_px(words)]
    kind = truth.kind[..., None]
    centre = jnp.select([kind == k for k in Kind], by_kind)
    return centre, (truth.kind != Kind.MASK) | (bitmask.area(words) > 0)
