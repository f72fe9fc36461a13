"""The shares of the questions that are answered by boxes and clicks."""

from __future__ import annotations

import dataclasses
import math

from seg_jax.tasks.task import Need


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the questions relative to each other."""

    whole: float = 1.0
    """Share of questions about an image as a whole: all its objects, in stage prerl the largest."""
    text: float = 0.0
    """Share of questions for what an expression means."""
    trace: float = 0.0
    """Share of conversations that came written with an image (FCoT), in stage sft only: no mask
    judges them."""

    def __post_init__(self):
        shares = dataclasses.astuple(self)
        if not (all(share >= 0 for share in shares) and 0 < sum(shares) < math.inf):
            raise ValueError(
                f"task.mixture: expected shares >= 0 with a positive sum, got {shares}; "
                "do: give at least one question a share"
            )

    @property
    def needs(self) -> dict[str, Need]:
        """The questions that have a share, with what each needs of a sample."""
        wanted: dict[str, Need] = {"whole": "place", "text": "text", "trace": "trace"}
        return {name: need for name, need in wanted.items() if vars(self)[name]}

    def without_traces(self) -> Mixture:
        """Returns the questions that a mask can judge; about images as a whole if none is left."""
        return dataclasses.replace(self, trace=0.0) if self.whole or self.text else Mixture()
