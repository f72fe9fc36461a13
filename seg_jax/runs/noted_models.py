"""What the models that a run reads hold: noted when it begins, compared when it goes on.

Another model at the same path would be another run: the reference that a policy is held to, the
model that judges answers, the weights that an adapter lies over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from seg_jax import checksums, files, schemas
from seg_jax.models.io import weights

RECORD = "models.json"
"""In the folder of a run: size and checksum of each file of each model that it reads."""

_SMALL_BYTES = 64 << 20
"""Most bytes of a file beside the weights that is compared: larger ones are other forms of them."""
_ADVICE = "put it back from a copy, or start anew with --anew"

_Noted = dict[str, checksums.Sums]


def note(folder: Path, models: Mapping[str, Path]) -> None:
    """Compares models with what a run has noted of them; what was not noted yet is noted now.

    A model that was moved is still the same; a run of an earlier version has no note.

    Args:
      folder: of the run.
      models: folders, or a file each, by the names of the options that give them.

    Raises:
      ValueError: a file is another one than when the run began, or the note is damaged.
      OSError: a file cannot be read, or the note not be written.
    """
    path = folder / RECORD
    noted = _read(path) if path.exists() else {}
    for name, model in models.items():
        if name in noted and (change := _change(model, noted[name])):
            file, _, reason = change.partition(": ")
            raise ValueError(
                f"{name}: expected {_root(model) / file} as it was when the run in {folder} began, "
                f"got another one ({reason}); do: put the old one back, or begin another "
                "run with --anew or another --out"
            )
    if new := {name: _sums(models[name]) for name in models if name not in noted}:
        _write(path, noted | new)


def _read(path: Path) -> _Noted:
    return schemas.check(
        files.read_json(path, advice=_ADVICE), _Noted, where=str(path), advice=_ADVICE
    )


def _write(path: Path, noted: _Noted) -> None:
    plain = {
        model: {name: {"bytes": one.bytes, "xxh3": one.xxh3} for name, one in sums.items()}
        for model, sums in sorted(noted.items())
    }
    files.write_json(path, plain)


def _root(model: Path) -> Path:
    return model if model.is_dir() else model.parent


def _sums(model: Path) -> checksums.Sums:
    """Returns those of a model, which its own list has where there is one."""
    if not model.is_dir():
        return checksums.of_files(model.parent, [model.name])
    names = [name for name in checksums.files_of(model) if _is_read(model, name)]
    return _list_of(model) or checksums.of_files(model, names)


def _is_read(model: Path, name: str) -> bool:
    """Returns whether a run may read a file of a model: hubs keep weights in other forms too."""
    path = model / name
    if not path.is_file():  # A pipe would be waited for.
        return False
    return weights.is_of_weights(name) or path.stat().st_size <= _SMALL_BYTES


def _change(model: Path, noted: checksums.Sums) -> str | None:
    """Returns what has changed of a model, in words that begin with the name of a file."""
    listed = _list_of(model)
    for name in sorted(noted.keys() & listed.keys()):
        if noted[name] != listed[name]:
            return f"{name}: its checksum differs"
    rest = {name: one for name, one in noted.items() if name not in listed}
    return checksums.find_damage(_root(model), rest)


def _list_of(model: Path) -> checksums.Sums:
    """Returns the list of checksums of a folder, which loading compares with its files."""
    path = model / checksums.FILE
    return checksums.read(path) if path.is_file() else {}
