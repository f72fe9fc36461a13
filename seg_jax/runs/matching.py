"""Runs SPEC's protocol: cases drawn or published, scored by a model in both directions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.formats import spec
from seg_jax.data.sources import scene_seed
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.matching import choices, scoring, tables
from seg_jax.evaluation.matching.choices import DIRECTIONS, Scored
from seg_jax.inference.matcher import AT_ONCE, Matcher
from seg_jax.runs import console
from seg_jax.scenes import contrasts
from seg_jax.scenes.contrasts import Subset

SCORES, SUMMARY, TABLE = FILES = ("scores.jsonl", "summary.json", "table.md")
"""What is written to the folder of an evaluation."""


def score_drawn(
    matcher: Matcher, config: contrasts.Config, count: int, *, seed: int
) -> list[Scored]:
    """Returns the choices of drawn cases, scored.

    Args:
      matcher: the model.
      config: what cases are drawn of.
      count: cases, of all subsets in turns.
      seed: of the first one.
    """
    found = []
    with console.progress("cases", count) as move:
        for index in range(count):
            case = contrasts.make(config, scene_seed(seed, index))
            table = matcher.images(case.images) @ matcher.texts(case.texts).T
            name = f"{case.subset}-{index}"
            found += choices.of_case(table, case.texts, subset=str(case.subset), case=name)
            move(index + 1, count, "")
    return found


def score_published(matcher: Matcher, data: spec.Published) -> list[Scored]:
    """Returns the choices of the published data, scored; each image and text is encoded once.

    Raises:
      ValueError: an image is broken.
    """
    paths = list(dict.fromkeys(path for one in data.choices for path in one.images))
    texts = list(dict.fromkeys(text for one in data.choices for text in one.texts))
    parts = []
    with console.progress("images", len(paths)) as move:
        for begin in range(0, len(paths), AT_ONCE):
            some = paths[begin : begin + AT_ONCE]
            parts.append(matcher.images(data.image(path) for path in some))
            move(begin + len(some), len(paths), "")
    images = dict(zip(paths, np.concatenate(parts), strict=True))
    words = dict(zip(texts, matcher.texts(texts), strict=True))
    cases = _cases(data.choices)
    found = []
    for one, case in zip(data.choices, cases, strict=True):
        to_text = one.direction == "image_to_text"
        query = images[one.query] if to_text else words[one.query]
        keys = np.stack([words[key] if to_text else images[key] for key in one.keys])
        found.append(
            Scored(
                subset=one.subset,
                direction=one.direction,
                case=case,
                query=one.query,
                label=one.label,
                scores=tuple((keys @ query).tolist()),
            )
        )
    return found


def _cases(found: Sequence[spec.Choice]) -> list[str]:
    """Returns a name of each choice's case: images that a text is chosen of are of one case."""
    of_image = {}
    for one in found:
        if one.direction == "text_to_image":
            of_image |= dict.fromkeys(one.keys, min(one.keys))
    return [of_image.get(one.images[0], " | ".join(sorted(one.keys))) for one in found]


def name_accuracy(
    matcher: Matcher, config: contrasts.Config, count: int, *, seed: int
) -> bootstrap.Interval:
    """Returns how often a drawn thing is given its own name of those of all looks, with chance.

    It stands for the zero-shot accuracy of published models: what fine-tuning on cases may cost.

    Args:
      matcher: the model.
      config: what things are drawn of.
      count: things.
      seed: of the first one.
    """
    config = dataclasses.replace(config, subsets=(Subset.ABSOLUTE_SPATIAL,))
    looks = [(kind, colour) for kind in config.kinds for colour in config.colours]
    names = matcher.texts([contrasts.name(look) for look in looks])
    right = []
    for index in range(count):
        case = contrasts.make(config, scene_seed(seed, index))
        (image,) = matcher.images(case.images[index % 9 : index % 9 + 1])
        right.append(looks[int(np.argmax(names @ image))] == case.claims[0].subject)
    return bootstrap.mean_interval(np.array(right, float), seed=seed)


def write(
    folder: Path, scored: Iterable[Scored], *, summary: dict[str, Any], others: Sequence[Any] = ()
) -> None:
    """Writes scores, numbers and tables.

    Args:
      folder: of the evaluation.
      scored: all choices.
      summary: of `scoring.summarise`, with what `tables.markdown` needs beside.
      others: the same of other evaluations, which stand in the same tables.
    """
    files.make_folder(folder, "the numbers")
    lines = (json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in scored)
    files.write_text(folder / SCORES, "".join(lines))
    files.write_json(folder / SUMMARY, summary)
    files.write_text(folder / TABLE, tables.markdown([*others, summary]))
    console.say(f"{folder}: {', '.join(FILES)}")


class _Interval(schemas.Record, frozen=True):
    """A number with its interval, and what chance would give."""

    mean: float
    low: float
    high: float
    chance: float


class _Subset(schemas.Record, frozen=True):
    """The numbers of a subset."""

    cases: Annotated[int, Meta(ge=1, le=2**53)]
    image_to_text: _Interval | None = None
    text_to_image: _Interval | None = None


class _Summary(schemas.Record, frozen=True):
    """What tables need of an evaluation."""

    model: schemas.Text
    data: schemas.Text
    drawn: bool
    mean: float
    chance: float
    subsets: Annotated[dict[str, _Subset], Meta(min_length=1)]


def read(folder: Path) -> dict[str, Any]:
    """Returns the numbers of another evaluation.

    Raises:
      ValueError: the folder holds none of texts and images.
    """
    path, advice = folder / SUMMARY, "give what was --out of seg-jax match"
    summary = files.read_json_object(path, advice=advice)
    known = schemas.check(summary, _Summary, where=str(path), advice=advice)
    for name, told in known.subsets.items():
        if told.image_to_text is None and told.text_to_image is None:
            raise ValueError(f"{path}, {name}: expected a direction, got none; do: {advice}")
    return summary


def read_scores(path: Path) -> list[Scored]:
    """Returns the choices of a file of scores.

    Raises:
      ValueError: it is none; the line is named.
    """
    lines = files.read_text(path, expected="a file of scores").splitlines()
    found = [
        choices.parse(line, where=f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line
    ]
    if not found:
        raise ValueError(f"{path}: expected scores, got none; do: give an evaluation's {SCORES}")
    return found


def show(summary: dict[str, Any]) -> None:
    """Shows the numbers of each subset as a table."""
    rows = []
    for name, told in summary["subsets"].items():
        cells = [
            f"{told[way]['mean']:.3f} [{told[way]['low']:.3f}, {told[way]['high']:.3f}]"
            if way in told
            else ""
            for way in DIRECTIONS
        ]
        chance = next(told[way]["chance"] for way in DIRECTIONS if way in told)
        rows.append((tables.TITLES.get(name, name), *cells, f"{chance:.3f}"))
    rows.append(("mean of all", f"{summary['mean']:.3f}", "", f"{summary['chance']:.3f}"))
    header = ("", "image to text", "text to image", "chance")
    console.table(f"right choices, {bootstrap.level()} intervals", header, rows)


def summarise(scored: Sequence[Scored], *, model: str, data: str, drawn: bool) -> dict[str, Any]:
    """Returns the numbers of choices, with what tables need beside."""
    told = scoring.summarise(scored)
    return {"protocol": "spec", "model": model, "data": data, "drawn": drawn} | told
