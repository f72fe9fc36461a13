"""Referring: what text, point or box tells of is to be pointed at, boxed or outlined, or denied."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.geometry import bitmask, boxes, contour, overlap, polygon, raster, simpleseg_tracing
from seg_jax.grammar import chat, outline, reader
from seg_jax.records import Array, Kind, Polygons, Sample, Truth, Verdict, check_least
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
    absent: float = 0.0
    """Text tells of what is not in the image, and the answer is that there is nothing. An image
    without such an expression is asked about otherwise, one with nothing else always so."""

    def __post_init__(self):
        shares = dataclasses.astuple(self)
        if not (all(share >= 0 for share in shares) and 0 < sum(shares) < math.inf):
            raise ValueError(
                f"task.mixture: expected shares >= 0 with a positive sum, got {shares}; "
                "give at least one question a share"
            )
        if self.absent and not any(self.told):
            raise ValueError(
                f"task.mixture.absent: expected a share of text_mask, text_box or text_point "
                f"beside it, got {self.absent} alone; what is not there can be told by text only"
            )

    @property
    def told(self) -> tuple[float, float, float]:
        """The shares of questions that tell an expression, by the kind of the answer."""
        return self.text_point, self.text_box, self.text_mask

    def judged(self) -> Mixture:
        """Returns the same questions without those for names, which nothing judges.

        Where only names are asked for, expressions are to be outlined instead.
        """
        names = dict.fromkeys(("point_name", "box_name"), 0.0)
        rest = {name: share for name, share in vars(self).items() if name not in names}
        return Mixture(**names, **(rest if any(rest.values()) else {}))

    def taught_too(self, later: Mixture) -> Mixture:
        """Returns these questions of a model that was then taught others too.

        What it was taught stays; that there may be nothing is added if the others ask about it.
        """
        if self.absent or not later.absent:
            return self
        base = self if any(self.told) else later
        return dataclasses.replace(base, absent=later.absent)

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

    Where nothing in the image is meant the answer is "[]", whatever was asked for.

    Source: SimpleSeg, arXiv 2601.19228, task set and grammar.
    """

    mixture: Mixture = Mixture()
    digits: int = 3
    """Decimals of a coordinate."""
    epsilon: float = 0.0025
    """Douglas-Peucker tolerance as a share of the ring's length: 0.99 IoU is kept by it. The
    paper's best is 0.005, shorter and coarser, and its configurations take that."""
    max_points: int = 64
    """Vertex budget of a true answer, all its rings together; the tolerance grows until it fits."""
    max_rings: int = 4
    """Rings of an answer that are read; in true answers the largest are kept."""
    min_area: float = 2.0
    """Rings enclosing fewer square pixels are left out of true answers."""
    tracing: Literal["exact", "released"] = "exact"
    """How true outlines are found: pixel borders, or as the data script does, with its vertices,
    its order and its losses (`geometry.simpleseg_tracing`), whatever `min_area`, `holes` and
    `order`."""
    holes: bool = True
    """Whether true outlines have rings for their holes."""
    order: Literal["clockwise", "counterclockwise"] = "clockwise"
    """Of the vertices of every ring, as seen on the screen; the data script's is the second."""
    start: Literal["first", "random"] = "first"
    """Where a ring begins: at its topmost vertex (the data script's at whatever it found first),
    or at a random one for every question."""
    rule: Literal["coco", "center"] = "coco"
    """How an outline is filled when it is judged."""
    wordings: Literal["one", "many", "more"] = "many"
    """One fixed question and answer template, all released templates at random, or these and our
    own paraphrases of the questions."""

    def __post_init__(self):
        check_least(self, "task", digits=1, max_points=3, max_rings=1, epsilon=0, min_area=0)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What kinds of answers are asked for, names aside."""
        shares = vars(self.mixture).items()
        asked = {name.partition("_")[2] for name, share in shares if share > 0}
        return tuple(kind for kind in Kind if kind.name.lower() in asked)

    @property
    def nothing(self) -> bool:
        """Whether an answer may say that there is nothing."""
        return self.mixture.absent > 0

    def example(self, sample: Sample, rng: np.random.Generator) -> Example:
        """Returns a random question about a random object of the sample and its true answer.

        Of the mixture's questions those are asked that the sample allows for: text tells of masks
        with expressions, points and boxes of single objects.

        Raises:
          ValueError: it allows for none of them, or lacks names that are asked for.
        """
        objects = [m for m, mask in enumerate(sample.masks) if mask.any()]
        told = [m for m in objects if sample.phrases[m]]
        alone = [m for m in objects if not (sample.together and sample.together[m])]
        shares = self._shares(text=bool(told), place=bool(alone))
        usual, absent = sum(shares.values()), self._absent(sample, objects)
        if not usual and not absent:
            raise ValueError(
                f"sample {sample.key}: expected an object with a mask and, if told by text, a "
                f"phrase, for one of {', '.join(shares)}; got {len(objects)} masks, "
                f"{len(told)} with phrases"
            )
        if absent and rng.random() * (usual + self.mixture.absent) >= usual:
            kind = Kind(_drawn(dict(enumerate(self.mixture.told)), rng))
            which, phrase = _picked(sample, absent, rng)
            return self.ask(sample, which, given="text", kind=kind, phrase=phrase, rng=rng)
        which, phrase = _picked(sample, told, rng) if told else (0, "")
        given, asked = _drawn(shares, rng).split("_")
        if given != "text" and alone != told:
            which = int(rng.choice(alone))
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
          sample: of the image.
          which: of its masks; an empty one is denied.
          given: "text", "point" or "box", how the object is told.
          kind: of the answer.
          phrase: the expression, used if text is given.
          rng: draws the point, with many wordings the templates, and where rings start if that is
            random.
        """
        mask = sample.masks[which]
        clue = phrase if given == "text" else _place(mask, given, rng)
        template_rng = None if self.wordings == "one" else rng
        question = chat.question(
            kind,
            clue,
            rng=template_rng,
            digits=self.digits,
            paraphrases=self.wordings == "more",
        )
        if mask.any():
            written = outline_text(mask, kind, self, rng=rng)
            answer = chat.answer(written, kind, rng=template_rng)
        else:
            answer = chat.denial(rng=template_rng)
        return Example(
            key=sample.key,
            image=sample.image,
            question=question,
            answer=answer,
            kind=kind,
            mask=mask,
        )

    def ask_name(
        self, sample: Sample, which: int, *, given: str, rng: np.random.Generator
    ) -> Example:
        """Returns a question for the name of mask `which` of the sample and the answer.

        Args:
          sample: of the image.
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
        template_rng = None if self.wordings == "one" else rng
        clue = _place(sample.masks[which], given, rng)
        return Example(
            key=sample.key,
            image=sample.image,
            question=chat.naming_question(clue, rng=template_rng, digits=self.digits),
            answer=f"{sample.names[which]}.",
            kind=None,
            mask=sample.masks[which],
        )

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

    def judge(self, answer: Polygons, verdict: Int[Array, "*n"], truth: Truth) -> Judgement:
        """Returns `iou`, `distance` and `format` of each answer by its kind.

        iou: mask IoU; IoU of the boxes; 1 for a point inside the region. distance: 1 minus half
        the squared distance of the centroids (of a point: to the true centroid), 0 without an
        answer. format: 1 if the whole answer follows the grammar.

        Where the true mask is empty iou and distance are 1 for an answer that says that there is
        nothing, and 0 for any other; where it is not, they are 0 for such an answer.

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
        target, nothing = bitmask.area(truth.words) > 0, reader.says_nothing(answer, verdict)
        usable, denied = (verdict < Verdict.EMPTY) & target & ~nothing, nothing & ~target
        iou = jnp.where(usable, jnp.select([truth.kind == k for k in Kind], by_kind), denied)
        centre, found = _centre_px(points_px, words, truth)
        scale = truth.size[..., ::-1].astype(jnp.float32)
        offset = (centre - bitmask.centroid_px(truth.words)) / scale
        squared = jnp.sum(jnp.square(offset), -1)
        found = found & usable
        scores = {
            "iou": iou.astype(jnp.float32),
            "distance": jnp.where(found, 1.0 - jnp.minimum(squared, 2.0) / 2.0, denied),
            "format": (verdict == Verdict.OK).astype(jnp.float32),
        }
        is_mask = truth.kind == Kind.MASK
        return Judgement(
            scores,
            jnp.where(is_mask, intersection, 0),
            jnp.where(is_mask, union, 0),
            jnp.where(found, jnp.sqrt(squared), jnp.nan),
        )


def _drawn(shares: Mapping[Any, float], rng: np.random.Generator) -> Any:
    """Returns one of the keys, each with the chance of its share."""
    edges = np.cumsum(list(shares.values()))
    return list(shares)[np.searchsorted(edges, rng.random() * edges[-1], side="right")]


def _picked(sample: Sample, masks: list[int], rng: np.random.Generator) -> tuple[int, str]:
    """Returns one of the masks and one of its expressions."""
    which = int(rng.choice(masks))
    phrases = sample.phrases[which]
    return which, phrases[int(rng.integers(len(phrases)))]


def _place(mask: Bool[np.ndarray, "H W"], given: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a point in the mask or its box, as clues to it."""
    if given == "point":
        return np.array(interior_point_unit(mask, rng))
    return np.array(box_unit(mask))


def outline_text(
    mask: Bool[np.ndarray, "H W"],
    kind: Kind,
    task: Referring,
    *,
    rng: np.random.Generator | None = None,
) -> str:
    """Returns the true answer of the kind for a mask with pixels, in the grammar's text.

    Args:
      mask: to be pointed at, boxed or outlined.
      kind: of the answer.
      task: how outlines are written.
      rng: draws where rings start if the task has them start at random; None: they do not.
    """
    if kind == Kind.POINT:
        return outline.write_point(central_point_unit(mask), digits=task.digits)
    if kind == Kind.BOX:
        return outline.write_box(box_unit(mask), digits=task.digits)
    if rng is None or task.start == "first":
        x0, y0, x1, y1 = contour.box_px(mask).tolist()
        part = mask[y0:y1, x0:x1]
        return _mask_text(part.tobytes(), part.shape, (y0, x0), mask.shape, task)
    rings = rings_unit(mask, task)
    rolled = [np.roll(ring, -int(rng.integers(len(ring))), axis=0) for ring in rings]
    return _written(mask, rolled, task)


@functools.lru_cache(maxsize=32)
def _mask_text(
    part: bytes,
    size: tuple[int, int],
    corner: tuple[int, int],
    shape: tuple[int, int],
    task: Referring,
) -> str:
    """Returns the outline of a mask; several questions about an image ask for the same one.

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
    return _written(mask, rings_unit(mask, task), task)


def _written(mask: Bool[np.ndarray, "H W"], rings: list[np.ndarray], task: Referring) -> str:
    """Returns the rings as text; the mask's box where its decimals leave no ring."""
    text = outline.write_mask(rings, digits=task.digits)
    if text != outline.NOTHING_THERE:
        return text
    box = outline.read(outline.write_box(box_unit(mask), digits=task.digits), Kind.BOX).box
    assert box is not None
    return outline.write_mask([boxes.corners(box)], digits=task.digits)


def rings_unit(mask: Bool[np.ndarray, "H W"], task: Referring) -> list[np.ndarray]:
    """Returns the simplified rings of a mask in unit coordinates, within the task's budgets."""
    if task.tracing == "released":
        return _as_released(mask, task)
    size = np.array([mask.shape[1], mask.shape[0]], np.float64)
    whole = mask if task.holes else contour.fill_holes(mask)
    traced = contour.trace(whole, min_area=task.min_area) or contour.trace(whole)
    traced = traced[: min(task.max_rings, task.max_points // 3)]
    rings = [polygon.simplify(ring, task.epsilon * polygon.arc_length(ring)) for ring in traced]
    total = sum(len(ring) for ring in rings)
    if total > task.max_points:
        spare = task.max_points - 3 * len(rings)
        shares = [3 + spare * (len(ring) - 3) // (total - 3 * len(rings)) for ring in rings]
        rings = [
            polygon.simplify_to(ring, share) for ring, share in zip(traced, shares, strict=True)
        ]
    clockwise = task.order == "clockwise"
    return [polygon.canonical(ring, clockwise=clockwise) / size for ring in rings]


def _as_released(mask: Bool[np.ndarray, "H W"], task: Referring) -> list[np.ndarray]:
    """Returns the rings of a mask as the data script traces them, within the task's budgets."""
    epsilon, most = task.epsilon, min(task.max_rings, task.max_points // 3)
    while True:
        found = simpleseg_tracing.trace(mask, epsilon_ratio=epsilon, decimals=task.digits)
        sound = [ring for ring in found if len(ring) >= 3]
        largest = sorted(sound, key=lambda ring: -abs(polygon.signed_area(ring)))[:most]
        kept = [ring for ring in sound if any(ring is one for one in largest)]
        if sum(len(ring) for ring in kept) <= task.max_points:
            return kept
        epsilon = max(1.25 * epsilon, 1e-3)


def box_unit(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
    """Returns the tight half-open box x0 y0 x1 y1 of a mask in unit coordinates."""
    (height, width), (x0, y0, x1, y1) = mask.shape, contour.box_px(mask)
    return x0 / width, y0 / height, x1 / width, y1 / height


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
