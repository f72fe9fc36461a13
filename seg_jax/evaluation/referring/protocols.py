"""Named evaluation protocols: which questions a benchmark asks of every sample, and how (host)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool

from seg_jax.data import sources
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.grammar import chat
from seg_jax.records import Kind, Sample
from seg_jax.tasks.prompted import Prompted, Wording
from seg_jax.tasks.referring import Referring, RegionExample, box_unit, interior_point_unit
from seg_jax.tasks.task import Example

Name = Literal["res", "rec", "gres", "reasonseg", "point_mask", "box_mask", "text4seg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark's questions and the names of its numbers."""

    name: Name
    title: str
    asks: tuple[tuple[Literal["text", "point", "box"], Kind], ...] = (("text", Kind.MASK),)
    """What names the object and what is asked for, of each expression or, without text, mask."""
    metrics: tuple[str, ...]
    """Names in `scoring`, in the order of the table."""
    absent: bool = False
    """Whether expressions that fit nothing in their image are asked about."""
    released: bool = False
    """Whether it is asked, read and scored as the released evaluators do (`text4seg`)."""
    pointed: bool = False
    """Whether boxes and clicks may answer it, of which a model draws masks."""

    @property
    def counts_things(self) -> bool:
        """Whether each thing that an expression means is looked for in the answer."""
        return "several_recall" in self.metrics

    @property
    def singly(self) -> bool:
        """Whether each object is asked about by itself: no question has an expression."""
        return all(given != "text" for given, _ in self.asks)


_PRECISIONS = tuple(f"p_at_0.{tenth}" for tenth in range(5, 10))

PROTOCOLS: dict[Name, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="res",
            title="Referring segmentation (RES)",
            metrics=("ciou", "giou", *_PRECISIONS, "rec_from_mask"),
            pointed=True,
        ),
        Protocol(
            name="rec",
            title="Referring comprehension (REC)",
            asks=(("text", Kind.MASK), ("text", Kind.BOX)),
            metrics=("rec_from_mask", "rec_from_box"),
        ),
        Protocol(
            name="gres",
            title="Generalised referring segmentation (gRefCOCO)",
            metrics=(
                "giou",
                "ciou",
                "n_acc",
                "n_acc_said",
                "t_acc",
                "several_giou",
                "several_recall",
                "duplicates",
            ),
            absent=True,
        ),
        Protocol(
            name="reasonseg",
            title="Reasoning segmentation (ReasonSeg)",
            metrics=("giou", "ciou"),
            pointed=True,
        ),
        Protocol(
            name="point_mask",
            title="Point to mask",
            asks=(("point", Kind.MASK),),
            metrics=("giou", "ciou", *_PRECISIONS),
        ),
        Protocol(
            name="box_mask",
            title="Box to mask",
            asks=(("box", Kind.MASK),),
            metrics=("giou", "ciou", *_PRECISIONS),
        ),
        Protocol(
            name="text4seg",
            title="RES and REC as the released evaluators count",
            metrics=("ciou", "giou", "rec_from_mask"),
            released=True,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one mask of a sample."""

    sample: Sample
    index: int
    """Index of the sample in its source."""
    which: int
    """Which of the sample's masks."""
    given: str
    """What the question names the object by: "text", "point" or "box"."""
    kind: Kind
    phrase: str
    """The expression; empty where a point or box is told."""
    clue: chat.Clue
    text: str
    """The question as it is asked."""
    asked: Example | None = None
    """The question as a task of boxes and clicks has it; None: it is one for outlines."""

    @property
    def example(self) -> Example:
        """The question as the task has it, judged on the host: its truth on devices is blank."""
        if self.asked is not None:
            return self.asked
        return RegionExample(
            key=self.sample.key,
            image=self.sample.image,
            question=self.text,
            answer="",
            kind=self.kind,
            mask=None,
        )

    @property
    def truth(self) -> Bool[np.ndarray, "H W"]:
        """The true mask."""
        return self.sample.masks[self.which]


def questions(
    protocol: Protocol,
    source: Source,
    *,
    task: Referring | Prompted,
    form: int = 0,
    seed: int = 0,
    indices: Iterable[int] | None = None,
    findings: Findings | None = None,
) -> Iterator[Question]:
    """Yields every question of a protocol, in the order of the source; always the same ones.

    Each expression of each mask is asked about once, also where the mask is empty. Points and
    boxes stand for each mask of one object; the point is one off the mask's border that seed,
    sample and mask choose.

    Args:
      protocol: of the questions.
      source: of the samples.
      task: whose words and decimals the questions have; one of boxes and clicks asks for what text
        names alone.
      form: number of the form of all questions for outlines, as in `chat.question`.
      seed: of the points.
      indices: of the samples; all if None.
      findings: is told of samples that cannot be read, which are passed over.

    Raises:
      ValueError: a sample's masks are not of its image's size, or there is no such form.
    """
    wanted = range(len(source)) if indices is None else indices
    for index, sample in sources.readable(source, wanted, findings):
        _check(sample)
        for which, (given, kind) in itertools.product(range(len(sample.masks)), protocol.asks):
            for phrase, clue in _clues(protocol, sample, which, given, (seed, index)):
                named = Question(sample, index, which, given, kind, phrase, clue, "")
                if isinstance(task, Referring):
                    text = task.question(clue, kind, form=form)
                    yield dataclasses.replace(named, text=text)
                else:
                    yield pointing_question(task, named, reasoning=protocol.name == "reasonseg")


def pointing_question(task: Prompted, named: Question, *, reasoning: bool = False) -> Question:
    """Returns a question with the words of a task of boxes and clicks.

    Args:
      task: that asks.
      named: what is asked about.
      reasoning: whether whole sentences and short phrases are asked about as the release asks
        about those of ReasonSeg.
    """
    wording: Wording = "expression"
    if reasoning:
        wording = "sentence" if named.phrase in named.sample.sentences else "phrase"
    example = task.ask(named.sample.image, named.phrase, wording=wording)
    example = dataclasses.replace(example, key=named.sample.key)
    return dataclasses.replace(named, text=example.question, asked=example)


def _clues(
    protocol: Protocol, sample: Sample, which: int, given: str, seeds: tuple[int, int]
) -> list[tuple[str, chat.Clue]]:
    """Returns the expressions of a mask with themselves as clues, or a place without one."""
    if given == "text":
        phrases = [phrase.strip() for phrase in sample.phrases[which]]
        if protocol.released:
            return [(phrase, phrase.lower().replace(",", "")) for phrase in phrases]
        return [(phrase, phrase) for phrase in phrases]
    mask = sample.masks[which]
    if not mask.any() or (sample.together and sample.together[which]):
        return []
    if given == "box":
        return [("", np.array(box_unit(mask)))]
    rng = np.random.default_rng([*seeds, which])
    return [("", np.array(interior_point_unit(mask, rng)))]


def _check(sample: Sample) -> None:
    shape, phrases = (len(sample.masks), *sample.image.shape[:2]), len(sample.phrases)
    for name in ("masks", "ignored", "covers"):
        value = getattr(sample, name)
        if value is not None and value.shape != shape:
            raise ValueError(
                f"sample {sample.key}: expected {name} of the image's size {shape}, got "
                f"{value.shape}; do: scale all of them alike"
            )
    if phrases != shape[0]:
        raise ValueError(
            f"sample {sample.key}: expected expressions for each of {shape[0]} masks, got "
            f"{phrases}; do: give () to masks that have none"
        )
