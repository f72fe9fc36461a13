"""Packs images, with what is said of them, into rows of fixed length in an order that resumes."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from seg_jax.data import workers
from seg_jax.data.encode import Encoder, PatchGrid, TooLong
from seg_jax.geometry import grid
from seg_jax.records import Images, PackedBatch, Tokens
from seg_jax.tasks.task import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows of several images, each with the conversations about it."""

    tokens: int = 3072
    """Of a row, padding included."""
    patches: int = 6656
    """Of a row, padding included."""
    ahead: int = 13
    """Images among which a row chooses, at least; as many are held for every row of a batch."""

    def __post_init__(self):
        if min(self.tokens, self.patches, self.ahead) < 1:
            raise ValueError(f"feed.pack: expected whole numbers >= 1, got {self}")


SUBSET_ITEMS = 12
"""Pieces among which the best are found by looking at all their subsets."""


class Item(NamedTuple):
    """An image and the conversations about it, before they have a place in a row (host)."""

    tokens: Tokens
    """Without padding; conversations are numbered from 1, visual tokens from 0."""
    targets: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, " n"]
    patches: UInt8[np.ndarray, "s C"]
    grid: PatchGrid

    @property
    def size(self) -> Size:
        """What it takes of a row."""
        return Size(len(self.weights), len(self.patches))


class Size(NamedTuple):
    """What something takes of a row."""

    tokens: int
    patches: int


def encode_item(encoder: Encoder, examples: Sequence[Example]) -> Item:
    """Returns an image with a conversation for each question about it.

    Raises:
      TooLong: prompt, answer or image exceeds the layout.
      ValueError: the examples are not about one image.
    """
    image = examples[0].image
    if any(example.image is not image for example in examples):
        raise ValueError("expected examples about one image, got several; encode each alone")
    return item_from_patches(encoder, examples, *encoder.image_patches(image))


def item_from_patches(
    encoder: Encoder,
    examples: Sequence[Example],
    patches: UInt8[np.ndarray, "s C"],
    rows_and_columns: PatchGrid,
) -> Item:
    """Returns the piece of an image that is cut into patches already.

    Raises:
      TooLong: prompt or answer exceeds the layout.
    """
    turns = [encoder.turn(one.question, rows_and_columns, one.answer) for one in examples]
    ids = np.array([token for turn in turns for part in turn for token in part], np.int32)
    targets = np.append(ids[1:], np.int32(encoder.tokenizer.pad_id))
    weights = np.zeros(len(ids), np.float32)
    segments, visual_tokens = np.zeros(len(ids), np.int32), np.full(len(ids), -1, np.int32)
    positions = np.zeros((3, len(ids)), np.int32)
    at = 0
    for number, turn in enumerate(turns, start=1):
        answer = at + len(turn.prompt)
        end = answer + len(turn.answer)
        segments[at:end] = number
        weights[answer - 1 : end - 1] = 1.0
        is_visual = ids[at:end] == encoder.tokenizer.image_id
        visual_tokens[at:end][is_visual] = np.arange(np.count_nonzero(is_visual))
        laid = grid.rotary_positions(is_visual, [rows_and_columns], merge=encoder.layout.merge)
        positions[:, at:end] = laid.positions
        at = end
    tokens = Tokens(ids, segments, positions, visual_tokens)
    return Item(tokens, targets, weights, patches, rows_and_columns)


def pack_row(encoder: Encoder, pieces: Sequence[Item], pack: Pack) -> PackedBatch:
    """Returns a row (no batch axis) of pieces that fit into it, one after another.

    Conversations, images, windows and visual tokens are numbered anew, so that nothing sees what
    is of another piece; positions begin anew with every conversation.
    """
    layout, pad = encoder.layout, encoder.tokenizer.pad_id
    ids, targets = np.full((2, pack.tokens), pad, np.int32)
    segments, weights = np.zeros(pack.tokens, np.int32), np.zeros(pack.tokens, np.float32)
    positions, visual_tokens = (
        np.zeros((3, pack.tokens), np.int32),
        np.full(pack.tokens, -1, np.int32),
    )
    patches = np.zeros((pack.patches, 3 * layout.patch**2), np.uint8)
    place = np.zeros((pack.patches, 2), np.int32)
    window, image = np.full((2, pack.patches), -1, np.int32)
    at = spot = conversations = windows = 0
    for number, one in enumerate(pieces):
        end, last = at + one.size.tokens, spot + one.size.patches
        ids[at:end], targets[at:end], weights[at:end] = one.tokens.ids, one.targets, one.weights
        segments[at:end] = one.tokens.segments + conversations
        positions[:, at:end] = one.tokens.positions
        first = spot // layout.merge**2
        visual_tokens[at:end] = np.where(
            one.tokens.visual_tokens < 0, -1, one.tokens.visual_tokens + first
        )
        patches[spot:last] = one.patches
        place[spot:last], own = _places_and_windows(*one.grid, layout.merge, layout.window_tokens)
        window[spot:last], image[spot:last] = own + windows, number
        conversations += int(one.tokens.segments[-1])
        windows += int(own[-1]) + 1
        at, spot = end, last
    tokens = Tokens(ids, segments, positions, visual_tokens)
    return PackedBatch(tokens, Images(patches, place, window, image), targets, weights)


@functools.lru_cache(maxsize=1024)
def _places_and_windows(rows: int, columns: int, merge: int, window_tokens: int) -> tuple[Any, Any]:
    """Returns place and window of each patch of an image; the last window is that of the last."""
    window = grid.windows(rows, columns, merge=merge, window_tokens=window_tokens)
    return grid.patch_positions(rows, columns, merge), window


def choose_items(sizes: Sequence[Size], pack: Pack) -> list[int]:
    """Returns which of the pieces that wait make the next row, in their order.

    The one that waits longest is always among them, so that none is left behind; the others are
    those of the `CHOICE` after it that fill the row best, tokens and patches counting alike.
    """
    found, left = [0], Size(pack.tokens - sizes[0].tokens, pack.patches - sizes[0].patches)
    rest = [*range(1, len(sizes))]
    # Small pieces: a row takes more of them than there are to choose from.
    while len(rest) > SUBSET_ITEMS and _fits([sizes[index] for index in rest[:SUBSET_ITEMS]], left):
        found.append(rest.pop(0))
        tokens, patches = sizes[found[-1]]
        left = Size(left.tokens - tokens, left.patches - patches)
    rest = rest[:SUBSET_ITEMS]
    # What every subset takes: bit b of its number tells whether it has piece b.
    tokens, patches = np.zeros((2, 1), np.int64)
    for index in rest:
        tokens = np.concatenate([tokens, tokens + sizes[index].tokens])
        patches = np.concatenate([patches, patches + sizes[index].patches])
    fits = (tokens <= left.tokens) & (patches <= left.patches)
    best = int(np.argmax(fits * (tokens / pack.tokens + patches / pack.patches)))
    return sorted([*found, *(index for bit, index in enumerate(rest) if best >> bit & 1)])


def _fits(sizes: Sequence[Size], room: Size) -> bool:
    """Returns whether all of them fit together."""
    return all(sum(some) <= most for some, most in zip(zip(*sizes, strict=True), room, strict=True))


class _Lane:
    """The pieces of one row of every batch: they wait, are chosen, and leave row by row.

    Its position is the number of the next piece, then those of the pieces that wait.
    """

    def __init__(self, read: Callable[[int], Future[Any]], pack: Pack, position: Sequence[int]):
        self._read, self._pack = read, pack
        self._next, *waiting = position
        self._waiting = [(number, read(number)) for number in waiting]

    @property
    def position(self) -> list[int]:
        """What the lane goes on from."""
        return [self._next, *(number for number, _ in self._waiting)]

    def read_ahead(self) -> None:
        """Lets as many pieces be read as are to be chosen from."""
        while len(self._waiting) < self._pack.ahead:
            self._add()

    def row(self) -> list[Item]:
        """Returns the pieces of the next row.

        Raises:
          TooLong: a piece is longer than a row.
        """
        pack = self._pack
        self.read_ahead()
        pieces = [piece.result() for _, piece in self._waiting]
        # Where pieces are small, so many that there is a choice.
        while not _is_plenty(sizes := [piece.size for piece in pieces], pack):
            pieces.append(self._add().result())
        for size in sizes:
            if size.tokens > pack.tokens or size.patches > pack.patches:
                raise TooLong(
                    f"expected at most {pack.tokens} tokens and {pack.patches} patches in a row, "
                    f"got an image with {size.tokens} and {size.patches}; raise feed.pack.tokens "
                    "and feed.pack.patches"
                )
        which = choose_items(sizes, pack)
        self._waiting = [one for place, one in enumerate(self._waiting) if place not in which]
        return [pieces[place] for place in which]

    def _add(self) -> Future[Any]:
        piece = self._read(self._next)
        self._waiting.append((self._next, piece))
        self._next += 1
        return piece


def _is_plenty(sizes: Sequence[Size], pack: Pack) -> bool:
    """Returns whether pieces are more than two rows hold."""
    return not _fits(sizes, Size(2 * pack.tokens, 2 * pack.patches))


class Rows(grain.IterDataset):
    """Endless rows of some lanes by turns, each with the position of its lane behind it.

    Lane r packs pieces r, r + of, r + 2 of, .. of a data set, whoever asks for it.
    """

    def __init__(
        self,
        pieces: grain.MapDataset,
        encoder: Encoder,
        pack: Pack,
        *,
        positions: Mapping[int, Sequence[int]],
        lanes: int,
        threads: int,
    ):
        """Takes the lanes with their positions, [0] being the first, in the order of their turns.

        Args:
          pieces: to be packed; read by number, as often as a position is gone back to.
          encoder: that made them.
          pack: of the rows.
          positions: of each lane.
          lanes: number of lanes in all processes together.
          threads: that read pieces; none: each is read when it is asked for.
        """
        super().__init__()
        self.pieces, self.encoder, self.pack = pieces, encoder, pack
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

    def __next__(self) -> tuple[PackedBatch, np.ndarray]:
        if not self._lanes:
            self._begin()
        lane = self._lanes.pop(0)
        row = pack_row(self._rows.encoder, lane.row(), self._rows.pack)
        position = np.array(lane.position)
        lane.read_ahead()
        self._lanes.append(lane)
        return row, position

    def _begin(self) -> None:
        rows = self._rows
        # What Grain makes of a data set at first use, it makes for one thread.
        _ = rows.pieces[min(rows.positions)]
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
            return self._pool.submit(self._rows.pieces.__getitem__, index)
        done: Future[Any] = Future()
        done.set_result(self._rows.pieces[index])
        return done

    def close(self) -> None:
        """Lets go of the threads."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # Grain asks every iterator; positions travel beside the rows.
    def get_state(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class PackedBatches(Iterator[PackedBatch]):
    """Endless numpy batches of packed rows, of each the rows that this process holds.

    Row r of all batches is one lane: it depends neither on other rows nor on the number of
    processes, threads and workers. A position is that of all lanes.
    """

    def __init__(
        self,
        pieces: grain.MapDataset,
        encoder: Encoder,
        pack: Pack,
        *,
        local_rows: Sequence[int],
        rows: int,
        threads: int,
        workers: int,
        gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    ):
        """Begins at the first pieces.

        Args:
          pieces: a data set of them, endless, that is read by number.
          encoder: that made them.
          pack: of the rows.
          local_rows: rows of each batch that this process reads, in order.
          rows: rows of a batch in all processes together.
          threads: that read in each process.
          workers: processes that read; so many that they divide the rows that are held are used.
          gather: gives what all processes have, plain values, in each of them.
        """
        self._make = functools.partial(Rows, pieces, encoder, pack, lanes=rows, threads=threads)
        self._positions = {row: [0] for row in local_rows}
        self._row_count, self._gather = rows, gather
        self._workers = max(n for n in range(workers + 1) if n == 0 or len(local_rows) % n == 0)
        self._drawn = 0
        self._iterator: Iterator[Any] | None = None
        self.waited = 0.0
        """Seconds that were spent on drawing."""

    def __next__(self) -> PackedBatch:
        """Returns the next batch."""
        begin = time.monotonic()
        if self._iterator is None:
            self._iterator = self._begin()
        drawn = [next(self._iterator) for _ in self._positions]
        rows = [row for row, _ in drawn]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        positions = [position.tolist() for _, position in drawn]
        self._positions = dict(zip(self._positions, positions, strict=True))
        self._drawn += 1
        self.waited += time.monotonic() - begin
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position, what JSON knows; all processes call it."""
        every = dict(one for part in self._gather([*self._positions.items()]) for one in part)
        return {"batches": self._drawn, "lanes": [every.get(row) for row in range(self._row_count)]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position.

        Raises:
          ValueError: it is not one of as many packed rows.
        """
        lanes = state.get("lanes", [])
        if len(lanes) != self._row_count:
            raise ValueError(
                f"feed: expected a position of {self._row_count} packed rows, got one of "
                f"{len(lanes)}; do: go on with the same feed.batch and feed.pack, or begin anew"
            )
        self._positions = {row: lanes[row] for row in self._positions}
        self._drawn, self._iterator = int(state["batches"]), None

    def _begin(self) -> Iterator[Any]:
        rows = self._make(positions=self._positions)
        if not self._workers:
            return iter(rows)
        return workers.read_ahead(rows, self._workers)
