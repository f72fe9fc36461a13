"""Renders chat templates of unknown origin without letting them run anything."""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

LONGEST = 10_000_000
"""Characters that a template may make at once by repetition."""


def render(template: str, **variables: Any) -> str:
    """Returns the text of a Jinja template with the variables, run in an immutable sandbox.

    Raises:
      ValueError: the template is not Jinja, fails, or tries what the sandbox forbids.
    """
    try:
        return _compile(template).render(**variables)
    except Exception as error:
        raise ValueError(
            f"chat template: expected a chat template that renders, got {type(error).__name__}: "
            f"{error}; do: check the chat template of the tokenizer's folder"
        ) from error


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Named(Namespace):
        """What a template sets by name; no name of Python's own."""

        def __init__(*words: Any, **named: Any):
            for name in dict(*words[1:], **named):
                _check_name(name)
            Namespace.__init__(*words, **named)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    class Environment(ImmutableSandboxedEnvironment):
        """Forbids besides what Jinja forbids: huge repetitions and powers, wide formats."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [abs(x) if isinstance(x, int | float) else len(x) for x in (left, right)]
            if operator == "**" and max(sizes) > 1000:
                raise ValueError("expected a small power")
            if operator == "*" and sizes[0] * sizes[1] > LONGEST:
                raise ValueError("expected a short repetition")
            if operator == "%" and not isinstance(left, int | float):
                raise ValueError("expected no % formatting")
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["namespace"] = Named
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment.from_string(template)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise ValueError(f"expected a name without an underscore before it, got {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise ValueError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
