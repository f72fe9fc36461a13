"""Worlds of drawn things as plain data, made from a seed under knobs of difficulty.

World `seed` of a `Config` depends on these two alone: not on other worlds, their order or the
process. Positions are fractions of the image, so a world may be drawn at another resolution.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable

import numpy as np

from seg_jax.scenes import things
from seg_jax.scenes.things import Colour, Kind, Texture, Thing


class Pattern(enum.StrEnum):
    """What covers the ground behind the things."""

    PLAIN = "plain"
    GRADIENT = "gradient"
    STRIPES = "stripes"
    CHECKER = "checker"
    NOISE = "noise"


class HeldOut(enum.StrEnum):
    """Whether worlds may show the combinations of looks that are held out."""

    EXCLUDE = "exclude"
    """No thing bears one: for training."""
    REQUIRE = "require"
    """At least one thing of every world bears one: for the test of generalisation."""
    ANY = "any"
    """They appear like all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """What lies behind the things: two tones mixed by a pattern."""

    pattern: Pattern
    first: tuple[int, int, int]
    """Red, green, blue, 0..255."""
    second: tuple[int, int, int]
    """Red, green, blue, 0..255; unused by a plain ground."""
    period_unit: float
    """Length of one repetition as a fraction of the shorter side (noise: of one bump)."""
    rotation: float
    """Radians, clockwise as seen in the image."""
    seed: int
    """Seeds the noise pattern."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """An image before it is drawn."""

    height: int
    width: int
    ground: Ground
    things: tuple[Thing, ...]
    """In drawing order: later things cover earlier ones."""
    noise: float = 0.0
    """Standard deviation of the pixel noise, in 8-bit levels."""
    seed: int = 0
    """Seeds the pixel noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Knobs of difficulty."""

    height: int = 64
    width: int = 64
    aspect: tuple[float, float] | None = None
    """Range of the images' width over their height; the area stays that of height x width. None:
    all images are alike."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor by which both sides grow."""
    count: tuple[int, int] = (2, 2)
    """Fewest and most things."""
    kinds: tuple[Kind, ...] = tuple(Kind)
    colours: tuple[Colour, ...] = tuple(Colour)
    textures: tuple[Texture, ...] = (Texture.PLAIN,)
    patterns: tuple[Pattern, ...] = tuple(Pattern)
    size_unit: tuple[float, float] = (0.25, 0.45)
    """Range of the enclosing circle's diameter as a fraction of the shorter side."""
    rotation: float = math.pi
    """Things are turned by at most this many radians either way."""
    shade: float = 0.1
    """Largest change of a thing's brightness either way, see `Thing.shade`."""
    vivid: float = 0.0
    """Most that a thing's colour goes towards its name's pure one, see `Thing.vivid`."""
    least_visible: float = 1.0
    """Least share of every thing that must be seen; 1: things do not even touch."""
    least_pixels: int = 24
    """Least number of visible pixels of every thing."""
    overhang: float = 0.0
    """How far a thing may reach over the image's edge, as a fraction of its radius."""
    distinct: bool = True
    """Whether no two things share both kind and colour."""
    distractor: float = 0.0
    """Chance that a thing takes over the kind of an earlier thing."""
    ground_contrast: tuple[float, float] = (20.0, 60.0)
    """Range of the distance between the ground's two tones, in 8-bit levels."""
    clearance: float = 75.0
    """Least distance between the ground's tones and every colour, in 8-bit levels; from the
    second tones of textures the ground keeps 0.6 of it."""
    any_ground: bool = False
    """Whether the ground may have any tone from black to white that keeps clear of the colours in
    its own world; else it is muted and keeps clear of every colour that there is."""
    noise: float = 0.0
    """Standard deviation of the pixel noise, in 8-bit levels."""
    quiet: float = 0.0
    """Chance that a world has no noise."""
    held_out: tuple[tuple[Kind | Colour | Texture, ...], ...] = ()
    """Combinations of attributes to keep apart, such as `((Kind.STAR, Colour.RED),)`."""
    mode: HeldOut = HeldOut.EXCLUDE

    def __post_init__(self):
        _check(self)


def easy() -> Config:
    """Returns two plain things of few kinds and colours on a calm ground, apart."""
    return Config(
        kinds=(Kind.CIRCLE, Kind.SQUARE, Kind.TRIANGLE, Kind.STAR, Kind.CROSS, Kind.RING),
        colours=(Colour.RED, Colour.GREEN, Colour.BLUE, Colour.YELLOW, Colour.PURPLE),
        patterns=(Pattern.PLAIN, Pattern.GRADIENT),
        size_unit=(0.3, 0.5),
        rotation=0.3,
        least_visible=0.9,
        distractor=0.2,
    )


def standard() -> Config:
    """Returns two to four textured things of all kinds and colours with some occlusion."""
    return Config(
        height=96,
        width=96,
        count=(2, 4),
        textures=tuple(Texture),
        size_unit=(0.2, 0.42),
        least_visible=0.7,
        distractor=0.3,
        noise=3.0,
    )


def hard() -> Config:
    """Returns four to eight things with look-alikes, occlusion, loud grounds and noise."""
    return Config(
        height=128,
        width=128,
        count=(4, 8),
        textures=tuple(Texture),
        size_unit=(0.12, 0.38),
        least_visible=0.4,
        least_pixels=40,
        overhang=0.3,
        distinct=False,
        distractor=0.5,
        ground_contrast=(30.0, 90.0),
        clearance=60.0,
        noise=6.0,
    )


def varied() -> Config:
    """Returns one to five things of any size on any ground, in images of many shapes."""
    return Config(
        height=96,
        width=96,
        aspect=(1 / 3, 3.0),
        scale=(0.7, 1.3),
        count=(1, 5),
        textures=tuple(Texture),
        size_unit=(0.1, 0.7),
        least_visible=0.7,
        least_pixels=30,
        distractor=0.3,
        vivid=1.0,
        any_ground=True,
        noise=3.0,
        quiet=0.5,
    )


def make(config: Config, seed: int) -> World:
    """Returns the world that this seed (any integer from 0) stands for.

    Raises:
      ValueError: if the things found no room, which only an overfull config causes.
    """
    if seed < 0:
        raise ValueError(f"world.make: expected a seed >= 0, got {seed}; do: count worlds from 0")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    size, has_noise = _draw_frame(config, seed)
    for _ in range(_LAYOUTS):
        placed = _arrange(config, size, rng, _draw_looks(config, rng))
        if placed is None:
            continue
        ground = _draw_ground(config, rng, placed)
        if ground is None:
            continue
        return World(
            height=size[0],
            width=size[1],
            ground=ground,
            things=placed,
            noise=config.noise if has_noise else 0.0,
            seed=int(rng.integers(2**32)),
        )
    raise ValueError(
        f"world.make: expected room for {config.count[0]} to {config.count[1]} things of size "
        f"{config.size_unit}, got none in {_LAYOUTS} layouts; do: lower count, size_unit, "
        "least_visible or least_pixels"
    )


def is_held_out(config: Config, thing: Thing) -> bool:
    """Returns whether the thing bears one of the config's held-out combinations."""
    return _has_combination(config.held_out, (thing.kind, thing.colour, thing.texture))


def looks(config: Config) -> tuple[Look, ...]:
    """Returns the looks that a thing may have in a world of this config."""
    return _possible_looks(config)[0]


Look = tuple[Kind, Colour, Texture]
Size = tuple[int, int]
"""Height and width in pixels."""

_LAYOUTS = 60
_SPOTS = 12


def _has_combination(held_out, look: Look) -> bool:
    return any(set(combination) <= set(look) for combination in held_out)


@functools.lru_cache(maxsize=64)
def _possible_looks(config: Config) -> tuple[tuple[Look, ...], tuple[Look, ...], dict]:
    """Returns the looks that any thing may have, the held-out looks, the former by kind."""
    looks = [
        (kind, colour, texture)
        for kind in config.kinds
        for colour in config.colours
        for texture in config.textures
    ]
    rare = tuple(look for look in looks if _has_combination(config.held_out, look))
    usual = [look for look in looks if config.mode != HeldOut.EXCLUDE or look not in rare]
    by_kind = {kind: tuple(look for look in usual if look[0] == kind) for kind in config.kinds}
    return tuple(usual), rare, by_kind


def _draw_looks(config: Config, rng: np.random.Generator) -> list[Look]:
    """Returns what each thing of a new world looks like, in drawing order."""
    usual, rare, by_kind = _possible_looks(config)
    low, high = config.count
    draws = iter(rng.random(2 + 24 * high).tolist())
    count = low + int(next(draws) * (high + 1 - low))
    chosen = int(next(draws) * count) if config.mode == HeldOut.REQUIRE else -1
    # The required thing comes first, so that no other thing may take its look from it.
    looks: dict[int, Look] = {}
    for index in sorted(range(count), key=lambda index: index != chosen):
        for _ in range(8):
            pool = rare if index == chosen else usual
            if looks and next(draws) < config.distractor:
                kinds = [look[0] for look in looks.values()]
                pool = by_kind[kinds[int(next(draws) * len(kinds))]] or pool
            look = pool[int(next(draws) * len(pool))]
            if not config.distinct or all(look[:2] != other[:2] for other in looks.values()):
                looks[index] = look
                break
    return [looks[index] for index in sorted(looks)] if len(looks) >= low else []


_FRAME_STREAM = 2
"""Number of the random stream that decides on size and noise."""


def _draw_frame(config: Config, seed: int) -> tuple[tuple[int, int], bool]:
    """Returns height and width of a world in pixels, and whether it has noise."""
    size = config.height, config.width
    if config.aspect is None and config.scale == (1.0, 1.0) and not config.quiet:
        return size, True
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _FRAME_STREAM])))
    draw = rng.random(3).tolist()
    low, high = np.log(config.aspect or (size[1] / size[0],) * 2).tolist()
    side = math.sqrt(size[0] * size[1])
    side *= config.scale[0] + draw[0] * (config.scale[1] - config.scale[0])
    stretch = math.exp(0.5 * (low + draw[1] * (high - low)))
    return (round(side / stretch), round(side * stretch)), draw[2] >= config.quiet


def _arrange(config: Config, size: Size, rng: np.random.Generator, looks: list[Look]):
    """Returns the things at places that keep the rules of visibility, or None."""
    if not looks:
        return None
    owner = np.full(size, -1, np.int8)
    placed: list[Thing] = []
    whole: list[int] = []
    for look in looks:
        for _ in range(_SPOTS):
            thing = _draw_thing(config, size, rng, look)
            if _try_to_place(config, owner, placed, whole, thing):
                break
        else:
            return None
    return tuple(placed)


def _draw_thing(config: Config, size: Size, rng: np.random.Generator, look: Look) -> Thing:
    """Returns a thing of this look at a random place, size and proportion."""
    draw = rng.random(6 + 2 * things.HARMONICS).tolist()
    (low, high), (height, width) = config.size_unit, size
    size_unit = low + draw[0] * (high - low)
    reach = 0.5 * size_unit * min(height, width) * (1 - config.overhang) + 1
    return Thing(
        kind=look[0],
        colour=look[1],
        texture=look[2],
        centre_unit=(
            (reach + draw[1] * (width - 2 * reach)) / width,
            (reach + draw[2] * (height - 2 * reach)) / height,
        ),
        size_unit=size_unit,
        rotation=config.rotation * (2 * draw[3] - 1),
        form=draw[4],
        wobble=tuple(draw[6:]),
        shade=config.shade * (2 * draw[5] - 1),
        vivid=config.vivid * rng.random() if config.vivid else 0.0,
    )


def _try_to_place(
    config: Config, owner, placed: list[Thing], whole: list[int], thing: Thing
) -> bool:
    """Adds the thing on top of the others unless that breaks a rule of visibility."""
    height, width = owner.shape
    field = things.field(thing, height=height, width=width)
    top, left = max(field.top, 0), max(field.left, 0)
    level = field.level_px
    area = int(np.count_nonzero(level < 0))
    level = level[top - field.top : height - field.top, left - field.left : width - field.left]
    window = owner[top : top + level.shape[0], left : left + level.shape[1]]
    below = window[level < 1.5]
    met = {placed[index].colour for index in set(below[below >= 0].tolist())}
    # Outlines between things of one colour could not be seen.
    if met and (config.least_visible >= 1 or thing.colour in met):
        return False
    before = window.copy()
    window[level < 0] = len(placed)
    seen = np.bincount(owner.ravel() + 1, minlength=len(placed) + 2)[1:].tolist()
    for count, total in zip(seen, [*whole, area], strict=True):
        if count < config.least_pixels or count < config.least_visible * total:
            window[:] = before
            return False
    placed.append(thing)
    whole.append(area)
    return True


def _draw_ground(
    config: Config, rng: np.random.Generator, placed: tuple[Thing, ...]
) -> Ground | None:
    """Returns a ground whose tones keep clear of the colours in play, or None."""
    draw = rng.random(6).tolist()
    if config.any_ground:
        pairs = _tones_beside(config, rng, placed)
    else:
        textured = any(texture != Texture.PLAIN for texture in config.textures)
        pairs = _tone_pairs(
            config.colours, config.clearance, config.ground_contrast, textured=textured
        )
    if not pairs:
        return None
    first, second = pairs[int(draw[0] * len(pairs))]
    return Ground(
        pattern=config.patterns[int(draw[1] * len(config.patterns))],
        first=first,
        second=second,
        period_unit=0.12 + 0.25 * draw[2],
        rotation=math.pi * draw[3],
        seed=int(draw[4] * 2**32),
    )


def _tones_beside(config: Config, rng: np.random.Generator, placed: tuple[Thing, ...]):
    """Returns pairs of tones, a third of them black or white, clear of these things' colours."""
    count = 48
    grey = np.clip(rng.uniform(-64, 319, (count, 1)), 0, 255)
    tinted = rng.uniform(-48, 48, (count, 3)) * (rng.random((count, 1)) < 0.5)
    apart = rng.uniform(*config.ground_contrast, (count, 1)) * np.where(grey < 128, 1, -1)
    first = np.clip(grey + tinted, 0, 255).round()
    second = np.clip(first + apart / math.sqrt(3), 0, 255).round()
    tones = [things.tones(one.colour, one.shade, one.vivid) for one in placed]
    textured = [one.texture != Texture.PLAIN for one in placed]
    far = np.ones(count, bool)
    for tone in (first, second):
        for (base, other), has_other in zip(tones, textured, strict=True):
            far &= np.linalg.norm(tone - base, axis=1) >= config.clearance
            if has_other:
                far &= np.linalg.norm(tone - other, axis=1) >= 0.6 * config.clearance
    whole = [[tuple(int(v) for v in tone) for tone in tones[far]] for tones in (first, second)]
    return list(zip(*whole, strict=True))


@functools.lru_cache(maxsize=64)
def _tone_pairs(colours, clearance: float, contrast: tuple[float, float], *, textured: bool):
    """Returns pairs of muted tones that lie far from the colours but not far from each other."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(0)))
    grey = rng.uniform(40, 235, (4000, 1))
    tones = np.clip(grey + rng.uniform(-32, 32, (4000, 3)), 0, 255).round()
    palette = np.array([things.tones(colour) for colour in colours])
    far = np.linalg.norm(tones[:, None] - palette[:, 0], axis=-1).min(1) >= clearance
    if textured:
        far &= np.linalg.norm(tones[:, None] - palette[:, 1], axis=-1).min(1) >= 0.6 * clearance
    tones = tones[far][:300]
    apart = np.linalg.norm(tones[:, None] - tones, axis=-1)
    pairs = np.argwhere((apart >= contrast[0]) & (apart <= contrast[1]))
    if not len(pairs):
        raise ValueError(
            f"world.Config: expected ground tones {clearance} levels from every colour and "
            f"{contrast} from each other, got none; do: lower clearance, widen ground_contrast or "
            "take fewer colours"
        )
    whole = [tuple(int(value) for value in tone) for tone in tones]
    return [(whole[one], whole[two]) for one, two in pairs[rng.permutation(len(pairs))[:2000]]]


def _check_sizes(config: Config, expect: Callable[[bool, str, object, str], None]) -> None:
    """Raises ValueError for sizes and shapes that no image could have."""
    size = config.height, config.width
    expect(min(size) >= 16, "an image of at least 16x16", size, "enlarge it")
    small, large = config.scale
    expect(0 < small <= large <= 64, "0 < scale <= 64, rising", config.scale, "change it")
    narrow, wide = config.aspect or (size[1] / size[0],) * 2
    expect(0 < narrow <= wide, "0 < aspect, rising", config.aspect, "change it")
    least = small * math.sqrt(size[0] * size[1] * min(narrow, 1 / wide))
    expect(least >= 16, "images of at least 16x16", f"a side of {least:.0f}", "enlarge scale")


def _check(config: Config) -> None:
    """Raises ValueError for knobs that no world could satisfy."""

    def expect(good: bool, wanted: str, got: object, advice: str) -> None:
        if not good:
            raise ValueError(f"world.Config: expected {wanted}, got {got}; do: {advice}")

    low, high = config.count
    expect(1 <= low <= high <= 100, "1 <= fewest <= most <= 100", config.count, "change count")
    _check_sizes(config, expect)
    small, large = config.size_unit
    expect(0 < small <= large <= 0.9, "0 < size_unit <= 0.9, rising", config.size_unit, "change it")
    for name in ("kinds", "colours", "textures", "patterns"):
        expect(
            len(getattr(config, name)) > 0, f"some {name}", "none", f"name at least one in {name}"
        )
    for name, most in (
        ("least_visible", 1),
        ("overhang", 1),
        ("distractor", 1),
        ("shade", 0.3),
        ("vivid", 1),
        ("quiet", 1),
    ):
        value = getattr(config, name)
        expect(0 <= value <= most, f"{name} in 0..{most}", value, f"change {name}")
    for name in ("noise", "least_pixels", "clearance", "rotation"):
        expect(getattr(config, name) >= 0, f"{name} >= 0", getattr(config, name), f"raise {name}")
    for combination in config.held_out:
        expect(
            len(combination) > 0, "held_out combinations of attributes", "an empty one", "drop it"
        )
    usual, rare, _ = _possible_looks(config)
    if config.mode == HeldOut.REQUIRE:
        expect(len(rare) > 0, "held-out looks to require", "none", "set held_out or another mode")
    pairs = len({look[:2] for look in usual})
    expect(pairs > 0, "looks that are not held out", "none", "hold fewer combinations out")
    if config.distinct:
        expect(pairs >= high, f"{high} pairs of kind and colour", pairs, "add kinds or colours")
