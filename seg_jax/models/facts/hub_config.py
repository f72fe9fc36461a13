"""Reads the parts of a hub's `config.json` that ports share, and checks their sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


def check_model_type(hub: Mapping[str, Any], expected: str) -> None:
    """Raises ValueError where a `config.json` is of another model."""
    if (found := hub.get("model_type", expected)) != expected:
        raise ValueError(
            f"model_type: expected {expected!r}, got {found!r}"
            "; do: copy the file that belongs to the weights"
        )


def check_present(parts: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
    """Raises ValueError where sizes are missing: a default would be another model's.

    Args:
      parts: of a `config.json`, by what their names begin with, each with the names that it needs.
    """
    lost = [
        f"{where}{name}"
        for where, (part, names) in parts.items()
        for name in names
        if name not in part
    ]
    if lost:
        raise ValueError(
            f"config.json: expected all sizes of a model, got no {lost}"
            "; do: copy the file that belongs to the weights"
        )


def check_fixed(part: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str) -> None:
    """Raises ValueError where a part of a `config.json` has another value than the only one known.

    Args:
      part: of a `config.json`.
      fixed: the values; one that is left out counts as right.
      where: name of the part.
    """
    for name, value in fixed.items():
        if (got := part.get(name, value)) != value:
            raise ValueError(
                f"{where}.{name}: expected {value!r}, got {got!r}; do: take another model, this "
                "one is not supported"
            )


def pick_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that are fields of a config class; of several end tokens the first."""
    names = [field.name for field in dataclasses.fields(kind)]
    found = {name: values[name] for name in names if name in values}
    if isinstance(found.get("eos_token_id"), list):
        found["eos_token_id"] = found["eos_token_id"][0]
    return found


def rotary(text: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns what a decoder's part says of rotary positions, and of which kind they are."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return rope, rope.get("rope_type", rope.get("type", "default"))


def with_pixel_statistics(config: Any, preprocessor: Mapping[str, Any]) -> Any:
    """Returns a config whose `vision` has the means and deviations of a preprocessor, if any.

    Raises:
      ValueError: they are not of three channels.
    """
    names = [name for name in ("image_mean", "image_std") if name in preprocessor]
    found = {name: _three(preprocessor[name]) for name in names}
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **found))


def check_sizes(config: Any, room: str) -> None:
    """Raises ValueError where a number of a model's configuration is not positive.

    Args:
      config: a dataclass; ids of tokens in it may be 0.
      room: where it stands in the configuration of the model, for the message.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_size = isinstance(value, int | float) and not isinstance(value, bool)
        if is_size and not field.name.endswith("token_id") and not 0 < value < math.inf:
            raise ValueError(
                f"{room}.{field.name}: expected a positive number, got {value}"
                "; do: give a size above 0"
            )


def _three(values: Any) -> tuple[float, ...]:
    out = tuple(float(value) for value in values)
    if len(out) != 3:
        raise ValueError(
            f"preprocessor_config.json: expected three channels, got {out}"
            "; do: copy the file that belongs to the weights"
        )
    return out
