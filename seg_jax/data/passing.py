"""Puts another row in the place of one that cannot be made, and says what was passed over."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np
from jaxtyping import Shaped

from seg_jax import files
from seg_jax.data.findings import Findings
from seg_jax.tasks.task import Unfit

MOST_IN_SUCCESSION = 100
"""As many samples may be passed over for one row: beyond, something is wrong with all of them."""
_STRIDE = 1_000_003
"""Samples between a row and what takes its place: a prime, so that all of a data set come up."""
_ROOM = 2000
"""Characters that what was passed over for a row may take on its way from a worker process."""

Told = Shaped[np.ndarray, ""]
"""What was passed over for a row, as JSON: an array, so that it travels and stacks like the row."""


class PassOver(grain.MapDataset):
    """Rows, each with what was passed over for it; in the place of one that is unfit comes another.

    Which one depends on the row's number alone, so batches are the same whatever the number of
    processes, threads and workers, and a run that goes on goes on exactly.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset):
        """Takes an endless data set of rows."""
        super().__init__(parent)

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        """Returns a row with what was passed over for it.

        Raises:
          Unfit: none of `MOST_IN_SUCCESSION` rows can be made.
        """
        if isinstance(index, slice):
            return self.slice(index)
        met, attempt = Findings(), 0
        while True:
            try:
                return self._parent[(index + attempt * _STRIDE) % len(self)], _as_array(met)
            except Unfit as error:
                attempt += 1
                if attempt == MOST_IN_SUCCESSION:
                    raise
                met.add_error("passed over", error)


def _as_array(met: Findings) -> Told:
    """Returns findings as an array of one text of fixed length."""
    text = json.dumps(met.as_json()) if met.counts else ""
    if len(text) > _ROOM:  # The reasons with their counts have room.
        text = json.dumps(Findings(met.counts).as_json())[:_ROOM]
    return np.array(text, f"U{_ROOM}")


def add_told(told: Iterable[Any], met: Findings) -> None:
    """Adds what was passed over for some rows to findings.

    Args:
      told: arrays of texts, as `PassOver` gives one with each row.
      met: is told.
    """
    for text in np.ravel([*told]).tolist():
        if text:
            met.merge(Findings.from_json(files.parse_json(text, where="passed over")))


class Tally:
    """What a run passes over: before it begins, before its position, and since then."""

    def __init__(self, left_out: Findings | None = None):
        self.left_out = left_out or Findings()
        """What is missing from the source: the same in every process."""
        self.before = Findings()
        """What all processes had passed over up to the position that the run goes on from."""
        self.drawn = Findings()
        """What this process has passed over since."""

    @property
    def findings(self) -> Findings:
        """All of it, as this process knows it."""
        return self.everywhere([self.drawn.as_json()])

    def everywhere(self, drawn: Iterable[Any]) -> Findings:
        """Returns all of it, given what each process has drawn as JSON values."""
        met = Findings()
        met.merge(self.left_out)
        met.merge(self._drawn_so_far(drawn))
        return met

    def position(self, drawn: Iterable[Any]) -> dict[str, Any]:
        """Returns what belongs to a position as JSON values, given what each process has drawn."""
        return self._drawn_so_far(drawn).as_json()

    def go_on_from(self, position: Any) -> None:
        """Counts on from a position.

        Raises:
          ValueError: it is none.
        """
        self.before, self.drawn = Findings.from_json(position, where="passed over"), Findings()

    def _drawn_so_far(self, drawn: Iterable[Any]) -> Findings:
        met = Findings()
        met.merge(self.before)
        for one in drawn:
            met.merge(Findings.from_json(one, where="passed over"))
        return met
