"""The table of ports: which model a `config.json` asks for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from seg_jax import files
from seg_jax.models.vlm import kimi_vl, qwen3_vl, qwen25_vl


@dataclasses.dataclass(frozen=True)
class Family:
    """A port and the table of its names on the hub."""

    model_type: str
    config: Any
    """Class of its configs."""
    model: Any
    """Class of its models."""
    names: Mapping[str, str]
    """Ours to theirs."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Beginnings of names that some files have, each with that of the hub."""


_INSIDE = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""Names within transformers and in the files that its version 5 writes, to those of the hub."""

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_5_vl", qwen25_vl.Config, qwen25_vl.Qwen25VL, qwen25_vl.NAMES, _INSIDE),
        Family("qwen3_vl", qwen3_vl.Config, qwen3_vl.Qwen3VL, qwen3_vl.NAMES),
        Family("kimi_vl", kimi_vl.Config, kimi_vl.KimiVL, kimi_vl.NAMES),
    )
}


def of(config: Any) -> Family:
    """Returns the family of one of our configs."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def read(folder: Path) -> Any:
    """Returns our config of a hub folder.

    Pixel statistics come from `preprocessor_config.json` where there is one.

    Raises:
      ValueError: no `config.json`, of no known family, or of a model that its port cannot be.
    """
    path = folder / "config.json"
    hub = files.read_json_object(path)
    try:
        family = named(hub.get("model_type"))
        _check_rotary(hub)
        config = family.config.from_hf(hub)
        found = {name: _three(value) for name, value in _statistics(folder).items()}
        return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **found))
    except ValueError as error:
        reason = str(error).removeprefix("config.json: ")
        advice = "" if "do:" in reason else ": do: copy the one of these weights"
        raise ValueError(f"{path}: {reason}{advice}") from error
    except (AttributeError, KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{path}: expected the sizes of a model of type {hub.get('model_type')!r}, got "
            f"{type(error).__name__}: {error}; copy the file that belongs to the weights"
        ) from error


def named(model_type: object) -> Family:
    """Returns the family of a `model_type`.

    Raises:
      ValueError: there is no such family; the known ones are named.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.8)
    guess = f" (near {near[0]})" if near else ""
    if model_type == "opencua":
        guess = " (Qwen2.5-VL with 1-D rotary positions and Moonshot's tokenizer)"
    raise ValueError(
        f"model_type: expected one of {', '.join(FAMILIES)}, got {model_type!r}{guess}: "
        "do: give a model of one of these"
    )


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


def carried(folder: Path) -> list[Path]:
    """Returns the files of a hub folder that travel with its weights, `config.json` aside.

    What was made for training, pickles and foreign formats stay behind.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in _CARRIED or path.name.startswith("LICENSE"))
        and path.name != "config.json"
        and not path.name.endswith(".index.json")
    ]


_CARRIED = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")


def with_dtype(hub: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a `config.json` that names another dtype wherever it names one."""
    out = dict(hub)
    for name, value in hub.items():
        if name in ("dtype", "torch_dtype"):
            out[name] = dtype
        elif name in ("text_config", "vision_config") and isinstance(value, Mapping):
            out[name] = with_dtype(value, dtype)
    return out


def noted_dtype(folder: Path) -> Literal["float32", "bfloat16"]:
    """Returns the dtype that `config.json` names, the nearest of ours: float32 if it names none."""
    try:
        hub = files.read_json_object(folder / "config.json")
    except ValueError:  # Reported with more care where the model is read.
        return "float32"
    text = hub.get("text_config")
    for part in (hub, text if isinstance(text, dict) else {}):
        named = part.get("dtype", part.get("torch_dtype"))
        if named is not None:
            return "bfloat16" if named in ("bfloat16", "float16") else "float32"
    return "float32"


def _check_rotary(hub: Mapping[str, Any]) -> None:
    """Refuses a Qwen2.5-VL whose text turns with one axis only, as OpenCUA's.

    Read as if it had three it would answer, wrongly.
    """
    text = hub.get("text_config") or hub
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if hub["model_type"] == "qwen2_5_vl" and "mrope_section" not in rope:
        raise ValueError(
            "rope_scaling: expected the mrope_section of Qwen2.5-VL, got none: 1-D rotary "
            "positions (as OpenCUA has them) are not supported; do: give a model with M-RoPE"
        )


def _statistics(folder: Path) -> dict[str, Any]:
    found = preprocessor(folder)
    return {name: found[name] for name in ("image_mean", "image_std") if name in found}


def _three(values: Any) -> tuple[float, ...]:
    out = tuple(float(value) for value in values)
    if len(out) != 3:
        raise ValueError(f"preprocessor_config.json: expected three channels, got {out}")
    return out
