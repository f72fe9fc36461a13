"""Turns a command line into the configuration of a program.

A command line is `[CONFIG.py] [--option value ...]`. The file returns a whole configuration from
its function `config()`; dotted options are laid over that, or over the program's defaults. Which
class fills a union (an optimizer, a sampler) is chosen in a file; options turn its knobs, so every
union needs a default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

from seg_jax.runs import experiments

# The parser (tyro) is imported by the function that needs it: `seg-jax --help` stays quick.

ConfigT = TypeVar("ConfigT")


RENAMED = {
    "cells": "visual-tokens",
    "mixture": "task.mixture",
    "picture": "image",
    "pictures": "images",
    "window-cells": "window-tokens",
}
"""Parts of the names of options that were called otherwise, each with what it is called now."""


CALLED = {
    "coco": "coco_instances",
    "jsonl": "folder",
    "llava": "conversations",
    "messages": "conversations",
    "parquet": "huggingface",
    "roboflow": "coco_instances",
    "sharegpt": "conversations",
    "ultralytics": "yolo",
}
"""What formats of labels are called elsewhere, each with what it is called here."""


class UsageError(ValueError):
    """A command line that cannot be understood; exit status 2."""


def read(kind: type[ConfigT], arguments: Sequence[str], *, program: str) -> ConfigT:
    """Returns the configuration that a command line asks for.

    Args:
      kind: the program's `Config`, a dataclass.
      arguments: the command line after the name of the program.
      program: its name as the user types it, for the help.

    Raises:
      UsageError: the command line or its configuration file is wrong; one line says how.
      SystemExit: after `--help` was answered.
    """
    path, options = None, list(arguments)
    first = options[0] if options else "-"
    if not first.startswith("-") and (first.endswith(".py") or not _has_positional(kind)):
        path, options = options[0], options[1:]
    default = None if path is None else load(path, kind)
    kind = kind if default is None else type(default)  # Perhaps with options of its own.
    help_is_wanted = bool({"-h", "--help"} & set(options))
    completed = getattr(kind, "completed", None)
    if completed is not None:
        # A checkpoint's own values are what options are laid over.
        folder = None if help_is_wanted else option_value(options, "--checkpoint")
        blank = kind() if default is None else default
        checkpoint = None if folder is None else Path(folder)
        default = cast(ConfigT, completed(blank, checkpoint, check=False))
        if named := getattr(default, "with_weights_named", None):
            default = cast(ConfigT, named(options))
    if help_is_wanted:
        _parse(kind, ["--help"], default, program)
    with _captured() as printed:
        try:
            config, unknown = _parse(kind, options, default, program)
        except SystemExit:
            # A wrong name says more than what misses for want of the right one.
            _check_names(options, _names(kind, default))
            raise UsageError(_sentence(printed.getvalue(), program)) from None
    for name, replaced in getattr(kind, "REPLACES", {}).items():
        inner = [option for option in options if option.startswith(f"--{replaced}.")]
        if inner and any(option.partition("=")[0] == f"--{name}" for option in options):
            raise UsageError(
                f"command line: expected no {inner[0]} beside --{name}, which takes the place of "
                f"{replaced}, got "
                "both; do: leave one out"
            )
    if unknown:
        _check_names(options, _names(kind, default))
        first = "the arguments" if _has_positional(kind) else "the configuration file"
        raise UsageError(
            f"command line: expected {first} before the options, then --option value, "
            f"got {unknown[0]!r}; do: {program} --help"
        )
    return config


def option_value(options: Sequence[str], name: str) -> str | None:
    """Returns the last value that a command line gives to an option of one value, if it does."""
    value = None
    for number, option in enumerate(options):
        key, is_joined, after = option.partition("=")
        if key == name and (is_joined or number + 1 < len(options)):
            value = after if is_joined else options[number + 1]
    return value


def _has_positional(kind: type) -> bool:
    """Returns whether a program takes words without a name; such a word is no file of options."""
    return any("Positional" in str(field.type) for field in dataclasses.fields(kind))


def load(path: str | os.PathLike[str], kind: type[ConfigT]) -> ConfigT:
    """Returns what the function `config()` of a configuration file returns.

    Raises:
      UsageError: there is no such file, it fails, or its configuration is for another program.
    """
    path = Path(path)
    shipped = experiments.folder().parent / path
    if path.parts[:1] == ("configs",) and not path.exists() and shipped.is_file():
        path = shipped  # Away from the repository.
    if path.suffix != ".py" or not path.is_file():
        near = _nearest_file(path)
        guess = f"correct it, did you mean {near}?" if near else "ls configs"
        raise UsageError(
            f"command line: expected a configuration file CONFIG.py, got {str(path)!r}; do: {guess}"
        )
    try:
        module = experiments.run(path, path.read_bytes(), name=f"seg_jax_config_{path.stem}")
        config = vars(module)["config"]()
    except Exception as error:
        if isinstance(error, KeyError) and error.args == ("config",):
            raise UsageError(
                f"{path}: expected a function config(), got none; do: define it"
            ) from error
        raise UsageError(experiments.failure(path, error)) from error
    of_run = getattr(kind, "of_run", None)
    if of_run is not None:  # A program about the runs of others.
        return of_run(config)
    if not isinstance(config, kind):
        raise UsageError(
            f"{path}: expected config() to return {_qualified(kind)}, "
            f"got {_qualified(type(config))}; do: give it to the program that it is for"
        )
    return config


def _nearest_file(path: Path) -> Path | None:
    """Returns the configuration file that a wrong path may mean, also one folder further down."""
    folders = [path.parent, *sorted(path.parent.glob("*/"))]
    for folder in folders:
        if (folder / path.name).is_file() and path.suffix == ".py":
            return folder / path.name
    for folder in folders:
        names = [file.name for file in folder.glob("*.py")]
        if near := difflib.get_close_matches(path.name, names, 1):
            return folder / near[0]
    return None


def _qualified(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}"


def _parse(
    kind: type[ConfigT], options: Sequence[str], default: ConfigT | None, program: str
) -> tuple[ConfigT, list[str]]:
    """Returns a configuration with the words that no option took; exits after --help."""
    import tyro

    with _nothing_collected():
        return tyro.cli(
            kind,
            args=options,
            default=tyro.MISSING_NONPROP if default is None else default,
            prog=program,
            config=(tyro.conf.AvoidSubcommands,),
            return_unknown_args=True,
        )


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Lets no garbage be collected meanwhile.

    The parser reads source code as CPython 3.11's `ast` gives it, which fails where a finalizer
    does the same in between: to print a traceback is enough.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _names(kind: type[ConfigT], default: ConfigT | None) -> list[str]:
    """Returns every option of a configuration, read off its help."""
    with _captured() as printed, contextlib.suppress(SystemExit):
        _parse(kind, ["--help"], default, "")
    return re.findall(r"(?<![\w-])--[a-z][\w.-]*", printed.getvalue())


def _check_names(options: Sequence[str], names: Sequence[str]) -> None:
    """Raises at the first option that does not exist, naming the nearest one."""
    for option in options:
        name = option.partition("=")[0]
        if not name.startswith("--") or name.replace("_", "-") in names or name in names:
            continue
        if new_name := _new_name(name, names):
            raise UsageError(
                f"command line: expected {new_name}, as the option is called now, got {name!r}; "
                "do: "
                "use the new name"
            )
        similar = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = (
            f"correct it, did you mean {similar[0]!r}?"
            if similar
            else "choose one that --help lists"
        )
        raise UsageError(
            f"command line: expected an option of this program, got {name!r}; do: {guess}"
        )


def _new_name(option: str, names: Sequence[str]) -> str | None:
    """Returns what an option of an old name is called now, if it is one of these."""
    parts = option.removeprefix("--").replace("_", "-").split(".")
    for number, part in enumerate(parts):
        renamed = [*parts[:number], RENAMED.get(part, part), *parts[number + 1 :]]
        if part in RENAMED and (name := "--" + ".".join(renamed)) in names:
            return name
    return None


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Catches what the parser prints, on lines so wide that no name is broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sentence(box: str, program: str) -> str:
    """Returns the first paragraph of the parser's message as one line.

    The message is a box, or where boxes cannot be drawn a title and paragraphs between rules.
    """
    rows = [row.strip("│| \t") for row in box.splitlines()]
    rules = [i for i, row in enumerate(rows) if re.match(r"[╭╰]|[─-]{3}", row)]
    begin, end = [*(rules or [-1]), len(rows)][:2]
    text = " ".join(" ".join(rows[begin + 1 : end]).split())
    # Of the options at fault our own words know the name.
    text = re.sub(r"^Error parsing (?:Config: |[\w.]+: (?=[\w.]+: expected))?", "", text)
    text = text.partition(" Got errors:")[0]
    help_is_due = ": expected " not in f": {text}" or text.startswith("--")
    text = _house_form(text)
    is_told = not help_is_due or "; do: " in text
    return text if is_told else f"{text.rstrip('.')}; do: {program} --help"


_KINDS = {"INT": "whole number", "FLOAT": "number", "STR": "text", "PATH": "path"}
"""What the parser calls the kinds of values, in words."""

_FORMS = (
    (r"(--\S+): invalid literal for int\(\) with base 10: (.+)", "a whole number"),
    (r"(--\S+): could not convert string to float: (.+)", "a number"),
    (r"(--\S+): Could not find valid parse for arguments: \[(.+)\]", "values of its kind"),
    (r"(--\S+): no type matching (?P<kind>.+) could be instantiated from \[(.+)\]", None),
    (r"[Ii]nvalid choice (?P<got>.+) for argument '(\S+)'\. Expected one of \((.+)\)", None),
    (r"Missing value for argument '(--\S+)'.*", "a value"),
    (r"Missing from [^:]+: (\S+).*", "a value"),
)
"""What the parser says of a value, and what is expected; None: it is read off the sentence."""


def _house_form(text: str) -> str:
    """Returns what the parser says of a value as "WHERE: expected .., got .."."""
    for pattern, expected in _FORMS:
        found = re.fullmatch(pattern, text.strip().rstrip("."))
        if not found:
            continue
        named, [name, *rest] = found.groupdict(), found.groups()
        if "got" in named:
            _, name, choices = found.groups()
            known, got = re.split(", ?", choices), named["got"]
            told = f": expected {_or(known)}, got {got}"
            if name.startswith("-"):
                return name + told
            meant = _meant(got.strip("'"), [one.strip("'") for one in known])
            return f"{name.upper()}{told}{meant}"
        if "kind" in named:
            kinds = named["kind"].split("|")
            return f"{name}: expected {_or([_in_words(kind) for kind in kinds])}, got {rest[-1]}"
        return f"{name}: expected {expected}, got {rest[0] if rest else 'none'}"
    return text


def _meant(got: str, known: Sequence[str]) -> str:
    """Returns which choice a wrong one may mean, as advice; nothing where none is like it."""
    other = CALLED.get(got.lower(), got)
    near = difflib.get_close_matches(other, known, n=1, cutoff=0.6)
    return f"; do: correct it, did you mean {near[0]!r}?" if near else ""


def _in_words(kind: str) -> str:
    """Returns a kind of values as the parser names it in words: {FLOAT FLOAT} is 2 numbers."""
    parts = kind.strip("{}").split(" ")
    word = _KINDS.get(parts[0])
    if word is None or len(set(parts)) > 1:
        return " ".join(parts)
    return f"a {word}" if len(parts) == 1 else f"{len(parts)} {word}s"


def _or(parts: Sequence[str]) -> str:
    """Returns parts as a sentence has them: a, b or None, which comes last."""
    words = {part.strip("' ,") for part in parts} - {""}
    *most, last = sorted(words, key=lambda word: (word == "None", word))
    return f"{', '.join(most)} or {last}" if most else last
