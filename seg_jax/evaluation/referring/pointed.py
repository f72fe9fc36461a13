"""Answers of boxes and clicks to a protocol, as the masks that a model draws of them (host)."""

from __future__ import annotations

from seg_jax.evaluation.referring.judging import Draw
from seg_jax.evaluation.referring.protocols import Protocol, Question
from seg_jax.geometry import contour
from seg_jax.tasks import task as tasks
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import DrawnAnswer


def drawing(protocol: Protocol, task: Prompted, draw: tasks.Draw) -> Draw:
    """Returns what draws the answers to a protocol at the images' own resolution.

    Args:
      protocol: that asks. Of ReasonSeg the release takes the first box with all clicks.
      task: that reads answers.
      draw: the model that draws.
    """
    together = task.released and protocol.name == "reasonseg"

    def drawn(question: Question, text: str) -> DrawnAnswer:
        found = task.predict(question.example, text, draw=draw, together=together)
        assert found.mask is not None
        box_px = contour.box_px(found.mask)
        return DrawnAnswer(found.mask, box_px, found.rings_unit, found.verdict, False)

    return drawn
