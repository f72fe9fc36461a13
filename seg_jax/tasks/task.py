"""A task asks about a sample, writes the true answer and judges what a model answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.grammar import automaton, reader
from seg_jax.records import Array, Automaton, Kind, Polygons, Rollout, Sample, Truth


@dataclasses.dataclass(frozen=True)
class Example:
    """One question about an image with its true answer (host)."""

    key: str
    """Key of the sample that the question is about."""
    image: UInt8[np.ndarray, "H W 3"]
    question: str
    answer: str
    kind: Kind | None
    """What the answer is: a point, a box or a mask; None: words, which nothing judges."""
    mask: Bool[np.ndarray, "H W"]
    """The true region, whatever the kind of answer; empty where nothing is meant."""


class Judgement(NamedTuple):
    """How good answers are, each entry `[*n]` (device)."""

    scores: Mapping[str, Float[Array, "*n"]]
    """Named scores in 0..1, higher is better."""
    intersection: Int[Array, "*n"]
    """Pixels of the answer's mask that are true; 0 for answers that are no mask."""
    union: Int[Array, "*n"]
    """Pixels in the answer's mask, the true one or both."""
    centroid_error: Float[Array, "*n"]
    """Distance of the centroids in units of the image's sides; nan without an answer."""


@runtime_checkable
class Task(Protocol):
    """What training, evaluation and serving share: there is no second way to ask or judge."""

    @property
    def digits(self) -> int:
        """Decimals of a coordinate."""
        ...

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What kinds of answers are asked for, names aside."""
        ...

    @property
    def nothing(self) -> bool:
        """Whether an answer may say that there is nothing."""
        ...

    @property
    def max_rings(self) -> int:
        """Rings of an answer that are read."""
        ...

    @property
    def max_points(self) -> int:
        """Points of a ring that are read."""
        ...

    def example(self, sample: Sample, rng: np.random.Generator) -> Example:
        """Returns a question about the sample and its true answer."""
        ...

    def judge(self, answer: Polygons, verdict: Int[Array, "*n"], truth: Truth) -> Judgement:
        """Returns the scores of parsed answers against the truth, on the device."""
        ...


def grammar(
    task: Task,
    pieces: Sequence[bytes | None],
    ends: Sequence[int],
    *,
    nothing: bool | None = None,
) -> Automaton:
    """Returns what answers to a task can be held to.

    Args:
      task: whose decimals and limits are the grammar's.
      pieces: bytes of each token, as in `automaton.table`.
      ends: tokens that end an answer.
      nothing: whether an answer may say that there is nothing; None: as the task has it.

    Raises:
      ValueError: as `automaton.table`.
    """
    return automaton.table(
        pieces,
        ends=ends,
        digits=task.digits,
        rings=task.max_rings,
        points=task.max_points,
        nothing=task.nothing if nothing is None else nothing,
    )


def judge(
    task: Task, table: reader.Table, rollout: Rollout, truth: Truth
) -> tuple[Judgement, Int[Array, "B G"]]:
    """Returns what sampled answers are worth and their verdicts: tokens to scores on the device.

    Args:
      task: reads and judges.
      table: of the tokenizer that the answers are written in.
      rollout: G answers per prompt.
      truth: one per prompt.
    """
    shape = rollout.ids.shape[:2]
    spread = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (*shape, *leaf.shape[1:])), truth
    )
    polygons, verdict = reader.read(
        rollout.ids,
        rollout.used,
        table,
        kind=spread.kind,
        rings=task.max_rings,
        points=task.max_points,
    )
    return task.judge(polygons, verdict, spread), verdict
