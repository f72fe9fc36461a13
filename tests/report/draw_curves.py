"""Draws chosen curves of a run's log side by side into an SVG file."""

import sys
from pathlib import Path

from seg_jax.report import charts, metrics_log


def main(metrics: Path, titles: list[str], out: Path) -> None:
    """Writes the curves of these titles, as READMEs show them.

    python tests/report/draw_curves.py METRICS.jsonl TITLE,TITLE FILE.svg
    """
    curves = [curve for curve in metrics_log.read(metrics) if curve.title in titles]
    if not curves:
        known = sorted({curve.title for curve in metrics_log.read(metrics)})
        raise SystemExit(f"expected titles among {', '.join(known)}, got {', '.join(titles)}")
    charts.save(curves, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
