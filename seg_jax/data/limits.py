"""Tells by their sizes which images the rows of a model cannot hold, before any is decoded."""

from __future__ import annotations

from seg_jax.data import encode
from seg_jax.data.encode import Layout, Native
from seg_jax.data.findings import Findings
from seg_jax.data.record_schema import Size
from seg_jax.tasks.task import Unfit

MOST_MASK_BYTES = 2**31
"""Pixels of all masks of an image together, a byte each: more do not become a sample."""

USUAL = {"scaled images (Qwen)": Layout(), "images at their size (Kimi)": Layout(native=Native())}
"""Layouts whose limits are told when data are built; a run has its own."""


def check_masks(size: Size) -> None:
    """Raises Unfit if the masks of an image take more memory than a sample may."""
    if size.groups * size.height * size.width > MOST_MASK_BYTES:
        raise Unfit(
            f"masks: expected at most {MOST_MASK_BYTES} pixels of all masks together, got "
            f"{size.groups} of {size.height} x {size.width}; do: cut the image into parts"
        )


def check_canvas(layout: Layout, size: Size) -> None:
    """Raises Unfit if true masks are larger than the canvas that they are packed on."""
    height, width = layout.canvas
    if size.height > height or size.width > width:
        raise Unfit(
            f"mask: expected an image of at most {height} x {width} pixels, got "
            f"{size.height} x {size.width}; do: raise layout.canvas or resize the image"
        )


def tell_usual(size: Size, met: Findings, *, where: str) -> None:
    """Tells which of the usual layouts would pass over an image.

    Args:
      size: of the image and what is asked about it.
      met: is told.
      where: names the image.
    """
    told = f"{where}: {size.height} x {size.width} pixels, {size.groups} masks"
    try:
        check_masks(size)
    except Unfit as error:
        advice = str(error).partition("; do: ")[2]
        met.add("passed over by every run: its masks take too much memory", told, advice=advice)
    for name, layout in USUAL.items():
        try:
            encode.fit_image(layout, size.height, size.width)
        except Unfit as error:
            expected, _, advice = str(error).partition("; do: ")
            why = expected.partition("expected ")[2].partition(",")[0]
            met.add(f"passed over by models of {name}: expected {why}", told, advice=advice)
    try:
        check_canvas(Layout(), size)
    except Unfit as error:
        advice = str(error).partition("; do: ")[2]
        met.add("passed over by reinforce unless layout.canvas is raised", told, advice=advice)
    if size.text > 8 * Layout().max_question:
        met.add(
            "expression passed over unless layout.max_question is raised",
            f"{where}: {size.text} bytes",
            advice="raise layout.max_question or shorten the expression",
        )
