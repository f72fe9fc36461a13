"""Draws the mask of a box, of clicks or of both in an image: JSON on standard output, PNGs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seg_jax import files
from seg_jax.data import image_files
from seg_jax.data.exports import overlay
from seg_jax.geometry import bitmask, contour
from seg_jax.inference import segmenter as segmenters
from seg_jax.inference.segmenter import Drawn
from seg_jax.runs import console, experiments

MOST_CLICKS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The mask of one object of an image, told by a box, by clicks, or by both."""

    image: Path
    """Image file."""
    segmenter: Path = experiments.TOY_SAM2
    """Folder of a SAM 2, as convert makes it or the hub has it, or Meta's .pt; without one, the
    small one of the package, which knows drawn scenes only."""
    box: tuple[float, float, float, float] | None = None
    """A box around the object: x0 y0 x1 y1, fractions of width and height."""
    click: tuple[tuple[float, float, int], ...] = ()
    """Clicks, as x y 1 x y 0: fractions of width and height, then 1 on the object, 0 off it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and products; None: as config.json says (float16 as bfloat16)."""
    out: Path | None = None
    """Folder for FILE-mask.png and FILE-overlay.png of an image FILE; none is drawn without it."""


def main(config: Config) -> int:
    """Prints what was drawn."""
    _check(config)
    image = image_files.read(config.image)
    if config.out is not None:  # What cannot be written is known before the model is loaded.
        files.make_folder(config.out, "the mask")
    size = np.array(image.shape[1::-1], np.float64)
    clicks = np.reshape(config.click, (-1, 3))
    box = None if config.box is None else np.reshape(np.reshape(config.box, (2, 2)) * size, 4)
    prompt = segmenters.prompt(box_px=box, clicks_px=clicks[:, :2] * size, inside=clicks[:, 2] > 0)
    (drawn,) = segmenters.load(config.segmenter, dtype=config.dtype).draw(image, [prompt])
    result = _as_json(drawn)
    if config.out is not None:
        result |= _write(config, image, drawn)
    console.tell_json(result, indent=2)
    return 0


def _as_json(drawn: Drawn) -> dict[str, Any]:
    """Returns plain values: size, area, box, COCO's run lengths, what the model thinks of it."""
    rle = bitmask.to_rle(drawn.mask)
    rle["counts"] = rle["counts"].decode("ascii")
    area = int(drawn.mask.sum())
    return {
        "size": list(drawn.mask.shape),
        "area_px": area,
        "box_px": contour.box_px(drawn.mask).tolist() if area else None,
        "quality": drawn.quality,
        "presence": drawn.presence,
        "rle": rle,
    }


def _write(config: Config, image: image_files.RgbImage, drawn: Drawn) -> dict[str, str]:
    """Writes the mask, and the image with mask, box and clicks drawn over it; returns the paths."""
    assert config.out is not None
    size = np.array(image.shape[1::-1])
    rings = [ring / size for ring in contour.trace(drawn.mask)]
    boxes = [] if config.box is None else [config.box]
    points = [(x, y) for x, y, _ in config.click]
    shown = overlay.draw(image, rings, points_unit=points, boxes_unit=boxes)
    paths = {kind: config.out / f"{config.image.name}-{kind}.png" for kind in ("mask", "overlay")}
    white = np.where(drawn.mask[..., None], np.uint8(255), np.uint8(0))
    image_files.write(paths["mask"], np.repeat(white, 3, -1))
    image_files.write(paths["overlay"], shown)
    return {kind: str(path) for kind, path in paths.items()}


def _check(config: Config) -> None:
    """Raises ValueError where box and clicks say nothing, or nothing that lies in an image."""
    if config.box is None and not config.click:
        raise ValueError(
            "segment: expected a box, clicks or both, got neither; do: give --box X0 Y0 X1 Y1 or "
            "--click X Y 1"
        )
    if len(config.click) > MOST_CLICKS:
        raise ValueError(
            f"click: expected at most {MOST_CLICKS} clicks, got {len(config.click)}; do: give fewer"
        )
    numbers = np.array([*(config.box or ()), *(x for click in config.click for x in click[:2])])
    if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 1):
        raise ValueError(
            f"segment: expected fractions of width and height in 0..1, got {numbers.tolist()}; "
            "do: divide pixels by the image's size"
        )
    if config.box is not None and (
        config.box[0] >= config.box[2] or config.box[1] >= config.box[3]
    ):
        raise ValueError(
            f"box: expected a box x0 y0 x1 y1 with x0 < x1 and y0 < y1, got {config.box}; do: "
            "give the upper left corner first"
        )
    if wrong := [label for *_, label in config.click if label not in (0, 1)]:
        raise ValueError(
            f"click: expected 1 or 0 behind each x y, for on and off the object, got {wrong[0]}; "
            "do: give x y 1 or x y 0"
        )
