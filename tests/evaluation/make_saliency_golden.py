"""Writes what PySODMetrics says of the small maps, in an environment of its own (a script).

    python3 -m venv ENV && ENV/bin/pip install pysodmetrics==1.6.2
    ENV/bin/python tests/evaluation/make_saliency_golden.py        # writes saliency_golden.json
    ENV/bin/python tests/evaluation/make_saliency_golden.py --time 512   # milliseconds an image

It pins numpy < 2.3.5, OpenCV < 5 and scikit-image < 0.26, so that it cannot live beside us.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import py_sod_metrics
import saliency_cases

GOLDEN = Path(__file__).with_name("saliency_golden.json")


def measure(grey: np.ndarray, truth: np.ndarray) -> dict:
    """Returns all measures of one map."""
    metrics = {
        "mae": py_sod_metrics.MAE(),
        "sm": py_sod_metrics.Smeasure(),
        "wfm": py_sod_metrics.WeightedFmeasure(),
        "fm": py_sod_metrics.Fmeasure(),
        "em": py_sod_metrics.Emeasure(),
    }
    found = {}
    for metric in metrics.values():
        metric.step(grey, 255 * truth.astype(np.uint8))
        found |= metric.get_results()
    return {
        "absolute_error": float(found["mae"]),
        "structure": float(found["sm"]),
        "weighted_f": float(found["wfm"]),
        "f_adaptive": float(found["fm"]["adp"]),
        "e_adaptive": float(found["em"]["adp"]),
        "f_curve": found["fm"]["curve"].tolist(),
        "e_curve": found["em"]["curve"].tolist(),
    }


def main() -> None:
    """Writes the file, or takes the time."""
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--time"]:
        side = int(sys.argv[2])
        y, x = np.mgrid[:side, :side]
        truth = (y - side // 2) ** 2 + (x - side // 3) ** 2 < (side // 4) ** 2
        grey = np.clip(255 - np.hypot(y - side / 2, x - side / 2.5), 0, 255).astype(np.uint8)
        taken = []
        for _ in range(5):
            begin = time.process_time()
            measure(grey, truth)
            taken.append(time.process_time() - begin)
        print(f"{1e3 * sorted(taken)[2]:.1f} ms an image of {side} x {side}")
        return
    golden = {}
    for name, (grey, truth) in saliency_cases.cases().items():
        numbers = measure(grey, truth)
        # A curve by its sum, its highest point and some of its points: all 256 would be a megabyte.
        for curve in ("f_curve", "e_curve"):
            points = numbers.pop(curve)
            numbers[curve] = [float(np.mean(points)), max(points), *points[::37]]
        golden[name] = {"digest": saliency_cases.digest(grey, truth), **numbers}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
