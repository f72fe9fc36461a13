"""The program that renders chat templates of unknown origin, a process of its own with few rights.

It is started by `template_sandbox.py`, by its path, and imports Jinja2 and the standard library
only. What it may take of the machine the operating system bounds, by whatever means a template
tries: memory, work, files, processes. A request and a reply are JSON behind eight bytes with their
length.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 256 << 20
"""Address space of the process, of which Python and Jinja2 take some 40 MB."""
WORK_SECONDS = 0.5
"""Work (not waiting) after which the system ends the process; a chat takes a thousandth."""
MOST_TEXT = 4_000_000
"""Characters of a rendered text."""
_MOST_FILES = 3
"""Open files: the socket, and two that lead nowhere."""
_MOST_REASON = 300
"""Characters of an error's text that are told."""


def serve(descriptor: int) -> None:
    """Answers requests until the other end is closed or a template went too far.

    Args:
      descriptor: of a connected socket.
    """
    _warm_up()
    _limit_rights()
    _write(descriptor, {"ready": "yes"})
    while (request := _read(descriptor)) is not None:
        signal.setitimer(signal.ITIMER_PROF, WORK_SECONDS)  # Its signal ends the process.
        reply = _reply(request)
        _write(descriptor, reply)
        if "beyond" in reply:  # Memory may be in pieces: another process is in better order.
            return


def _limit_rights() -> None:
    """Gives up memory, files and children for good."""
    _lower(resource.RLIMIT_AS, MOST_BYTES)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _MOST_FILES)
    _lower(resource.RLIMIT_NPROC, 0)


def _lower(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


_FIRST = (
    "{{ 'a' | wordwrap(1) }}{{ 'a' | striptags }}{{ 1 | pprint }}{{ 'a.org' | urlize }}",
    "{{ strftime_now('%c %Z') }}{{ lipsum(1) }}",
    "{{ nothing.at_all }}",
    "{% if %}",
)


def _warm_up() -> None:
    """Renders what reads files for the first time: later none can be opened."""
    for template in _FIRST:
        _reply({"template": template, "variables": {}})
    _compile.cache_clear()


def _reply(request: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text, or why there is none: `error` of the template, or `beyond` its limits."""
    try:
        return {"text": _rendered_text(request["template"], request["variables"])}
    except MemoryError:
        return {"beyond": f"more than {MOST_BYTES >> 20} MB of memory"}
    except RecursionError:
        return {"beyond": "levels within levels without end"}
    except _TooLong:
        return {"beyond": f"a text of more than {MOST_TEXT} characters"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:_MOST_REASON]}"}


class _TooLong(Exception):
    """A text grew beyond `MOST_TEXT`."""


def _rendered_text(template: str, variables: Mapping[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _compile(template).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_TEXT:
            raise _TooLong
    return "".join(pieces)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    """Returns a template in an environment that has what transformers gives to templates."""
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

    environment = ImmutableSandboxedEnvironment(
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
    import datetime

    return datetime.datetime.now().strftime(pattern)


def _read(descriptor: int) -> Any:
    """Returns the next request, or None where the other end is closed."""
    size = _read_bytes(descriptor, 8)
    data = size and _read_bytes(descriptor, int.from_bytes(size, "big"))
    return json.loads(data) if data else None


def _read_bytes(descriptor: int, count: int) -> bytes:
    """Returns so many bytes, or none where the other end is closed."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(descriptor, min(count - len(data), 1 << 16))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def _write(descriptor: int, value: Any) -> None:
    data = json.dumps(value).encode("ascii")
    rest = memoryview(len(data).to_bytes(8, "big") + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


if __name__ == "__main__":
    serve(sys.stdin.fileno())
