"""How the images of a published checkpoint are cut, as its preprocessor's configuration says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from seg_jax.geometry import grid

BICUBIC = 3
"""Pillow's number of the filter."""


class ImageLayout(NamedTuple):
    """How images become patches, and how many patches a row of one image needs."""

    patch: int
    """Side of a patch in pixels."""
    merge: int
    """Patches per side that become one visual token."""
    max_patches: int
    """Patches of a row, padding included."""
    min_pixels: int | None = None
    """Least area of an image that is scaled to whole visual tokens."""
    max_pixels: int | None = None
    """Largest such area."""
    native_limit: int | None = None
    """Whole patches of an image that keeps its size; None where images are scaled."""
    native_pad: bool = False
    """Whether black fills the frame of an image that keeps its size; else its edges are cut off."""


def scaled_layout(found: Mapping[str, Any], *, visual_tokens: int) -> ImageLayout:
    """Returns how Qwen's images are cut: scaled to an area, which is written in either of two ways.

    Args:
      found: `preprocessor_config.json`.
      visual_tokens: most visual tokens of a row; larger images are scaled down further than the
        checkpoint asks for.

    Raises:
      ValueError: a value that is not understood.
    """
    _check_filter(found)
    patch, merge = _number(found, "patch_size", 14), _number(found, "merge_size", 2)
    area, size = (patch * merge) ** 2, found.get("size") or {}
    least = _number(size, "shortest_edge", 56 * 56)
    most = _number(size, "longest_edge", 28 * 28 * 1280)
    # Where both are there, the older spelling counts.
    least, most = _number(found, "min_pixels", least), _number(found, "max_pixels", most)
    most = min(most, visual_tokens * area)
    # A side is never less than a visual token: the longest strips have more than the budget.
    strip = math.isqrt(grid.MAX_ASPECT * most // area)
    return ImageLayout(
        patch=patch,
        merge=merge,
        max_patches=max(most // area, strip) * merge**2,
        min_pixels=min(least, most),
        max_pixels=most,
    )


def native_layout(found: Mapping[str, Any], *, visual_tokens: int) -> ImageLayout:
    """Returns how Kimi's images are cut: kept at their size, up to a number of patches.

    Args:
      found: `preprocessor_config.json`.
      visual_tokens: most visual tokens of a row; larger images are scaled down further than the
        checkpoint asks for.

    Raises:
      ValueError: a value that is not understood.
    """
    _check_filter(found)
    sides = found.get("merge_kernel_size", (2, 2))
    if len(set(sides)) != 1:
        raise ValueError(
            f"merge_kernel_size: expected two equal sides, got {sides}"
            "; do: copy the file that belongs to the weights"
        )
    patch, merge = _number(found, "patch_size", 14), _number({"side": sides[0]}, "side", 2)
    # An image up to 16 times as long as wide has at most `frame` times the root of the limit more
    # patches than the limit once it is padded; within `visual_tokens` there is room for these too.
    frame = 6 * merge
    root = math.isqrt(visual_tokens * merge**2 + (frame // 2) ** 2) - frame // 2
    limit = min(_number(found, "in_token_limit", 4096), root**2)
    patches = limit + frame * (math.isqrt(limit - 1) + 1)
    return ImageLayout(
        patch=patch,
        merge=merge,
        max_patches=-(-patches // merge**2) * merge**2,
        native_limit=limit,
        native_pad=bool(found.get("pad_input", False)),
    )


def scaled_preprocessor(config: Any, images: ImageLayout) -> dict[str, Any]:
    """Returns a `preprocessor_config.json` of Qwen's kind, the inverse of `scaled_layout`.

    Args:
      config: of the model.
      images: how its images are cut.
    """
    return _of_pixels(config) | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": images.patch,
        "merge_size": images.merge,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "size": {"shortest_edge": images.min_pixels, "longest_edge": images.max_pixels},
        "min_pixels": images.min_pixels,
        "max_pixels": images.max_pixels,
    }


def native_preprocessor(config: Any, images: ImageLayout) -> dict[str, Any]:
    """Returns a `preprocessor_config.json` of Kimi's kind, the inverse of `native_layout`."""
    return _of_pixels(config) | {
        "image_processor_type": "KimiVLImageProcessor",
        "patch_size": images.patch,
        "merge_kernel_size": [images.merge, images.merge],
        "in_token_limit": images.native_limit,
        "pad_input": images.native_pad,
    }


def _of_pixels(config: Any) -> dict[str, Any]:
    mean, deviation = config.vision.image_mean, config.vision.image_std
    return {"image_mean": list(mean), "image_std": list(deviation), "resample": BICUBIC}


def _check_filter(found: Mapping[str, Any]) -> None:
    if (kernel := found.get("resample") or BICUBIC) != BICUBIC:
        raise ValueError(
            f"resample: expected {BICUBIC} (bicubic), got {kernel!r}"
            "; do: take a model whose images are resized so"
        )


def _number(found: Mapping[str, Any], name: str, default: int) -> int:
    """Returns a positive whole number, the default where there is none."""
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(
            f"{name}: expected a positive whole number, got {value!r}"
            "; do: copy the file that belongs to the weights"
        )
    return value
