"""Finds out what numbers in texts mean: pixels of an image as it is or resized, or parts of it.

Nothing tells for certain. All regions of one form are looked at together, with the sizes of their
images: a meaning under which they lie beyond their images is none, and one under which they all
end far from the borders is less likely than one under which they reach them. Where two remain,
nothing is taken; what is taken is told, with why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from seg_jax.data.formats.annotations import BadAnnotation
from seg_jax.data.formats.text_regions import Told
from seg_jax.geometry import grid

Meaning = Literal["pixels", "resized", "unit", "thousand", "percent"]
Order = Literal["xy", "yx"]
BoxForm = Literal["corners", "sizes"]

WORDS: Mapping[str, str] = {
    "pixels": "pixels of the image",
    "resized": "pixels of the resized image",
    "unit": "fractions of the image, from 0 to 1",
    "thousand": "thousandths of the image, from 0 to 1000",
    "percent": "hundredths of the image, from 0 to 100",
}
MOST_BEYOND = 0.02
"""Share of the regions that may lie beyond their images under the meaning that is taken."""
LEAST_REGIONS = 8
"""Regions from which on it counts how near they come to the borders of their images."""
NEAR, NEARER = 0.85, 0.08
"""How far, in parts of the image, regions must reach to count as near its borders, and how much
farther than under another meaning."""
FAR = 0.7
"""Where many regions in pixels reach no farther than this, they may be of a smaller image."""
_SLACK = {"pixels": 1.0, "resized": 1.0, "unit": 0.02, "thousand": 1.0, "percent": 1.0}
"""How far numbers may lie beyond the image by rounding."""
_FIXED: Mapping[str, tuple[Meaning, Order]] = {
    "box_2d": ("thousand", "yx"),
    "<box>": ("thousand", "xy"),
    "<quad>": ("thousand", "xy"),
    "<point>": ("thousand", "xy"),
    "<poly>": ("thousand", "xy"),
}
"""Forms that models of one family write: Gemini's, and the tags of Qwen-VL and InternVL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """What numbers in texts are taken for."""

    meaning: Literal["auto", "pixels", "resized", "unit", "thousand", "percent"] = "auto"
    """Pixels of the image, pixels of the image as a processor of Qwen2-VL's resizes it, or parts
    of it from 0 to 1, 1000 or 100; auto: what they fit, which is told."""
    order: Literal["auto", "xy", "yx"] = "auto"
    """Whether x or y comes first; auto: x, but y in Gemini's box_2d, and in polygons beside it as
    fits that box."""
    boxes: Literal["auto", "corners", "sizes"] = "auto"
    """Whether the opposite corner of a box follows its first one, or width and height; auto:
    the corner in texts, and in columns of tables what their boxes fit, which is told."""
    factor: int = 28
    """The sides of a resized image are multiples of it: 28 for Qwen2-VL and Qwen2.5-VL."""
    least_pixels: int = 3136
    """Least area of a resized image."""
    most_pixels: int = 12_845_056
    """Largest area of a resized image."""

    def __post_init__(self):
        if not (self.factor >= 1 and 1 <= self.least_pixels <= self.most_pixels):
            raise ValueError(
                f"numbers: expected factor >= 1 and 1 <= least_pixels <= most_pixels, got "
                f"{self.factor}, {self.least_pixels} and {self.most_pixels}; do: give those of the "
                "processor"
            )


class Taken(NamedTuple):
    """What the numbers of a form are taken for, and why."""

    meaning: Meaning
    order: Order
    why: str
    """In a few words; nothing where the user has said it."""


class Written(NamedTuple):
    """A region as it was written, with the size of its image."""

    told: Told
    size: tuple[int, int]
    """Height and width."""
    where: str


def decide(form: str, some: Sequence[Written], numbers: Numbers) -> Taken:
    """Returns what the numbers of a form mean.

    Args:
      form: of all of the regions.
      some: the regions, one at least.
      numbers: what the user says.

    Raises:
      BadAnnotation: they fit nothing, or several meanings alike.
    """
    order, why_order = _order(form, some, numbers)
    if numbers.meaning != "auto":
        return Taken(numbers.meaning, order, why_order)
    ends = [_ends(one.told, order) for one in some]
    values = np.array([number for one in some for ring in one.told.rings for number in ring])
    beyond = {name: _share_beyond(name, some, ends, numbers) for name in WORDS}
    fits = [name for name in WORDS if beyond[name] <= MOST_BEYOND]
    whole = bool((values == np.rint(values)).all())
    count = f"{len(some)} region{'s' if len(some) > 1 else ''}"
    if "unit" in fits and not whole:
        return Taken("unit", order, f"all but {beyond['unit']:.0%} of {count} lie between 0 and 1")
    fixed = _FIXED.get(form, (None, ""))[0]
    if fixed in fits and whole:
        why = f"{form} is so by custom, and {count} fit it"
        return Taken(fixed, order, why)
    rivals = [name for name in ("pixels", "thousand") if name in fits]
    if len(rivals) == 1:
        other = "thousand" if rivals[0] == "pixels" else "pixels"
        limit = "1000" if other == "thousand" else "their images"
        why = f"{beyond[other]:.0%} of {count} would lie beyond {limit} otherwise"
        if rivals == ["pixels"] and len(some) >= LEAST_REGIONS:
            why += _doubt(_reach(some, ends))
        return Taken(rivals[0], order, why)  # pyright: ignore[reportArgumentType]
    if not rivals and "resized" in fits:
        why = f"{beyond['pixels']:.0%} of {count} lie beyond their images, but not resized"
        return Taken("resized", order, why)
    if not rivals:
        raise _refusal(form, some[0], "none of its meanings", "no convention")
    return _nearer(form, some, ends, order)


def box_form(some: Sequence[Written], numbers: Numbers) -> tuple[BoxForm, str]:
    """Returns what follows the first corner of boxes, and why; nothing where the user says it.

    Args:
      some: boxes of one column, as they were written.
      numbers: what the user says.

    Raises:
      BadAnnotation: they fit neither, or both alike.
    """
    if numbers.boxes != "auto":
        return numbers.boxes, ""
    boxes = np.array([one.told.rings[0] for one in some])
    first, second = boxes[:, :2], boxes[:, 2:]
    meaning = numbers.meaning
    if meaning == "auto":
        meaning = "unit" if np.quantile(boxes, 1 - MOST_BEYOND) <= 1.02 else "pixels"
    limits = np.array([extent(meaning, one.size, numbers) for one in some]) + _SLACK[meaning]
    odd = {
        "corners": float(np.mean((second < first).any(axis=1))),
        "sizes": float(np.mean((first + second > limits).any(axis=1))),
    }
    fits = [name for name, share in odd.items() if share <= MOST_BEYOND]
    if len(fits) != 1:
        box = ", ".join(f"{number:g}" for number in boxes[0])
        raise BadAnnotation(
            f"{some[0].where}: expected boxes as two corners or as a corner and sizes, got "
            f"{'either' if fits else 'neither'}, as {box} in an image of "
            f"{some[0].size[1]}x{some[0].size[0]}; do: say what they are by --numbers.boxes "
            "corners or sizes, and by --numbers.meaning",
            f"its boxes fit {'two corners and sizes alike' if fits else 'no convention'}",
        )
    count = len(some)
    if fits == ["corners"]:
        return "corners", f"{odd['sizes']:.0%} of {count} would end beyond their images as sizes"
    return "sizes", f"{odd['corners']:.0%} of {count} would end before they begin as corners"


def with_corners(told: Told) -> Told:
    """Returns a box of a corner, width and height as one of two corners."""
    x, y, width, height = told.rings[0]
    return told._replace(rings=((x, y, x + width, y + height),))


def _nearer(
    form: str, some: Sequence[Written], ends: Sequence[Float[np.ndarray, "2 2"]], order: Order
) -> Taken:
    """Returns pixels or thousandths, under which regions come nearer to the borders of images."""
    thousand = float(np.max([one[1] for one in ends], 0).min()) / 1000
    reach = {"pixels": _reach(some, ends), "thousand": thousand}
    best = max(reach, key=lambda name: reach[name])
    other = min(reach, key=lambda name: reach[name])
    if len(some) < LEAST_REGIONS or reach[best] < max(NEAR, reach[other] + NEARER):
        raise _refusal(form, some[0], "pixels and thousandths alike", "several conventions")
    why = (
        f"{len(some)} regions reach {reach[best]:.0%} of width and height so, and "
        f"{reach[other]:.0%} as {WORDS[other]}"
    )
    return Taken("pixels" if best == "pixels" else "thousand", order, why)


def _reach(some: Sequence[Written], ends: Sequence[Float[np.ndarray, "2 2"]]) -> float:
    """Returns how far pixels reach in parts of their images: in width or height, the lesser."""
    parts = [one[1] / size for one, size in _ends_and_sizes(some, ends)]
    return float(np.max(parts, axis=0).min())


def _doubt(reach: float) -> str:
    """Returns what to look at where many regions in pixels all end far from the borders."""
    if reach >= FAR:
        return ""
    return (
        f"; but none reaches beyond {reach:.0%} of width or height: if they are of a resized "
        "image, say so by --numbers.meaning resized and its --numbers.most-pixels"
    )


def _ends_and_sizes(some: Sequence[Written], ends: Sequence[Float[np.ndarray, "2 2"]]):
    return [(one, np.array(it.size[::-1], float)) for one, it in zip(ends, some, strict=True)]


def _refusal(form: str, one: Written, got: str, reason: str) -> BadAnnotation:
    numbers = ", ".join(f"{number:g}" for number in one.told.rings[0][:6])
    return BadAnnotation(
        f"{one.where}: expected numbers of {form} that fit one convention, got {got}, as {numbers} "
        f"in an image of {one.size[1]}x{one.size[0]}; do: say what they are by --numbers.meaning "
        "pixels, resized, unit, thousand or percent",
        f"its numbers fit {reason}",
    )


def _order(form: str, some: Sequence[Written], numbers: Numbers) -> tuple[Order, str]:
    """Returns whether x or y comes first, and why if that is not plain."""
    if numbers.order != "auto":
        return numbers.order, ""
    boxed = [one for one in some if one.told.box and one.told.kind == "polygon"]
    if boxed:
        inside = {order: sum(map(_inside_box(order), boxed)) for order in ("xy", "yx")}
        order: Order = "yx" if inside["yx"] > inside["xy"] else "xy"
        return order, f"{inside[order]} of {len(boxed)} polygons lie in their box_2d so"
    return _FIXED[form][1] if form in _FIXED else "xy", ""


def _inside_box(order: str):
    """Returns a function that says whether a polygon lies in the box that was told beside it."""

    def inside(one: Written) -> bool:
        y0, x0, y1, x1 = one.told.box
        low, high = _ends(one.told, "yx" if order == "yx" else "xy")
        slack = 2.0 + 0.02 * max(abs(number) for number in one.told.box)
        if max(one.told.box) <= 1.02:
            slack = 0.02
        return bool(
            (low >= np.array([x0, y0]) - slack).all() and (high <= np.array([x1, y1]) + slack).all()
        )

    return inside


def _ends(told: Told, order: Order) -> Float[np.ndarray, "2 2"]:
    """Returns the least and the largest x and y of a region."""
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in told.rings])
    points = points[:, ::-1] if order == "yx" else points
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _share_beyond(
    meaning: str,
    some: Sequence[Written],
    ends: Sequence[Float[np.ndarray, "2 2"]],
    numbers: Numbers,
) -> float:
    """Returns the share of the regions that lie beyond their images under a meaning."""
    slack = _SLACK[meaning]
    limits = [extent(meaning, one.size, numbers) for one in some]
    beyond = [
        bool((one < -slack).any() or (one > np.array(limit) + slack).any())
        for one, limit in zip(ends, limits, strict=True)
    ]
    return sum(beyond) / len(beyond)


def extent(meaning: str, size: tuple[int, int], numbers: Numbers) -> tuple[float, float]:
    """Returns what x and y are at the right and the lower border of an image.

    Args:
      meaning: of the numbers.
      size: height and width of the image.
      numbers: has the limits of resized images.
    """
    height, width = size
    if meaning == "pixels":
        return float(width), float(height)
    if meaning == "resized":
        try:
            height, width = grid.smart_resize(
                height,
                width,
                patch=numbers.factor,
                merge=1,
                min_pixels=numbers.least_pixels,
                max_pixels=numbers.most_pixels,
            )
        except ValueError:  # Too narrow for such a processor.
            return 0.0, 0.0
        return float(width), float(height)
    whole = {"unit": 1.0, "thousand": 1000.0, "percent": 100.0}[meaning]
    return whole, whole


def rings_unit(one: Written, taken: Taken, numbers: Numbers) -> tuple[tuple[float, ...], ...]:
    """Returns the rings x, y, .. of a region in fractions of its image; of a box or point its own.

    Raises:
      BadAnnotation: it lies beyond its image.
    """
    limits = np.array(extent(taken.meaning, one.size, numbers))
    low, high = _ends(one.told, taken.order)
    slack = _SLACK[taken.meaning]
    if (low < -slack).any() or (high > limits + slack).any() or not limits.all():
        told = ", ".join(f"{number:g}" for number in one.told.rings[0][:6])
        raise BadAnnotation(
            f"{one.where}: expected {WORDS[taken.meaning]}, {one.size[1]}x{one.size[0]}, got "
            f"{told}; do: correct the numbers, or say what they are by --numbers.meaning",
            "its numbers lie beyond the image",
        )
    found = []
    for ring in one.told.rings:
        points = np.reshape(ring, (-1, 2))
        points = points[:, ::-1] if taken.order == "yx" else points
        found.append(tuple((points / limits).ravel().tolist()))
    return tuple(found)
