"""Reads the log of a run, `metrics.jsonl`, as curves (host)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.report.charts import Curve

_JOINED = {"reward": "scores"}
_STACKED = ("verdicts",)
_UNITS = {
    "sft/loss": "nats per token",
    "control/loss": "nats per token",
    "entropy": "nats per token",
    "policy_kl": "nats per token",
    "reference_kl": "nats per token",
    "clip_fraction": "share of answers",
    "truncated": "share of answers",
    "groups_that_differ": "share of groups",
    "length": "tokens",
    "useful_tokens": "share of decoded tokens",
    "useful_tokens_unfilled": "share of decoded tokens",
    "sampler_gap": "nats per token",
    "seconds": "of a step",
    "verdicts": "share of answers",
    "tokens": "per answer",
    "scores": "0 to 1",
}
_NAMED_BY_UNIT = {"seconds": "step"}
"""Parts that the unit of their frame names already."""
_WORDS = {
    "iou": "IoU",
    "giou": "gIoU",
    "ciou": "cIoU",
    "kl": "KL",
    "sft": "SFT",
    "gspo": "GSPO",
    "grpo": "GRPO",
    "lr": "learning rate",
    "grad": "gradient",
}


_NO_CURVES = ("stage", "step", "seconds", "epoch")
"""What a record has that tells when it was, not how the run does."""


def read(path: Path | str) -> tuple[Curve, ...]:
    """Returns the curves of a run's `metrics.jsonl`, stage by stage in the order of the file.

    Names with a slash share a frame with their likes (`scores/iou` with `scores/format`), others
    have their own; the reward joins its scores. Where a step was logged twice, as after a resume,
    the later value counts. A last line that a crash tore is left out.

    Raises:
      ValueError: no such file, or a line that is no record.
    """
    stages: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for head, record in records(Path(path)):
        stage = stages.setdefault(head.stage, {})
        for name, value in record.items():
            if name in _NO_CURVES or not _is_number(value):
                continue
            frame, _, part = name.rpartition("/")
            series = stage.setdefault(frame or name, {}).setdefault(part, {})
            series[head.step] = _number(value)
    return tuple(
        _curve(stage, frame, parts)
        for stage, frames in stages.items()
        for frame, parts in _join(frames).items()
    )


class Head(schemas.Record, frozen=True):
    """What every record of a log has; the numbers beside it have names of their own."""

    stage: schemas.Text
    step: Annotated[int, Meta(ge=0, le=2**53)]


def records(path: Path) -> Iterator[tuple[Head, dict[str, Any]]]:
    """Yields what each record of a log has to have, and all that it has.

    A last line that a crash tore is left out.

    Raises:
      ValueError: no such file, or a line that is no record.
    """
    data = files.read_bytes(path, expected="metrics", advice="check the run's path")
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where, advice = f"{path}: line {number}", "remove that line"
            try:
                record = files.parse_json(line, where=where, advice=advice)
                yield schemas.check(record, Head, where=where, advice=advice), record
            except ValueError:
                if number < len(lines):
                    raise


def numbers(records: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Returns the numbers of a name in some records, in order, without those that are unknown."""
    values = (record.get(name) for record in records)
    return [_number(value) for value in values if value is not None and _is_number(value)]


def _is_number(value: Any) -> bool:
    """Returns whether a value of a record is a number, or null, which stands for NaN."""
    return not isinstance(value, bool | str | list | dict)


def _number(value: float | None) -> float:
    """Returns a logged number; infinite beyond what a float holds."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def _join(frames: dict[str, dict]) -> dict[str, dict]:
    """Returns the frames with single names moved in front of the parts that they sum up."""
    joined = {}
    for frame, parts in frames.items():
        if _JOINED.get(frame) in frames:
            continue
        heads = [name for name, into in _JOINED.items() if into == frame and name in frames]
        joined[frame] = {name: values for name in heads for values in frames[name].values()} | parts
    return joined


def _curve(stage: str, frame: str, parts: Mapping[str, Mapping[int, float]]) -> Curve:
    series = {}
    for part, values in parts.items():
        steps = sorted(values)
        series[_words(part or frame)] = steps, [values[step] for step in steps]
    heads = [name for name, into in _JOINED.items() if into == frame and name in parts]
    only = next(iter(parts)) if len(parts) == 1 else frame
    names = [frame] if only in (frame, _NAMED_BY_UNIT.get(frame)) else [frame, only]
    title = _words(" ".join(names) if not heads else " and ".join([*heads, frame]))
    unit = _UNITS.get(f"{stage}/{frame}", _UNITS.get(frame, ""))
    return Curve(title, unit, series, group=_words(stage), stacked=frame in _STACKED)


def _words(name: str) -> str:
    """Returns a name of the log as English."""
    name = name.lower() if name.isupper() and len(name) > 2 else name
    words = name.replace("_", " ").replace("/", " ").split()
    words = [_WORDS.get(word, word) for word in words] or [""]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])
