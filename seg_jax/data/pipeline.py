"""The pipeline: samples to questions to rows to batches, in an order that can be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from seg_jax.data.encode import Encoder
from seg_jax.data.sources import Source
from seg_jax.records import Batch, Prompts, Sample
from seg_jax.tasks.task import Example, Task

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """How batches are drawn."""

    batch: int = 32
    """Pictures of all hosts together."""
    questions: int = 1
    """Questions about each picture in supervised training, drawn independently."""
    packed_rows: int | None = None
    """Rows that they are packed into; None: a row each. What fits in none is left out."""
    packed_tokens: int | None = None
    """Tokens of such a row; None: the layout's longest question and answer."""
    seed: int = 0
    """Of the order and of every random choice about a sample."""
    threads: int = 2
    """Reading threads; they share the process."""
    workers: int = 0
    """Worker processes; 0 keeps all reading in this process."""
    prefetch: int = 8
    """Rows that threads read ahead."""


def batches(
    source: Source,
    task: Task,
    encoder: Encoder,
    feed: Feed,
    *,
    rows: Literal["sft", "prompts"],
    shard: int | None = None,
    shards: int | None = None,
) -> grain.DatasetIterator:
    """Returns an endless iterator of numpy batches, this host's share of them.

    Its `get_state` and `set_state` make it resume exactly. Random choices belong to the sample's
    index, so they do not depend on the number of hosts, threads or workers.

    Raises:
      ValueError: the batch does not divide among the hosts.
    """
    shards = jax.process_count() if shards is None else shards
    shard = jax.process_index() if shard is None else shard
    if feed.batch % shards:
        raise ValueError(
            f"feed.batch: expected a multiple of {shards} hosts, got {feed.batch}; change it"
        )

    count = feed.questions if rows == "sft" else 1
    dataset = (
        grain.MapDataset.source(source)
        .seed(feed.seed)
        .shuffle()
        .repeat()
        .random_map(_Ask(task, count))
        .map(_Encode(encoder, rows, feed))[shard::shards]
        .to_iter_dataset(grain.ReadOptions(feed.threads, feed.prefetch))
        .batch(feed.batch // shards, drop_remainder=True)
    )
    if feed.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own, of which we set none.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=feed.workers))
    return iter(dataset)


# Classes, not closures: worker processes get them by pickle.
@dataclasses.dataclass(frozen=True)
class _Ask(grain.transforms.RandomMap):
    task: Task
    count: int

    def random_map(self, element: Sample, rng: np.random.Generator) -> list[Example]:
        return [self.task.example(element, rng) for _ in range(self.count)]


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    encoder: Encoder
    rows: Literal["sft", "prompts"]
    feed: Feed

    def map(self, element: list[Example]) -> Batch | Prompts:
        if self.rows == "sft":
            feed = self.feed
            return self.encoder.batch_row(element, rows=feed.packed_rows, length=feed.packed_tokens)
        return self.encoder.prompt_row(element[0])


def in_order(
    source: Source, task: Task, encoder: Encoder, *, batch: int, seed: int = 0
) -> Iterator[tuple[list[Example], Any]]:
    """Yields (examples, prompt batch) once over the source; the last batch is padded by repeats.

    The question about sample i depends on i and the seed only: evaluations are comparable.
    """
    for start in range(0, len(source), batch):
        indices = range(start, min(start + batch, len(source)))
        examples = [task.example(source[i], np.random.default_rng([seed, i])) for i in indices]
        prompts = [encoder.prompt_row(example) for example in examples]
        prompts += [prompts[-1]] * (batch - len(prompts))
        yield examples, jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)


def to_device(batch: Any, sharding: jax.sharding.Sharding) -> Any:
    """Returns the batch on the devices, rows spread by the sharding; one put for all leaves."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
