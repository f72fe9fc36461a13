"""Counts by reason what was skipped, clamped, dropped or taken by default, with examples."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import schemas

MOST_EXAMPLES = 10
"""Examples that are kept of each reason: the first ones."""
MOST_CHARACTERS = 500
"""Characters of an example that are kept."""


class _Finding(schemas.Record, frozen=True):
    count: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    examples: Annotated[list[schemas.Text], Meta(max_length=MOST_EXAMPLES)]


@dataclasses.dataclass
class Findings:
    """What was met and not taken as it stood; equal inputs in equal order give equal findings."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Cases of each reason. A reason is a fixed phrase, such as "image cannot be read"."""
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Where the first cases of each reason were met, a line each, with what was got."""

    def add(self, reason: str, example: str, *, count: int = 1) -> None:
        """Counts a case.

        Args:
          reason: a fixed phrase without names or numbers; cases are summed by it.
          example: file, line or annotation, and what was got; kept as one line that can be printed
            and stored: other characters are escaped, and it is cut.
          count: of cases that the example stands for.
        """
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        if len(kept) < MOST_EXAMPLES:
            kept.append(_one_line(example))

    def merge(self, other: Findings) -> None:
        """Adds the cases of another: of a later file, split or process."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept += other.examples.get(reason, [])[: MOST_EXAMPLES - len(kept)]

    def as_json(self) -> dict[str, Any]:
        """Returns {reason: {"count": .., "examples": [..]}}, in the order of the reasons."""
        return {
            reason: {"count": self.counts[reason], "examples": self.examples.get(reason, [])}
            for reason in sorted(self.counts)
        }

    @staticmethod
    def from_json(value: Any, *, where: str = "findings") -> Findings:
        """Returns what `as_json` wrote.

        Args:
          value: as it was read from a file.
          where: names the file.

        Raises:
          ValueError: it is something else.
        """
        read = schemas.check(value, dict[str, _Finding], where=where, advice="build the data anew")
        return Findings(
            {reason: one.count for reason, one in read.items()},
            {reason: [*one.examples] for reason, one in read.items()},
        )

    def lines(self) -> list[str]:
        """Returns a line a reason for a terminal: the count, the reason and its first example."""
        return [
            ", first ".join([f"{count} x {reason}", *self.examples.get(reason, [])[:1]])
            for reason, count in sorted(self.counts.items())
        ]


def _one_line(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 3]}..."
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
