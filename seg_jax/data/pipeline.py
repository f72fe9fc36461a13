"""The pipeline: samples to questions to rows to batches, in an order that can be resumed."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import grain
import jax
import numpy as np

from seg_jax.data import buckets, packed_batches, packing, passing, priority, sources, workers
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Mixed, Source
from seg_jax.records import Batch, PackedBatch, Prompts, Sample, check_least
from seg_jax.tasks.task import Example, Task, Unfit

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """How batches are drawn."""

    batch: int = 32
    """Images of a batch, of all hosts together."""
    questions: int = 1
    """Number of questions about each image in supervised training, drawn independently."""
    packed_rows: int | None = None
    """Number of rows that an image's questions are packed into; None: a row each. A question that
    fits in none is left out."""
    packed_tokens: int | None = None
    """Tokens of a packed row; None: the layout's longest question and answer."""
    pack: packing.Pack | None = None
    """Rows of several images, in supervised training only: `batch` then counts rows. None: one
    image a row. Several questions about an image each repeat its tokens, but not its patches."""
    seed: int = 0
    """Seed of the order and of every random choice about a sample."""
    threads: int = 2
    """Number of threads that read; they share the process."""
    workers: int = 0
    """Number of worker processes; 0 keeps all reading in this process."""
    prefetch: int = 8
    """Number of rows that threads read ahead."""

    def __post_init__(self):
        check_least(self, "feed", batch=1, questions=1, packed_rows=1, packed_tokens=1)
        check_least(self, "feed", seed=0, threads=0, workers=0, prefetch=0)
        if self.pack is not None and (self.packed_rows or self.packed_tokens):
            raise ValueError(
                "feed: expected pack, or packed_rows and packed_tokens, got both; do: leave out "
                "the latter"
            )


class Batches(Iterator[Any]):
    """Endless numpy batches; each has the rows that this process holds.

    Batch i is the same whatever the number of processes, threads and workers, so the position is
    the number of batches drawn; a position of one number of processes is good for any other.
    """

    def __init__(
        self,
        rows: grain.MapDataset,
        feed: Feed,
        count: int,
        *,
        finish: Callable[[Any], Any] = lambda batch: batch,
        left_out: Findings | None = None,
        gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    ):
        """Begins at the first batch; each is handed to `finish` before it is given."""
        self._rows, self._feed, self._count, self._finish = rows, feed, count, finish
        self._drawn = 0
        self._iterator: Iterator[Any] | None = None
        self.waited = 0.0
        """Seconds that were spent on drawing."""
        self.tally = passing.Tally(left_out)
        """What was passed over, in the rows of this process and before."""
        self._gather = gather

    def __next__(self) -> Any:
        """Returns the next batch.

        Raises:
          Unfit: of many samples in succession none can become a row.
        """
        begin = time.monotonic()
        if self._iterator is None:
            self._iterator = self._begin()
        batch, told = next(self._iterator)
        passing.add_told(told, self.tally.drawn)
        batch = self._finish(batch)
        self._drawn += 1
        self.waited += time.monotonic() - begin
        return batch

    @property
    def turns(self) -> float:
        """Batches whose samples had their turn so far, by which passes are counted."""
        return float(self._drawn)

    @property
    def findings(self) -> Findings:
        """What was passed over, in the rows of this process and before."""
        return self.tally.findings

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values; all processes call it."""
        passed = self._gather(self.tally.drawn.as_json())
        return {"batches": self._drawn, "passed_over": self.tally.position(passed)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position; those of older runs do not say what was passed over."""
        self.tally.go_on_from(state.get("passed_over", {}))
        self._drawn, self._iterator = int(state["batches"]), None

    def _begin(self) -> Iterator[Any]:
        feed, left = self._feed, self._rows[self._drawn * self._count :]
        reading = grain.ReadOptions(feed.threads, feed.prefetch)
        if not feed.workers:
            return iter(left.to_iter_dataset(reading).batch(self._count, drop_remainder=True))
        # Workers take turns: whole batches, so that what is in one does not depend on them.
        whole = left.batch(self._count, drop_remainder=True)
        reading = grain.ReadOptions(feed.threads, -(-feed.prefetch // self._count))
        return workers.read_ahead(whole.to_iter_dataset(reading), feed.workers)


class PriorityBatches(Batches):
    """Endless numpy batches of prompts that were chosen by how well they were answered before.

    The order is that of `Batches`; a prompt whose turn comes is taken or not (see `Priority`). What
    comes next depends on what `note` was told last, so nothing is read ahead.
    """

    def __init__(
        self,
        rows: grain.MapDataset,
        feed: Feed,
        memory: priority.Memory,
        *,
        held: Sequence[int],
        **given: Any,
    ):
        """Begins at the first batch.

        Args:
          rows: of prompts, each with what was passed over for it, in the order of their turns.
          feed: how batches are drawn.
          memory: chooses turns.
          held: rows of each batch that this process reads, in order.
          **given: as for `Batches`.
        """
        super().__init__(rows, feed, len(held), **given)
        self.memory, self._held = memory, tuple(held)

    @property
    def turns(self) -> float:
        """Batches that those make up whose turn came, also of prompts that were not taken."""
        return self.memory.turns / self._feed.batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position and what is remembered as JSON values."""
        return super().get_state() | self.memory.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position."""
        self.memory.set_state(state)
        super().set_state(state)

    def _begin(self) -> Iterator[Any]:
        with ThreadPoolExecutor(max(1, self._feed.threads)) as readers:
            while True:
                turns = self.memory.next_turns(self._feed.batch)
                mine = [turns[place] for place in self._held]
                yield jax.tree.map(
                    lambda *leaves: np.stack(leaves), *readers.map(self._rows.__getitem__, mine)
                )


def batches(
    source: Source,
    task: Task,
    encoder: Encoder,
    *,
    feed: Feed,
    rows: Literal["sft", "prompts"],
    local_rows: Sequence[int] | None = None,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    left_out: Findings | None = None,
    answer_tokens: int | None = None,
    first: priority.Priority | None = None,
) -> Batches | packed_batches.PackedBatches:
    """Returns an endless iterator of numpy batches that resumes exactly.

    A sample that cannot become a row (see `Unfit`) is passed over and counted; another one takes
    its place.

    Random choices belong to the sample's index, so they do not depend on the number of processes,
    threads or workers.

    Args:
      source: where the samples come from.
      task: asks about the samples.
      encoder: makes rows of the questions.
      feed: how batches are drawn.
      rows: "sft", questions with answers, or "prompts", questions alone.
      local_rows: rows of each batch that this process reads, in order; all if None.
      gather: gives what all processes have, plain values, in each of them; packed rows and prompts
        in buckets need it.
      left_out: what is missing from the source; the iterator's findings begin with it.
      answer_tokens: columns of the true answer that prompts have with them; None: without it.
      first: which prompts come up rather than others; None: all alike.
    """
    count = feed.questions if rows == "sft" else 1
    dataset = _samples(source, feed.seed).random_map(_Ask(task, count))
    dataset = passing.PassOver(dataset.map(_Encode(task, encoder, rows, feed, answer_tokens)))
    if local_rows is None:
        local_rows = range(feed.batch)
    if rows == "sft" and feed.pack is not None:
        drawn = packed_batches.PackedBatches(
            dataset,
            encoder,
            feed.pack,
            local_rows=local_rows,
            rows=feed.batch,
            threads=feed.threads,
            workers=feed.workers,
            gather=gather,
            left_out=left_out,
        )
    else:
        trim = functools.partial(buckets.trim_padding, layout=encoder.layout, gather=gather)
        finish = {"finish": trim} if rows == "prompts" else {}
        kept = {"left_out": left_out, "gather": gather}
        if first is None or first.by == "off":
            dataset = _LocalRows(dataset, feed.batch, tuple(local_rows))
            drawn = Batches(dataset, feed, len(local_rows), **finish, **kept)
        else:
            order: Any = _numbers(source, feed.seed)
            memory = priority.Memory(
                first,
                prompt_of=lambda turn: int(order[turn]),
                prompts=len(source),
                seed=feed.seed,
            )
            drawn = PriorityBatches(dataset, feed, memory, held=local_rows, **finish, **kept)
    return drawn


def _samples(source: Source, seed: int) -> grain.MapDataset:
    """Returns the samples of a source round by round, each round in another order.

    Several sources take turns by their weights; a small one goes more rounds than a large one.
    """
    if not isinstance(source, Mixed):
        return _rounds(source, seed)
    return _turns(source.parts, source.weights, seed)


def _numbers(source: Source, seed: int) -> grain.MapDataset:
    """Returns the numbers of a source's samples in the order of `_samples`; none is read."""
    if not isinstance(source, Mixed):
        return _rounds(range(len(source)), seed)
    ends = np.cumsum([len(part) for part in source.parts]).tolist()
    return _turns([*map(range, [0, *ends], ends)], source.weights, seed)


def _rounds(source: Any, seed: int) -> grain.MapDataset:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _turns(parts: Sequence[Any], weights: Sequence[float], seed: int) -> grain.MapDataset:
    rounds = [_rounds(part, seed + number) for number, part in enumerate(parts)]
    return grain.MapDataset.mix(rounds, weights=weights)


class _LocalRows(grain.MapDataset):
    """A data set of batches, reduced to the rows of each batch that this process reads."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch: int, held: tuple[int, ...]):
        super().__init__(parent)
        self._batch, self._places = batch, held

    def __len__(self) -> int:
        return len(self._parent) // self._batch * len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._places))
        return self._parent[batch * self._batch + self._places[place]]


# Classes, not closures: worker processes receive them by pickle.
@dataclasses.dataclass(frozen=True)
class _Ask(grain.transforms.RandomMap):
    task: Task
    count: int

    def random_map(self, element: Sample, rng: np.random.Generator) -> list[Example]:
        return [self.task.example(element, rng) for _ in range(self.count)]


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    task: Task
    encoder: Encoder
    rows: Literal["sft", "prompts"]
    feed: Feed
    answer_tokens: int | None = None

    def map(self, element: list[Example]) -> Batch | packing.Item | Prompts:
        try:
            return self._row(element)
        except Unfit as error:
            raise type(error)(f"{element[0].key}: {error}") from None

    def _row(self, element: list[Example]) -> Batch | packing.Item | Prompts:
        feed = self.feed
        if self.rows == "sft" and feed.pack is not None:
            item = packing.encode_item(self.encoder, element)
            packing.check_fits(item.size, feed.pack)
            return item
        if self.rows == "sft":
            return self.encoder.batch_row(element, rows=feed.packed_rows, length=feed.packed_tokens)
        return self.encoder.prompt_row(self.task, element[0], answer_tokens=self.answer_tokens)


class Made(NamedTuple):
    """A row of a run with what it was made of."""

    row: Batch | PackedBatch | Prompts
    """Without a batch axis."""
    samples: list[Sample]
    """The sample of each image of the row."""
    examples: list[list[Example]]
    """The questions about each; those that a packed row has no room for too."""


def rows_in_order(
    source: Source,
    task: Task,
    encoder: Encoder,
    *,
    feed: Feed,
    rows: Literal["sft", "prompts"],
    met: Findings,
    answer_tokens: int | None = None,
) -> Generator[Made, None, None]:
    """Yields the rows of `batches` one by one, each with its samples and questions, without end.

    Of rows of several images they are the first row of every batch.

    Args:
      source: where the samples come from.
      task: asks about the samples.
      encoder: makes rows of the questions.
      feed: how batches are drawn.
      rows: as in `batches`.
      met: is told what was passed over.
      answer_tokens: as in `batches`.

    Raises:
      Unfit: of many samples in succession none can become a row.
    """
    count = feed.questions if rows == "sft" else 1
    asked = _samples(source, feed.seed).random_map(_AskAndKeep(task, count))
    encode = _EncodeAndKeep(task, encoder, rows, feed, answer_tokens)
    made = passing.PassOver(asked.map(encode))
    _ = made[0]  # What Grain makes of a data set at first use, it makes for one thread.

    def read(number: int) -> tuple[Any, Any]:
        (row, *beside), told = made[number]
        return row, (*beside, told)

    with ThreadPoolExecutor(max(1, feed.threads)) as threads:
        if rows == "sft" and feed.pack is not None:
            drawn = packed_batches.lane_rows(
                lambda number: threads.submit(read, number * feed.batch), encoder, feed.pack
            )
        else:
            ahead = _ahead(lambda number: threads.submit(read, number), 2 * feed.threads + 1)
            drawn = ((row, [beside]) for row, beside in ahead)
        for row, kept in drawn:
            passing.add_told([told for _, _, told in kept], met)
            yield Made(row, [one for one, _, _ in kept], [some for _, some, _ in kept])


def _ahead(read: Callable[[int], Future[Any]], most: int) -> Iterator[Any]:
    """Yields what is read by number, so many at once, without end."""
    waiting = collections.deque(map(read, range(most)))
    for number in itertools.count(most):
        yield waiting.popleft().result()
        waiting.append(read(number))


class _AskAndKeep(_Ask):
    """Keeps the sample with the questions that are asked about it."""

    def random_map(self, element: Sample, rng: np.random.Generator) -> Any:
        return element, super().random_map(element, rng)


class _EncodeAndKeep(_Encode):
    """Keeps the sample and its questions with the row."""

    def map(self, element: Any) -> Any:
        sample, examples = element
        return super().map(examples), sample, examples


def batches_in_order(
    source: Source | Sequence[Sample],
    task: Task,
    encoder: Encoder,
    *,
    batch: int,
    seed: int = 0,
    findings: Findings | None = None,
) -> Iterator[tuple[list[Example], Any]]:
    """Yields (examples, prompt batch) once over the source; the last batch is padded by repeats.

    The question about sample i depends on i and the seed only: evaluations are comparable.

    Args:
      source: where the samples come from.
      task: asks about them.
      encoder: makes rows of the questions.
      batch: rows of a batch.
      seed: of the questions.
      findings: is told which samples were passed over, and why; None: the first one is an error.

    Raises:
      Unfit: a sample cannot become a row, and there are no findings to tell.
    """
    met = Findings() if findings is None else findings
    group: list[tuple[Example, Any]] = []
    for index, sample in sources.readable(source, range(len(source)), findings):
        try:
            example = task.example(sample, np.random.default_rng([seed, index]))
            group.append((example, encoder.prompt_row(task, example)))
        except Unfit as error:
            if findings is None:
                raise
            met.add_error("passed over", type(error)(f"{sample.key}: {error}"))
        if len(group) == batch:
            yield _whole_batch(group, batch, encoder)
            group = []
    if group:
        yield _whole_batch(group, batch, encoder)


def _whole_batch(
    group: Sequence[tuple[Example, Any]], batch: int, encoder: Encoder
) -> tuple[list[Example], Any]:
    """Returns the examples of a group, and its prompts, the last repeated up to a whole batch."""
    prompts = [prompt for _, prompt in group]
    prompts += [prompts[-1]] * (batch - len(prompts))
    return [example for example, _ in group], buckets.batch_of_rows(prompts, encoder.layout)


def local_rows(sharding: jax.sharding.Sharding, rows: int) -> list[int]:
    """Returns which rows of a batch lie on the devices of this process, in order."""
    places = sharding.addressable_devices_indices_map((rows,)).values()
    return sorted({row for part in places if part for row in range(*part[0].indices(rows))})


def to_device(batch: Any, sharding: jax.sharding.Sharding, *, rows: int) -> Any:
    """Returns the batch on the devices, rows spread by the sharding; one put for all leaves.

    Args:
      batch: the rows of the batch that this process holds, on the host.
      sharding: how rows are spread over devices.
      rows: number of rows in all processes together.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    place = {row: number for number, row in enumerate(local_rows(sharding, rows))}

    def spread(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return leaf[place[start] : place[start] + stop - start]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(spread, batch)
