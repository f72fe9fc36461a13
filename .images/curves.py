"""Draws a run's curves into one SVG: python .images/curves.py METRICS.jsonl TITLE,.. FILE.svg."""

import re
import sys
from pathlib import Path

from seg_jax.report import charts

COLOURS = ("#2563eb", "#e4572e", "#0f9d75", "#8b5cf6", "#c58b00", "#0ea5b7", "#be185d", "#64748b")
WIDTH, HEIGHT, HEAD = 400, 190, 24


def main(metrics: Path, titles: list[str], out: Path) -> None:
    """Writes the frames of these titles side by side."""
    frames = [c for c in charts.curves_from(metrics) if c.title in titles]
    style = re.sub(r"\.legend[^}]*}|\.chart\{[^}]*}|\.chart>svg\{[^}]*}", "", charts.STYLE)
    style = style.replace(".chart svg{display:block;width:100%;height:auto;overflow:visible}", "")
    names = {"muted": "#64748b", "line": "#e2e8f0", "card": "#fff", "ink": "#0f172a"}
    names |= {"quiet": "#94a3b8"} | {f"c{i}": colour for i, colour in enumerate(COLOURS)}
    root = ":root{" + "".join(f"--{name}:{value};" for name, value in names.items()) + "}"
    parts = []
    for number, curve in enumerate(frames):
        drawn = re.sub(r"^<ul.*?</ul>", "", charts.svg(curve), flags=re.S)
        drawn = drawn.replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" y="{HEAD}" ', 1)
        legend = " ".join(
            f'<tspan fill="{COLOURS[i]}">{charts.safe(name)}</tspan>'
            for i, name in enumerate(curve.series)
        )
        head = f'<text x="44" y="16">{charts.safe(f"{curve.group}: ")}{legend}</text>'
        place = f'transform="translate({number * WIDTH} 0)"'
        parts.append(f'<g class="chart" {place}>{head}{drawn}</g>')
    width, height = len(frames) * WIDTH, HEIGHT + HEAD
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' font-family="sans-serif"><style>{root}{style}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
