"""Refuses patterns of a tokenizer.json that take time without end; bounds the texts for others.

A part that may match much is open where something behind it can fail: as many lengths of it are
tried as it has letters, from each letter of a text. One open part takes time that grows with the
square of a text's length, two with its cube.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from seg_jax import schemas
from seg_jax.grammar.tokenizer import tiktoken_bpe

MOST_CHARACTERS = 20_000
"""Characters of a pattern; the longest that are known have some four thousand."""
MOST_PATTERNS = 200
"""Patterns of a tokenizer; published ones have up to ten."""
MOST_LOOSE = 6
"""Parts of one alternative that may match more or less of a text; published ones have up to four,
and each may multiply the time by the length of a text."""

MOST_ATOMS = 10_000
"""Letters and classes of a pattern once repetitions of a fixed number are written out."""

MOST_TEXT = 1_000_000
"""Characters of a text that is cut, whatever the patterns."""
MOST_STEPS = 500_000_000
"""Steps on a text of all open parts together, each tried at all pairs of letters: two seconds."""
MOST_WORD, MOST_LOOKUPS = 200, 5_000_000
"""Characters of a word that WordPiece looks for in its vocabulary (BERT's: 100), and how many parts
of the words of a text it may look up: some two seconds."""
SHORT = 3
"""Repetitions of up to so many multiply the time by a small number: they are never open."""

_CONTRACTED, _WORD = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?"
_HIGH, _LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
LINEAR = {
    "GPT-2": rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|\s+(?!\S)|\s+",
    "cl100k, Llama 3": rf"{_CONTRACTED}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_SPACES}",
    "Qwen": rf"{_CONTRACTED}|{_WORD}\p{{L}}+|\p{{N}}|{_SIGNS}[\r\n]*|{_SPACES}",
    "o200k": rf"{_WORD}{_HIGH}*{_LOW}+{_CONTRACTED}?|{_WORD}{_HIGH}+{_LOW}*{_CONTRACTED}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_SPACES}",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    "Moonshot": tiktoken_bpe.PATTERN,
    "our own": rf"\p{{N}}| ?\p{{L}}+|{_SIGNS}|\s+(?!\S)|\s+",
}
"""Patterns with open parts that take linear time all the same: where one of these fails, a later
alternative takes all that it has looked at, so that no letter is tried twice."""

_TOKEN = re.compile(
    r"\\[xpP]\{[^}]*\}|\\.|\(\?[a-zA-Z-]*[:)]|\(\?<?[=!]|\(\?>|\(\?|\(|\)|\||\[|\]"
    r"|[*+?][?+]?|\{[0-9]+(?:,[0-9]*)?\}[?+]?|\{,[0-9]+\}[?+]?|.",
    re.DOTALL,
)
_FIXED = re.compile(r"\{([0-9]+)\}")


def check(definition: Mapping[str, Any]) -> int:
    """Returns the most characters of a text that these patterns may cut, some two seconds of work.

    Texts are cut by patterns within this process, where nothing can end one. All published
    tokenizers have patterns without repetition within repetition, without references to what was
    matched and without calls of themselves, and one open part in a row at most, and that in the
    pre_tokenizer: so are those that are taken.

    Args:
      definition: the contents of a tokenizer.json.

    Raises:
      ValueError: a pattern is of another form.
    """
    found = [(name, one) for name, part in definition.items() for one in _patterns(name, part)]
    opened = 0
    if len(found) > MOST_PATTERNS:
        raise ValueError(f"expected at most {MOST_PATTERNS} patterns, got {len(found)}")
    for name, pattern in found:
        if len(pattern) > MOST_CHARACTERS:
            raise ValueError(
                f"expected patterns of at most {MOST_CHARACTERS} characters, got one of "
                f"{len(pattern)}"
            )
        if fault := _fault(pattern):
            raise ValueError(f"expected patterns as published tokenizers have, got {fault}")
        if pattern not in LINEAR.values():
            in_all, in_a_row = _open_parts(pattern)
            if in_a_row > (name == "pre_tokenizer"):
                raise ValueError(
                    f"expected patterns as published tokenizers have, got one in {name} with parts "
                    f"that may match much, {in_a_row} in a row, before one that can fail"
                )
            opened += in_all
    longest = _longest_word(definition.get("model"))
    most = 2 * MOST_LOOKUPS // longest if longest else MOST_TEXT
    return min(most, math.isqrt(MOST_STEPS // opened)) if opened else most


def _longest_word(model: Any) -> int:
    """Returns the characters of a word of which all parts are looked up, 0 where none are.

    Raises:
      ValueError: there are more than any tokenizer needs: the time grows with their square.
    """
    longest = model.get("max_input_chars_per_word", 0) if isinstance(model, Mapping) else 0
    if not isinstance(longest, int) or not 0 <= longest <= MOST_WORD:
        raise ValueError(
            f"expected max_input_chars_per_word of at most {MOST_WORD}, got "
            f"{schemas.short_repr(longest)}"
        )
    return longest


def _patterns(name: str, part: Any) -> Iterator[str]:
    """Yields the regular expressions of a part of a definition, wherever they stand."""
    waiting: list[Any] = [part] if name != "model" else []  # Words, which may be called so.
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if isinstance(pattern := part.get("Regex"), str):
                yield pattern
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


class _Group:
    """What is known of a group up to some place in it."""

    def __init__(self):
        self.loose = self.most = 0
        """Parts that may match more or less, in this alternative and in the one with the most."""
        self.has_choice = False
        """Whether it has alternatives."""
        self.atoms = 0
        """Letters and classes with fixed repetitions written out."""

    def add(self, loose: int, atoms: int) -> None:
        """Adds a part to the alternative."""
        self.loose += loose
        self.atoms += atoms
        self.most = max(self.most, self.loose)


_LETTER = _Group()
_LETTER.atoms = 1


def _fault(pattern: str) -> str:
    """Returns what makes a pattern one of unbounded time, or nothing."""
    groups, level = [_Group()], 0
    last: _Group | None = None  # What a repetition would be of.
    for token in _TOKEN.findall(pattern):
        if level:  # Within brackets, which may hold others.
            level += (token == "[") - (token == "]")
            continue
        here = groups[-1]
        if token[0] in "*+?" or (token[0] == "{" and len(token) > 1):
            if last is None:
                return f"one that repeats a repetition, or nothing ({token!r})"
            if fault := _repeated(here, last, token):
                return fault
            last = None
        elif token[:2] == "(?" and token[-1] == ")":
            last = None  # Flags.
        elif token == "(?":
            return "one with a group of an unknown kind"
        elif token[0] == "(":
            groups.append(_Group())
            last = None
        elif token == ")":
            if len(groups) == 1:
                return "one with a bracket too many"
            last = groups.pop()
            groups[-1].add(last.most, last.atoms)
        elif token == "|":
            here.loose, here.has_choice, last = 0, True, None
        elif token[0] == "\\" and token[1] in "123456789gkK":
            return f"one that refers to what it has matched ({token!r})"
        else:
            level = int(token == "[")
            here.add(0, 1)
            last = _LETTER
        if groups[-1].most > MOST_LOOSE or groups[-1].atoms > MOST_ATOMS:
            return f"one of more than {MOST_LOOSE} loose parts in a row, or {MOST_ATOMS} letters"
    return "one with brackets that do not close" if level or len(groups) > 1 else ""


class _Alternatives:
    """The parts of a group up to some place in it: those that are open, and that would be."""

    def __init__(self, begin: str):
        self.looks = begin[-1] in "=!"
        """Whether it only looks at what is there, which is tried from every letter."""
        self.opened = self.waiting = 0
        """Open parts of this alternative, and those that are open if something behind can fail."""
        self.most_opened = self.most_waiting = 0
        """Numbers of the alternative with the most."""

    def add(self, opened: int, waiting: int, *, can_fail: bool) -> int:
        """Adds a part with such parts in it; returns how many before it are open by it."""
        opens = self.waiting if can_fail else 0
        self.opened += opens + opened
        self.waiting += waiting - opens
        return opens

    def end_alternative(self) -> None:
        """Ends an alternative, behind which another may begin."""
        self.most_opened = max(self.most_opened, self.opened)
        self.most_waiting = max(self.most_waiting, self.waiting)
        self.opened = self.waiting = 0


def _open_parts(pattern: str) -> tuple[int, int]:
    """Returns how many parts of a pattern without faults are open: in all, and in a row."""
    groups, in_all = [_Alternatives("(")], 0
    for token, repetition in _parts(pattern):
        if token == "|":
            groups[-1].end_alternative()
        elif token[0] == "(":
            groups.append(_Alternatives(token))
        else:
            opened = waiting = 0
            if token == ")":
                group = groups.pop()
                group.end_alternative()
                opened, waiting = group.most_opened, group.most_waiting
                if group.looks:
                    opened, waiting, in_all = opened + waiting, 0, in_all + waiting
            least, most = _bounds(repetition)
            times, much = (most, 0) if least == most else (1, int(most > SHORT))
            part = opened * times, waiting * times + much
            in_all += groups[-1].add(*part, can_fail=least > 0)
    groups[0].end_alternative()
    return in_all, groups[0].most_opened


def _parts(pattern: str) -> Iterator[tuple[str, str]]:
    """Yields letters, classes ("["), "|", beginnings and ends of groups with what repeats them."""
    level, held = 0, ""
    for token in _TOKEN.findall(pattern):
        if level:  # Within brackets, which may hold others.
            level += (token == "[") - (token == "]")
        elif token[0] in "*+?" or (token[0] == "{" and len(token) > 1):
            yield held, token
            held = ""
        else:
            if held:
                yield held, ""
            level = int(token == "[")
            is_flags = token[:2] == "(?" and token[-1] == ")"
            held = "" if is_flags else token
    if held:
        yield held, ""


def _bounds(repetition: str) -> tuple[int, int]:
    """Returns how often a part is repeated, at least and at most."""
    if not repetition:
        return 1, 1
    if repetition[0] != "{":
        return int(repetition[0] == "+"), 1 if repetition[0] == "?" else MOST_TEXT
    least, comma, most = repetition[1:].partition("}")[0].partition(",")
    return int(least or 0), int(most or MOST_TEXT) if comma else int(least)


def _repeated(here: _Group, last: _Group, token: str) -> str:
    """Counts a repetition of the last part of a group; returns what is wrong with it, if so."""
    if fixed := _FIXED.fullmatch(token):
        times = min(int(fixed[1]), MOST_ATOMS) - 1
        if last.has_choice:
            here.add(times, 0)
        here.add(times * last.most, times * last.atoms)
    elif token[0] != "?" and (last.most or last.has_choice):
        return f"one that repeats what matches in several ways ({token!r} after a group)"
    else:
        here.add(1, 0)
    return ""
