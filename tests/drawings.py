"""Drawings that OpenCV makes in images of any shape, and how well the model outlines them.

One circle, square or triangle beside another on a plain ground: as far from the scenes that the
model was trained on as another drawing program is.
python tests/drawings.py [FOLDER of a model [PICTURE.png of its outlines]]
"""

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np

from seg_jax.cli.model_options import ModelOptions
from seg_jax.evaluation import task_metrics
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Sample
from seg_jax.runs import evaluation
from seg_jax.tasks.referring import Mixture

SIZES = ((96, 96), (512, 512), (300, 400), (480, 640), (640, 480), (200, 500))
"""Heights and widths in pixels."""
COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 220, 0)}
GROUNDS = ((255, 255, 255), (0, 0, 0), (128, 128, 128), (230, 240, 250), (40, 40, 60))
KINDS = ("circle", "square", "triangle")


@dataclasses.dataclass(frozen=True)
class Drawings:
    """Drawings of one size, with a mask and a name for each of their two things."""

    height: int
    width: int
    count: int = 120

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.height, self.width, index])
        image = np.empty((self.height, self.width, 3), np.uint8)
        image[:] = GROUNDS[rng.integers(len(GROUNDS))]
        masks, names = [], []
        kinds, colours = rng.permutation(KINDS), rng.permutation(list(COLOURS))
        across = self.width >= self.height
        flip = rng.integers(2)
        for place in range(2):
            side, other = (self.width, self.height) if across else (self.height, self.width)
            radius = rng.uniform(0.3, 0.8) * min(side / 4, other / 2)
            along = side * (0.5 * place) + rng.uniform(radius, side / 2 - radius)
            aside = rng.uniform(radius, other - radius)
            centre = np.array((along, aside) if across else (aside, along))
            mask = np.zeros((self.height, self.width), np.uint8)
            kind = kinds[place ^ flip]
            if kind == "circle":
                cv2.circle(mask, centre.round().astype(int).tolist(), round(radius), 1, -1)
            else:
                cv2.fillPoly(mask, [_corners(kind, centre, radius)], 1)
            image[mask > 0] = COLOURS[colours[place]]
            masks.append(mask > 0)
            names.append(f"{colours[place]} {kind}")
        return Sample(
            key=f"drawing-{self.height}x{self.width}-{index}",
            image=image,
            masks=np.stack(masks),
            phrases=tuple((f"the {name}",) for name in names),
            names=tuple(names),
            categories=tuple(name.split()[1] for name in names),
        )


def _corners(kind: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """Returns the corners of an upright square or triangle in a circle."""
    angles = (0.25 + 0.5 * np.arange(4)) if kind == "square" else (-0.5 + 2 / 3 * np.arange(3))
    unit = np.stack([np.cos(np.pi * angles), np.sin(np.pi * angles)], 1)
    return (centre + radius * unit).round().astype(np.int32)


def giou(predictor: Predictor, size: tuple[int, int], *, count: int = 120) -> float:
    """Returns the mean IoU of greedy outlines, one question about each drawing of a size."""
    bundle = predictor.bundle
    canvas = -(-size[0] // 32) * 32, size[1]
    layout = dataclasses.replace(bundle.layout, canvas=canvas)
    predictor = Predictor(dataclasses.replace(bundle, layout=layout))
    task = evaluation.with_mixture(bundle.task, Mixture())
    outcome = evaluation.answer_greedily(
        predictor, Drawings(*size, count), title=f"{size[0]} x {size[1]}", task=task, batch=40
    )
    return task_metrics.summarise(task, outcome)["giou"]["mean"]


def picture(predictor: Predictor, *, height: int = 180) -> np.ndarray:
    """Returns the first drawing of each size, all as high, with the outline of its first thing."""
    shown = []
    for size in SIZES:
        drawing = Drawings(*size)[0]
        image = np.ascontiguousarray(drawing.image)
        found = predictor.predict_one(image, drawing.phrases[0][0])
        scale = height / size[0]
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for ring in found.rings_unit:
            points = (ring * image.shape[1::-1]).round().astype(np.int32)
            cv2.polylines(image, [points], True, (255, 255, 255), 5, cv2.LINE_AA)
            cv2.polylines(image, [points], True, (0, 0, 0), 2, cv2.LINE_AA)
        shown += [image, np.full((height, 8, 3), 255, np.uint8)]
    half = len(shown) // 2
    rows = [np.concatenate(shown[:half], 1), np.concatenate(shown[half:], 1)]
    width = max(row.shape[1] for row in rows)
    rows = [
        np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(rows)


def main(folder: str | None, out: str | None = None) -> None:
    """Prints a table in Markdown.

    Args:
      folder: of the model; None: the packaged one.
      out: file for a picture of what it outlines; None: none is drawn.
    """
    checkpoint = None if folder is None else Path(folder)
    predictor = ModelOptions(checkpoint=checkpoint, dtype="float32").predictor()
    print("| height x width | gIoU |\n|---|---|")
    for height, width in SIZES:
        print(f"| {height} x {width} | {giou(predictor, (height, width)):.3f} |", flush=True)
    if out is not None:
        cv2.imwrite(out, picture(predictor)[..., ::-1])


if __name__ == "__main__":
    main(*(sys.argv[1:] or [None]))
