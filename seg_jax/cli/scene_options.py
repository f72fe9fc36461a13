"""Which drawn scenes a program asks about, and what about them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from seg_jax.data.sources import Scenes
from seg_jax.data.unseen import Unseen
from seg_jax.runs import evaluation, experiments

WORLDS = {
    "tiny": "tiny_sft.py",
    "quickstart": "quickstart_base.py",
    "several": "several_sft.py",
    "nano": "nano_sft.py",
}
"""Whose scenes have names, beside the easy ones."""
CHANGES = ("several", "absent", "held_out_looks", "held_out_wordings")
"""Options that change what is asked about scenes, whichever they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Held-out scenes and the expressions that are asked about in them."""

    scenes: int = 512
    """Held-out scenes, one question each."""
    seed: int = evaluation.HELD_OUT
    """Seed of the scenes; training uses others."""
    source: Scenes = dataclasses.field(default_factory=Scenes)
    """Kind of the scenes; `scenes` and `seed` override count and seed."""
    world: Literal["easy", "tiny", "quickstart", "several", "nano"] | None = None
    """Scenes by name, `source` aside: two easy things, those of `tiny_sft.py`, of the quickstart,
    of `several_sft.py`, or those that the model of the package knows, which is asked about these if
    left out."""
    several: bool = False
    """Ask about several things at once too, as "the red stars", "both circles"."""
    absent: int = 0
    """Expressions of each scene for what is not in it, where its style has not more."""
    held_out_looks: bool = False
    """Ask about nothing but things of a combination of kind, colour and texture that the world
    holds out of training, and about several things with such a one among them."""
    held_out_wordings: bool = False
    """Ask in no wordings but those that training does not use: "the star that is red" where the
    style knows "the red star" and "red star"."""

    def named_scenes(self, name: str | None) -> Scenes:
        """Returns the scenes of a name, of `source` for None, as many and of the seed as wanted."""
        source = self.source
        if name is not None:
            source = Scenes()
            if name in WORLDS:
                source = experiments.load(f"simpleseg/{WORLDS[name]}").scenes(seed=self.seed)
        style = dataclasses.replace(
            source.style,
            several=source.style.several or self.several,
            absent=max(source.style.absent, self.absent),
        )
        return dataclasses.replace(source, style=style, seed=self.seed, count=self.scenes)

    def unseen(self, scenes: Scenes) -> Scenes | Unseen:
        """Returns scenes that ask about what is held out alone, where that is wanted.

        Raises:
          ValueError: their world holds no looks out.
        """
        if not (self.held_out_looks or self.held_out_wordings):
            return scenes
        return Unseen(scenes=scenes, looks=self.held_out_looks, wordings=self.held_out_wordings)
