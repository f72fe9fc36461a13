"""Models in Hugging Face folders that PyTorch runs: read, identified, put on a device."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, UInt8
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.annotation.stages import Model, Unusable

# PyTorch and transformers are imported where they are needed: they come with an extra. They are
# imported by name, because type checkers would read all models of transformers otherwise.

_DESCRIBING = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of the files that a model's digest covers."""


MOST_BYTES = 64 << 20
"""The largest JSON file of a model's folder: that of a tokenizer has some ten million bytes."""
_Channel = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Spread = Annotated[float, Meta(gt=1e-6, le=1e6)]


class Config(schemas.Record, frozen=True):
    """What is read here of a model's `config.json`."""

    model_type: schemas.Text = ""
    """Name of the kind of model."""
    max_text_len: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Most tokens of a text that a detector reads."""


class Preprocessor(schemas.Record, frozen=True):
    """How a model's images are prepared; null stands for what is left out."""

    resample: Annotated[int, Meta(ge=0, le=5)] | None = None
    """Number of Pillow's filter; None: 2, bilinear."""
    rescale_factor: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Factor of values 0..255; None: 1 / 255."""
    image_mean: tuple[_Channel, _Channel, _Channel] | None = None
    """Mean of each channel; None: ImageNet's."""
    image_std: tuple[_Spread, _Spread, _Spread] | None = None
    """Standard deviation of each channel; None: ImageNet's."""


def fingerprint(folder: Path) -> Model:
    """Returns the name of a model's folder, and a digest of the files in it.

    Raises:
      Unusable: there is no such folder.
    """
    if not folder.is_dir():
        raise Unusable(f"{folder}: expected the folder of a model, got none; do: download it first")
    seen = hashlib.sha256()
    paths = {path for pattern in _DESCRIBING for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        seen.update(f"{path.name} {content}\n".encode())
    # A snapshot in the hub's cache has a name that says nothing; its model's is two above.
    cached = folder.resolve().parent.name == "snapshots"
    name = folder.resolve().parents[1].name.removeprefix("models--") if cached else folder.name
    return Model(name.replace("--", "/"), f"sha256:{seen.hexdigest()[:32]}")


def read_config(folder: Path, types: Collection[str], stage: str) -> Config:
    """Returns what is read of a model's `config.json`.

    Args:
      folder: folder of the model.
      types: the `model_type`s that the stage supports.
      stage: name of the stage.

    Raises:
      Unusable: there is no model, or one of another type.
    """
    path = folder / "config.json"
    found = _file_as(_json(path, stage), Config, path, stage)
    if found.model_type not in types:
        raise Unusable(
            f"{folder}: {stage}: expected a model of type {' or '.join(sorted(types))}, got "
            f"{schemas.short_repr(found.model_type)}; do: give the folder of such a model"
        )
    return found


def read_preprocessor(folder: Path, stage: str) -> Preprocessor:
    """Returns how a model's images are prepared, from either file that transformers writes.

    Raises:
      Unusable: neither file has it.
    """
    # Newer files hold the processor's parts together.
    path = folder / "processor_config.json"
    part = _json(path, stage).get("image_processor") if path.exists() else None
    if not isinstance(part, dict):
        path = folder / "preprocessor_config.json"
        part = _json(path, stage)
    return _file_as(part, Preprocessor, path, stage)


def _json(path: Path, stage: str) -> dict[str, Any]:
    try:
        found = files.read_json(path, most=MOST_BYTES)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unusable(
            f"{path}: {stage}: expected this file of a Hugging Face model, got none that can be "
            "read; do: give the folder of a whole model"
        )
    return found


def _file_as(value: Any, kind: type[schemas.Value], path: Path, stage: str) -> schemas.Value:
    """Returns the contents of a file as a type; what does not hold makes the model unusable."""
    try:
        return schemas.check(value, kind, where=f"{path}: {stage}", advice="fetch the model again")
    except ValueError as error:
        raise Unusable(str(error)) from None


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
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], preprocessor: Preprocessor
) -> Float32[np.ndarray, "3 h w"]:
    """Returns an image resized and normalised as a preprocessor's file says.

    Args:
      image: the image.
      size: height and width to resize it to.
      preprocessor: what the file says.

    Source: the PIL processors of transformers, to the rounding of float32.
    """
    from PIL import Image

    told = preprocessor
    kernel = Image.Resampling.BILINEAR if told.resample is None else told.resample
    height, width = size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling(kernel))
    scaled = np.asarray(resized, np.float32) * np.float32(told.rescale_factor or 1 / 255)
    mean = np.array(told.image_mean or (0.485, 0.456, 0.406), np.float32)
    deviation = np.array(told.image_std or (0.229, 0.224, 0.225), np.float32)
    return np.ascontiguousarray(((scaled - mean) / deviation).transpose(2, 0, 1))
