"""The table of families: which model a `config.json` asks for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from seg_jax import checksums, files
from seg_jax.models.clip import clip
from seg_jax.models.facts import hub_config
from seg_jax.models.facts.family import VLM, Family
from seg_jax.models.facts.image_layout import ImageLayout
from seg_jax.models.sam2 import sam2
from seg_jax.models.vlm import kimi_vl, qwen3_vl, qwen25_vl

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        qwen25_vl.FAMILY,
        qwen3_vl.FAMILY,
        kimi_vl.FAMILY,
        sam2.FAMILY,
        clip.FAMILY,
    )
}
"""Every family by its `model_type`."""


def family_of(config: Any) -> Family:
    """Returns the family of one of our configs."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def vlm_facts(config: Any) -> VLM:
    """Returns what the family of a config has as one of vision-language models.

    Raises:
      ValueError: it is none.
    """
    family = family_of(config)
    if family.vlm is None:
        raise ValueError(
            f"model_type: expected a vision-language model, got {family.model_type!r}, which gives "
            f"no answers; do: give one of {', '.join(_vlms())}"
        )
    return family.vlm


def check_segmenter(config: Any) -> None:
    """Raises ValueError where models of a config draw no masks of points and boxes."""
    if (family := family_of(config)).segmenter is None:
        known = [name for name, family in FAMILIES.items() if family.segmenter is not None]
        raise ValueError(
            f"model_type: expected a model that draws masks of points and boxes, got "
            f"{family.model_type!r}; do: give one of {', '.join(known)}"
        )


def published_segmenters() -> dict[str, Any]:
    """Returns the configs of published models that draw masks, by their names on the hub."""
    drawing = [family.segmenter for family in FAMILIES.values() if family.segmenter is not None]
    return {name: config for one in drawing for name, config in one.sizes.items()}


def check_pairs(config: Any) -> None:
    """Raises ValueError where models of a config bring no images and texts into one space."""
    if (family := family_of(config)).pairs is None:
        known = [name for name, family in FAMILIES.items() if family.pairs is not None]
        raise ValueError(
            f"model_type: expected a model that says which text fits which image, got "
            f"{family.model_type!r}; do: give one of {', '.join(known)}"
        )


def read(folder: Path) -> Any:
    """Returns our config of a hub folder.

    Pixel statistics come from `preprocessor_config.json` where there is one.

    Raises:
      ValueError: no folder, no `config.json`, of no known family, or of a model that its port
        cannot be.
    """
    _check_folder(folder)
    check_no_adapter(folder)
    path = folder / "config.json"
    hub = files.read_json_object(path)
    try:
        family = find(hub.get("model_type"))
        for name, part in hub.items():
            if name.endswith("_config") and not isinstance(part, dict | None):
                raise ValueError(
                    f"{name}: expected an object, got {part!r:.40}; do: copy the file that "
                    "belongs to the weights"
                )
        for part in (hub, *(part for part in hub.values() if isinstance(part, dict))):
            if part.get("quantization_config") is not None:
                raise ValueError(
                    "quantization_config: expected none, got one: its weights are numbers of a few "
                    "bits that nothing here reads; do: take the model before it was quantized"
                )
            tie = part.get("tie_word_embeddings")
            if not isinstance(tie, bool | None):
                raise ValueError(
                    f"tie_word_embeddings: expected true or false, got {tie!r:.40}; do: copy the "
                    "file that belongs to the weights"
                )
        config = family.with_preprocessor(family.config.from_hf(hub), preprocessor(folder))
        hub_config.check_sizes(config, "config")
        return config
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = str(error).removeprefix("config.json: ")
        if "; do: " in reason:
            raise ValueError(f"{path}: {reason}") from error
        raise ValueError(
            f"{path}: expected the sizes of a model of type {hub.get('model_type')!r}, got "
            f"{type(error).__name__}: {error}; do: copy the file that belongs to the weights"
        ) from error


def _check_folder(folder: Path) -> None:
    """Raises ValueError for a path that is no folder: a file, a name of the hub, a slip."""
    if folder.is_dir():
        return
    if folder.exists():
        raise ValueError(
            f"{folder}: expected the folder of a model, got a file; do: give the folder that holds "
            f"it, or make one of a .pt: seg-jax convert {folder} DIR"
        )
    raise ValueError(
        f"{folder}: expected the folder of a model, got nothing there; do: check the path, or "
        f"bring a model of the hub into a folder: seg-jax convert {folder} DIR"
    )


def check_no_adapter(folder: Path) -> None:
    """Raises ValueError where a folder holds an adapter (LoRA), alone or beside a model."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: expected the weights of a model, got {name}, an adapter (LoRA) that "
                "changes another one; do: give its base here and this folder as the adapter, or "
                "merge both: seg-jax convert BASE DEST --merge ADAPTER"
            )


def find(model_type: object) -> Family:
    """Returns the family of a `model_type`.

    Raises:
      ValueError: there is no such family; the known ones are named.
    """
    for family in FAMILIES.values():
        if model_type == family.model_type or model_type in family.other_types:
            return family
    close = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.8)
    guess = f" (near {close[0]})" if close else ""
    for family in FAMILIES.values():
        if isinstance(model_type, str) and model_type in family.relatives:
            guess = f" ({family.relatives[model_type]})"
    raise ValueError(
        f"model_type: expected one of {', '.join(FAMILIES)}, got {model_type!r}{guess}; "
        "do: give a model of one of these"
    )


def with_tokens(config: Any, tokenizer: Any) -> Any:
    """Returns a config of a vision-language model with the special tokens of a tokenizer.

    Args:
      config: of the model.
      tokenizer: has what `facts.family.SpecialTokens` names.

    Raises:
      ValueError: the model's table is too small for the tokenizer.
    """
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"model.text.vocab_size: expected at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {config.text.vocab_size}; do: raise it"
        )
    return vlm_facts(config).with_tokens(config, tokenizer)


def image_layout(
    model_type: str, preprocessor: Mapping[str, Any], *, visual_tokens: int
) -> ImageLayout:
    """Returns how a published checkpoint of a family cuts images.

    Args:
      model_type: of its `config.json`.
      preprocessor: its `preprocessor_config.json`.
      visual_tokens: most visual tokens of a row; larger images are scaled down further than the
        checkpoint asks for.

    Raises:
      ValueError: a family without a layout, or a preprocessor that says what ours does not do.
    """
    family = FAMILIES.get(model_type)
    if family is None or family.vlm is None:
        raise ValueError(
            f"model_type: expected one that has a layout, got {model_type!r}; do: give one of "
            f"{', '.join(_vlms())}"
        )
    return family.vlm.image_layout(preprocessor, visual_tokens=visual_tokens)


def preprocessor(folder: Path) -> dict[str, Any]:
    """Returns what a hub folder says of its images, nothing if it says nothing.

    Raises:
      ValueError: the file is broken.
    """
    path = folder / "preprocessor_config.json"
    if path.exists():
        return files.read_json_object(path)
    path = folder / "processor_config.json"  # Where transformers 5 puts it.
    found = files.read_json_object(path).get("image_processor") if path.exists() else None
    return found if isinstance(found, dict) else {}


def companions(folder: Path) -> list[Path]:
    """Returns the files of a hub folder that travel with its weights, `config.json` aside.

    What was made for training, pickles and foreign formats stay behind.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in _COMPANIONS or path.name.startswith("LICENSE"))
        and path.name not in ("config.json", checksums.FILE)
        and not path.name.endswith(".index.json")
    ]


def copied_config(folder: Path, config: Any) -> dict[str, Any]:
    """Returns the `config.json` of a copy of a folder, whose config this is.

    Of a larger model's folder only this one's part is copied, and its file says so.
    """
    hub = files.read_json_object(folder / "config.json")
    if hub.get("model_type") == family_of(config).model_type:
        return hub
    dtype = {name: hub[name] for name in ("dtype", "torch_dtype") if name in hub}
    return config.to_hf() | dtype


_COMPANIONS = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")


def with_dtype(hub: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a `config.json` that names another dtype wherever one is named."""
    out = dict(hub)
    for name, value in hub.items():
        if name in ("dtype", "torch_dtype"):
            out[name] = dtype
        elif name.endswith("_config") and isinstance(value, Mapping):
            out[name] = with_dtype(value, dtype)
    return out


def noted_dtype(folder: Path) -> Literal["float32", "bfloat16"]:
    """Returns the dtype that `config.json` names, the nearest of ours: float32 if it names none."""
    try:
        hub = files.read_json_object(folder / "config.json")
    except ValueError:  # Reported with more care where the model is read.
        return "float32"
    parts = [hub, *(hub[name] for name in sorted(hub) if name.endswith("_config"))]
    for part in parts:
        if not isinstance(part, dict):
            continue
        noted = part.get("dtype", part.get("torch_dtype"))
        if noted is not None:
            return "bfloat16" if noted in ("bfloat16", "float16") else "float32"
    return "float32"


def _vlms() -> list[str]:
    return [name for name, family in FAMILIES.items() if family.vlm is not None]
