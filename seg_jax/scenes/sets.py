"""Phrases that provably fit several things of a drawn world at once, or none of them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from seg_jax.scenes import meaning, phrases
from seg_jax.scenes import world as worlds
from seg_jax.scenes.meaning import Expression, Fact
from seg_jax.scenes.phrases import Style
from seg_jax.scenes.things import Kind
from seg_jax.scenes.world import Config, World


class Group(NamedTuple):
    """Things that one phrase means, all of them at once."""

    things: tuple[int, ...]
    """Two or more of the world, or none."""
    phrases: tuple[str, ...]


def find_groups(
    world: World, masks: Bool[np.ndarray, "M H W"], *, config: Config, style: Style
) -> list[Group]:
    """Returns what the style says of several things of a world, then of what is not in it.

    The world's own seed chooses the absent ones: the same world always gets the same phrases. What
    the config holds out is never said to be absent.

    Args:
      world: what was drawn.
      masks: visible masks of its things, from `draw.render`.
      config: that the world was made by.
      style: which expressions.
    """
    facts = meaning.facts(world, masks)
    found = _groups_of_several(facts, style) if style.several else []
    if style.absent:
        missing = _absent_expressions(facts, config, style)
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([world.seed, _ABSENT_STREAM]))
        )
        chosen = sorted(rng.permutation(len(missing))[: style.absent].tolist())
        found += [Group((), _absent_wordings(missing[place], style)) for place in chosen]
    return found


_ABSENT_STREAM = 1
"""Number of the random stream that chooses what is said to be absent."""


def _groups_of_several(facts: dict[int, Fact], style: Style) -> list[Group]:
    """Returns the groups of two or more things that attributes describe, the smallest first."""
    looks = [(fact.kind, fact.colour, fact.texture) for fact in facts.values()]
    names = dict.fromkeys(
        itertools.chain.from_iterable(_attribute_names(look, style) for look in looks)
    )
    groups: dict[frozenset[int], list[str]] = {}
    for expression in [*names, Expression()]:
        things = meaning.matches(expression, facts)
        if len(things) > 1:
            groups.setdefault(things, []).extend(plurals(expression, len(things), style.wordings))
    ordered = sorted((tuple(sorted(things)), tuple(ways)) for things, ways in groups.items())
    return [Group(*one) for one in sorted(ordered, key=lambda one: len(one[0]))]


def _attribute_names(look: worlds.Look, style: Style) -> tuple[Expression, ...]:
    """Returns the expressions of attributes alone that fit a thing of this look."""
    kind, colour, texture = look
    return phrases.attribute_expressions(kind, colour, texture if style.texture else None)


def _absent_expressions(facts: dict[int, Fact], config: Config, style: Style) -> list[Expression]:
    """Returns expressions that fit nothing: names alone, or with all attributes but one at hand."""
    names = [_attribute_names(look, style) for look in worlds.looks(config)]
    candidates = dict.fromkeys(
        itertools.chain(*(some[-1:] if style.full else some for some in names))
    )
    there = [{fact.kind, fact.colour, fact.texture} for fact in facts.values()]
    found = []
    for expression in candidates:
        if meaning.matches(expression, facts):
            continue
        wanted = {expression.kind, expression.colour, expression.texture} - {None}
        if any(len(wanted - one) <= 1 for one in there):
            found.append(expression)
    return found


def _absent_wordings(expression: Expression, style: Style) -> tuple[str, ...]:
    """Returns the wordings of an expression that fits nothing: of one thing, of many if used."""
    ways = phrases.wordings(expression, style.wordings)
    return (*ways, *plurals(expression, 0, style.wordings)) if style.several else ways


def plurals(expression: Expression, count: int, most: int) -> tuple[str, ...]:
    """Returns at most so many ways to say all things of some attributes, the simplest first.

    Args:
      expression: of attributes alone.
      count: of the things; 0 says no number.
      most: ways.
    """
    nouns = [plural(expression.kind)] if expression.kind else ["objects", "things"]
    adjectives = phrases.attributes(expression)
    cores = [" ".join([*adjectives, noun]) for noun in nouns]
    number = {2: ("both", "the two"), 3: ("the three",), 4: ("the four",)}.get(count, ())
    ways = [f"{lead} {core}" for core in cores for lead in ("the", *number, "all")]
    return tuple(ways[:most])


def plural(kind: Kind) -> str:
    """Returns the noun of several things of a kind."""
    if kind is Kind.PAIR:
        return "pairs of discs"
    return f"{kind}es" if kind is Kind.CROSS else f"{kind}s"
