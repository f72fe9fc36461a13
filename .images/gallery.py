"""Draws scenes with the outlines of a quickstart's models: gallery.py RUN FILE.png."""

import sys
from pathlib import Path

from seg_jax.cli import quickstart
from seg_jax.data import image_files
from seg_jax.inference import bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.report import panels
from seg_jax.runs import evaluation
from seg_jax.tasks.referring import Mixture

SHOWN = range(1, 6)
"""Of the held-out scenes."""


def main(run: Path, out: Path) -> None:
    """Asks the three models about the same scenes and writes one row per scene."""
    config = quickstart.Config(scenes=SHOWN.stop)
    held_out, chapters = quickstart._held_out(config), {}
    for name, caption, folder in (
        ("sft", "after SFT", run / "sft"),
        ("start", "GSPO starts here", config.start),
        ("gspo", "after GSPO", run / "checkpoint"),
    ):
        model = bundle.load(folder, compute=quickstart._gspo(config).compute)
        asked = {"title": caption, "mixture": Mixture(), "batch": SHOWN.stop}
        outcome = evaluation.answer_greedily(Predictor(model), held_out, **asked)
        chapters[name] = quickstart.Chapter(caption, model, outcome, {})
    exhibits = [quickstart._exhibit(chapters, index) for index in SHOWN]
    image_files.write(out, panels.sheet(exhibits))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
