"""Drawn scenes that ask about what a run on them did not learn from: looks and wordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from seg_jax.data import sources
from seg_jax.data.sources import Scenes
from seg_jax.records import Sample
from seg_jax.scenes import world
from seg_jax.scenes.world import HeldOut

_EVERY = 1000
"""More wordings than an expression has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unseen:
    """Scenes with those expressions alone that test what was learnt from others like them.

    Their number, seed and images are those of `scenes`, but for looks that must be there.
    """

    scenes: Scenes
    """As a run learns from them: what they hold out, and how many wordings they use."""
    looks: bool = False
    """Expressions of things of a look that the world holds out, of which every scene has one; of
    several things such a one is among them. What is not there is asked about as it was."""
    wordings: bool = False
    """Expressions in wordings beyond those of the style."""

    def __post_init__(self):
        if self.looks and not self.scenes.world.held_out:
            raise ValueError(
                "held_out_looks: expected a world that holds combinations of looks out, got one "
                "without; do: ask about --world nano, or leave it out"
            )

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        """Returns scene `index`.

        Raises:
          IndexError: the index is not in 0..len - 1.
        """
        scenes = self.scenes
        if self.looks:
            required = dataclasses.replace(scenes.world, mode=HeldOut.REQUIRE)
            scenes = dataclasses.replace(scenes, world=required)
        sample = scenes[index]
        if self.wordings:
            more = dataclasses.replace(scenes.style, wordings=_EVERY)
            every = dataclasses.replace(scenes, style=more)[index].phrases
            sample = dataclasses.replace(sample, phrases=_without(every, sample.phrases))
        return _of_looks(sample, scenes, index) if self.looks else sample


def _without(
    every: Sequence[Sequence[str]], taught: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """Returns the expressions of each mask without those that are taught."""
    pairs = zip(every, taught, strict=True)
    return tuple(tuple(way for way in ways if way not in known) for ways, known in pairs)


def _of_looks(sample: Sample, scenes: Scenes, index: int) -> Sample:
    """Returns a scene without the expressions of things whose looks are not held out."""
    made = world.make(scenes.world, sources.scene_seed(scenes.seed, index))
    held = [world.is_held_out(scenes.world, thing) for thing in made.things]
    rare, groups = sample.masks[: len(held)][held], sample.masks[len(held) :]
    kept = [*held, *(not mask.any() or bool((rare & mask).any()) for mask in groups)]
    phrases = tuple(some if keep else () for some, keep in zip(sample.phrases, kept, strict=True))
    return dataclasses.replace(sample, phrases=phrases)
