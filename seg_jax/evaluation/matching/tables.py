"""Writes the numbers of SPEC as Markdown, with published rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seg_jax import escapes
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.matching.choices import DIRECTIONS
from seg_jax.evaluation.referring.tables import markdown_table
from seg_jax.scenes.contrasts import ALTERNATIVES

TITLES = {
    "absolute_size": "absolute size",
    "relative_size": "relative size",
    "absolute_spatial": "absolute position",
    "relative_spatial": "relative position",
    "existence": "existence",
    "count": "count",
}
"""How tables call the subsets, in the authors' order."""
_NOTEBOOK = """
CLIP ViT-B/32, OpenAI      44.27/36.27 34.07/32.47 12.64/12.20 27.10/26.75 57.00/52.00 25.27/23.62
BLIP base, COCO retrieval  43.20/43.07 34.33/33.27 12.07/11.58 30.65/29.60 55.50/50.10 36.87/37.40
"""
_POSTER = """
FLAVA                      37.25 32.6  14.4  26.1  54.9  17.8
BLIP                       43.0  32.85 11.6  30.1  52.75 37.25
CoCa                       37.6  33.45 11.75 29.55 50.45 36.05
CLIP                       39.3  33.9  12.45 27.3  54.75 24.15
CLIP, taught by them       64.8  42.2  32.4  46.75 68.25 56.7
"""
SOURCE = (
    "SPEC (arXiv 2312.00081): the notebook of its repository (image to text / text to image), and "
    "its poster (the mean of both), which differ by up to a point for CLIP"
)


def published(text: str) -> list[list[str]]:
    """Returns published rows: the model, then a number for each subset, each as it is printed."""
    lines = (line.rsplit(None, len(TITLES)) for line in text.strip().splitlines())
    return [[name.strip(), *values] for name, *values in lines]


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Returns all tables: every number with its interval and chance, then published rows.

    Args:
      summaries: of models, as `scoring.summarise` returns them, with "model", "data" (what cases
        are of) and "drawn" (whether they are drawn scenes) beside.
    """
    parts = [_every_number(summaries)]
    if any(not one["drawn"] for one in summaries):
        parts.append(_beside_published([one for one in summaries if not one["drawn"]]))
    return "\n".join(parts)


def _every_number(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in summaries:
        for name, told in one["subsets"].items():
            numbers = [_interval(told.get(direction)) for direction in DIRECTIONS]
            chance = next(100 * told[way]["chance"] for way in DIRECTIONS if way in told)
            label = TITLES.get(name, escapes.line(name))
            rows.append([_model(one), label, f"{told['cases']:,}", *numbers, f"{chance:.1f}"])
        mean = f"{100 * one['mean']:.1f}"
        rows.append([_model(one), "mean of all", "", mean, "", f"{100 * one['chance']:.1f}"])
    header = ["model", "subset", "cases", "image to text", "text to image", "chance"]
    note = f"In percent, with {bootstrap.level()} bootstrap intervals over cases."
    return f"### Right choices\n\n{markdown_table(header, rows)}\n{note}\n"


def _beside_published(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [*published(_NOTEBOOK), *published(_POSTER)]
    for one in summaries:
        cells = []
        for name in TITLES:
            told = one["subsets"].get(name, {})
            means = [f"{100 * told[way]['mean']:.2f}" for way in DIRECTIONS if way in told]
            cells.append("/".join(means))
        rows.append([f"**{_model(one)}**", *cells])
    chance = [f"{100 / count:.1f}" for count in ALTERNATIVES.values()]
    rows.append(["chance", *chance])
    table = markdown_table(["model", *TITLES.values()], rows)
    return f"### Beside published rows\n\n{table}\nPublished rows: {SOURCE}.\n"


def _model(summary: Mapping[str, Any]) -> str:
    return f"{summary['model']}, {summary['data']}"


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    mean, low, high = (100 * value[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
