"""Reads the parts of a hub's `config.json` that ports share, and checks their sizes."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from seg_jax import schemas


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
      ValueError: they are not of three channels, or a deviation is not above 0.
    """
    vision = dataclasses.replace(config.vision, **pixel_statistics(preprocessor))
    return dataclasses.replace(config, vision=vision)


def pixel_statistics(preprocessor: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Returns the `image_mean` and `image_std` of a preprocessor, as far as it names them.

    Raises:
      ValueError: they are not of three channels, or a deviation is not above 0.
    """
    names = [name for name in ("image_mean", "image_std") if name in preprocessor]
    return {name: _three(name, preprocessor[name]) for name in names}


_MOST = {"num_hidden_layers": 1000, "depth": 1000, "n_routed_experts": 1024}
"""Largest counts of what has names of its own in a file; other sizes have 31 bits."""


def check_sizes(config: Any, room: str) -> None:
    """Raises ValueError where a value of a model's configuration is of another type or size.

    Args:
      config: a dataclass; those in it check themselves, and ids of tokens may be 0.
      room: where it stands in the configuration of the model, for the message.
    """
    kinds = _field_types(type(config))
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{room}.{field.name}"
        if dataclasses.is_dataclass(value):
            continue
        if typing.get_origin(kinds[field.name]) is typing.Literal:
            _check_word(value, typing.get_args(kinds[field.name]), where)
            continue
        schemas.check(value, kinds[field.name], where=where, advice="give such a value")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        most = _MOST[field.name] if field.name in _MOST else 2**31 - 1
        least_is_zero = field.name.endswith("token_id")
        if not (value > 0 or (least_is_zero and value == 0)) or math.isinf(value):
            raise ValueError(
                f"{where}: expected a positive number, got {value}; do: give a size above 0"
            )
        if value > most:
            raise ValueError(f"{where}: expected at most {most}, got {value}; do: give fewer")


def _check_word(value: object, known: tuple[str, ...], where: str) -> None:
    """Raises ValueError unless a value is one of several words."""
    if value not in known:
        raise ValueError(
            f"{where}: expected {' or '.join(known)}, got {value!r:.40}; do: take another model, "
            "this one is not supported"
        )


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass."""
    return typing.get_type_hints(kind)


def _three(name: str, values: Any) -> tuple[float, ...]:
    """Returns means or deviations of three channels; pixels are divided by the latter."""
    found = schemas.check(
        values,
        tuple[schemas.Finite, schemas.Finite, schemas.Finite],
        where=f"preprocessor_config.json, {name}",
        advice="copy the file that belongs to the weights",
    )
    if name == "image_std" and min(found) <= 0:
        raise ValueError(
            f"preprocessor_config.json, {name}: expected numbers above 0, got {list(found)}; do: "
            "copy the file that belongs to the weights"
        )
    return found
