"""Holds the folder of a build for one process, and for one result."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seg_jax import files, locks
from seg_jax.data.build.record_files import UNFINISHED

CLAIM = ".claim.json"
"""File of a folder that describes the result that it is for."""
_ADVICE = "replace it with --anew, or choose another --out"


@contextlib.contextmanager
def claim_folder(out: Path, wanted: dict[str, Any], *, anew: bool) -> Iterator[None]:
    """Holds a folder for this process, and for one result.

    Args:
      out: the folder; it is made if there is none.
      wanted: describes the result, in JSON values; it stays in the folder.
      anew: whether to remove what an earlier run has left there.

    Raises:
      ValueError: the folder holds something else, or another process works in it.
      OSError: it cannot be made.
    """
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
            _remove_all(others)
        elif claim.exists() and (had := files.read_json_object(claim, advice=_ADVICE)) != wanted:
            differing = sorted(name for name in wanted if had.get(name) != wanted[name])
            raise ValueError(
                f"{out}: expected the same build as before, got another "
                f"{', '.join(differing)}; do: {_ADVICE}"
            )
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        files.write_bytes(
            claim, json.dumps(wanted, sort_keys=True).encode(), aside=out / UNFINISHED
        )
        yield


def _remove_all(paths: Iterable[Path]) -> None:
    for one in paths:
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()
