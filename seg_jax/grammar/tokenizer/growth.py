"""Bounds what the steps of a tokenizer.json can make of a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_GROWTH = 100
"""Times as long as a text may become; the steps of published tokenizers make it three times."""
MOST_STEPS = 100
"""Steps before and after a text is cut into tokens; published tokenizers have up to ten."""


def check(definition: Mapping[str, Any]) -> None:
    """Raises for steps that could blow a text up until memory or time are gone.

    Replacements multiply: forty steps that double a letter would make 10**12 of one.

    Args:
      definition: the contents of a tokenizer.json.

    Raises:
      ValueError: there are more steps, or more growth, than any tokenizer needs.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(_steps(definition.get(name)))
        if len(steps) > MOST_STEPS:
            raise ValueError(f"expected at most {MOST_STEPS} steps in {name}, got {len(steps)}")
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise ValueError(
                f"expected a {name} after which a text is at most {MOST_GROWTH} times as long, got "
                f"{growth:.3g} times"
            )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a part, those within sequences one after the other."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            yield step
            for name in ("normalizers", "pretokenizers", "decoders"):
                inner = step.get(name)
                waiting += inner if isinstance(inner, list) else []


def _growth(step: Mapping[str, Any]) -> float:
    """Returns how many times as long a step can make a text of a letter or more."""
    new = next((step[n] for n in ("content", "prepend", "replacement") if n in step), "")
    if not isinstance(new, str):
        return 1.0
    pattern = step.get("pattern")
    old = pattern.get("String") if isinstance(pattern, Mapping) else None
    if isinstance(old, str) and old:
        return max(1.0, len(new) / len(old))
    # A pattern may match between any two letters.
    return 1.0 + len(new)
