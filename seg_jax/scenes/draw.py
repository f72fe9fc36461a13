"""Draws worlds: anti-aliased images with the exact visible mask of every thing."""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8

from seg_jax.scenes import things
from seg_jax.scenes.things import Texture, Thing
from seg_jax.scenes.world import Ground, Pattern, World


def render(world: World) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "M H W"]]:
    """Returns the image, then the visible mask of every thing in drawing order.

    A pixel belongs to the topmost thing that its centre lies in, so masks are disjoint; the
    colour of a pixel on an outline is mixed by how much of the pixel the outline cuts off.
    """
    canvas = _draw_ground(world.ground, world.height, world.width)
    ground = canvas.copy() if any(thing.contrast < 1 for thing in world.things) else canvas
    owner = np.full((world.height, world.width), -1, np.int16)
    for index, thing in enumerate(world.things):
        _paint_thing(canvas, owner, index, thing, ground)
    if world.noise:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(world.seed)))
        canvas += world.noise * rng.standard_normal(canvas.shape, np.float32)
        np.clip(canvas, 0, 255, out=canvas)
    canvas += 0.5
    masks = owner == np.arange(len(world.things), dtype=np.int16)[:, None, None]
    return canvas.astype(np.uint8), masks


def _paint_thing(canvas, owner, index: int, thing: Thing, ground) -> None:
    """Paints one thing over what is there."""
    height, width = owner.shape
    field = things.field(thing, height=height, width=width)
    top, left = max(field.top, 0), max(field.left, 0)
    inner = np.s_[top - field.top : height - field.top, left - field.left : width - field.left]
    level = field.level_px[inner]
    if not level.size:
        return
    outer = np.s_[top : top + level.shape[0], left : left + level.shape[1]]
    owner[outer][level < 0] = index
    share = np.clip(0.5 - level, 0, 1).astype(np.float32)[..., None]
    base, other = things.tones(thing.colour, thing.shade, thing.vivid)
    paint = base
    if thing.texture != Texture.PLAIN:
        radius = things.radius_px(thing, height=height, width=width)
        mix = _texture_mix(thing.texture, field.u_px[inner], field.v_px[inner], radius)
        paint = base + mix.astype(np.float32)[..., None] * (other - base)
    if thing.contrast < 1:
        elsewhere = np.roll(ground, (height // 3, width // 3), (0, 1))[outer]
        paint = elsewhere + np.float32(thing.contrast) * (paint - elsewhere)
    canvas[outer] += share * (paint - canvas[outer])


def _texture_mix(texture: Texture, u_px, v_px, radius: float):
    """Returns how much of the second tone each point bears, 0..1, with soft borders."""
    period = max(4.0, 0.5 * radius)
    turn = 2 * math.pi / period
    if texture == Texture.STRIPED:
        return np.clip(0.5 + period / 6 * np.sin(turn * u_px), 0, 1)
    if texture == Texture.DOTTED:
        across = u_px - period * np.rint(u_px / period)
        down = v_px - period * np.rint(v_px / period)
        return np.clip(0.5 + 0.3 * period - np.hypot(across, down), 0, 1)
    waves = np.sin(0.5 * turn * u_px) * np.sin(0.5 * turn * v_px)
    return np.clip(0.5 + period / 3 * waves, 0, 1)


def _draw_ground(ground: Ground, height: int, width: int) -> Float[np.ndarray, "H W 3"]:
    """Returns the bare ground, float32, 0..255."""
    first = np.array(ground.first, np.float32)
    if ground.pattern == Pattern.PLAIN:
        canvas = np.empty((height, width, 3), np.float32)
        canvas[:] = first
        return canvas
    mix = _ground_mix(ground, height, width).astype(np.float32)
    return first + mix[..., None] * (np.array(ground.second, np.float32) - first)


def _ground_mix(ground: Ground, height: int, width: int) -> Float[np.ndarray, "H W"]:
    """Returns how much of the second tone the ground bears at each pixel, 0..1."""
    period = ground.period_unit * min(height, width)
    if ground.pattern == Pattern.NOISE:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(ground.seed)))
        rows, columns = _blend_weights(height, period), _blend_weights(width, period)
        return rows @ rng.random((rows.shape[1], columns.shape[1])) @ columns.T
    cos, sin = math.cos(ground.rotation), math.sin(ground.rotation)
    across = np.arange(0.5, width) - width / 2
    down = (np.arange(0.5, height) - height / 2)[:, None]
    u = cos * across + sin * down
    if ground.pattern == Pattern.GRADIENT:
        return 0.5 + u / (abs(cos) * width + abs(sin) * height)
    turn = 2 * math.pi / period
    if ground.pattern == Pattern.STRIPES:
        return np.clip(0.5 + period / 6 * np.sin(turn * u), 0, 1)
    v = cos * down - sin * across
    return np.clip(0.5 + period / 6 * np.sin(turn * u) * np.sin(turn * v), 0, 1)


@functools.lru_cache(maxsize=256)
def _blend_weights(pixels: int, period: float) -> Float[np.ndarray, "pixels knots"]:
    """Returns the weights that spread random knots smoothly over a line of pixels."""
    place = np.arange(0.5, pixels) / period
    knot = place.astype(int)
    part = place - knot
    part = part * part * (3 - 2 * part)
    weights = np.zeros((pixels, int(pixels / period) + 2))
    weights[np.arange(pixels), knot] = 1 - part
    weights[np.arange(pixels), knot + 1] = part
    return weights
