"""Models in Hugging Face folders that PyTorch runs: read, identified, put on a device."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from seg_jax.annotation.stages import Model, Unusable

# PyTorch and transformers are imported where they are needed: they come with an extra. They are
# imported by name, because type checkers would read all models of transformers otherwise.

_DESCRIBING = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of the files that a model's digest covers."""


def fingerprint(folder: Path) -> Model:
    """Returns the name of a model's folder, and a digest of the files in it.

    Raises:
      Unusable: there is no such folder.
    """
    if not folder.is_dir():
        raise Unusable(f"{folder}: expected the folder of a model, got none; do: download it first")
    seen = hashlib.sha256()
    files = {path for pattern in _DESCRIBING for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        seen.update(f"{path.name} {content}\n".encode())
    # A snapshot in the hub's cache has a name that says nothing; its model's is two above.
    cached = folder.resolve().parent.name == "snapshots"
    name = folder.resolve().parents[1].name.removeprefix("models--") if cached else folder.name
    return Model(name.replace("--", "/"), f"sha256:{seen.hexdigest()[:32]}")


def read_config(folder: Path, types: Collection[str], stage: str) -> dict[str, Any]:
    """Returns the contents of a model's `config.json`.

    Args:
      folder: folder of the model.
      types: the `model_type`s that the stage supports.
      stage: name of the stage.

    Raises:
      Unusable: there is no model, or one of another type.
    """
    found = _json(folder / "config.json", stage)
    if found.get("model_type") not in types:
        raise Unusable(
            f"{folder}: {stage}: expected a model of type {' or '.join(sorted(types))}, got "
            f"{found.get('model_type')!r}; do: give the folder of such a model"
        )
    return found


def read_preprocessor(folder: Path, stage: str) -> dict[str, Any]:
    """Returns how a model's images are prepared, from either file that transformers writes.

    Raises:
      Unusable: neither file has it.
    """
    # Newer files hold the processor's parts together.
    whole = folder / "processor_config.json"
    if whole.exists() and isinstance(part := _json(whole, stage).get("image_processor"), dict):
        return part
    return _json(folder / "preprocessor_config.json", stage)


def _json(path: Path, stage: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unusable(
            f"{path}: {stage}: expected this file of a Hugging Face model, got none that can be "
            "read; do: give the folder of a whole model"
        )
    return found


@contextlib.contextmanager
def load_context(folder: Path, stage: str) -> Iterator[tuple[Any, Any]]:
    """Gives PyTorch and transformers; errors about a model's folder become one line.

    Raises:
      Unusable: a package is missing, or the folder holds no whole model.
    """
    try:
        torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    except ModuleNotFoundError as error:
        raise Unusable(
            f"{stage}: expected the package {error.name!r}, got none; do: pip install "
            "'seg-jax[annotate]'"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield torch, transformers
    except Unusable:
        raise
    except Exception as error:  # Libraries fail on odd files in any way they can.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise Unusable(
            f"{folder}: {stage}: expected a whole model in safetensors, got {reason}"
            "; do: fetch the model again"
        ) from error


def pick_device(torch: Any, wanted: str) -> Any:
    """Returns the device of PyTorch by name; "auto": a GPU if there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def load_model(kind: Any, folder: Path, target: Any) -> Any:
    """Returns a model of transformers with its weights, from this folder and nothing else.

    Args:
      kind: class of the model, or an auto class of transformers.
      folder: folder of the model.
      target: device of PyTorch.

    Raises:
      Unusable: a tensor is missing.
    """
    model, report = kind.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,  # The other format is pickle, which can run code.
        trust_remote_code=False,
        output_loading_info=True,
    )
    if lacking := sorted(report["missing_keys"]):
        raise Unusable(
            f"{folder}: expected every tensor of the model, got {len(lacking)} fewer, the first "
            "one "
            f"{lacking[0]}; do: fetch the model again"
        )
    return model.eval().to(target)


def prepare_image(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], preprocessor: dict[str, Any]
) -> Float32[np.ndarray, "3 h w"]:
    """Returns an image resized and normalised as a preprocessor's file says.

    Args:
      image: the image.
      size: height and width to resize it to.
      preprocessor: contents of the file: `resample`, `rescale_factor`, `image_mean`, `image_std`.

    Source: the PIL processors of transformers, to the rounding of float32.
    """
    from PIL import Image

    kernel = Image.Resampling(preprocessor.get("resample", Image.Resampling.BILINEAR))
    height, width = size
    resized = Image.fromarray(image).resize((width, height), kernel)
    scaled = np.asarray(resized, np.float32) * np.float32(
        preprocessor.get("rescale_factor", 1 / 255)
    )
    mean = np.array(preprocessor.get("image_mean", (0.485, 0.456, 0.406)), np.float32)
    deviation = np.array(preprocessor.get("image_std", (0.229, 0.224, 0.225)), np.float32)
    return np.ascontiguousarray(((scaled - mean) / deviation).transpose(2, 0, 1))
