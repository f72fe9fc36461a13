"""Packs images and the conversations about them into rows of a fixed length."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from seg_jax.data.encode import Encoder, PatchedImage, PatchGrid
from seg_jax.geometry import grid
from seg_jax.records import Images, PackedBatch, Tokens
from seg_jax.tasks.task import Example, TooLong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows of several images, each with the conversations about it."""

    tokens: int = 3072
    """Tokens of a row, padding included."""
    patches: int = 6656
    """Patches of a row, padding included."""
    ahead: int = 13
    """The least number of images from which a row chooses; every row of a batch holds as many."""

    def __post_init__(self):
        if min(self.tokens, self.patches, self.ahead) < 1:
            raise ValueError(
                f"feed.pack: expected whole numbers >= 1, got {self}; do: give 1 or more of each"
            )


SUBSET_ITEMS = 12
"""Number of items whose subsets are all tried to find the best one."""


class Item(NamedTuple):
    """An image and the conversations about it, before they have a place in a row (host)."""

    tokens: Tokens
    """Tokens without padding; conversations are numbered from 1, visual tokens from 0."""
    targets: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, " n"]
    patches: UInt8[np.ndarray, "s C"]
    grid: PatchGrid

    @property
    def size(self) -> Size:
        """How many tokens and patches it takes in a row."""
        return Size(len(self.weights), len(self.patches))


class Size(NamedTuple):
    """A number of tokens and of patches in a row."""

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
        raise ValueError(
            f"sample {examples[0].key}: expected examples about one image, got several; do: encode "
            "each alone"
        )
    return item_from_patches(encoder, examples, encoder.image_patches(image))


def check_fits(size: Size, pack: Pack) -> None:
    """Raises TooLong if an item of a size is longer than a row."""
    tokens, patches = size
    if tokens > pack.tokens or patches > pack.patches:
        raise TooLong(
            f"feed.pack: expected at most {pack.tokens} tokens and {pack.patches} patches in a "
            f"row, got an image with {tokens} and {patches}; do: raise feed.pack.tokens and "
            "feed.pack.patches"
        )


def item_from_patches(encoder: Encoder, examples: Sequence[Example], image: PatchedImage) -> Item:
    """Returns an image, cut into patches before, with a conversation for each question about it.

    Raises:
      TooLong: prompt or answer exceeds the layout.
    """
    turns = [
        encoder.turn(one.question, image.grid, one.answer, system=one.system) for one in examples
    ]
    ids = np.array([token for turn in turns for part in turn for token in part], np.int32)
    targets = np.append(ids[1:], np.int32(encoder.tokenizer.pad_id))
    weights = np.zeros(len(ids), np.float32)
    segments, visual_tokens = np.zeros(len(ids), np.int32), np.full(len(ids), -1, np.int32)
    positions = np.zeros((3, len(ids)), np.int32)
    begin = 0
    for number, turn in enumerate(turns, start=1):
        answer = begin + len(turn.prompt)
        end = answer + len(turn.answer)
        segments[begin:end] = number
        weights[answer - 1 : end - 1] = 1.0
        is_visual = ids[begin:end] == encoder.tokenizer.image_id
        visual_tokens[begin:end][is_visual] = np.arange(np.count_nonzero(is_visual))
        placed = grid.rotary_positions(is_visual, [image.grid], merge=encoder.layout.merge)
        positions[:, begin:end] = placed.positions
        begin = end
    tokens = Tokens(ids, segments, positions, visual_tokens)
    return Item(tokens, targets, weights, image.patches, image.grid)


def pack_row(encoder: Encoder, items: Sequence[Item], pack: Pack) -> PackedBatch:
    """Returns a row (no batch axis) of items that fit into it, one after another.

    Conversations, images, windows and visual tokens are numbered anew, so that no item sees
    another; positions begin anew with every conversation.
    """
    layout, pad = encoder.layout, encoder.tokenizer.pad_id
    ids, targets = np.full((2, pack.tokens), pad, np.int32)
    segments, weights = np.zeros(pack.tokens, np.int32), np.zeros(pack.tokens, np.float32)
    positions = np.zeros((3, pack.tokens), np.int32)
    visual_tokens = np.full(pack.tokens, -1, np.int32)
    patches = np.zeros((pack.patches, 3 * layout.patch**2), np.uint8)
    place = np.zeros((pack.patches, 2), np.int32)
    window, image = np.full((2, pack.patches), -1, np.int32)
    at = spot = conversations = windows = 0
    for number, item in enumerate(items):
        end, last = at + item.size.tokens, spot + item.size.patches
        ids[at:end], targets[at:end], weights[at:end] = item.tokens.ids, item.targets, item.weights
        segments[at:end] = item.tokens.segments + conversations
        positions[:, at:end] = item.tokens.positions
        own = item.tokens.visual_tokens
        visual_tokens[at:end] = np.where(own < 0, -1, own + spot // layout.merge**2)
        patches[spot:last] = item.patches
        place[spot:last], own_windows = _places_and_windows(
            item.grid, merge=layout.merge, window_tokens=layout.window_tokens
        )
        window[spot:last], image[spot:last] = own_windows + windows, number
        conversations += int(item.tokens.segments[-1])
        windows += int(own_windows[-1]) + 1
        at, spot = end, last
    tokens = Tokens(ids, segments, positions, visual_tokens)
    return PackedBatch(tokens, Images(patches, place, window, image), targets, weights)


@functools.lru_cache(maxsize=1024)
def _places_and_windows(size: PatchGrid, *, merge: int, window_tokens: int) -> tuple[Any, Any]:
    """Returns place and window of each patch of an image; the last patch has the last window."""
    rows, columns = size
    window = grid.windows(rows, columns, merge=merge, window_tokens=window_tokens)
    return grid.patch_positions(rows, columns, merge), window


def choose_items(sizes: Sequence[Size], pack: Pack) -> list[int]:
    """Returns which of the waiting items make the next row, in their order.

    The one that waits longest is always among them, so that none is left behind; the others are
    those of the `SUBSET_ITEMS` after it that fill the row best, tokens and patches counting alike.
    """
    first, *rest = range(len(sizes))
    chosen = [first]
    left = Size(pack.tokens - sizes[first].tokens, pack.patches - sizes[first].patches)
    # Small items: a row takes more of them than the search considers.
    while len(rest) > SUBSET_ITEMS and fits([sizes[index] for index in rest[:SUBSET_ITEMS]], left):
        chosen.append(rest.pop(0))
        tokens, patches = sizes[chosen[-1]]
        left = Size(left.tokens - tokens, left.patches - patches)
    rest = rest[:SUBSET_ITEMS]
    # What every subset takes: bit b of its number says whether it has item b.
    tokens, patches = np.zeros((2, 1), np.int64)
    for index in rest:
        tokens = np.concatenate([tokens, tokens + sizes[index].tokens])
        patches = np.concatenate([patches, patches + sizes[index].patches])
    possible = (tokens <= left.tokens) & (patches <= left.patches)
    best = int(np.argmax(possible * (tokens / pack.tokens + patches / pack.patches)))
    return sorted(chosen + [index for bit, index in enumerate(rest) if best >> bit & 1])


def fits(sizes: Sequence[Size], room: Size) -> bool:
    """Returns whether all the sizes together fit into the room."""
    tokens = sum(size.tokens for size in sizes)
    return tokens <= room.tokens and sum(size.patches for size in sizes) <= room.patches
