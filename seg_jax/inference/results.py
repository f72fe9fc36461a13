"""What a model answered about pictures, for programs and notebooks (host)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seg_jax.data.exports import html_figure, mask_images, svg
from seg_jax.data.exports.answers import Answer
from seg_jax.data.image_files import RgbImage


@dataclasses.dataclass(frozen=True)
class Result:
    """A picture with its answers."""

    image: RgbImage
    """Upright."""
    answers: tuple[Answer, ...]
    """In the order of the questions: label, score, mask, rings, box, text, verdict of each."""
    name: str
    """Where the picture lies; its number where it is no file."""

    def draw(self) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the picture with its answers drawn over it, each in a colour."""
        return mask_images.draw_all(self.image, [one.rings_unit for one in self.answers])

    def svg(self) -> str:
        """Returns the same as a drawing that loads nothing."""
        size = self.image.shape[:2]
        return svg.drawing(self.answers, size, source=html_figure.source(self.image))

    def show(self) -> None:
        """Shows the picture and its answers in a notebook.

        Raises:
          RuntimeError: there is no notebook.
        """
        _show(self)

    def _repr_html_(self) -> str:
        return Results([self])._repr_html_()

    def supervision_fields(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """Returns what `supervision.Detections(**fields)` takes: a row a mask or a box.

        Boxes are x0, y0, x1, y1 in pixels, half open. Where masks were asked for a box has an empty
        one; where none was, `mask` is None. Points, and answers that there is nothing, are left
        out: `data["answer"]` has the place of each row's answer.

        Args:
          names: of classes, in the order of their numbers; a label that is not among them comes
            behind them.
        """
        every = [*dict.fromkeys([*names, *(one.label for one in self.answers)])]
        numbers = {name: number for number, name in enumerate(every)}
        rows = [n for n, one in enumerate(self.answers) if one.is_mask or _is_box(one)]
        some = [self.answers[n] for n in rows]
        masks = [one.mask for one in some]
        has_masks = any(one.is_mask for one in some)
        return {
            "xyxy": np.array([one.box_px for one in some], np.float32).reshape(-1, 4),
            "mask": np.stack(masks) if has_masks else None,
            "confidence": np.array([one.score for one in some], np.float32),
            "class_id": np.array([numbers[one.label] for one in some], int),
            "data": {
                "class_name": np.array([one.label for one in some], str),
                "answer": np.array(rows, int),
            },
        }

    def fiftyone_fields(self) -> dict[str, list[dict[str, Any]]]:
        """Returns what FiftyOne's labels take, in fractions of the picture.

        `fo.Detections(detections=[fo.Detection(**one) for one in fields["detections"]])`, and so
        for `polylines` (the outlines of masks) and `keypoints`.
        """
        fields: dict[str, list[dict[str, Any]]] = {
            "detections": [],
            "polylines": [],
            "keypoints": [],
        }
        height, width = self.image.shape[:2]
        for one in self.answers:
            told: dict[str, Any] = {"label": one.label}
            if one.kind == "point" and one.rings_unit:
                points = [(x, y) for x, y in one.rings_unit[0].tolist()]
                confidence = [one.score] * len(points)
                fields["keypoints"].append(told | {"points": points, "confidence": confidence})
            box_px = one.box_px
            if box_px is None or not (one.is_mask or _is_box(one)):
                continue
            told["confidence"] = one.score
            x0, y0, x1, y1 = box_px
            box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            detection = told | {"bounding_box": box}
            if one.is_mask:
                inside = one.mask[int(y0) : int(y1), int(x0) : int(x1)]
                detection["mask"] = np.ascontiguousarray(inside)
                rings = [[(x, y) for x, y in ring.tolist()] for ring in one.rings_unit]
                line = told | {"points": rings, "closed": True, "filled": True}
                fields["polylines"].append(line)
            fields["detections"].append(detection)
        return fields


class Results(tuple[Result, ...]):
    """The results of several pictures."""

    __slots__ = ()

    def show(self) -> None:
        """Shows all of them in a notebook, see `Result.show`."""
        _show(self)

    def _repr_html_(self) -> str:
        figures = "\n".join(
            html_figure.figure(one.image, one.answers, title=one.name) for one in self
        )
        grid = "display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(280px,1fr))"
        style = f"<style>{html_figure.STYLE}</style>"
        return f'{style}<div class="seg-jax" style="{grid};max-width:1200px">{figures}</div>'


def _is_box(answer: Answer) -> bool:
    return answer.kind == "box" and answer.box_px is not None


def _show(shown: Result | Results) -> None:
    # IPython is there in every notebook, and nowhere needed else.
    display = sys.modules.get("IPython.display")
    if display is None or sys.modules["IPython"].get_ipython() is None:
        raise RuntimeError(
            "show: expected a notebook, got none; do: call draw() or svg() for the picture"
        )
    display.display(shown)
