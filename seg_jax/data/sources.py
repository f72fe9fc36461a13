"""Sources of samples, random access: item i is the same whoever asks and whenever."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from seg_jax.records import Sample
from seg_jax.scenes import draw, phrases, world


@runtime_checkable
class Source(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Returns how many samples there are."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Returns one sample; raises IndexError beyond the last."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """Drawn scenes: scene i of a seed, as many as `count`."""

    world: world.Config = dataclasses.field(default_factory=world.easy)
    style: phrases.Style = phrases.Style()
    """Which expressions name the things, in how many wordings."""
    seed: int = 0
    count: int = 1_000_000

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"scenes: expected a count >= 1, got {self.count}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Returns scene `index`.

        Raises:
          IndexError: the index is not in 0..count - 1.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"scenes: expected an index in 0..{self.count - 1}, got {index}")
        made = world.make(self.world, scene_seed(self.seed, index))
        image, masks = draw.render(made)
        return Sample(
            key=f"scene-{self.seed}-{index}",
            image=image,
            masks=masks,
            phrases=phrases.describe(made, masks, style=self.style),
            names=tuple(f"{thing.colour} {thing.kind}" for thing in made.things),
        )


def scene_seed(seed: int, index: int) -> int:
    """Returns one number for (seed, index); distinct pairs below 2**40 never meet."""
    return seed * 2**40 + index
