"""Sums the rows of a protocol up: its numbers with bootstrap intervals, and what went wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.referring.judging import FAULTS, HIT, Row
from seg_jax.evaluation.referring.protocols import Protocol
from seg_jax.records import Verdict

TITLES = {
    "giou": "gIoU",
    "ciou": "cIoU",
    **{f"p_at_0.{tenth}": f"P@0.{tenth}" for tenth in range(5, 10)},
    "rec_from_mask": "Acc@0.5, mask's box",
    "rec_from_box": "Acc@0.5, predicted box",
    "n_acc": "N-acc",
    "n_acc_said": "N-acc, said so",
    "t_acc": "T-acc",
    "several_giou": "gIoU, several",
    "several_recall": "recall, several",
    "duplicates": "repeated outlines per 100 answers",
}
"""How tables call the numbers."""
LATER = ("several_giou", "several_recall", "duplicates")
"""Numbers that evaluations of earlier versions lack."""


def summarise(rows: Sequence[Row], protocol: Protocol, *, seed: int = 0) -> dict[str, Any]:
    """Returns the numbers of a protocol, shares in 0..1, none of them rounded.

    - giou: mean of the IoU of each mask; 1 where answer and truth are both empty.
    - ciou: sum of the intersections over the sum of the unions; None where no pixel counts.
    - p_at_x: share of masks with an IoU above x.
    - rec_from_mask, rec_from_box: share of answers whose box has an IoU above 0.5 with the box of
      the true mask; the box around the answered mask, or the answered box.
    - n_acc: share of the expressions without a target whose answer has no pixel; n_acc_said: where
      the answer also says so (`outline.Reading.says_nothing`), and is not just unreadable. t_acc:
      share of the others whose answer has pixels. None where there are no such expressions.
    - several_giou: giou of the expressions that mean several things; several_recall: share of these
      things that are outlined (`several.count`), in data sets of those that are known one by one.
    - duplicates: outlines of an answer that repeat another of it, a mean over the answers.

    Each carries a 95 % interval, for which images are drawn, each with all of its questions:
    questions about one image are not independent. `faults` counts what went wrong by kind of
    question, with the share of the mean IoU that it costs.

    Source: gIoU, N-acc and T-acc: Liu et al. 2023 (GRES), section 5; cIoU: Yang et al. 2022 (LAVT).

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(
            "evaluation: expected at least one question, got none; do: give a source with "
            "expressions"
        )
    table = _Table(rows, protocol, seed)
    summary: dict[str, Any] = {
        "protocol": protocol.name,
        "questions": len(rows),
        "images": len({row.index for row in rows}),
        "no_target": sum(not row.truth_px for row in rows),
    }
    summary |= {name: table.number(name) for name in protocol.metrics}
    summary["parse_rate"] = table.share(np.array([_is_readable(row) for row in rows]))
    summary["tokens"] = table.share(np.array([row.tokens for row in rows]))
    summary["verdicts"] = {v.name: sum(row.verdict == v.name for row in rows) for v in Verdict}
    summary["faults"] = {kind: _faults(rows, kind) for kind in sorted({r.kind for r in rows})}
    return summary


def _is_readable(row: Row) -> bool:
    return row.verdict == Verdict.OK.name or row.says_nothing


def _faults(rows: Sequence[Row], kind: str) -> dict[str, dict[str, float | int]]:
    """Returns how often each fault occurs, and how much lower the mean IoU is for it."""
    rows = [row for row in rows if row.kind == kind]
    counts = Counter(row.fault for row in rows)
    lost = {name: sum(1 - row.iou for row in rows if row.fault == name) for name in FAULTS}
    return {name: {"count": counts[name], "lost": lost[name] / len(rows)} for name in FAULTS}


class _Table:
    """Columns of the rows, to be summed up image by image."""

    def __init__(self, rows: Sequence[Row], protocol: Protocol, seed: int):
        self._released, self._seed = protocol.released, seed
        self._images = np.array([row.index for row in rows])
        self._mask = np.array([row.kind == "mask" for row in rows])
        self._absent = np.array([not row.truth_px for row in rows])
        self._empty = np.array([not row.answer_px for row in rows])
        self._said = np.array([row.says_nothing for row in rows])
        self._iou = np.array([row.iou for row in rows])
        self._box_iou = np.array([row.box_iou for row in rows])
        self._shared = np.array([row.intersection for row in rows], np.float64)
        self._union = np.array([row.union for row in rows], np.float64)
        # What is not known one by one is of several things; a single one always is.
        self._several = np.array([row.meant is None or row.meant > 1 for row in rows])
        self._meant = np.array([row.meant or 0 for row in rows], np.float64)
        self._found = np.array([row.found for row in rows], np.float64)
        self._duplicates = np.array([row.duplicates for row in rows])

    def number(self, name: str) -> dict[str, float] | None:
        """Returns a metric with its interval; None where nothing was asked for it."""
        mask, empty = self._mask, self._empty
        if name == "ciou":
            return self._ratio(self._shared, self._union + (1e-10 if self._released else 0), mask)
        if name == "several_recall":
            return self._ratio(self._found, self._meant, mask & self._several)
        if name.startswith("p_at_"):
            return self.share(self._iou > float(name.removeprefix("p_at_")), mask)
        values, among = {
            "giou": (self._iou, mask),
            "rec_from_mask": (self._box_iou > HIT, mask),
            "rec_from_box": (self._box_iou > HIT, ~mask),
            "n_acc": (empty, mask & self._absent),
            "n_acc_said": (empty & self._said, mask & self._absent),
            "t_acc": (~empty, mask & ~self._absent),
            "several_giou": (self._iou, mask & self._several),
            "duplicates": (self._duplicates, mask),
        }[name]
        return self.share(values, among)

    def share(
        self, values: Shaped[np.ndarray, " n"], among: Bool[np.ndarray, " n"] | None = None
    ) -> dict[str, float] | None:
        """Returns the mean of the values of some rows; None of no rows."""
        return self._ratio(values.astype(np.float64), np.ones(len(values)), among)

    def _ratio(
        self,
        numerators: Float[np.ndarray, " n"],
        denominators: Float[np.ndarray, " n"],
        among: Bool[np.ndarray, " n"] | None,
    ) -> dict[str, float] | None:
        chosen = np.ones(len(self._mask), bool) if among is None else among
        if not denominators[chosen].any():
            return None
        images = np.unique(self._images[chosen], return_inverse=True)[1]
        sums = (np.bincount(images, column[chosen]) for column in (numerators, denominators))
        interval = bootstrap.ratio_interval(*sums, seed=self._seed)
        return {key: float(value) for key, value in dataclasses.asdict(interval).items()}
