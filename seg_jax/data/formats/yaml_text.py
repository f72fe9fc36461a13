"""Reads YAML as texts, lists and mappings: no type is guessed, no tag followed, no alias taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from seg_jax import files, schemas

MOST_BYTES = 1 << 18
"""Bytes of a file: a list of ten thousand classes."""
_ADVICE = "correct the file"
_ALIAS = "an alias, which repeats another part"


class _Refused(Exception):
    """What is valid YAML, and no list of classes."""


class _Loader(yaml.BaseLoader):
    """Every scalar is a text, so that a class named `no` stays one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _Refused(_ALIAS)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        if twice := [name for name in names if name in seen or seen.add(name)][:1]:
            got = f"the name {schemas.short_repr(twice[0])} twice"
            raise _Refused(got)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; its values are texts, lists and mappings of them.

    Raises:
      ValueError: it cannot be read, is too large, or holds something else.
    """
    text = files.read_text(path, most=MOST_BYTES, expected="YAML", advice=_ADVICE)
    try:
        found = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        got = f"{error.problem or 'another text'} in line {line}"
    except (yaml.YAMLError, ValueError, TypeError) as error:
        got = f"another text ({type(error).__name__})"
    except RecursionError:
        got = "lists or mappings nested too deep"
    except _Refused as error:
        got = str(error)
    else:
        if isinstance(found, dict):
            return found
        got = "no mapping"
    raise ValueError(f"{path}: expected a mapping in YAML, got {got}; do: {_ADVICE}")
