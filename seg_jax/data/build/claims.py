"""Holds the folder of a build for one process, and for one result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from seg_jax import files, locks, schemas
from seg_jax.data import record_schema
from seg_jax.data.build.record_files import PARTS, UNFINISHED

CLAIM = ".claim.json"
"""File of a folder that describes the result that it is for."""
_MOST_NAMED = 5
_NUMBER = "[0-9]" * 5
RECORDS = f"*-*.{record_schema.FILE_FORMAT}-{_NUMBER}-of-{_NUMBER}"
DESCRIPTIONS = f"{PARTS}/*-{_NUMBER}.json"
"""Patterns of files of records, and of what is known about each."""
MADE = (
    record_schema.INFO,
    record_schema.FEATURES,
    record_schema.REPORT,
    record_schema.SIZES,
    "stats.json",
    RECORDS,
    DESCRIPTIONS,
)
"""Patterns of what a build makes in its folder, in the order in which --anew removes it: the file
that makes the folder a data set goes first."""
_ADVICE = "replace it with --anew, or choose another --out"


@contextlib.contextmanager
def claim_folder(
    out: Path,
    wanted: dict[str, Any],
    *,
    anew: bool,
    reads: Collection[Path] = (),
    made: Collection[str] = MADE,
) -> Iterator[None]:
    """Holds a folder for this process, and for one result.

    Args:
      out: the folder; it is made if there is none.
      wanted: describes the result, in JSON values; it stays in the folder.
      anew: whether to remove what an earlier run has left there; files of others stay.
      reads: files and folders that the result is made of, and so may not be replaced with it.
      made: patterns of what such runs make in the folder.

    Raises:
      ValueError: the folder holds something else, or what is read, or another process works in it.
      OSError: it cannot be made.
    """
    if anew:
        check_apart(out, reads)
    out.mkdir(parents=True, exist_ok=True)
    with locks.hold(out / locks.NAME, place=out):
        claim = out / CLAIM
        others = [one for one in out.iterdir() if one.name != locks.NAME]
        if others and not claim.exists():
            raise ValueError(
                f"{out}: expected a new folder or an unfinished build, got other files; "
                "do: choose another --out"
            )
        if claim.exists() and anew:
            _remove_made(out, made)
        elif claim.exists():
            had = files.read_json_object(claim, advice=_ADVICE)
            # A run that failed before it made a file has left nothing that another could spoil.
            before, now = _differing(had, wanted)
            if before and _holds_files(out):
                raise ValueError(
                    f"{out}: expected the build of {before}, as before, got {now}; do: {_ADVICE}"
                )
        with contextlib.suppress(OSError):
            files.remove(out / UNFINISHED)
        files.write_bytes(
            claim, json.dumps(wanted, sort_keys=True).encode(), aside=out / UNFINISHED
        )
        yield


def _holds_files(out: Path) -> bool:
    """Returns whether a run has made any file of a folder."""
    own = (out / locks.NAME, out / CLAIM)
    return any(
        path.is_file() and path not in own and out / UNFINISHED not in path.parents
        for path in out.rglob("*")
    )


def _differing(had: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what differs, as name=value, of the result before and of the one wanted.

    What is missing is as if it were None: earlier versions knew fewer names.
    """
    pairs = [*_differing_values("", had, wanted)][:_MOST_NAMED]
    before = ", ".join(f"{name}={_value_text(value)}" for name, value, _ in pairs)
    now = ", ".join(f"{name}={_value_text(value)}" for name, _, value in pairs)
    return before, now


def _differing_values(
    prefix: str, had: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*had, *wanted}):
        before, now = had.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differing_values(f"{prefix}{name}.", before, now)
        elif before != now:
            yield f"{prefix}{name}", before, now


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(schemas.short_repr, value[:_MOST_NAMED]))}]"
    return schemas.short_repr(value)


def check_apart(out: Path, reads: Collection[Path]) -> None:
    """Checks that what --anew would remove with a folder is not read.

    Raises:
      ValueError: one of the files and folders that are read lies in it.
    """
    for one in reads:
        if one.resolve().is_relative_to(out.resolve()):
            raise ValueError(
                f"{out}: expected a folder that nothing is read from, got --anew, which would "
                f"remove {one}; do: choose another --out"
            )


def _remove_made(out: Path, made: Collection[str]) -> None:
    """Removes what runs have made in a folder; not its claim, which is replaced at once."""
    for pattern in made:
        for one in sorted(out.glob(pattern)):
            if one.is_file() or one.is_symlink():
                one.unlink()
