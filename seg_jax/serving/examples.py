"""A few drawn scenes with what one may ask about them, for who has no picture at hand.

They are scenes 0 to 5 of configs/simpleseg/nano_sft.py with seed 7, kept as files: to draw them is
a program that would be compiled.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from seg_jax import files

SEED = 7
"""Seed of the scenes, none of those that models are trained on."""
MOST_BYTES = 1 << 20


@functools.cache
def of_drawn_scenes() -> list[dict[str, Any]]:
    """Returns the scenes: a picture as a data URI, and expressions of what is in it."""
    return files.read_json(Path(__file__).parent / "page" / "examples.json", most=MOST_BYTES)
