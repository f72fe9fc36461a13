"""What a drawn thing is: its attributes as plain data with the exact inside test of every kind.

Every kind is a level function: the signed distance to the outline in pixels, negative inside,
with an exact sign everywhere and a value that is right to first order near the outline. The sign
gives the mask (a pixel belongs to a thing if its centre lies inside), the value gives the soft
edge.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Kind(enum.StrEnum):
    """What a thing is; the value is its English noun. Kinds exclude each other by name."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    CROSS = "cross"
    RING = "ring"
    CRESCENT = "crescent"
    ELLIPSE = "ellipse"
    RECTANGLE = "rectangle"
    DIAMOND = "diamond"
    PENTAGON = "pentagon"
    HEXAGON = "hexagon"
    SEMICIRCLE = "semicircle"
    FRAME = "frame"
    BLOB = "blob"
    PAIR = "pair of discs"


class Colour(enum.StrEnum):
    """The main colour of a thing; the value is its English adjective."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    ORANGE = "orange"
    CYAN = "cyan"
    PINK = "pink"
    BROWN = "brown"
    WHITE = "white"
    BLACK = "black"


class Texture(enum.StrEnum):
    """The pattern that a thing bears in its own coordinates; the value is an adjective."""

    PLAIN = "plain"
    STRIPED = "striped"
    DOTTED = "dotted"
    CHECKERED = "checkered"


RGB: dict[Colour, tuple[int, int, int]] = {
    Colour.RED: (214, 34, 38),
    Colour.GREEN: (32, 148, 58),
    Colour.BLUE: (34, 74, 214),
    Colour.YELLOW: (248, 222, 40),
    Colour.PURPLE: (128, 44, 172),
    Colour.ORANGE: (246, 132, 22),
    Colour.CYAN: (40, 206, 222),
    Colour.PINK: (252, 136, 190),
    Colour.BROWN: (112, 66, 30),
    Colour.WHITE: (250, 250, 250),
    Colour.BLACK: (22, 22, 24),
}
"""Red, green and blue of each colour, 0..255."""

PURE_RGB: dict[Colour, tuple[int, int, int]] = {
    Colour.RED: (255, 0, 0),
    Colour.GREEN: (0, 255, 0),
    Colour.BLUE: (0, 0, 255),
    Colour.YELLOW: (255, 255, 0),
    Colour.PURPLE: (128, 0, 128),
    Colour.ORANGE: (255, 165, 0),
    Colour.CYAN: (0, 255, 255),
    Colour.PINK: (255, 105, 180),
    Colour.BROWN: (139, 69, 19),
    Colour.WHITE: (255, 255, 255),
    Colour.BLACK: (0, 0, 0),
}
"""The same as drawing programs have them: pure, or CSS's (its "lime" and "hotpink")."""

HARMONICS = 4
"""How many harmonics (from the second on) bend the outline of a blob."""

# Where a kind has a free proportion, `Thing.form` in 0..1 runs through this range.
_FORM = {
    Kind.ELLIPSE: (0.45, 0.65),  # short axis / long axis
    Kind.RECTANGLE: (0.4, 0.6),  # short side / long side
    Kind.DIAMOND: (0.5, 0.65),  # short diagonal / long diagonal
    Kind.STAR: (0.38, 0.52),  # inner radius / outer radius
    Kind.RING: (0.45, 0.62),  # radius of the hole / radius
    Kind.FRAME: (0.5, 0.65),  # side of the hole / side
    Kind.CROSS: (0.28, 0.4),  # half the width of an arm / radius
    Kind.CRESCENT: (0.42, 0.58),  # shift of the disc that is cut away / radius
    Kind.PAIR: (0.36, 0.45),  # radius of one disc / radius
    Kind.BLOB: (0.25, 0.5),  # sum of the harmonics' amplitudes
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawn thing. Every attribute may be changed alone with `dataclasses.replace`."""

    kind: Kind
    colour: Colour
    texture: Texture = Texture.PLAIN
    centre_unit: tuple[float, float]
    """Centre of the enclosing circle: x as a fraction of the width, y of the height."""
    size_unit: float
    """Diameter of the enclosing circle as a fraction of the image's shorter side."""
    rotation: float = 0.0
    """Radians, clockwise as seen in the image."""
    form: float = 0.5
    """Where in its kind's range of proportions the thing lies, 0..1."""
    wobble: tuple[float, ...] = (0.5, 0.2, 0.8, 0.4, 0.1, 0.6, 0.3, 0.9)
    """Relative amplitudes, then phases (in turns) of a blob's harmonics, all 0..1."""
    shade: float = 0.0
    """Brightness: -1 black, 0 the colour itself, 1 white; up to about 0.15 keeps its name."""
    vivid: float = 0.0
    """0: the colour of `RGB`; 1: that of `PURE_RGB`."""
    contrast: float = 1.0
    """1: painted with its own colour; 0: with a shifted piece of the ground (camouflage)."""


class Field(NamedTuple):
    """A thing's level on the smallest window around it, which may reach past the image."""

    top: int
    """Row of the window's first row in the image; may be negative."""
    left: int
    """Column of the window's first column in the image; may be negative."""
    level_px: Float[np.ndarray, "h w"]
    """Signed distance of pixel centres to the outline, negative inside."""
    u_px: Float[np.ndarray, "h w"]
    """The thing's own x coordinate, before its rotation; 0 at its centre."""
    v_px: Float[np.ndarray, "h w"]
    """The thing's own y coordinate, before its rotation; 0 at its centre."""


def tones(
    colour: Colour, shade: float = 0.0, vivid: float = 0.0
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Returns a shaded colour and its partner in a texture, float32, 0..255."""
    base = np.array(RGB[colour], np.float32)
    base += np.float32(vivid) * (np.array(PURE_RGB[colour], np.float32) - base)
    # Black and white bear grey, or else each in stripes of the other would look the same.
    depth = 0.45 if colour in (Colour.BLACK, Colour.WHITE) else 0.75
    partner = 25 if base @ (0.3, 0.6, 0.1) > 125 else 245
    base += np.float32(abs(shade)) * ((255 if shade > 0 else 0) - base)
    return base, base + np.float32(depth) * (partner - base)


def radius_px(thing: Thing, *, height: int, width: int) -> float:
    """Returns the radius of the thing's enclosing circle in pixels."""
    return 0.5 * thing.size_unit * min(height, width)


def field(thing: Thing, *, height: int, width: int) -> Field:
    """Returns the thing's level function on a window with a pixel to spare on every side."""
    radius = radius_px(thing, height=height, width=width)
    x, y = thing.centre_unit[0] * width, thing.centre_unit[1] * height
    left, right = math.floor(x - radius) - 1, math.ceil(x + radius) + 1
    top, bottom = math.floor(y - radius) - 1, math.ceil(y + radius) + 1
    across = np.arange(left + 0.5 - x, right - x)
    down = np.arange(top + 0.5 - y, bottom - y)[:, None]
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    u = cos * across + sin * down
    v = cos * down - sin * across
    return Field(top, left, level(thing, u, v, radius=radius), u, v)


def level(
    thing: Thing,
    u_px: Float[np.ndarray, "*n"],
    v_px: Float[np.ndarray, "*n"],
    *,
    radius: float,
) -> Float[np.ndarray, "*n"]:
    """Returns the signed distance in pixels of points to the thing's outline, negative inside.

    Args:
      thing: only its kind, form and wobble are read.
      u_px: x of the points in the thing's own coordinates.
      v_px: y of the points in the thing's own coordinates, downwards.
      radius: of the enclosing circle, in pixels.
    """
    low, high = _FORM.get(thing.kind, (0.0, 0.0))
    form = low + thing.form * (high - low)
    match thing.kind:
        case Kind.CIRCLE:
            return np.hypot(u_px, v_px) - radius
        case Kind.RING:
            middle, half = 0.5 * radius * (1 + form), 0.5 * radius * (1 - form)
            return np.abs(np.hypot(u_px, v_px) - middle) - half
        case Kind.SEMICIRCLE:
            return np.maximum(np.hypot(u_px, v_px) - radius, v_px)
        case Kind.CRESCENT:
            bite = 0.82 * radius - np.hypot(u_px - form * radius, v_px)
            return np.maximum(np.hypot(u_px, v_px) - radius, bite)
        case Kind.PAIR:
            return np.hypot(np.abs(u_px) - radius * (1 - form), v_px) - radius * form
        case Kind.ELLIPSE:
            return _ellipse(u_px, v_px, radius, form)
        case Kind.BLOB:
            return _blob(u_px, v_px, radius, form, thing.wobble)
        case Kind.TRIANGLE:
            return _polygon(u_px, v_px, radius, 3)
        case Kind.PENTAGON:
            return _polygon(u_px, v_px, radius, 5)
        case Kind.HEXAGON:
            return _polygon(u_px, v_px, radius, 6)
        case Kind.STAR:
            return _star(u_px, v_px, radius, form)
        case _:
            return _upright(thing.kind, np.abs(u_px), np.abs(v_px), radius, form)


def _upright(kind, across, down, radius, form):
    """Returns the level of the kinds made of straight bars; takes distances from the axes."""
    match kind:
        case Kind.SQUARE:
            return np.maximum(across, down) - radius * math.sqrt(0.5)
        case Kind.FRAME:
            side = radius * math.sqrt(0.5)
            return np.abs(np.maximum(across, down) - 0.5 * side * (1 + form)) - (
                0.5 * side * (1 - form)
            )
        case Kind.RECTANGLE:
            half = radius / math.hypot(1.0, form)
            return np.maximum(across - half, down - half * form)
        case Kind.DIAMOND:
            return (across * form + down - radius * form) / math.hypot(1.0, form)
        case Kind.CROSS:
            arm, half = radius * math.sqrt(1 - form * form), radius * form
            lying = np.maximum(across - arm, down - half)
            return np.minimum(lying, np.maximum(across - half, down - arm))
    raise ValueError(
        f"things: expected a Kind with a level function, got {kind!r}; do: add its case"
    )


def _ellipse(u, v, radius, ratio):
    """Returns the level of an ellipse: its implicit function over the length of its gradient."""
    across, down = u / radius, v / (ratio * radius)
    reach = np.hypot(across, down)
    slope = np.hypot(across, down / ratio) / radius
    middle = slope == 0  # Which lies inside, though nothing leads away from it.
    level = reach * (reach - 1) / np.where(middle, 1, slope)
    return np.where(middle, -radius * min(ratio, 1), level)


def _polygon(u, v, radius, sides):
    """Returns the level of a regular polygon that stands on a side: all sectors folded on one."""
    sector = 2 * math.pi / sides
    angle = np.arctan2(-u, v)
    angle -= sector * np.rint(angle / sector)
    return np.hypot(u, v) * np.cos(angle) - radius * math.cos(sector / 2)


def _star(u, v, radius, ratio, points=5):
    """Returns the level of a star with a point upwards: folded on half of one point."""
    sector = 2 * math.pi / points
    angle = np.arctan2(u, -v)
    angle -= sector * np.rint(angle / sector)
    reach = np.hypot(u, v)
    along = ratio * math.sin(sector / 2)
    aside = 1 - ratio * math.cos(sector / 2)
    past = (reach * np.cos(angle) - radius) * along + reach * np.abs(np.sin(angle)) * aside
    return past / math.hypot(along, aside)


def _blob(u, v, radius, depth, wobble):
    """Returns the level of a star-shaped blob whose radius is a short Fourier series."""
    amplitudes = [0.2 + value for value in wobble[:HARMONICS]]
    scale = depth / sum(amplitudes)
    angle = np.arctan2(v, u)
    outline, slope = np.ones_like(u), np.zeros_like(u)
    for index, amplitude in enumerate(amplitudes):
        order = index + 2
        phase = order * angle + 2 * math.pi * wobble[HARMONICS + index]
        outline += (scale * amplitude) * np.cos(phase)
        slope -= (scale * amplitude * order) * np.sin(phase)
    unit = radius / (1 + depth)
    return (np.hypot(u, v) - unit * outline) * outline / np.hypot(outline, slope)
