"""Counts by reason what was skipped, clamped, dropped or taken by default, with examples."""

from __future__ import annotations

import dataclasses
import re
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
    do: schemas.Text = ""


@dataclasses.dataclass
class Findings:
    """What was met and not taken as it stood; equal inputs in equal order give equal findings."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Cases of each reason. A reason is a fixed phrase, such as "image cannot be read"."""
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Where the first cases of each reason were met, a line each, with what was got."""
    advice: dict[str, str] = dataclasses.field(default_factory=dict)
    """What to do about a reason, where something can be done: said once, whatever the cases."""

    def add(self, reason: str, example: str, *, count: int = 1, advice: str = "") -> None:
        """Counts a case.

        Args:
          reason: a fixed phrase without names or numbers; cases are summed by it.
          example: file, line or annotation, and what was got; kept as one line that can be printed
            and stored: other characters are escaped, and it is cut.
          count: of cases that the example stands for.
          advice: what to do about the reason; that of its first case is kept.
        """
        self.counts[reason] = self.counts.get(reason, 0) + count
        if advice:
            self.advice.setdefault(reason, _one_line(advice))
        kept = self.examples.setdefault(reason, [])
        if len(kept) < MOST_EXAMPLES:
            kept.append(_one_line(example))

    def add_error(self, done: str, error: Exception) -> None:
        """Counts what was done because of an error.

        Args:
          done: as "annotation left out"; the reason is this and what the error expected.
          error: whose message says where, what was expected, what was got and what to do.
        """
        told, _, advice = str(error).partition("; do: ")
        self.add(f"{done}: {reason_of(error)}", told, advice=advice)

    def merge(self, other: Findings) -> None:
        """Adds the cases of another: of a later file, split or process."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept += other.examples.get(reason, [])[: MOST_EXAMPLES - len(kept)]
        self.advice = other.advice | self.advice

    def as_json(self) -> dict[str, Any]:
        """Returns {reason: {"count": .., "examples": [..], "do": ..}}, in the order of the reasons.

        Reasons about which nothing can be done are without "do".
        """
        return {
            reason: {"count": self.counts[reason], "examples": self.examples.get(reason, [])}
            | ({"do": self.advice[reason]} if reason in self.advice else {})
            for reason in sorted(self.counts)
        }

    @staticmethod
    def from_json(
        value: Any, *, where: str = "findings", advice: str = "build the data anew"
    ) -> Findings:
        """Returns what `as_json` wrote.

        Args:
          value: as it was read from a file.
          where: names the file.
          advice: what to do where it is something else; it ends the message.

        Raises:
          ValueError: it is something else.
        """
        read = schemas.check(value, dict[str, _Finding], where=where, advice=advice)
        return Findings(
            {reason: one.count for reason, one in read.items()},
            {reason: [*one.examples] for reason, one in read.items()},
            {reason: one.do for reason, one in read.items() if one.do},
        )

    def line(self, reason: str) -> str:
        """Returns what a terminal shows of a reason: count, reason, first example, what to do."""
        advice = self.advice.get(reason)
        return self._case(reason) + (f"; do: {advice}" if advice else "")

    def lines(self) -> list[str]:
        """Returns the line of each reason."""
        return [self.line(reason) for reason in sorted(self.counts)]

    def commonest(self) -> str:
        """Returns the reason with the most cases as `line`, without what to do; "" of none."""
        most = max(self.counts.values(), default=0)
        return next(
            (self._case(one) for one in sorted(self.counts) if self.counts[one] == most), ""
        )

    def _case(self, reason: str) -> str:
        told = f"{self.counts[reason]} x {reason}"
        return ", first ".join([told, *self.examples.get(reason, [])[:1]])


def reason_of(error: Exception) -> str:
    """Returns what an error of ours expected, without names and numbers: a reason of cases.

    Of other errors it is their kind.
    """
    if isinstance(reason := getattr(error, "reason", None), str):
        return reason
    told = re.search(r"expected (.+?), got ", str(error), re.DOTALL)
    if told is None:
        return type(error).__name__
    return re.sub(r"\d[\d.,x]*", "N", f"expected {told[1]}")


def _one_line(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 3]}..."
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
