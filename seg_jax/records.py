"""The few records that every floor speaks in.

Axes, by their letters in the shapes of arrays:

| letter | counts                                | letter | counts                              |
|--------|---------------------------------------|--------|-------------------------------------|
| `B`    | prompts (rows) in a batch             | `H W`  | rows and columns of an image        |
| `G`    | answers per prompt                    | `K`    | 32-row words of a packed mask       |
| `N`    | answers, shapes or masks in all       | `M`    | masks (objects) per image           |
| `T`    | tokens of a row                       | `R`    | rings per answer                    |
| `L`    | tokens of an answer                   | `P`    | points per ring, clicks per answer  |
| `Q`    | tokens of a step, boxes per answer    | `S`    | image patches of a row              |
| `V`    | vocabulary                            | `C`    | numbers per patch                   |
| `D`    | width of the model                    |        |                                     |

A file that needs a letter for something else, or a further letter, says so in its own docstring in
a paragraph that begins with "Axes here:". Words in lower case (`heads`, `kv`, `n`) are local.

Points are (x, y); arrays index [row, column]; boxes are x0 y0 x1 y1, half open. `_px` means
continuous pixels (pixel (i, j) covers [j, j+1) x [i, i+1)), `_unit` fractions of the image's
width and height before any padding. Rings do not repeat their first vertex.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

# A device array, or its abstract or numpy stand-in: steps are lowered from shapes alone.
if TYPE_CHECKING:
    Array = jax.Array | np.ndarray
else:
    Array = jax.Array | np.ndarray | jax.ShapeDtypeStruct

Ring = Float[np.ndarray, "_ 2"]
"""Vertices of one closed ring, x then y, first vertex not repeated."""


class Kind(enum.IntEnum):
    """What an answer is: the three target types of the grammar."""

    POINT = 0
    BOX = 1
    MASK = 2


class Verdict(enum.IntEnum):
    """What a reader found in an answer, from clean to useless: the worst fault met counts.

    A verdict other than `OK` never raises: what can be kept of the answer is kept.
    """

    OK = 0
    """The whole answer follows the grammar."""
    CLAMPED = 1
    """A number lay outside 0..1 and was clamped."""
    DEGENERATE = 2
    """A polygon had fewer than three distinct points and was dropped."""
    TRUNCATED = 3
    """The answer ended before its brackets closed: the complete points are kept."""
    MALFORMED = 4
    """Something in the list is not of the grammar: what came before is kept."""
    EMPTY = 5
    """No usable point at all, nor the empty list, which is `OK`: it says that there is nothing."""


class Trace(NamedTuple):
    """A question about an image with a thought and an answer that somebody wrote (host)."""

    question: str
    thought: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image with the true masks of its objects and what one may call them (host)."""

    key: str
    """Names the sample within its source; also seeds its random choices."""
    image: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "M H W"]
    """One mask for each target of a question: an object, several objects that one expression means
    together, or nothing (an empty mask) where what it means is not in the image."""
    phrases: tuple[tuple[str, ...], ...]
    """For each mask the expressions that fit it and no other object of the image."""
    sentences: frozenset[str] = frozenset()
    """Those of the expressions that are whole sentences, as questions are."""
    names: tuple[str, ...] = ()
    """For each mask what it shows, in a few words that others may share; or nothing at all."""
    categories: tuple[str, ...] = ()
    """For each mask the kind of thing that it shows ("circle"), by which numbers are told apart,
    empty where it is of several kinds or of nothing; or nothing at all."""
    together: tuple[bool, ...] = ()
    """For each mask whether it is of several objects, which no point or box can describe; or
    nothing at all where each is of one."""
    ignored: Bool[np.ndarray, "M H W"] | None = None
    """For each mask the pixels that count for nothing when an answer is judged; None: all count."""
    covers: UInt8[np.ndarray, "M H W"] | None = None
    """For each mask how many polygons of its annotation cover a pixel, where a source knows; only
    the released evaluators ask for it."""
    traces: tuple[Trace, ...] = ()
    """Conversations about the image as they were written, which no mask stands behind."""


class Polygons(NamedTuple):
    """Rings of many answers, padded to one shape (device)."""

    points_unit: Float[Array, "*n R P 2"]
    used: Bool[Array, "*n R P"]
    """False for padding; the used vertices of a ring come first."""


class Clicks(NamedTuple):
    """Boxes and clicks of many answers, padded to one shape: what a segmenter draws of (device)."""

    boxes_unit: Float[Array, "*n boxes 4"]
    """x0 y0 x1 y1."""
    boxed: Bool[Array, "*n boxes"]
    """False for padding; the boxes of an answer come first, as do its clicks."""
    points_unit: Float[Array, "*n clicks 2"]
    labels: Int[Array, "*n clicks"]
    """1 for a click on the object, 0 for one beside it; 0 for padding."""
    used: Bool[Array, "*n clicks"]
    """False for padding, and for all clicks of an answer whose labels do not fit its points."""
    thought: Bool[Array, "*n"]
    """Whether the answer has a thought that is closed."""


class Images(NamedTuple):
    """The images of each row as patches, packed and padded to one length (device).

    Patches of an image lie in merge-block order: the `merge * merge` patches that become one
    language token are neighbours, blocks run row by row.
    """

    patches: UInt8[Array, "B S C"]
    """Raw pixels of a patch, channel first (3, patch, patch); normalised on the device."""
    place: Int[Array, "B S 2"]
    """Row and column of the patch within its image, in patches."""
    window: Int[Array, "B S"]
    """Attention window of the patch, unique within the row; -1 for padding."""
    image: Int[Array, "B S"]
    """Image of the patch within the row; -1 for padding."""


class Tokens(NamedTuple):
    """Token rows with all that a model needs beside the ids (device)."""

    ids: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    """0 for padding, else the number (from 1) of the conversation that the token belongs to."""
    positions: Int[Array, "B 3 T"]
    """Rotary positions along time, height and width (M-RoPE); equal for text. Kimi-VL, which counts
    tokens, passes over them."""
    visual_tokens: Int[Array, "B T"]
    """Which merged visual token of the row's images stands at a token; -1 for text."""


class Packing(NamedTuple):
    """Which conversation of its row a token belongs to, and where in it (device)."""

    segments: Int[Array, "B G L"]
    """0 for padding, else the number (from 1) of the conversation within the row."""
    columns: Int[Array, "B G L"]
    """Tokens of the conversation before this one."""


class Batch(NamedTuple):
    """One step of supervised training (device): images with G rows of questions and answers.

    An image is read once, in front of its questions, which do not see each other.
    """

    tokens: Tokens
    """The turn up to the question, image included; right-aligned."""
    images: Images
    ids: Int[Array, "B G L"]
    """Questions, each before its answer, continuing `tokens`; left-aligned."""
    targets: Int[Array, "B G L"]
    """The token that should follow each token."""
    weights: Float[Array, "B G L"]
    """Weight of each target in the loss: 0 outside answers."""
    packing: Packing


class PackedBatch(NamedTuple):
    """One step of supervised training on rows of several images (device).

    An image is read once for all conversations about it, which see neither each other nor other
    images.
    """

    tokens: Tokens
    """Whole conversations, one after another."""
    images: Images
    targets: Int[Array, "B T"]
    """The token that should follow each token."""
    weights: Float[Array, "B T"]
    """Weight of each target in the loss: 0 outside answers."""


class WrittenAnswer(NamedTuple):
    """The true answer to each prompt as the model would write it (device)."""

    ids: Int[Array, "B L"]
    """Answer tokens up to and including the end token; padding after it."""
    used: Bool[Array, "B L"]
    """True up to and including the end token."""


class Prompts(NamedTuple):
    """Questions with their images and truth: what is sampled from and judged (device).

    Prompts are right-aligned: the last token of every row stands in the last column.
    """

    tokens: Tokens
    images: Images
    truth: Any
    """What answers are judged by: the record of the task that asks, a tree of arrays [B ..]."""
    answer: WrittenAnswer | None = None
    """The true answer in words, where it is learnt from."""


class Rollout(NamedTuple):
    """G sampled answers per prompt (device)."""

    ids: Int[Array, "B G L"]
    """Answer tokens up to and including the end token; padding after it."""
    used: Bool[Array, "B G L"]
    """True up to and including the end token."""
    logp: Float[Array, "B G L"]
    """Log-probability of each token under the distribution that it was drawn from."""
    computed: Int[Array, "B G"] | None = None
    """Tokens that were computed in each answer's row while it was the answer's, those after its
    end included; all of them add up to what the sampler computed. None: nobody counted."""


class Integers(NamedTuple):
    """What whole numbers in answers are compared by (device)."""

    digits: Int[Array, "classes 2"]
    """Value and count of the digits that a token of each class holds, all of one number."""
    furthest: Int[Array, " _"]
    """The largest number that begins with the digits of each number, of those that may be."""


class Automaton(NamedTuple):
    """Which tokens may follow which in an answer that keeps to the grammar (device).

    State 0 is without rules; an answer is there after its end.
    """

    classes: Int[Array, " V"]
    """Class of each token; one of class 0 is never in an answer, nor is one beyond the table."""
    keys: Int[Array, " V"]
    """8 * number + count for the digits that a token holds, all of one coordinate: their count,
    and the number that they become with nines after them, as long as whole digit and decimals.
    0 for tokens without digits."""
    following: Int[Array, "states classes"]
    """State after a token; 0 where it is not allowed. Classes fill whole 32-bit words."""
    need: Int[Array, "states classes"]
    """Fewest tokens from this one to the end of the answer, both included; the largest int16
    where it is not allowed."""
    spots: Int[Array, "states 4"]
    """What is known of the coordinate that the next digit belongs to: digits written and digits to
    come; its place, 0 for x, 1 for y, 2 and 3 for the second x and y of a box; complete points of
    the ring before it, 3 for more."""
    start: Int[Array, " kinds"]
    """State before the first token, by the kind of answer that is asked for."""
    integers: Integers | None = None
    """For grammars of whole numbers without leading zeros. Of `spots` they have the digits written,
    0 or 1 for more, and the place, -1 for a number that is compared with nothing."""


def check_least(config: object, room: str, **least: int) -> None:
    """Raises ValueError where a number of a configuration is less than it may be, or not finite.

    Args:
      config: has the numbers as attributes; None is no number.
      room: where the configuration stands in that of a program, for the message.
      least: what each may be.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not bound <= value < math.inf:
            raise ValueError(
                f"{room}.{name}: expected at least {bound}, got {value}; do: give a finite number, "
                f"{bound} or more"
            )
