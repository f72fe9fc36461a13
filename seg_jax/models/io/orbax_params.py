"""Keeps the parameters of a model as an Orbax checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from pathlib import Path
from typing import Any

from flax import nnx

FOLDER = "params"
NOTE = "params.json"
"""Within the folder of a model, and the file that says which dtype they are kept in."""


def write(params: Any, folder: Path) -> None:
    """Writes FOLDER/params, whole or not at all; every process writes what its devices hold."""
    with _saver() as saver:
        saver.save((folder / FOLDER).absolute(), nnx.to_pure_dict(params), force=True)
        saver.wait_until_finished()


def read(folder: Path, like: Any) -> Any:
    """Returns parameters with the shapes, dtypes and places of the given ones.

    Args:
      folder: what `write` was given.
      like: shapes, with shardings where they are not to go to the default device.

    Raises:
      ValueError: the checkpoint is damaged or of another model.
    """
    wanted = nnx.to_pure_dict(like)
    try:
        with _saver() as saver:
            found = saver.restore((folder / FOLDER).absolute(), wanted)
    except Exception as error:  # Damaged files make libraries fail in any way they can.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{folder / FOLDER}: expected the parameters of the model in config.json, got "
            f"damaged or other ones ({reason}); do: convert the model again"
        ) from error
    nnx.replace_by_pure_dict(like, found)
    return like


def quieten_orbax() -> None:
    """Lets orbax raise its errors and not print them too.

    It logs every save at INFO and an error again with each of its tasks' tracebacks. At the first
    array that fails it closes the event loop of all; each of the others then prints a traceback.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.suppress(ImportError):  # Another orbax may have it elsewhere, and print.
        from orbax.checkpoint._src import asyncio_utils

        patient = vars(asyncio) | {"new_event_loop": _PatientLoop}
        asyncio_utils.asyncio = types.SimpleNamespace(**patient)  # pyright: ignore


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for its tasks before it closes."""

    def close(self) -> None:
        while not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


def _saver() -> Any:
    import orbax.checkpoint as ocp

    quieten_orbax()
    return ocp.StandardCheckpointer()
