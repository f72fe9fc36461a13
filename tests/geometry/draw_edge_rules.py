"""Draws the image of the fill rules: python tests/geometry/draw_edge_rules.py FILE.svg."""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seg_jax import files
from seg_jax.geometry import bitmask, raster

WIDTH, HEIGHT = 12, 8
COLOURS = ("#4c78a8", "#e4572e")
TRIANGLE = [(1.3, 0.9), (10.7, 2.5), (4.2, 7.3)]
LEFT = [(0.9, 0.8), (6.4, 0.8), (4.6, 7.2), (0.9, 7.2)]
RIGHT = [(6.4, 0.8), (11.2, 0.8), (11.2, 7.2), (4.6, 7.2)]
OUTER, HOLE = [(0.8, 0.8), (11.3, 1.4), (10.2, 7.4), (1.5, 6.9)], [(4, 2.4), (8.6, 3), (5.2, 5.7)]
PANELS = (
    ("rule=coco", "columns cut at their middle, rows 0.4 px down", "coco", "union", [[TRIANGLE]]),
    ("rule=center", "a pixel is inside where its centre is", "center", "union", [[TRIANGLE]]),
    ("rule=center, two shapes", "a shared edge: no gap, no overlap", "center", "union",
     [[LEFT], [RIGHT]]),
    ("rings=evenodd", "a ring within a ring is a hole", "center", "evenodd", [[OUTER, HOLE]]),
)  # fmt: skip
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "seg-jax", "font.size": 10}


def filled(rings, rule, join):
    """Returns the mask of rings, bool[HEIGHT, WIDTH]."""
    count = max(map(len, rings))
    points = np.zeros((len(rings), count, 2), np.float32)
    used = np.zeros((len(rings), count), bool)
    for i, ring in enumerate(rings):
        points[i, : len(ring)], used[i, : len(ring)] = ring, True
    words = raster.fill(points, used, height=HEIGHT, width=WIDTH, rule=rule, rings=join)
    return np.asarray(bitmask.unpack(words, height=HEIGHT))


def draw_panel(axes, title, note, rule, join, shapes):
    """Draws shapes, the pixels that they fill and the places where the rule looks."""
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect="equal", xticks=[], yticks=[])
    for shape, colour in zip(shapes, COLOURS, strict=False):
        rows, columns = np.nonzero(filled(shape, rule, join))
        for x, y in zip(columns, rows, strict=True):
            axes.add_patch(Rectangle((x, y), 1, 1, color=colour, alpha=0.38, linewidth=0))
    axes.hlines(range(HEIGHT + 1), 0, WIDTH, color="#c8ccd2", linewidth=0.8, zorder=1)
    axes.vlines(range(WIDTH + 1), 0, HEIGHT, color="#c8ccd2", linewidth=0.8, zorder=1)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + (0.4 if rule == "coco" else 0.5))
    axes.plot(x.ravel(), y.ravel(), "o", color="#59616b", markersize=2)
    for shape, colour in zip(shapes, COLOURS, strict=False):
        for ring in shape:
            closed = np.array([*ring, ring[0]])
            axes.plot(*closed.T, "o-", color=colour, linewidth=1.6, markersize=5)
    axes.set_title(title, loc="left", weight="bold", size=11, y=-0.12)
    axes.text(0, -0.17, note, transform=axes.transAxes, color="#59616b")
    axes.spines[:].set_visible(False)


def main(out: Path) -> None:
    """Writes the image."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 7.1), facecolor="white")
        for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            draw_panel(axes, *panel)
        figure.subplots_adjust(0, 0, 1, 1, wspace=0.05, hspace=0.28)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    files.write_text(out, text.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
