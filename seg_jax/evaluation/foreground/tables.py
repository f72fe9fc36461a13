"""Writes the numbers of a protocol as Markdown, with published rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seg_jax import escapes
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.foreground.scoring import OF_GROUPS, TITLES
from seg_jax.evaluation.referring.tables import markdown_table

_COLUMNS = ("structure", "weighted_f", "e_mean", "absolute_error")
_PUBLISHED = {
    "cod10k": """
Seg-R1-3B, SFT and RL       .850 .798 .902 .036
Seg-R1-3B                   .857 .816 .908 .033
Seg-R1-7B                   .873 .820 .926 .031
Grounded SAM 2              .686 .628 .722 .209
FOCUS                       .910 .883 .974 .013
""",
    "camo": """
Seg-R1-3B, SFT and RL       .810 .798 .861 .077
Seg-R1-3B                   .805 .797 .853 .079
Seg-R1-7B                   .826 .788 .881 .073
Grounded SAM 2              .578 .571 .612 .302
FOCUS                       .912 .904 .963 .025
""",
    "dut_omron": """
Seg-R1-3B, SFT and RL       .837 .789 .878 .048
Seg-R1-3B                   .852 .821 .890 .045
Seg-R1-3B, DUTS             .868 .839 .906 .047
Seg-R1-7B, DUTS             .878 .850 .911 .045
FOCUS                       .868 .836 .900 .045
""",
    "duts": """
Seg-R1-3B, SFT and RL       .861 .848 .856 .048
Seg-R1-3B                   .866 .863 .899 .045
Seg-R1-3B, DUTS             .909 .914 .942 .031
Seg-R1-7B, DUTS             .925 .922 .953 .025
FOCUS                       .929 .928 .965 .019
""",
    "hku_is": """
Seg-R1-3B, SFT and RL       .780 .818 .820 .077
Seg-R1-3B                   .772 .814 .809 .078
Seg-R1-3B, DUTS             .890 .914 .925 .041
Seg-R1-7B, DUTS             .935 .950 .966 .022
FOCUS                       .935 -    .974 .018
""",
    "ecssd": """
Seg-R1-3B, SFT and RL       .881 .871 .901 .052
Seg-R1-3B                   .882 .908 .903 .050
Seg-R1-3B, DUTS             .916 .939 .940 .036
Seg-R1-7B, DUTS             .939 .956 .962 .025
FOCUS                       .943 -    .971 .018
""",
}
SOURCE = (
    "Seg-R1 (arXiv 2506.22624), tables of its project page; FOCUS (arXiv 2501.05238). Which F the "
    "tables of Seg-R1 hold is not said: FOCUS's row has its weighted F, other rows may have max F"
)


def published(name: str) -> list[tuple[str, ...]]:
    """Returns the published rows of a data set: the method, S, F, E, MAE, each as it is printed."""
    lines = (line.rsplit(None, len(_COLUMNS)) for line in _PUBLISHED[name].strip().splitlines())
    return [(method.strip(), *values) for method, *values in lines]


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Returns all tables: every number with its interval, parts of data sets, published rows.

    Args:
      summaries: of models, as `scoring.summarise` returns them, with "model" beside.
    """
    parts = [_every_number(summaries), _groups(summaries)]
    names = dict.fromkeys(name for one in summaries for name in one["sets"])
    for name in names:
        known = known_set(name)
        if known:
            parts.append(_beside_published(name, known, summaries))
    return "\n".join(part for part in parts if part)


def known_set(name: str) -> str:
    """Returns which published data set a folder of this name holds; nothing if none."""
    names = [known for known in _PUBLISHED if name.lower().replace("-", "_").startswith(known)]
    return max(names, key=len, default="")


def _every_number(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["model"], name, f"{told['images']:,}", *(_interval(told[key]) for key in TITLES)]
        for one in summaries
        for name, told in one["sets"].items()
    ]
    table = markdown_table(["model", "set", "images", *TITLES.values()], rows)
    note = f"With {bootstrap.level()} bootstrap intervals over images. MAE: less is better."
    return f"### All numbers\n\n{table}\n{note}\n"


def _groups(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["model"],
            f"{name}, {group}",
            f"{told['images']:,}",
            *(_interval(told[key]) for key in OF_GROUPS),
        ]
        for one in summaries
        for name, of_set in one["sets"].items()
        for group, told in of_set["groups"].items()
    ]
    if not rows:
        return ""
    header = ["model", "part", "images", *(TITLES[key] for key in OF_GROUPS)]
    return f"### Parts\n\n{markdown_table(header, rows)}"


def _beside_published(name: str, known: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [list(row) for row in published(known)]
    for one in summaries:
        if told := one["sets"].get(name):
            cells = (f"{told[key]['mean']:.3f}".removeprefix("0") for key in _COLUMNS)
            rows.append([f"**{one['model']}**", *cells])
    table = markdown_table(["method", *(TITLES[key] for key in _COLUMNS)], rows)
    return f"### {escapes.line(name)} beside published rows\n\n{table}\nPublished rows: {SOURCE}.\n"


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
