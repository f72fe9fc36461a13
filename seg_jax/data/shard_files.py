"""Writes finished shards of a long job with checksums, so that what is damaged is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.findings import Findings

_AGAIN = "run the same command again"


class _Head(schemas.Record, frozen=True):
    """The first line of a finished shard."""

    digest: schemas.Text
    """Digest of all that the shard depends on."""
    sha256: schemas.Text
    """Digest of the lines below."""
    counts: dict[schemas.Text, Annotated[int, Meta(ge=0, le=2**53)]]
    findings: Any
    own: schemas.Text | None = None
    """Digest of all of this line but itself; older versions wrote none."""


class Whole(NamedTuple):
    """A finished shard."""

    digest: str
    """Digest of all that it depends on."""
    lines: list[Any]
    """JSON values, as they were written."""
    counts: dict[str, int]
    findings: Findings


def read(path: Path) -> Whole:
    """Returns a finished shard.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    head, met, rest = _read_checked(path)
    # The digest holds: these are the lines that `write` wrote.
    lines = [files.parse_json(line, where=str(path)) for line in rest.splitlines()]
    return Whole(head.digest, lines, head.counts, met)


def is_of(path: Path, digest: str) -> bool:
    """Returns whether there is a whole shard that depends on just this."""
    try:
        return _read_checked(path)[0].digest == digest
    except ValueError:
        return False


def write(
    path: Path,
    lines: Sequence[Any],
    *,
    digest: str,
    counts: Mapping[str, int],
    findings: Findings,
    aside: Path,
) -> None:
    """Writes a finished shard, whole or not at all, with what tells that it is whole.

    Args:
      path: of its file.
      lines: JSON values, a line each.
      digest: of all that they depend on.
      counts: what was counted.
      findings: what was met.
      aside: folder on the same disk for the unfinished file.

    Raises:
      OSError: it cannot be written.
    """
    below = "".join(f"{json.dumps(one)}\n" for one in lines).encode()
    sha256 = hashlib.sha256(below).hexdigest()
    head = {
        "digest": digest,
        "sha256": sha256,
        "counts": dict(sorted(counts.items())),
        "findings": findings.as_json(),
        "own": _own_digest(digest, sha256, counts=counts, met=findings),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, json.dumps(head).encode() + b"\n" + below, aside=aside)


def _read_checked(path: Path) -> tuple[_Head, Findings, bytes]:
    """Returns the first line of a finished shard, its findings, and the bytes below it.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    first, _, rest = files.read_bytes(path, advice=_AGAIN).partition(b"\n")
    value = files.parse_json(first, where=str(path), advice=_AGAIN)
    head = schemas.check(value, _Head, where=str(path), advice=_AGAIN)
    met = Findings.from_json(head.findings, where=str(path), advice=_AGAIN)
    own = _own_digest(head.digest, head.sha256, counts=head.counts, met=met)
    if hashlib.sha256(rest).hexdigest() != head.sha256 or head.own not in (None, own):
        raise ValueError(f"{path}: expected a whole shard, got other bytes; do: {_AGAIN}")
    return head, met, rest


def _own_digest(digest: str, sha256: str, *, counts: Mapping[str, int], met: Findings) -> str:
    """Returns the digest of the first line of a shard."""
    parts = [digest, sha256, sorted(counts.items()), met.as_json()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
