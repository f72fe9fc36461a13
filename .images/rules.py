"""Draws rules.svg, the image of the two fill rules: python .images/rules.py."""

from pathlib import Path

import numpy as np

from seg_jax.geometry import bitmask, raster

WIDTH, HEIGHT, CELL = 12, 8, 34
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


def filled(rings, rule, join):
    """Returns the mask of rings, bool[HEIGHT, WIDTH]."""
    count = max(map(len, rings))
    points = np.zeros((len(rings), count, 2), np.float32)
    used = np.zeros((len(rings), count), bool)
    for i, ring in enumerate(rings):
        points[i, : len(ring)], used[i, : len(ring)] = ring, True
    words = raster.fill(points, used, height=HEIGHT, width=WIDTH, rule=rule, rings=join)
    return np.asarray(bitmask.unpack(words, height=HEIGHT))


def panel(title, note, rule, join, shapes):
    """Yields the SVG elements of one panel."""
    for shape, colour in zip(shapes, COLOURS, strict=False):
        for y, x in np.argwhere(filled(shape, rule, join)):
            yield (
                f'<rect x="{x * CELL}" y="{y * CELL}" width="{CELL}" height="{CELL}" '
                f'fill="{colour}" fill-opacity="0.38"/>'
            )
    for x in range(WIDTH + 1):
        yield f'<path d="M{x * CELL} 0V{HEIGHT * CELL}" stroke="#c8ccd2"/>'
    for y in range(HEIGHT + 1):
        yield f'<path d="M0 {y * CELL}H{WIDTH * CELL}" stroke="#c8ccd2"/>'
    down = 0.4 if rule == "coco" else 0.5
    for y in range(HEIGHT):
        for x in range(WIDTH):
            at = f'cx="{(x + 0.5) * CELL:.1f}" cy="{(y + down) * CELL:.1f}"'
            yield f'<circle {at} r="1.7" fill="#59616b"/>'
    for shape, colour in zip(shapes, COLOURS, strict=False):
        for ring in shape:
            corners = " ".join(f"{x * CELL:.1f},{y * CELL:.1f}" for x, y in ring)
            yield f'<polygon points="{corners}" fill="none" stroke="{colour}" stroke-width="2.4"/>'
            for x, y in ring:
                yield f'<circle cx="{x * CELL:.1f}" cy="{y * CELL:.1f}" r="4" fill="{colour}"/>'
    below = HEIGHT * CELL
    yield f'<text x="0" y="{below + 22}" font-weight="600">{title}</text>'
    yield f'<text x="0" y="{below + 41}" fill="#59616b">{note}</text>'


def main():
    """Writes the image beside this file."""
    wide, high = WIDTH * CELL + 34, HEIGHT * CELL + 70
    parts = []
    for number, content in enumerate(PANELS):
        place = f"translate({17 + number % 2 * wide} {17 + number // 2 * high})"
        parts.append(f'<g transform="{place}">{"".join(panel(*content))}</g>')
    size = f'width="{2 * wide}" height="{2 * high}" viewBox="0 0 {2 * wide} {2 * high}"'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="15">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
    Path(__file__).with_suffix(".svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
