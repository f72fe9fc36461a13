"""Refuses patterns of a tokenizer.json that could take time without end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MOST_CHARACTERS = 20_000
"""Characters of a pattern; the longest that are known have some four thousand."""
MOST_PATTERNS = 200
"""Patterns of a tokenizer; published ones have up to ten."""
MOST_LOOSE = 6
"""Parts of one alternative that may match more or less of a text; published ones have up to four,
and each may multiply the time by the length of a text."""

MOST_ATOMS = 10_000
"""Letters and classes of a pattern once repetitions of a fixed number are written out."""

_TOKEN = re.compile(
    r"\\[xpP]\{[^}]*\}|\\.|\(\?[a-zA-Z-]*[:)]|\(\?<?[=!]|\(\?>|\(\?|\(|\)|\||\[|\]"
    r"|[*+?][?+]?|\{[0-9]+(?:,[0-9]*)?\}[?+]?|\{,[0-9]+\}[?+]?|.",
    re.DOTALL,
)
_FIXED = re.compile(r"\{([0-9]+)\}")


def check(definition: Mapping[str, Any]) -> None:
    """Raises for patterns whose time may grow beyond a low power of a text's length.

    Texts are cut by patterns within this process, where nothing can end one. All published
    tokenizers have patterns without repetition within repetition, without references to what was
    matched and without calls of themselves: so are those that are taken.

    Args:
      definition: the contents of a tokenizer.json.

    Raises:
      ValueError: a pattern is of another form.
    """
    found = [*_patterns(definition)]
    if len(found) > MOST_PATTERNS:
        raise ValueError(f"expected at most {MOST_PATTERNS} patterns, got {len(found)}")
    for pattern in found:
        if len(pattern) > MOST_CHARACTERS:
            raise ValueError(
                f"expected patterns of at most {MOST_CHARACTERS} characters, got one of "
                f"{len(pattern)}"
            )
        if fault := _fault(pattern):
            raise ValueError(f"expected patterns as published tokenizers have, got {fault}")


def _patterns(definition: Mapping[str, Any]) -> Iterator[str]:
    """Yields the regular expressions of a definition, wherever they stand outside of the model."""
    waiting: list[Any] = [part for name, part in definition.items() if name != "model"]
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
