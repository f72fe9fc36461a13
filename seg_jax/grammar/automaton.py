"""Compiles a grammar of answers for a tokenizer: which tokens may follow which, as tables.

A grammar is a machine over bytes (`outline_automaton.py`, `clicks_automaton.py`); a token walks as
many steps as it has bytes, and an answer ends with an end token. Tokens that take every state to
the same states are one class, so that the tables grow with the grammar, not with the vocabulary.

Some promises are not a matter of states, since they compare numbers: that the corners of a box are
in order, and of outlines that a point differs from the one before and the third of a ring from the
first. The tables say of each state which digits come next and of each token which digits it holds;
`models.vlm.constraint` compares them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from seg_jax.records import Automaton, Integers, Kind

FREE = 0
"""The state without rules, where an answer is after its end."""
LATE = np.iinfo(np.int16).max
"""Stands for the number of tokens to the end where the end cannot be reached."""
WORD = 32
"""Classes are padded to whole words of so many bits."""


S = TypeVar("S", bound=Hashable)


class WholeNumbers(NamedTuple):
    """How whole numbers without leading zeros are written (host)."""

    largest: int
    """The largest number."""
    words: Bool[np.ndarray, " states"]
    """Where any text may stand, digits that are no numbers among it."""
    counted: Bool[np.ndarray, "states_and_one 256"]
    """The bytes that ways to the end are counted in: no comparison bars the last of them."""


class Machine(NamedTuple):
    """A grammar over bytes (host)."""

    edges: Int[np.ndarray, "states_and_one 256"]
    """The state after each byte. State 0, `FREE`, has no meaning; the last one is a trap."""
    start: list[int]
    """The state before the first byte, by the kind of answer."""
    final: Bool[np.ndarray, " states"]
    """Where an answer may end."""
    coordinates: Int[np.ndarray, "states 4"] | None = None
    """What is known of the coordinate that the next digit belongs to, see `Automaton`; None: no
    numbers are compared with each other."""
    digits: int = 0
    """Decimals of such a coordinate; 0 where numbers are whole."""
    whole: WholeNumbers | None = None
    """How whole numbers are written; None: there are none to be compared."""


def explore(
    states: Sequence[S], moves: Callable[[S], Mapping[str, S]], *, limits: str
) -> tuple[Int[np.ndarray, "states_and_one 256"], list[S]]:
    """Returns the edges of a machine and its states in the order of their numbers.

    Args:
      states: the one without rules and those before the first byte.
      moves: the state after each byte, a letter of Latin-1, that may follow.
      limits: of the grammar, for the message.

    Raises:
      ValueError: there are too many states.
    """
    number = {state: place for place, state in enumerate(states)}
    queue, found = collections.deque(states[1:]), []
    while queue:
        state = queue.popleft()
        for character, after in moves(state).items():
            if after not in number:
                number[after] = len(number)
                queue.append(after)
            found.append((number[state], ord(character), number[after]))
        if len(number) >= LATE:
            raise ValueError(
                f"automaton: expected limits that make fewer than {LATE} states, got {limits}; "
                "do: lower them or pass None for no limit"
            )
    edges = np.full((len(number) + 1, 256), len(number), np.int32)
    before, byte, after = np.array(found).T
    edges[before, byte] = after
    return edges, list(number)


def machine_of_texts(texts: Sequence[Iterable[str]]) -> Machine:
    """Returns the grammar of answers that are one of a few texts, for each kind of answer."""
    states: dict[tuple[int, bytes], int] = {}
    edges: list[tuple[int, int, int]] = []
    finals = set()

    def state_of(kind: int, text: bytes) -> int:
        return states.setdefault((kind, text), len(states) + 1)

    start = [state_of(kind, b"") for kind in range(len(texts))]
    for kind, choices in enumerate(texts):
        for choice in map(str.encode, choices):
            for end in range(len(choice)):
                before, after = (state_of(kind, choice[:at]) for at in (end, end + 1))
                edges.append((before, choice[end], after))
            finals.add(state_of(kind, choice))
    count = len(states) + 1
    table = np.full((count + 1, 256), count, np.int32)
    for before, byte, after in edges:
        table[before, byte] = after
    return Machine(table, start, np.isin(np.arange(count), sorted(finals)))


class _Lifted(NamedTuple):
    """The machine over tokens (host)."""

    classes: Int[np.ndarray, " V"]
    following: Int[np.ndarray, "states classes"]
    """`FREE` where a token is not allowed."""
    allowed: Bool[np.ndarray, "states classes"]
    counted: Bool[np.ndarray, "states classes"]
    """Where ways to the end are counted in a token."""
    values: Int[np.ndarray, "classes 2"]
    """Value and count of the digits of tokens that are whole numbers."""


def _lift_to_tokens(
    machine: Machine, pieces: Sequence[bytes | None], ends: Iterable[int]
) -> _Lifted:
    trap, whole = len(machine.final), machine.whole
    decimal = machine.coordinates is not None and whole is None
    signs = [column.tobytes() for column in machine.edges.T]
    alike = bytearray(signs.index(sign) for sign in signs)
    if whole is not None:
        alike[48:58] = b"0123456789"  # Their values count.
    useless = bytes(byte for byte in range(256) if (machine.edges[:trap, byte] == trap).all())
    dead = np.full(trap, trap, np.int32)
    columns, counted, number = [dead], [np.zeros(trap, bool)], {(dead.tobytes(), _WORDS): 0}
    values, known = [_WORDS], dict[bytes, int]()
    classes = np.zeros(len(pieces), np.int16)
    for token, piece in enumerate(pieces):
        if not piece or len(piece.translate(None, useless)) < len(piece):
            continue
        if decimal and _TWO.search(piece):
            continue
        text = piece.translate(alike)
        if text not in known:
            column, sure = _walk(machine, text)
            dies = whole is None or (column == trap).all()
            value = _WORDS if dies else _value(text)
            known[text] = number.setdefault((column.tobytes(), value), len(columns))
            if known[text] == len(columns):
                columns.append(column)
                counted.append(sure)
                values.append(value)
        classes[token] = known[text]
    for token in ends:
        classes[token] = len(columns)
    following = np.stack([*columns, np.where(machine.final, FREE, trap)], 1)
    allowed = following != trap
    return _Lifted(
        classes,
        following=np.where(allowed, following, FREE),
        allowed=allowed,
        counted=np.stack([*counted, np.ones(trap, bool)], 1),
        values=np.array([*values, _WORDS], np.int32),
    )


_WORDS: tuple[int, int] = (0, 0)
"""Value and count of the digits of a token that is no number."""


def _value(text: bytes) -> tuple[int, int]:
    return (int(text), len(text)) if text.isdigit() and len(text) <= _LONGEST else _WORDS


def _walk(machine: Machine, text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a token leads from each state, and from where ways are counted in it.

    Of whole numbers a token is a part or has none of their digits: what it holds is compared. Ways
    through a number that is compared are counted digit by digit.
    """
    trap, whole = len(machine.final), machine.whole
    column = np.arange(trap, dtype=np.int32)
    sure = np.ones(trap, bool)
    for byte in text:
        if whole is not None:
            sure &= whole.counted[column, byte]
        column = machine.edges[column, byte]
    if whole is not None and _DIGIT.search(text):
        if _value(text) == _WORDS:
            within = whole.words & np.append(whole.words, False)[column]
            column = np.where(within, column, trap)
        elif len(text) > 1 and machine.coordinates is not None:
            sure &= machine.coordinates[:, 2] < SECOND
    return column, sure


_LONGEST = 4
"""Digits of a whole number that one token may hold."""
SECOND = 2
"""Places of coordinates from this one on belong to the second corner of a box; one that is compared
with nothing has the place -1."""
_DIGIT = re.compile(rb"[0-9]")
_TWO = re.compile(rb"[0-9][^0-9.]+[0-9]")
"""A token with digits of two numbers; such tokens are not used, others can write the same."""
_NUMBER = re.compile(rb"d\.d*|\.d+|d+")


def _complete_classes(pieces: Sequence[bytes | None], lifted: _Lifted) -> np.ndarray:
    """Returns which classes have a token whose digits are free: bool[classes].

    Where a token "]7" is in use, it is free if all of "]0" to "]9" are. Ways to the end are
    counted in such tokens alone, so that no comparison of numbers can bar the last way.
    """
    shapes: dict[bytes, set[bytes]] = {}
    owners: dict[bytes, set[int]] = {}
    for token in np.flatnonzero(lifted.classes).tolist():
        piece = pieces[token] or b""
        shape = re.sub(rb"[0-9]", b"d", piece)
        shapes.setdefault(shape, set()).add(piece)
        owners.setdefault(shape, set()).add(int(lifted.classes[token]))
    complete = np.zeros(lifted.following.shape[1], bool)
    complete[-1] = True
    for shape, members in shapes.items():
        match = _NUMBER.search(shape)
        number = match.group() if match else b""
        fraction = number.count(b"d") - number.startswith(b"d.")
        if len(members) == 10**fraction + number.startswith(b"d."):
            complete[list(owners[shape])] = True
    return complete


def _tokens_to_end(lifted: _Lifted, counted: np.ndarray) -> Int[np.ndarray, "states classes"]:
    """Returns the fewest tokens from each token to the end of an answer, both included."""

    def through(least: np.ndarray, usable: np.ndarray) -> np.ndarray:
        usable = usable & (least[lifted.following] < LATE)
        return np.where(usable, least[lifted.following] + 1, LATE)

    least = np.full(len(lifted.following), LATE)
    least[FREE] = 0
    while True:
        shorter = np.minimum(least, through(least, lifted.allowed & counted).min(1))
        if (shorter == least).all():
            break
        least = shorter
    need = through(least, lifted.allowed)
    need[FREE] = 0
    return need


def _digit_keys(pieces: Sequence[bytes | None], classes: np.ndarray, digits: int) -> np.ndarray:
    """Returns the digits of each token; see `Automaton`."""
    keys = np.zeros(len(classes), np.int32)
    for token in np.flatnonzero(classes).tolist():
        written = re.sub(rb"[^0-9]", b"", pieces[token] or b"")
        if written:
            padded = int(written.ljust(digits + 1, b"9"))
            keys[token] = padded * 8 + len(written)
    return keys


def table(pieces: Sequence[bytes | None], *, ends: Sequence[int], machine: Machine) -> Automaton:
    """Returns the automaton of a grammar over the tokens of a tokenizer.

    It takes every text of the grammar, however it is cut into tokens.

    Args:
      pieces: the bytes of every token by id (`Tokenizer.pieces`); None for tokens without text.
      ends: tokens that end an answer.
      machine: the grammar over bytes.

    Raises:
      ValueError: the tokenizer cannot write an answer, or has no such end tokens.
    """
    if not ends or min(ends) < 0 or max(ends) >= len(pieces):
        raise ValueError(
            f"automaton.table: expected end tokens below {len(pieces)}, got {list(ends)}; do: give "
            "ids of the tokenizer"
        )
    lifted = _lift_to_tokens(machine, pieces, ends)
    keys = np.zeros(len(pieces), np.int32)
    counted, coordinates = lifted.counted, machine.coordinates
    if coordinates is None:
        coordinates = np.zeros((len(machine.final), 4), np.int32)
    elif machine.whole is None:
        counted = counted & _complete_classes(pieces, lifted)
        keys = _digit_keys(pieces, lifted.classes, machine.digits)
    need = _tokens_to_end(lifted, counted)
    digits = {b"%d" % digit for digit in range(10)} if machine.whole else set[bytes]()
    if (need[machine.start].min(1) == LATE).any() or not digits.issubset(pieces):
        raise ValueError(
            "automaton.table: expected a tokenizer with every digit, bracket, comma, stop and "
            "blank as a token, got one that cannot write every answer; do: use a byte-level "
            "tokenizer"
        )
    wide = ((0, 0), (0, -need.shape[1] % WORD))
    return Automaton(
        classes=jnp.asarray(lifted.classes, jnp.int16),
        keys=jnp.asarray(keys),
        following=jnp.asarray(np.pad(lifted.following, wide), jnp.int16),
        need=jnp.asarray(np.pad(need, wide, constant_values=LATE).astype(np.int16)),
        spots=jnp.asarray(coordinates),
        start=jnp.asarray(machine.start, jnp.int32),
        integers=None if machine.whole is None else _integers(machine.whole, lifted, wide[1]),
    )


def _integers(whole: WholeNumbers, lifted: _Lifted, wide: tuple[int, int]) -> Integers:
    """Returns what comparisons of whole numbers need; see `Integers`."""
    furthest = np.arange(whole.largest + 1)
    for number in range(whole.largest // 10, 0, -1):
        furthest[number] = furthest[10 * number : 10 * number + 10].max()
    return Integers(
        digits=jnp.asarray(np.pad(lifted.values, (wide, (0, 0)))),
        furthest=jnp.asarray(furthest, jnp.int32),
    )


KIND_NAMES = tuple(kind.name.lower() for kind in Kind)


def check_max_tokens(
    automaton: Automaton,
    max_tokens: int,
    kinds: Iterable[int] = Kind,
    *,
    names: Sequence[str] = KIND_NAMES,
) -> None:
    """Raises ValueError if the shortest answer of a kind takes more than `max_tokens` tokens.

    Args:
      automaton: the grammar.
      max_tokens: of an answer.
      kinds: of answers that are drawn, as numbers of the automaton's starts.
      names: of all kinds, for the message.
    """
    for kind in kinds:
        least = int(np.asarray(automaton.need)[int(automaton.start[kind])].min())
        if least > max_tokens:
            raise ValueError(
                f"max_tokens: expected at least {least}, the shortest {names[kind]} of "
                f"the grammar, got {max_tokens}; do: raise it or switch the grammar off"
            )
