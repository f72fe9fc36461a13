"""Reads packed rows in an order that resumes, whatever the number of processes and workers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np

from seg_jax.data import packing, passing, workers
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.data.packing import Item, Pack, Size
from seg_jax.records import PackedBatch


class PackedBatches(Iterator[PackedBatch]):
    """Endless numpy batches of packed rows; each has the rows that this process holds.

    Row r of all batches is one lane: it depends neither on other rows nor on the number of
    processes, threads and workers. A position is that of all lanes.
    """

    def __init__(
        self,
        items: grain.MapDataset,
        encoder: Encoder,
        pack: Pack,
        *,
        local_rows: Sequence[int],
        rows: int,
        threads: int,
        workers: int,
        gather: Callable[[Any], list[Any]] = lambda mine: [mine],
        left_out: Findings | None = None,
    ):
        """Begins at the first items.

        Args:
          items: an endless data set that is read by number, of items each of which fits a row,
            with what was passed over for it.
          encoder: the encoder that made them.
          pack: size of the rows.
          local_rows: rows of each batch that this process reads, in order.
          rows: rows of a batch in all processes together.
          threads: number of threads that read in each process.
          workers: number of processes that read, lowered to a divisor of the local rows.
          gather: gives what all processes have, plain values, in each of them.
          left_out: what is missing from the items.
        """
        self._make = functools.partial(Rows, items, encoder, pack, lanes=rows, threads=threads)
        self._positions = {row: [0] for row in local_rows}
        self._row_count, self._gather = rows, gather
        self._workers = max(n for n in range(workers + 1) if n == 0 or len(local_rows) % n == 0)
        self._drawn = 0
        self._iterator: Iterator[Any] | None = None
        self.waited = 0.0
        """Seconds that were spent on drawing."""
        self.tally = passing.Tally(left_out)
        """What was passed over, in the rows of this process and before."""

    def __next__(self) -> PackedBatch:
        """Returns the next batch."""
        begin = time.monotonic()
        if self._iterator is None:
            self._iterator = self._begin()
        drawn = [next(self._iterator) for _ in self._positions]
        rows = [row for row, _, _ in drawn]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        positions = [position.tolist() for _, position, _ in drawn]
        for _, _, told in drawn:
            passing.add_told(told, self.tally.drawn)
        self._positions = dict(zip(self._positions, positions, strict=True))
        self._drawn += 1
        self.waited += time.monotonic() - begin
        return batch

    @property
    def findings(self) -> Findings:
        """What was passed over, in the rows of this process and before."""
        return self.tally.findings

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values; all processes call it."""
        parts = self._gather(self._own_state())
        every = dict(one for lanes, _ in parts for one in lanes)
        return {
            "batches": self._drawn,
            "lanes": [every.get(row) for row in range(self._row_count)],
            "passed_over": self.tally.position(passed for _, passed in parts),
        }

    def _own_state(self) -> list[Any]:
        """Returns what others need to know of this process, as JSON values."""
        return [[*self._positions.items()], self.tally.drawn.as_json()]

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position; those of older runs do not say what was passed over.

        Raises:
          ValueError: it is not one of as many packed rows.
        """
        lanes = state.get("lanes", [])
        if len(lanes) != self._row_count:
            raise ValueError(
                f"feed: expected a position of {self._row_count} packed rows, got one of "
                f"{len(lanes)}; do: go on with the same feed.batch and feed.pack, or begin anew"
            )
        self.tally.go_on_from(state.get("passed_over", {}))
        self._positions = {row: lanes[row] for row in self._positions}
        self._drawn, self._iterator = int(state["batches"]), None

    def _begin(self) -> Iterator[Any]:
        rows = self._make(positions=self._positions)
        if not self._workers:
            return iter(rows)
        return workers.read_ahead(rows, self._workers)


class Rows(grain.IterDataset):
    """Endless rows of some lanes by turns, each with the position of its lane after it.

    With each comes also what was passed over for its images, as many texts as those are.

    Lane r packs items r, r + lanes, r + 2 lanes, .. of a data set, in whichever process it is read.
    """

    def __init__(
        self,
        items: grain.MapDataset,
        encoder: Encoder,
        pack: Pack,
        *,
        positions: Mapping[int, Sequence[int]],
        lanes: int,
        threads: int,
    ):
        """Takes the lanes with their positions, [0] being the first, in the order of their turns.

        Args:
          items: what is packed; it is read by number, again whenever a position is gone back to.
          encoder: the encoder that made the items.
          pack: size of the rows.
          positions: position of each lane.
          lanes: number of lanes in all processes together.
          threads: number of threads that read items; 0: each is read when it is needed.
        """
        super().__init__()
        self.items, self.encoder, self.pack = items, encoder, pack
        self.positions, self.lanes, self.threads = dict(positions), lanes, threads

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Keeps the lanes of one of several workers that take turns; Grain calls it."""
        del sequential_slice
        self.positions = dict([*self.positions.items()][sl])

    def __iter__(self) -> grain.DatasetIterator:
        return _Turns(self)


class _Turns(grain.DatasetIterator):
    """Rows of lanes by turns."""

    def __init__(self, rows: Rows):
        super().__init__()
        self._rows = rows
        self._lanes: list[_Lane] = []
        self._pool: ThreadPoolExecutor | None = None

    def __next__(self) -> tuple[PackedBatch, np.ndarray, np.ndarray]:
        if not self._lanes:
            self._begin()
        lane = self._lanes.pop(0)
        drawn = lane.next_items()
        row = packing.pack_row(self._rows.encoder, [item for item, _ in drawn], self._rows.pack)
        position = np.array(lane.position)
        lane.read_ahead()
        self._lanes.append(lane)
        return row, position, np.array([told for _, told in drawn])

    def _begin(self) -> None:
        rows = self._rows
        # What Grain makes of a data set at first use, it makes for one thread.
        _ = rows.items[min(rows.positions)]
        self._pool = ThreadPoolExecutor(rows.threads) if rows.threads else None
        self._lanes = [
            _Lane(functools.partial(self._read, lane), rows.pack, position)
            for lane, position in rows.positions.items()
        ]
        for lane in self._lanes:
            lane.read_ahead()

    def _read(self, lane: int, number: int) -> Future[Any]:
        index = lane + number * self._rows.lanes
        if self._pool is not None:
            return self._pool.submit(self._rows.items.__getitem__, index)
        done: Future[Any] = Future()
        done.set_result(self._rows.items[index])
        return done

    def close(self) -> None:
        """Ends the threads."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # Grain requires these of every iterator; positions travel beside the rows.
    def get_state(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing."""


def lane_rows(
    read: Callable[[int], Future[tuple[Item, Any]]], encoder: Encoder, pack: Pack
) -> Iterator[tuple[PackedBatch, list[Any]]]:
    """Yields the rows of one lane, each with what came beside its items, without end.

    Args:
      read: begins to read an item of the lane by its number, with something beside it.
      encoder: that made the items.
      pack: size of the rows.
    """
    lane = _Lane(read, pack, [0])
    while True:
        drawn = lane.next_items()
        row = packing.pack_row(encoder, [item for item, _ in drawn], pack)
        yield row, [beside for _, beside in drawn]


class _Lane:
    """The items of one row of every batch: they wait, are chosen, and leave row by row.

    Its position is the number of the next item, then the numbers of the items that wait.
    """

    def __init__(self, read: Callable[[int], Future[Any]], pack: Pack, position: Sequence[int]):
        self._read, self._pack = read, pack
        self._next, *waiting = position
        self._waiting = [(number, read(number)) for number in waiting]

    @property
    def position(self) -> list[int]:
        """Where the lane goes on from."""
        return [self._next] + [number for number, _ in self._waiting]

    def read_ahead(self) -> None:
        """Starts to read as many items as the next row chooses from."""
        while len(self._waiting) < self._pack.ahead:
            self._add()

    def next_items(self) -> list[tuple[Item, Any]]:
        """Returns the items of the next row, each with what was passed over for it."""
        pack = self._pack
        self.read_ahead()
        items = [item.result() for _, item in self._waiting]
        # More than `ahead` where items are small, so that there is a choice.
        while not _fill_two_rows(sizes := [item.size for item, _ in items], pack):
            items.append(self._add().result())
        chosen = packing.choose_items(sizes, pack)
        self._waiting = [one for place, one in enumerate(self._waiting) if place not in chosen]
        return [items[place] for place in chosen]

    def _add(self) -> Future[Any]:
        item = self._read(self._next)
        self._waiting.append((self._next, item))
        self._next += 1
        return item


def _fill_two_rows(sizes: Sequence[Size], pack: Pack) -> bool:
    """Returns whether items are more than two rows hold."""
    return not packing.fits(sizes, Size(2 * pack.tokens, 2 * pack.patches))
