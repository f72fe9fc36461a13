"""Packs true masks for the device on the host, without one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt32

from seg_jax.tasks.task import TooLong


def pack(
    mask: Bool[np.ndarray, "H W"], canvas: tuple[int, int]
) -> UInt32[np.ndarray, "K canvas_width"]:
    """Returns the mask packed on a canvas: bit j of word k is row 32 k + j.

    Raises:
      TooLong: the mask is larger than the canvas.
    """
    height, width = canvas
    if mask.shape[0] > height or mask.shape[1] > width:
        raise TooLong(
            f"mask: expected one within {canvas}, got {mask.shape}; do: raise layout.canvas or "
            "resize the image"
        )
    full = np.zeros((height // 32, 4, 8, width), np.uint8)
    full.reshape(height, width)[: mask.shape[0], : mask.shape[1]] = mask
    octets = np.packbits(full, axis=2, bitorder="little")[:, :, 0].astype(np.uint32)
    shifts = np.arange(4, dtype=np.uint32)[:, None] * 8
    return np.bitwise_or.reduce(octets << shifts, axis=1)


def unpack(
    words: UInt32[np.ndarray, "K canvas_width"], size: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of a height and width that was packed on a canvas."""
    height, width = size
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
    return bits.reshape(-1, words.shape[1])[:height, :width].astype(bool)
