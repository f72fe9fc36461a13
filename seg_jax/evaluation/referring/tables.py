"""Writes a protocol's numbers as Markdown, with what the paper reports beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seg_jax import escapes
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.referring.protocols import PROTOCOLS, Name
from seg_jax.evaluation.referring.scoring import TITLES

SPLITS = (
    "refcoco-val",
    "refcoco-testA",
    "refcoco-testB",
    "refcoco+-val",
    "refcoco+-testA",
    "refcoco+-testB",
    "refcocog-val",
    "refcocog-test",
)
"""The sets of the paper's tables; refCOCOg is its umd split."""

_RES = """
NEXT-Chat                74.7 78.9 69.5 65.1 71.9 56.7 67.0 67.0 68.9
LISA                     74.9 79.1 72.3 65.1 70.8 58.1 67.9 70.6 69.9
PixelLM                  73.0 76.5 68.2 66.3 71.7 58.3 69.3 70.5 69.2
AnyRef                   76.9 79.9 74.2 70.3 73.5 61.8 70.0 70.7 72.2
GSVA                     77.2 78.9 73.5 65.9 69.6 59.8 72.7 73.3 71.4
LaSagNA                  76.8 78.7 73.8 66.4 70.6 60.1 70.6 71.9 71.1
Groundhog                78.5 79.9 75.7 70.5 75.0 64.9 74.1 74.6 74.2
Text4Seg + SAM           79.2 81.7 75.6 72.8 77.9 66.5 74.0 75.3 75.4
Text4Seg                 74.7 77.4 71.6 68.5 73.6 62.9 70.7 71.6 71.4
SimpleSeg-Qwen2.5-VL     80.9 77.8 75.2 72.4 77.3 66.1 73.3 74.1 74.6
SimpleSeg-Kimi-VL        80.0 80.6 76.2 70.4 76.2 67.1 72.8 74.7 74.8
Seg-R1-3B, SFT and RL    58.7 65.8 54.7 49.1 56.2 45.0 57.9 57.0 55.6
Seg-R1-3B                69.9 76.0 64.9 59.1 66.8 50.9 67.3 67.9 65.4
Seg-R1-7B                74.3 78.7 67.6 62.6 70.9 57.9 71.0 71.4 69.3
"""
_REC = """
LISA                     85.4 88.8 82.6 74.2 79.5 68.4 79.3 80.4 79.8
GSVA                     86.3 89.2 83.8 72.8 78.8 68.0 81.6 81.8 80.3
NEXT-Chat                85.5 90.0 77.9 77.2 84.5 68.0 80.1 79.8 80.4
PixelLM                  89.8 92.2 86.4 83.2 87.0 78.9 84.6 86.0 86.0
Text4Seg + SAM           90.3 93.4 87.5 85.2 89.9 79.5 85.4 85.4 87.1
Text4Seg                 88.3 91.4 85.8 83.5 88.2 77.9 82.4 82.5 85.0
SimpleSeg-Qwen2.5-VL     90.2 92.9 86.1 84.6 90.5 79.0 84.9 85.6 86.7
SimpleSeg-Kimi-VL        91.3 92.1 87.1 82.6 88.3 79.3 84.6 86.3 86.5
"""
SOURCE = (
    "SimpleSeg (arXiv 2601.19228), tables of github.com/songtianhui/SimpleSeg, final version. Rows "
    "of Seg-R1 (arXiv 2506.22624) are of its project page, their means ours; its script asks one "
    "random expression about an image"
)
_REASONSEG = """
Seg-R1-3B, SFT and RL    50.3 35.5 42.4 30.0
Seg-R1-3B                60.8 56.2 55.3 46.6
Seg-R1-7B                58.6 41.2 56.7 53.7
"""
REASONSEG_SPLITS = ("reasonseg-val", "reasonseg-test")
REASONSEG_SOURCE = (
    "Seg-R1 (arXiv 2506.22624), its project page; its script draws images with replacement and one "
    "sentence of each, and counts ignored pixels as background"
)


def published(text: str) -> dict[str, tuple[float, ...]]:
    """Returns the rows of a table above by method, in percent: the sets and their mean."""
    lines = (line.rsplit(None, len(SPLITS) + 1) for line in text.strip().splitlines())
    return {name.strip(): tuple(map(float, values)) for name, *values in lines}


PUBLISHED = {
    "cIoU": (published(_RES), ("ciou",)),
    "Acc@0.5": (published(_REC), ("rec_from_mask", "rec_from_box")),
}
"""Tables of the paper: their rows, and which of our numbers stand beside them."""
REPORTED: tuple[Name, ...] = ("res", "rec", "text4seg")
"""The protocols that the paper reports numbers for."""


def markdown(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns all tables: our numbers, then the paper's with ours below.

    Args:
      summaries: by the model's name what `scoring.summarise` returned, with "split" beside it.
    """
    parts = [_ours(summaries)]
    told = [summary for rows in summaries.values() for summary in rows]
    for title, (rows, names) in PUBLISHED.items():
        if any(s["protocol"] in REPORTED and name in s for s in told for name in names):
            parts.append(_table_beside_paper(title, rows, names, summaries))
    if any(summary["protocol"] == "reasonseg" for summary in told):
        parts.append(_reasonseg(summaries))
    if len(parts) == 1:
        parts.append("The paper reports no numbers for this protocol.\n")
    return "\n".join(parts)


def _ours(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns every number with its interval, a table for each protocol."""
    parts = []
    for protocol in PROTOCOLS.values():
        rows = [
            [
                model,
                summary["split"],
                f"{summary['questions']:,}",
                # An evaluation of an earlier version may lack what is counted since.
                *(_interval(summary.get(name)) for name in protocol.metrics),
            ]
            for model, of_model in summaries.items()
            for summary in of_model
            if summary["protocol"] == protocol.name
        ]
        if rows:
            header = ["model", "set", "questions", *(TITLES[name] for name in protocol.metrics)]
            parts.append(f"### {protocol.title}\n\n{markdown_table(header, rows)}")
    note = f"In percent, with {bootstrap.level()} bootstrap intervals over images.\n"
    return "\n".join(parts) + f"\n{note}"


def _table_beside_paper(
    title: str,
    rows: Mapping[str, tuple[float, ...]],
    names: Sequence[str],
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Returns a table of the paper with our numbers below, the mean where all sets are there."""
    told = [s for of_model in summaries.values() for s in of_model if s["protocol"] in REPORTED]
    more = dict.fromkeys(s["split"] for s in told if s["split"] not in SPLITS)
    lines = [[name, *(f"{value:.1f}" for value in values)] for name, values in rows.items()]
    lines = [[*line, *("" for _ in more)] for line in lines]
    for model, of_model in summaries.items():
        for protocol in REPORTED:
            for name in names:
                of_name = [s for s in of_model if s["protocol"] == protocol and s.get(name)]
                if of_name:
                    found = {s["split"]: 100 * s[name]["mean"] for s in of_name}
                    label = f"**{model}**, {protocol}"
                    label += f": {TITLES[name]}" if len(names) > 1 else ""
                    lines.append([label, *_cells(found, list(more))])
    header = ["method", *SPLITS, "mean", *more]
    table = markdown_table(header, lines)
    return f"### {title} beside the paper\n\n{table}\nPublished rows: {SOURCE}.\n"


def _reasonseg(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns what is published about ReasonSeg with our numbers below."""
    lines = [[m.strip(), *v] for m, *v in (x.rsplit(None, 4) for x in _REASONSEG.split("\n") if x)]
    for model, of_model in summaries.items():
        told = {s["split"]: s for s in of_model if s["protocol"] == "reasonseg"}
        found = [told.get(split, {}).get(n) for split in REASONSEG_SPLITS for n in ("giou", "ciou")]
        if any(found):
            lines.append([f"**{model}**", *(f"{100 * x['mean']:.1f}" if x else "" for x in found)])
    header = [f"{split}, {name}" for split in REASONSEG_SPLITS for name in ("gIoU", "cIoU")]
    table = markdown_table(["method", *header], lines)
    return f"### ReasonSeg beside published rows\n\n{table}\nPublished rows: {REASONSEG_SOURCE}.\n"


def _cells(found: Mapping[str, float], more: Sequence[str]) -> list[str]:
    mean = ""
    if all(split in found for split in SPLITS):
        mean = f"{sum(found[split] for split in SPLITS) / len(SPLITS):.1f}"
    cells = {split: f"{value:.1f}" for split, value in found.items()}
    return [*(cells.get(split, "") for split in SPLITS), mean, *(cells.get(s, "") for s in more)]


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of Markdown; no text in it can break it."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Returns text that cannot break a table."""
    return escapes.line(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
