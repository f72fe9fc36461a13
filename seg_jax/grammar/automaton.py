"""Compiles the grammar of answers for a tokenizer: which tokens may follow which, as tables.

An answer is what `outline` writes, with the full stop of `chat.answer`'s fixed form and an end
token. Its characters are read by a machine written down here as a walk along short scripts; a
token walks as many steps as it has bytes. Tokens that take every state to the same states are one
class, so that the tables grow with the grammar, not with the vocabulary.

Two promises are not a matter of states, since they compare numbers: that the corners of a box are
in order, and that a point differs from the one before and the third of a ring from the first. The
tables say of each state which digits come next and of each token which digits it holds;
`models.constraint` compares them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from seg_jax.grammar import chat, outline
from seg_jax.records import Automaton, Kind

FREE, FEWEST = 0, 3
"""The state without rules, where an answer is after its end; the fewest points of a ring."""
LATE = np.iinfo(np.int16).max
"""Stands for the number of tokens to the end where the end cannot be reached."""
WORD = 32
"""Classes are padded to whole words of so many bits."""


class _State(NamedTuple):
    """Where in the grammar a text has arrived."""

    kind: Kind
    rest: str
    """What remains of the script: W a whole digit, 0 or 1; Z a whole digit 0; F a digit of a
    fraction; : after a point and ; after a ring of a mask; ? after the first bracket, where the
    list may stay empty; $ the end token; others themselves."""
    one: bool = False
    """The number's whole digit is 1, so that only zeros follow."""
    ring: int = 0
    """Rings before this one, 0 where they are not limited."""
    point: int = 0
    """Complete points of this ring; stays at the highest number that makes a difference."""


def _scripts(digits: int) -> dict[Kind, str]:
    fraction = "." + "F" * digits
    low, high = f"Z{fraction}", f"W{fraction}"
    return {
        Kind.POINT: f"[{high}, {high}]",
        Kind.BOX: f"[{low}, {low}, {high}, {high}]",
        Kind.MASK: f"[{high}, {high}]:",
    }


def _moves(state: _State, item: str, rings: int | None, points: int | None) -> dict[str, _State]:
    """Returns the state after each character that may follow."""
    head, tail = state.rest[:1], state.rest[1:]
    end = chat.answer("", state.kind) + "$"
    if head == "?":
        usual = _moves(state._replace(rest=tail), item, rings, points)
        return usual | {"]": state._replace(rest=end)}
    if head == ":":
        moves = {}
        if state.point >= FEWEST:
            moves["]"] = state._replace(rest=";")
        if points is None or state.point < points:
            moves[","] = state._replace(rest=f" {item}")
        return moves
    if head == ";":
        moves = {"]": state._replace(rest=end, point=0)}
        if rings is None or state.ring + 1 < rings:
            ring = 0 if rings is None else state.ring + 1
            moves[","] = state._replace(rest=f" [{item}", ring=ring, point=0)
        return moves
    if head == "$":
        return {}
    if tail == ":":
        state = state._replace(point=min(state.point + 1, FEWEST if points is None else points))
    if head == "F":
        after = state._replace(rest=tail, one=state.one and tail[:1] == "F")
        return dict.fromkeys("0" if state.one else "0123456789", after)
    if head in "WZ":
        moves = {digit: state._replace(rest=tail, one=digit == "1") for digit in "01"}
        return moves if head == "W" else {"0": moves["0"]}
    return {head: state._replace(rest=tail)}


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
    """Decimals of such a coordinate."""


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


def _machine(digits: int, rings: int | None, points: int | None, *, nothing: bool) -> Machine:
    scripts = _scripts(digits)
    first = []
    for kind, script in scripts.items():
        rest = f"[[{script}" if kind == Kind.MASK else f"{script}{chat.answer('', kind)}$"
        first.append(_State(kind, f"{rest[0]}?{rest[1:]}" if nothing else rest))
    number = {_State(Kind.POINT, ""): FREE} | {state: 1 + i for i, state in enumerate(first)}
    queue, found = collections.deque(first), []
    while queue:
        state = queue.popleft()
        for character, after in _moves(state, scripts[state.kind], rings, points).items():
            if after not in number:
                number[after] = len(number)
                queue.append(after)
            found.append((number[state], ord(character), number[after]))
        if len(number) >= LATE:
            raise ValueError(
                f"automaton: expected limits that make fewer than {LATE} states, got {rings} rings "
                f"of {points} points; do: lower them or pass None for no limit"
            )
    edges = np.full((len(number) + 1, 256), len(number), np.int32)
    before, byte, after = np.array(found).T
    edges[before, byte] = after
    return Machine(
        edges,
        start=[number[state] for state in first],
        final=np.array([state.rest == "$" for state in number]),
        coordinates=np.array([_coordinate_state(state, digits) for state in number], np.int32),
        digits=digits,
    )


def _coordinate_state(state: _State, digits: int) -> tuple[int, int, int, int]:
    """Returns what is known of the number that the next digit belongs to; see `Automaton`."""
    within = re.match(r"F+|\.F+", state.rest)
    left = within.group().count("F") if within else digits + 1
    numbers = state.rest.count("W") + state.rest.count("Z") + bool(within)
    total = 4 if state.kind == Kind.BOX else 2
    role = total - numbers if numbers else 0
    return digits + 1 - left, left, role, min(state.point, FEWEST)


class _Lifted(NamedTuple):
    """The machine over tokens (host)."""

    classes: Int[np.ndarray, " V"]
    following: Int[np.ndarray, "states classes"]
    """`FREE` where a token is not allowed."""
    allowed: np.ndarray
    """bool[states, classes]"""


def _lift_to_tokens(
    machine: Machine, pieces: Sequence[bytes | None], ends: Iterable[int]
) -> _Lifted:
    trap = len(machine.final)
    compares = machine.coordinates is not None
    signs = [column.tobytes() for column in machine.edges.T]
    alike = bytes(signs.index(sign) for sign in signs)
    useless = bytes(byte for byte in range(256) if (machine.edges[:trap, byte] == trap).all())
    start = np.arange(trap, dtype=np.int32)
    dead = np.full(trap, trap, np.int32)
    columns, number = [dead], {dead.tobytes(): 0}
    known: dict[bytes, int] = {}
    classes = np.zeros(len(pieces), np.int16)
    for token, piece in enumerate(pieces):
        if not piece or len(piece.translate(None, useless)) < len(piece):
            continue
        if compares and _TWO.search(piece):
            continue
        text = piece.translate(alike)
        if text not in known:
            column = start
            for byte in text:
                column = machine.edges[column, byte]
            known[text] = number.setdefault(column.tobytes(), len(columns))
            if known[text] == len(columns):
                columns.append(column)
        classes[token] = known[text]
    for token in ends:
        classes[token] = len(columns)
    following = np.stack([*columns, np.where(machine.final, FREE, trap)], 1)
    allowed = following != trap
    return _Lifted(classes, np.where(allowed, following, FREE), allowed)


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


def _tokens_to_end(lifted: _Lifted, complete: np.ndarray) -> Int[np.ndarray, "states classes"]:
    """Returns the fewest tokens from each token to the end of an answer, both included."""

    def through(least: np.ndarray, usable: np.ndarray) -> np.ndarray:
        usable = usable & (least[lifted.following] < LATE)
        return np.where(usable, least[lifted.following] + 1, LATE)

    least = np.full(len(lifted.following), LATE)
    least[FREE] = 0
    while True:
        shorter = np.minimum(least, through(least, lifted.allowed & complete).min(1))
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


def table(
    pieces: Sequence[bytes | None],
    *,
    ends: Sequence[int],
    digits: int = 3,
    rings: int | None = None,
    points: int | None = None,
    nothing: bool = False,
) -> Automaton:
    """Returns the grammar's automaton over the tokens of a tokenizer.

    It takes every text that `outline` writes within the limits, however it is cut into tokens,
    but for a ring that returns to its first point with the third, and for "[]" unless it is
    switched on. Whatever it takes, `outline.read` with these limits reads with the verdict `OK`,
    and `outline` writes alike, but for a ring that ends with its first point, which it leaves out.

    Args:
      pieces: the bytes of every token by id (`Tokenizer.pieces`); None for tokens without text.
      ends: tokens that end an answer.
      digits: decimals of each number, 1 to 6.
      rings: at most so many rings of a mask; None: no limit.
      points: at most so many points of a ring; None: no limit.
      nothing: whether "[]" is an answer of every kind: there is no such object.

    Raises:
      ValueError: the tokenizer cannot write an answer, or limits are too low or too high.
    """
    if not 1 <= digits <= outline.DECIMALS:
        raise ValueError(
            f"automaton.table: expected 1 to {outline.DECIMALS} decimals, got {digits}; do: choose "
            "a value in this range"
        )
    if (rings is not None and rings < 1) or (points is not None and points < FEWEST):
        raise ValueError(
            f"automaton.table: expected 1 ring of {FEWEST} points or more, got {rings} of "
            f"{points}; do: raise the limits"
        )
    machine = _machine(digits, rings, points, nothing=nothing)
    return machine_table(machine, pieces, ends=ends)


def machine_table(
    machine: Machine, pieces: Sequence[bytes | None], *, ends: Sequence[int]
) -> Automaton:
    """Returns the automaton of any grammar over the tokens of a tokenizer.

    Args:
      machine: the grammar over bytes.
      pieces: the bytes of every token by id (`Tokenizer.pieces`); None for tokens without text.
      ends: tokens that end an answer.

    Raises:
      ValueError: the tokenizer cannot write an answer, or has no such end tokens.
    """
    if not ends or min(ends) < 0 or max(ends) >= len(pieces):
        raise ValueError(
            f"automaton.table: expected end tokens below {len(pieces)}, got {list(ends)}; do: give "
            "ids of the tokenizer"
        )
    lifted = _lift_to_tokens(machine, pieces, ends)
    if machine.coordinates is None:
        complete = np.ones(lifted.following.shape[1], bool)
        keys = np.zeros(len(pieces), np.int32)
        coordinates = np.zeros((len(machine.final), 4), np.int32)
    else:
        complete = _complete_classes(pieces, lifted)
        keys = _digit_keys(pieces, lifted.classes, machine.digits)
        coordinates = machine.coordinates
    need = _tokens_to_end(lifted, complete)
    if (need[machine.start].min(1) == LATE).any():
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
