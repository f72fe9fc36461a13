"""Draws the curves of a run as inline SVG, for pages that must load nothing (host)."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

Numbers = Sequence[float | int | None] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """Numbers over the steps of a stage, drawn in one frame."""

    title: str
    unit: str
    """Of the values; may be empty."""
    series: Mapping[str, tuple[Numbers, Numbers]]
    """Name to (steps, values), of one length; None and what is not finite leave gaps."""
    group: str = ""
    """Curves of one group stand together under this heading."""
    stacked: bool = False
    """Whether the series are parts of a whole, drawn as areas on top of each other."""


STYLE = """
.chart{display:flex;flex-direction:column}.chart>svg{margin-top:auto}
.chart svg{display:block;width:100%;height:auto;overflow:visible}
.chart text{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
.chart .grid{stroke:var(--line);stroke-width:1;shape-rendering:crispEdges}
.chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.chart .raw{stroke-width:1;opacity:.28}.chart .marked{stroke-width:5;stroke-linecap:round}
.chart .dashed{stroke-dasharray:5 3}.chart .area{stroke:var(--card);stroke-width:.5}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.3rem 0 .5rem;padding:0}
.legend li{display:flex;align-items:center;gap:.4rem;color:var(--muted)}
.legend b{font-weight:600;color:var(--ink);font-variant-numeric:tabular-nums}
.legend svg{display:inline-block;width:14px;height:10px;flex:none}
"""
"""Rules for `svg`; the page defines --ink, --muted, --line, --card, --quiet and --c0 to --c7."""

COLOURS = 8
NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
# Controls that no page may hold, and those that turn the direction of the text around them.
_UNFIT = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 8, 32
_MOST = 240  # points of a line
_FEW = 30  # points or fewer are drawn as they are, with marks
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


def curves_from(path: Path | str) -> tuple[Curve, ...]:
    """Returns the curves of a run's `metrics.jsonl`, stage by stage in the order of the file.

    Names with a slash share a frame with their likes (`scores/iou` with `scores/format`), others
    have their own; the reward joins its scores. Where a step was logged twice, as after a resume,
    the later value counts. A last line that a crash tore is left out.

    Raises:
      ValueError: no such file, or a line that is no record.
    """
    stages: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for record in _records(Path(path)):
        stage = stages.setdefault(str(record["stage"]), {})
        for name, value in record.items():
            if name in ("stage", "step", "seconds") or isinstance(value, bool | str | list | dict):
                continue
            frame, _, part = name.rpartition("/")
            series = stage.setdefault(frame or name, {}).setdefault(part, {})
            series[record["step"]] = math.nan if value is None else float(value)
    return tuple(
        _curve(stage, frame, parts)
        for stage, frames in stages.items()
        for frame, parts in _join(frames).items()
    )


def _records(path: Path) -> Iterator[dict]:
    """Yields the records of the file."""
    if not path.is_file():
        raise ValueError(f"expected metrics, got no file at {str(path)!r}, do check the run's path")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
            good = record is None or (
                isinstance(record, dict)
                and "stage" in record
                and isinstance(record.get("step"), int)
            )
        except ValueError:
            good = False
        if good and record is not None:
            yield record
        elif not good and (number < len(lines) or text.endswith("\n")):
            raise ValueError(
                f"expected an object with stage and step, got {line[:60]!r} in line {number} of"
                f" {str(path)!r}, do remove that line"
            )


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
    names = [frame] if only == frame else [frame, only]
    title = _words(" ".join(names) if not heads else " and ".join([*heads, frame]))
    unit = _UNITS.get(f"{stage}/{frame}", _UNITS.get(frame, ""))
    return Curve(title, unit, series, group=_words(stage), stacked=frame in _STACKED)


def _words(name: str) -> str:
    """Returns a name of the log as English."""
    name = name.lower() if name.isupper() and len(name) > 2 else name
    words = name.replace("_", " ").replace("/", " ").split()
    words = [_WORDS.get(word, word) for word in words] or [""]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def svg(curve: Curve) -> str:
    """Returns the legend and the drawing of a curve as HTML; all names in it are escaped."""
    series = {name: _sorted(*pair) for name, pair in curve.series.items()}
    known = [values[np.isfinite(values)] for _, values in series.values()]
    if not any(len(values) for values in known):
        return '<p class="none">No finite values.</p>'
    smooth = {name: _smoothed(*pair) for name, pair in series.items()}
    # A single name that says what the title says would say it twice.
    mute = len(series) == 1 and f" {curve.title}".lower().endswith(f" {next(iter(series))}".lower())
    legend = "".join(
        f"<li>{_swatch(index, curve.stacked)}{'at the end' if mute else safe(name)}"
        f" <b>{number(_last(values))}</b></li>"
        for index, (name, (_, values)) in enumerate(smooth.items())
    )
    draw = _areas if curve.stacked else _lines
    body, (x_low, x_high), (y_low, y_high) = draw(series, smooth)
    axes = _axes((x_low, x_high), (y_low, y_high))
    label = safe(_label(curve, smooth))
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return (
        f'<ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{axes}'
        f'<svg x="{_LEFT}" y="{_TOP}" width="{inner_w}" height="{inner_h}"'
        f' style="overflow:hidden">{body}</svg></svg>'
    )


def safe(text: object) -> str:
    """Returns text as HTML that shows it as it is and can be nothing else."""
    return html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def number(value: float) -> str:
    """Returns a number with some three significant digits; a dash where there is none."""
    if not math.isfinite(value):
        return NONE
    if value and not 1e-3 <= abs(value) < 1e6:
        return _power(value).replace("-", MINUS)
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}".replace("-", MINUS)


def _power(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _label(curve: Curve, smooth) -> str:
    """Returns the drawing in words."""
    parts = []
    for name, (_, values) in smooth.items():
        values = values[np.isfinite(values)]
        if len(values):
            parts.append(f"{name} from {number(values[0])} to {number(values[-1])}")
    return f"{curve.title}: " + ", ".join(parts)


def _sorted(steps: Numbers, values: Numbers):
    """Returns steps and values as float64, by rising step; values that are not finite are NaN."""
    x, y = np.asarray(steps, np.float64).ravel(), np.asarray(values, np.float64).ravel()
    if len(x) != len(y):
        raise ValueError(
            f"expected a step for every value, got {len(x)} steps and {len(y)} values,"
            " do pass them in pairs"
        )
    y = np.clip(np.where(np.isfinite(y), y, np.nan), -1e30, 1e30)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order])]
    return x[order], y[order]


def _smoothed(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]):
    """Returns the line's running mean (triangular window), thinned.

    Short lines stay as they are, and those that are smooth of themselves, such as a learning rate:
    steps back and forth come to less than a hundredth of their range.
    """
    known = y[np.isfinite(y)]
    if len(x) <= _FEW or len(known) < 3:
        return x, y
    if np.abs(np.diff(known, 2)).mean() < 0.01 * np.ptp(known):
        return _thinned(x, y)
    half = max(2, len(x) // 30)
    window = np.concatenate([np.arange(1, half + 1), np.arange(half - 1, 0, -1)])
    there = np.isfinite(y)
    total = np.convolve(np.where(there, y, 0), window, "same")
    weight = np.convolve(there, window, "same")
    mean = np.where(there, total / np.maximum(weight, 1e-9), np.nan)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST)).astype(int))
    return x[keep], mean[keep]


def _thinned(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]):
    """Returns at most about twice `_MOST` points: of each bucket the lowest and the highest."""
    if len(x) <= 2 * _MOST:
        return x, y
    keep = []
    for bucket in np.array_split(np.arange(len(x)), _MOST):
        there = bucket[np.isfinite(y[bucket])]
        keep += sorted({there[y[there].argmin()], there[y[there].argmax()]}) if len(there) else []
    return x[keep], y[keep]


def _last(values: Float[np.ndarray, " n"]) -> float:
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else math.nan


def _lines(series, smooth) -> tuple[str, tuple[float, float], tuple[float, float]]:
    """Returns the paths of all series with the ranges of both axes."""
    steps = np.concatenate([x for x, _ in series.values()])
    raw = np.concatenate([y for _, y in series.values()])
    calm = np.concatenate([y for _, y in smooth.values()])
    ends = np.concatenate([np.nanquantile(raw, [0.01, 0.99]), [np.nanmin(calm), np.nanmax(calm)]])
    x_range, y_range = _span(steps), _range(*_padded(ends.min(), ends.max()))
    faint, strong = [], []
    for index, name in enumerate(series):
        style = f'style="stroke:var(--c{index % COLOURS})"'
        dashed = " dashed" if index >= COLOURS else ""
        if len(series[name][0]) <= _FEW:
            marks = _path(series[name], x_range, y_range, joined=False)
            strong.append(f'<path class="line marked" {style} d="{marks}"/>')
        elif not np.isin(smooth[name][1], series[name][1]).all():
            path = _path(_thinned(*series[name]), x_range, y_range)
            faint.append(f'<path class="line raw" {style} d="{path}"/>')
        path = _path(smooth[name], x_range, y_range)
        strong.append(f'<path class="line{dashed}" {style} d="{path}"/>')
    return "".join(faint + strong[::-1]), x_range, y_range


def _areas(series, smooth) -> tuple[str, tuple[float, float], tuple[float, float]]:
    """Returns the stacked areas of all series with the ranges of both axes.

    Where the first is nearly the whole, the axis starts higher so that the rest can be seen.
    """
    grid = np.unique(np.concatenate([x for x, _ in smooth.values()]))
    x_range = _span(grid)
    if len(grid) == 1:
        grid = np.array(x_range)
    sums = [np.zeros(len(grid))]
    for x, y in smooth.values():
        there = np.isfinite(y)
        part = np.interp(grid, x[there], y[there]) if there.any() else np.zeros(len(grid))
        sums.append(sums[-1] + np.maximum(part, 0))
    top = sums[-1].max()
    low = max(0.0, math.floor(20 * (sums[1].min() - 0.02)) / 20) if sums[1].min() > 0.6 else 0.0
    y_range = (low, 1.0) if 0.9 < top < 1.02 else _range(0.0, top)
    body = []
    for index, (low, high) in enumerate(itertools.pairwise(sums)):
        around = np.append(grid, grid[::-1]), np.append(high, low[::-1])
        ring = _path(around, x_range, y_range)
        body.append(f'<path class="area" style="fill:{_tone(index)}" d="{ring}Z"/>')
    return "".join(body), x_range, y_range


def _path(points, x_range, y_range, *, joined: bool = True) -> str:
    """Returns path data in the frame's pixels; a gap where a value is missing."""
    x, y = points
    across = (x - x_range[0]) / (x_range[1] - x_range[0]) * (_WIDTH - _LEFT - _RIGHT)
    down = (y_range[1] - y) / (y_range[1] - y_range[0]) * (_HEIGHT - _TOP - _BOTTOM)
    there: Bool[np.ndarray, " n"] = np.isfinite(down)
    parts, pen = [], False
    for index in np.flatnonzero(there):
        pen = joined and pen and there[index - 1]
        lonely = not pen and (not joined or index + 1 == len(there) or not there[index + 1])
        place = f"{across[index]:.1f} {np.clip(down[index], -999, 9999):.1f}"
        parts.append(("L" if pen else "M") + place + ("h.01" if lonely else ""))
        pen = True
    return "".join(parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Returns the range with some room; from zero where zero is near."""
    room = 0.05 * (high - low)
    if 0 <= low < 0.4 * high:
        return 0.0, high + room
    return low - room, high + room


def _span(steps: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns the range of steps, from zero where zero is near."""
    low, high = _range(steps.min(), steps.max())
    return (0.0 if 0 <= low < 0.2 * high else low), high


def _range(low: float, high: float) -> tuple[float, float]:
    """Returns a range that is not empty."""
    if high - low > max(1e-20, 1e-9 * abs(high)):
        return float(low), float(high)
    room = abs(low) * 0.1 if abs(low) > 1e-19 else 0.5
    return float(low - room), float(low + room)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    """Returns grid lines and the numbers along both axes."""
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value, text in _ticks(*y_range, 4):
        y = _TOP + (y_range[1] - value) / (y_range[1] - y_range[0]) * (bottom - _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for value, text in _ticks(*x_range, 6, whole=True):
        x = _LEFT + (value - x_range[0]) / (x_range[1] - x_range[0]) * (right - _LEFT)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="grid" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 3}" text-anchor="end">step</text>')
    return "".join(parts)


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Returns round values within a range, at most about `most`, with how they are written."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = float(max(1, round(step))) if whole else step
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    values = [index * step for index in count]
    largest = max((abs(value) for value in values), default=0.0)
    if not whole and largest and not 1e-2 <= largest < 1e5:
        texts = [_power(value).replace(".0e", "e") if value else "0" for value in values]
    else:
        digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (abs(step / power - 2.5) < 1e-9)
        texts = [f"{value:,.{0 if whole else min(digits, 8)}f}" for value in values]
    return [(v, text.replace("-", MINUS)) for v, text in zip(values, texts, strict=True)]


def _tone(index: int) -> str:
    """Returns the colour of an area: the first, the usual case, is quiet."""
    return f"var(--c{index % COLOURS})" if index else "var(--quiet)"


def _swatch(index: int, area: bool) -> str:
    """Returns a sample of a series' line or area for the legend."""
    if area:
        shape = f'<rect width="14" height="10" rx="2" style="fill:{_tone(index)}"/>'
    else:
        colour = f"var(--c{index % COLOURS})"
        dash = ' stroke-dasharray="5 3"' if index >= COLOURS else ""
        shape = f'<path d="M0 5h14" style="stroke:{colour};stroke-width:2.5"{dash}/>'
    return f'<svg viewBox="0 0 14 10" aria-hidden="true">{shape}</svg>'
