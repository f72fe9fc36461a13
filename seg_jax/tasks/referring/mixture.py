"""The shares of the questions that referring asks."""

from __future__ import annotations

import dataclasses
import math

from seg_jax.tasks.task import Need


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the questions relative to each other; a name says the clue before the answer."""

    text_point: float = 0.0
    """Share of questions that give an expression and ask for a point."""
    text_box: float = 0.0
    """Share of questions that give an expression and ask for a box."""
    text_mask: float = 1.0
    """Share of questions that give an expression and ask for an outline."""
    point_mask: float = 0.0
    """Share of questions that give a point and ask for the outline of the object there."""
    box_mask: float = 0.0
    """Share of questions that give a box and ask for the outline of the object in it."""
    point_name: float = 0.0
    """Share of questions that give a point and ask for a name, in supervised training only."""
    box_name: float = 0.0
    """Share of questions that give a box and ask for a name, in supervised training only."""
    absent: float = 0.0
    """Share of questions about what is not in the image, with the answer that there is nothing. An
    image without such expressions gets other questions; one with only such gets no others."""

    def __post_init__(self):
        shares = dataclasses.astuple(self)
        if not (all(share >= 0 for share in shares) and 0 < sum(shares) < math.inf):
            raise ValueError(
                f"task.mixture: expected shares >= 0 with a positive sum, got {shares}; "
                "do: give at least one question a share"
            )
        if self.absent and not any(self.text_shares):
            raise ValueError(
                f"task.mixture.absent: expected a share of text_mask, text_box or text_point "
                f"beside it, got {self.absent} alone; do: give one of these a share, as only text "
                "can name what is not there"
            )

    @property
    def text_shares(self) -> tuple[float, float, float]:
        """The shares of questions whose clue is an expression, by the kind of the answer."""
        return self.text_point, self.text_box, self.text_mask

    @property
    def needs(self) -> dict[str, Need]:
        """The questions that have a share, with what each needs of a sample."""
        names = [name for name, share in vars(self).items() if share]
        return {name: _need(name) for name in names}

    def without_names(self) -> Mixture:
        """Returns the same questions without those for names, which nothing judges.

        Where only names are asked for, expressions are to be outlined instead.
        """
        names = dict.fromkeys(("point_name", "box_name"), 0.0)
        rest = {name: share for name, share in vars(self).items() if name not in names}
        return Mixture(**names, **(rest if any(rest.values()) else {}))

    def with_absent_of(self, later: Mixture) -> Mixture:
        """Returns these questions of a model that was then taught others too.

        What it was taught stays; that there may be nothing is added if the others ask about it.
        """
        if self.absent or not later.absent:
            return self
        base = self if any(self.text_shares) else later
        return dataclasses.replace(base, absent=later.absent)

    def check_judged(self) -> None:
        """Raises ValueError if names are asked for: no score judges such an answer."""
        shares = dataclasses.asdict(self).items()
        names = {name: share for name, share in shares if name.endswith("_name") and share}
        if names:
            raise ValueError(
                f"mixture: expected points, boxes and outlines, got {names}, whose answers are "
                "words that nothing judges; do: set these shares to 0"
            )


def _need(question: str) -> Need:
    if question == "absent":
        return "absent"
    return "text" if question.startswith("text_") else "place"
