"""A model that draws masks of points and boxes, at work on images of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.promptable import Promptable
from seg_jax.tasks.task import Pointed

OUTSIDE, INSIDE, FIRST_CORNER, SECOND_CORNER = 0, 1, 2, 3
"""Labels of the points of a prompt."""
OFFSET = 1.0
"""How far stability moves the threshold of logits."""
AT_ONCE = 16
"""Most prompts that are decoded together."""


class Prompt(NamedTuple):
    """Clicks on one object, and perhaps two corners of its box."""

    points_px: Float[np.ndarray, "T 2"]
    """In the image's own pixels."""
    labels: Int[np.ndarray, " T"]


def prompt(
    *,
    box_px: Float[np.ndarray, " 4"] | None = None,
    clicks_px: Float[np.ndarray, "n 2"] | None = None,
    inside: Bool[np.ndarray, " n"] | None = None,
    labels: Int[np.ndarray, " n"] | None = None,
) -> Prompt:
    """Returns the prompt of a box, of clicks, or of both.

    Args:
      box_px: x0 y0 x1 y1.
      clicks_px: points.
      inside: which of them lie on the object; None: all.
      labels: of the points in its place, corners among them.
    """
    points = np.zeros((0, 2)) if clicks_px is None else np.asarray(clicks_px, np.float64)
    if labels is None:
        labels = np.full(len(points), INSIDE)
        labels = labels if inside is None else np.where(inside, INSIDE, OUTSIDE)
    if box_px is not None:
        points = np.concatenate([np.reshape(box_px, (2, 2)), points])
        labels = np.concatenate([[FIRST_CORNER, SECOND_CORNER], labels])
    return Prompt(points, labels)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a model draws for one prompt."""

    mask: Bool[np.ndarray, "H W"]
    """It has the image's own size."""
    quality: float
    """The IoU with the true mask that the model expects, 0..1."""
    presence: float
    """How sure it is that there is an object at all, 0..1; it changes no mask."""
    stability: float
    """IoU of the masks at a threshold of logits higher and lower by 1, 0..1."""


class Segmenter:
    """Draws masks; each image is encoded once for all its prompts."""

    def __init__(self, model: Promptable):
        """Takes a model with its weights."""
        self.config = model.config
        graph, self._params = nnx.split(model)

        def encode(params: Any, view: UInt8[jax.Array, "1 side side 3"]) -> Any:
            model = nnx.merge(graph, params)
            return model.encode(model.normalise(view))

        def decode(params: Any, features: Any, points: Any, labels: Any, used: Any) -> Any:
            return nnx.merge(graph, params).decode(features, points, labels, used=used)

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)
        self._latest: tuple[UInt8[np.ndarray, "H W 3"], Any] | None = None

    def draw(self, image: UInt8[np.ndarray, "H W 3"], prompts: Sequence[Prompt]) -> list[Drawn]:
        """Returns the mask of each prompt."""
        height, width = image.shape[:2]
        scale = np.array([self.config.side / width, self.config.side / height])
        features = self._features(image)
        drawn: list[Drawn] = []
        for begin in range(0, len(prompts), AT_ONCE):
            some = prompts[begin : begin + AT_ONCE]
            found = self._decode(self._params, features, *_rows(some, scale))
            logits, quality, presence = (np.asarray(x[0], np.float32) for x in found)
            for place in range(len(some)):
                whole = enlarged(logits[place], (height, width))
                sure = float(1 / (1 + np.exp(-presence[place])))
                drawn.append(Drawn(whole > 0, float(quality[place]), sure, _stability(whole)))
        return drawn

    def union(
        self, image: UInt8[np.ndarray, "H W 3"], prompts: Sequence[Pointed]
    ) -> Bool[np.ndarray, "H W"]:
        """Returns all that is drawn of the prompts of a task as one mask; see `tasks.Draw`."""
        size = np.array(image.shape[1::-1])
        asked = [
            prompt(
                box_px=None if one.box_unit is None else one.box_unit * np.tile(size, 2),
                clicks_px=one.points_unit * size,
                labels=one.labels,
            )
            for one in prompts
        ]
        return np.any([one.mask for one in self.draw(image, asked)], 0)

    def _features(self, image: UInt8[np.ndarray, "H W 3"]) -> Any:
        """Returns the features of an image; of the latest one they are kept."""
        if self._latest is None or not np.array_equal(self._latest[0], image):
            view = stretched(image, self.config.side)
            self._latest = image.copy(), self._encode(self._params, view[None])
        return self._latest[1]


def _stability(logits: Float[np.ndarray, "H W"]) -> float:
    """Returns the IoU of the masks of logits at two thresholds around 0; 0 if both are empty."""
    inner, outer = (np.count_nonzero(logits > edge) for edge in (OFFSET, -OFFSET))
    return inner / outer if outer else 0.0


def load(source: Path, *, dtype: Literal["float32", "bfloat16"] | None = None) -> Segmenter:
    """Returns the segmenter in a folder, or in the file of its authors (`.pt`).

    Args:
      source: of the model.
      dtype: of weights and products; None: as `config.json` says, float32 if it says nothing.

    Raises:
      ValueError: there is no such model, it draws no masks, or a file of it is broken.
    """
    if weights.is_archive(source):
        config, _ = weights.open_archive(source)
    else:
        config = families.read(source)
        dtype = dtype or families.noted_dtype(source)
    try:
        families.check_segmenter(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    dtype = dtype or "float32"
    return Segmenter(weights.load(source, compute=Compute(dtype=dtype, param_dtype=dtype)))


def stretched(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Returns an image at side x side pixels, bilinear, averaged where it shrinks.

    Differs: the processor of transformers resizes with torchvision, whose bytes are these but for
    roundings by one.
    """
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def enlarged(logits: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Returns a map at another size, bilinear between the centres of its places."""
    for axis, length in enumerate(size):
        low, high, share = _taps(logits.shape[axis], length)
        share = share[:, None] if axis == 0 else share
        logits = logits.take(low, axis) * (1 - share) + logits.take(high, axis) * share
    return logits


def _taps(
    places: int, length: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the two places of an axis that each of `length` pixels lies between, and how far."""
    at = np.maximum((np.arange(length) + 0.5) * (places / length) - 0.5, 0)
    low = np.minimum(at.astype(np.intp), places - 1)
    return low, np.minimum(low + 1, places - 1), (at - low).astype(np.float32)


def _rows(prompts: Sequence[Prompt], scale: Float[np.ndarray, " 2"]) -> tuple[Any, Any, Any]:
    """Returns points, labels and used slots of prompts, filled up to few different shapes."""
    count = 1 << (len(prompts) - 1).bit_length()
    slots = 1 << (max(len(one.labels) for one in prompts) - 1).bit_length()
    points = np.zeros((1, count, slots, 2), np.float32)
    labels = np.zeros((1, count, slots), np.int32)
    used = np.zeros((1, count, slots), bool)
    for row, one in enumerate(prompts):
        filled = slice(len(one.labels))
        points[0, row, filled], labels[0, row, filled] = one.points_px * scale, one.labels
        used[0, row, filled] = True
    return jnp.asarray(points), jnp.asarray(labels), jnp.asarray(used)
