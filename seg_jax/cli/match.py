"""Asks a model (CLIP) which text fits which image: one image of yours, or all cases of SPEC."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seg_jax.data import image_files
from seg_jax.data.formats import spec
from seg_jax.inference import matcher as matchers
from seg_jax.records import check_least
from seg_jax.runs import console, matching, run_folder
from seg_jax.scenes import contrasts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Texts and images that are to find each other; without --image or --data cases are drawn."""

    checkpoint: Path | None = None
    """Folder of a CLIP with its tokenizer, as convert and align make it or the hub has it."""
    image: Path | None = None
    """Image file that one of the texts fits."""
    texts: tuple[str, ...] = ()
    """Texts to choose from, at least two."""
    data: Path | None = None
    """data.zip of wjpoom/SPEC, or the folder it was unpacked to."""
    scores: Path | None = None
    """scores.jsonl of an evaluation, to be judged again without a model."""
    cases: contrasts.Config = contrasts.Config()
    """What cases are drawn of."""
    count: int = 600
    """Cases that are drawn, of all subsets in turns."""
    seed: int = 2**20
    """Seed of the cases; align learns from those of feed.seed and is tried on 2**20 more."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and products; None: as config.json says (float16 as bfloat16)."""
    out: Path | None = None
    """Folder for scores.jsonl, summary.json and table.md of cases."""
    name: str = ""
    """Name of the model in tables; left out: where its checkpoint or its scores lie."""
    beside: tuple[Path, ...] = ()
    """Folders (--out) of other evaluations, whose numbers stand in the same tables."""
    json: Path | None = None
    """File for the numbers of cases; without it they are printed."""


def main(config: Config) -> int:
    """Prints how well each text fits, or the shares of right choices by subset and direction."""
    _check(config)
    if config.image is not None:
        return _of_image(config, config.image)
    run_folder.check_json(config.json)
    others = [matching.read(folder) for folder in config.beside]
    data = None if config.data is None else spec.Published(config.data)
    told: dict[str, Any] = {}
    if config.scores is not None:
        scored = matching.read_scores(config.scores)
        where = str(config.scores)
    else:
        assert config.checkpoint is not None
        model = matchers.load(config.checkpoint, dtype=config.dtype)
        if data is None:
            scored = matching.score_drawn(model, config.cases, config.count, seed=config.seed)
            where = "drawn cases"
        else:
            scored, where = matching.score_published(model, data), str(config.data)
        if model.cut:
            console.say(
                f"warning: {model.cut} texts were longer than the model's {model.config.length} "
                "tokens; their ends were not read"
            )
        told["cut"] = model.cut
    summary = matching.summarise(
        scored,
        model=config.name or str(config.checkpoint or config.scores),
        data=where,
        drawn=data is None,
    )
    summary |= told | {"versions": run_folder.versions()}
    if summary["unscored"]:
        console.say(f"warning: {summary['unscored']} choices have no score that is a number")
    matching.show(summary)
    if config.out is not None:
        matching.write(config.out, scored, summary=summary, others=others)
    run_folder.tell_json(summary, config.json)
    return 0


def _of_image(config: Config, path: Path) -> int:
    """Prints how well each text fits an image, as JSON."""
    assert config.checkpoint is not None
    image = image_files.read(path)
    model = matchers.load(config.checkpoint, dtype=config.dtype)
    cosines = model.texts(config.texts) @ model.images([image])[0]
    weights = np.exp(model.scale * (cosines - cosines.max()))
    shares = weights / weights.sum()
    texts = [
        {"text": text, "cosine": float(cosine), "probability": float(share)}
        for text, cosine, share in zip(config.texts, cosines, shares, strict=True)
    ]
    console.tell_json({"fits": config.texts[int(np.argmax(cosines))], "texts": texts}, indent=2)
    return 0


def _check(config: Config) -> None:
    """Raises ValueError for options that do not go together."""
    check_least(config, "match", count=1, seed=0)
    if (config.checkpoint is None) == (config.scores is None):
        got = "neither" if config.scores is None else "both"
        raise ValueError(
            f"match: expected a model or scores of one, got {got}; do: give --checkpoint DIR, or "
            "--scores FILE alone"
        )
    if (config.image is None) != (not config.texts) or len(config.texts) == 1:
        raise ValueError(
            f"texts: expected an image and at least two texts, or neither, got "
            f"{config.image or 'no image'} and {len(config.texts)} texts; do: give --image FILE "
            "--texts TEXT TEXT"
        )
    drawn, of_cases = ("cases", "count", "seed"), ("out", "name", "beside", "json")
    if config.scores is not None:
        _refuse(config, ("image", "texts", "data", "dtype", *drawn), f"{config.scores}")
    if config.image is not None:
        _refuse(config, ("data", *drawn, *of_cases), f"{config.image}")
    if config.data is not None:
        _refuse(config, drawn, f"{config.data}")
    if config.out is None:
        _refuse(config, ("beside",), "no --out")


def _refuse(config: Config, names: tuple[str, ...], beside: str) -> None:
    """Raises ValueError if one of the options has another value than its default."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != fields[name].default:
            raise ValueError(
                f"--{name}: expected none beside {beside}, got one; do: leave one of both out"
            )
