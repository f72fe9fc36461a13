"""A few drawn scenes with what one may ask about them, for who has no picture at hand."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

from PIL import Image

from seg_jax.runs import experiments

COUNT = 6
SEED = 7
"""Seed of the scenes, none of those that models are trained on."""


@functools.cache
def of_drawn_scenes() -> list[dict[str, Any]]:
    """Returns the scenes: a picture as a data URI, and expressions of what is in it."""
    scenes = experiments.load("simpleseg/nano_sft.py").scenes(seed=SEED)
    found = []
    for index in range(COUNT):
        sample, buffer = scenes[index], io.BytesIO()
        Image.fromarray(sample.image).save(buffer, "PNG")
        picture = base64.b64encode(buffer.getvalue()).decode("ascii")
        texts = [some[0] for some in sample.phrases if some]
        found.append({"image": f"data:image/png;base64,{picture}", "texts": texts})
    return found
