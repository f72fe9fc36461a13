"""Draws curves over the steps of a run with matplotlib: inline SVG for pages, or one SVG file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup, escape

from seg_jax import files

Numbers = Sequence[float | int | None] | np.ndarray
_Series = Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Numbers over the steps of a stage, drawn in one frame."""

    title: str
    unit: str
    """Unit of the values; may be empty."""
    series: Mapping[str, tuple[Numbers, Numbers]]
    """Name to (steps, values), of one length; None and what is not finite leave gaps."""
    group: str = ""
    """Curves of one group stand together under this heading."""
    stacked: bool = False
    """Whether the series are parts of a whole, drawn as areas on top of each other."""


class LegendEntry(NamedTuple):
    """A line or area of a chart with its name."""

    name: str
    last: str
    """The last value of the drawn line."""
    colour: str
    """Name of the colour: a key of `LIGHT` and `DARK`."""
    dashed: bool


class Chart(NamedTuple):
    """A drawn curve and what its colours mean."""

    svg: Markup
    """An `svg` element whose colours are CSS variables named as `LIGHT` and `DARK` are."""
    legend: tuple[LegendEntry, ...]


COLOURS = 8
LIGHT = {
    **{"ink": "#1c1f23", "muted": "#626a73", "line": "#e3e6ea", "card": "#ffffff"},
    **{"quiet": "#cdd6df", "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#b85a93"},
    **{"c4": "#b58900", "c5": "#4aa3dc", "c6": "#6b7280", "c7": "#8c564b"},
}
"""Colours of text, axes, areas and lines on a light ground (after Okabe and Ito 2008)."""
DARK = {
    **{"ink": "#e7e9ec", "muted": "#9aa3ad", "line": "#30353b", "card": "#1b1f23"},
    **{"quiet": "#3d4853", "c0": "#56b4e9", "c1": "#f08a3c", "c2": "#2cc497", "c3": "#e39ac3"},
    **{"c4": "#e8cf4a", "c5": "#2f86c4", "c6": "#9aa3ad", "c7": "#c49a8c"},
}
"""The same on a dark ground."""

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 8, 32
_MOST = 240  # points of a line
_FEW = 30  # points or fewer are drawn as they are, with marks
# Controls that no page may hold, and those that turn the direction of the text around them.
_UNFIT = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_TICKS = (1, 2, 2.5, 5, 10)
_LEAST = 1e-280  # The least range: float64 has no room for ticks in smaller ones.
_STYLE: Any = {  # The names are matplotlib's.
    "svg.fonttype": "none",
    "svg.hashsalt": "seg-jax",
    "svg.image_inline": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.parse_math": False,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify_threshold": 0.05,
    "axes.edgecolor": LIGHT["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["muted"],
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "grid.color": LIGHT["line"],
}


def draw(curve: Curve) -> Chart | None:
    """Returns a curve as inline SVG with its legend, or None where no value is finite.

    Raises:
      ValueError: a series has another number of steps than of values.
    """
    series = _cleaned(curve)
    if series is None:
        return None
    smooth = {name: _smoothed(*pair) for name, pair in series.items()}
    # A single name that says what the title says would say it twice.
    only = next(iter(series)) if len(series) == 1 else None
    is_mute = only is not None and f" {curve.title}".lower().endswith(f" {only}".lower())
    legend = tuple(
        LegendEntry(
            "at the end" if is_mute else name,
            number(_last(values)),
            _colour(index, stacked=curve.stacked),
            dashed=index >= COLOURS and not curve.stacked,
        )
        for index, (name, (_, values)) in enumerate(smooth.items())
    )
    with _settings():
        figure = _figure(_WIDTH, _HEIGHT, facecolor="none")
        inner = (_LEFT, _BOTTOM, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)
        axes = figure.add_axes([side / (_WIDTH, _HEIGHT)[n % 2] for n, side in enumerate(inner)])
        _plot(axes, series, smooth, stacked=curve.stacked)
        text = _svg(figure)
    return Chart(_inline(text, _label(curve, smooth)), legend)


def save(curves: Sequence[Curve], path: Path) -> None:
    """Writes some curves side by side as an SVG file on white, as READMEs show them.

    Raises:
      ValueError: a curve without a finite value.
      OSError: the file cannot be written.
    """
    with _settings():
        figure = _figure(_WIDTH * len(curves), _HEIGHT + 24, facecolor="white")
        for place, curve in enumerate(curves):
            series = _cleaned(curve)
            if series is None:
                raise ValueError(
                    f"{curve.title}: expected a finite value, got none; do: leave it out"
                )
            axes = figure.add_subplot(1, len(curves), place + 1)
            smooth = {name: _smoothed(*pair) for name, pair in series.items()}
            _plot(axes, series, smooth, stacked=curve.stacked)
            title = printable(f"{curve.group}: {curve.title}".lstrip(": "))
            axes.set_title(title, loc="left", size=12, color=LIGHT["ink"])
            drawn = [one for one in axes.get_children() if one.get_gid() in ("line", "area")]
            names = map(printable, series)
            axes.legend(drawn, names, frameon=False, labelcolor=LIGHT["ink"], fontsize=10)
        figure.tight_layout()
        files.write_text(path, _svg(figure))


def printable(text: object) -> str:
    """Returns text without characters that would break a page or turn the text around them."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(text))


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


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Draws by these settings, whatever a matplotlibrc says, until the context ends."""
    # Only programs that draw wait for matplotlib.
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _figure(width: int, height: int, **options: Any) -> Any:
    """Returns an empty figure; a unit of an SVG is one of its 72 dots an inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, **options)


def _svg(figure: Any) -> str:
    """Returns a figure as SVG; the same figure gives the same bytes."""
    out = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing, facecolor=figure.get_facecolor())
    return out.getvalue().decode()


def _inline(text: str, label: str) -> Markup:
    """Returns an SVG file as an element of a page: without its head and ids, colours by name."""
    body = text[text.index("<svg") :]
    # What would reach beyond the drawing, or says nothing.
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r' transform="rotate\(-0 [^"]*"| font-family: [^;]*;', "", body)
    # Ids that nothing refers to; those of drawn things are their classes.
    body = re.sub(r'<g id="(raw|line|marks|area)">', r'<g class="\1">', body)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("<g/>", "")
    # Hundredths of a pixel are enough; a number before a tag is text.
    body = re.sub(r"\d+\.\d{3,}(?![\d<])", lambda found: f"{float(found[0]):.2f}", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    label = escape(printable(label))
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: head, body.strip()))


def _cleaned(curve: Curve) -> _Series | None:
    """Returns the series of a curve by rising step, or None where no value is finite."""
    series = {name: _sorted(*pair) for name, pair in curve.series.items()}
    return series if any(np.isfinite(values).any() for _, values in series.values()) else None


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
            f"series: expected a step for every value, got {len(x)} steps and {len(y)} values; "
            "do: pass them in pairs"
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


def _plot(axes: Any, series: _Series, smooth: _Series, *, stacked: bool) -> None:
    """Draws all series with grid and ticks."""
    x_range, y_range = (_draw_areas if stacked else _draw_lines)(axes, series, smooth)
    axes.set(xlim=x_range, ylim=y_range)
    for axis, ends, most in ((axes.xaxis, x_range, 6), (axes.yaxis, y_range, 4)):
        places, texts = _ticks(ends, most, is_whole=axis is axes.xaxis)
        axis.set_ticks(places, texts)
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=1)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.tick_params(axis="x", length=4, width=1, pad=3)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.set_xlabel("step", loc="right", labelpad=1)


def _draw_lines(
    axes: Any, series: _Series, smooth: _Series
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draws a line for each series, its noise behind it; returns the ranges of both axes."""
    steps = np.concatenate([x for x, _ in series.values()])
    raw = np.concatenate([y for _, y in series.values()])
    calm = np.concatenate([y for _, y in smooth.values()])
    ends = np.concatenate([np.nanquantile(raw, [0.01, 0.99]), [np.nanmin(calm), np.nanmax(calm)]])
    for index, (name, (x, y)) in enumerate(smooth.items()):
        colour = LIGHT[_colour(index, stacked=False)]
        front = 3 + (len(series) - index) / len(series)  # The first lies over the others.
        dashes = "--" if index >= COLOURS else "-"
        if len(series[name][0]) > _FEW and not np.isin(y, series[name][1]).all():
            noise = _thinned(*series[name])
            axes.plot(*noise, color=colour, linewidth=1, alpha=0.28, zorder=2, gid="raw")
        axes.plot(x, y, dashes, color=colour, linewidth=1.8, zorder=front, gid="line")
        marked = np.isfinite(y) if len(series[name][0]) <= _FEW else _alone(y)
        if marked.any():
            style = {"markersize": 5, "markeredgewidth": 0}
            axes.plot(x[marked], y[marked], "o", color=colour, zorder=front, gid="marks", **style)
    return _span(steps), _range(*_with_margin(ends.min(), ends.max()))


def _alone(values: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Returns which values have no neighbour, so that no line shows them."""
    there = np.pad(np.isfinite(values), 1)
    return there[1:-1] & ~there[:-2] & ~there[2:]


def _draw_areas(
    axes: Any, series: _Series, smooth: _Series
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draws the stacked areas of all series; returns the ranges of both axes.

    Where the first is nearly the whole, the axis starts higher so that the rest can be seen.
    """
    grid = np.unique(np.concatenate([x for x, _ in smooth.values()]))
    x_range = _span(grid)
    if len(grid) == 1:
        grid = np.array(x_range)
    parts = np.zeros((len(series), len(grid)))
    for part, (x, y) in zip(parts, smooth.values(), strict=True):
        there = np.isfinite(y)
        if there.any():
            part[:] = np.maximum(np.interp(grid, x[there], y[there]), 0)
    colours = [LIGHT[_colour(index, stacked=True)] for index in range(len(series))]
    for area in axes.stackplot(grid, parts, colors=colours, linewidth=0.5, edgecolor=LIGHT["card"]):
        area.set_gid("area")
    first, top = parts[0].min(), parts.sum(0).max()
    low = max(0.0, math.floor(20 * (first - 0.02)) / 20) if first > 0.6 else 0.0
    return x_range, (low, 1.0) if 0.9 < top < 1.02 else _range(0.0, top)


def _colour(index: int, *, stacked: bool) -> str:
    """Returns the name of a series' colour; the first area, the usual case, has a quiet one."""
    return "quiet" if stacked and not index else f"c{index % COLOURS}"


def _with_margin(low: float, high: float) -> tuple[float, float]:
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
    if high - low > max(_LEAST, 1e-9 * max(abs(low), abs(high))):
        return float(low), float(high)
    room = abs(low) * 0.1 if abs(low) > _LEAST else 0.5
    return float(low - room), float(low + room)


def _ticks(
    ends: tuple[float, float], most: int, *, is_whole: bool = False
) -> tuple[list[float], list[str]]:
    """Returns round values within a range, at most about `most`, and how they are written."""
    from matplotlib.ticker import MaxNLocator

    low, high = ends
    locator = MaxNLocator(most, steps=_TICKS, integer=is_whole, min_n_ticks=1)
    room = 1e-9 * (high - low)
    values = [
        v for v in map(float, locator.tick_values(low, high)) if low - room <= v <= high + room
    ]
    largest = max(map(abs, values), default=0.0)
    if not is_whole and largest and not 1e-2 <= largest < 1e5:
        texts = [_power(value).replace(".0e", "e") if value else "0" for value in values]
    else:
        step = min(np.diff(values), default=1.0)
        digits = next((d for d in range(8) if abs(step - round(step, d)) < 1e-6 * step), 8)
        texts = [f"{value:,.{0 if is_whole else digits}f}" for value in values]
    return values, [text.replace("-", MINUS) for text in texts]
