"""Draws sampled answers on their images beside the truth, for reports and as PNG (host)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from seg_jax.data import read_back
from seg_jax.data.exports import overlay
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.models.parallel import sharding
from seg_jax.records import Prompts, Rollout, Verdict
from seg_jax.report.exhibits import Exhibit, Panel
from seg_jax.tasks.task import Judgement, Task, judge

_TILE_PX, _GAP_PX, _LINE_PX = 224, 10, 18
_TRUTH, _ANSWER = overlay.COLOURS[:2]


class Viewer:
    """Shows rows of prompts with a few of their sampled answers, judged as in training."""

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        *,
        scenes: int = 4,
        answers: int = 4,
        frozen: Frozen = NOTHING,
    ):
        """Makes it ready.

        Args:
          bundle: the model that was asked.
          task: that asked, and judges.
          scenes: prompts that are shown.
          answers: answers that are shown of each.
          frozen: draws what answers point at, for a task whose scores are of masks.
        """
        self._bundle, self._task = bundle, task
        self._scenes, self._answers = scenes, answers
        # By this process alone, whatever mesh the weights lie on: here they are whole.
        self._drawing = jax.tree.map(_own_device, frozen.argument)
        reader = task.reader(bundle.tokenizer.pieces)

        def judged(rollout: Rollout, truth: Any, drawing: Any = None) -> tuple[Judgement, Any]:
            draw, masks = frozen.bound(drawing), None

            def noted(truth: Any, answer: Any) -> Any:
                nonlocal masks
                assert draw is not None
                masks = draw(truth, answer)
                return masks

            segment = None if draw is None else noted
            return judge(task, rollout, truth, reader=reader, segment=segment), masks

        self._judge = jax.jit(judged)

    def exhibits(self, prompts: Prompts, rollout: Rollout) -> tuple[Exhibit, ...]:
        """Returns the first prompts that this process holds, each with its first answers.

        Args:
          prompts: this process's rows, on the host.
          rollout: answers to the rows of all processes, on the devices.
        """
        prompts = jax.tree.map(lambda leaf: leaf[: self._scenes], prompts)
        rollout = jax.tree.map(lambda leaf: _own(leaf)[: self._scenes, : self._answers], rollout)
        # By this process alone, whatever mesh the program works on.
        with jax.set_mesh(sharding.mesh(devices=jax.local_devices()[:1])):
            judged, masks = jax.device_get(self._judge(rollout, prompts.truth, *self._drawing))
        score = judged.scores[next(iter(self._task.reward_weights))]
        rows = prompts, rollout, score, judged.verdict, masks
        return tuple(
            self._exhibit(*jax.tree.map(operator.itemgetter(row), rows))
            for row in range(len(rollout.ids))
        )

    def _exhibit(self, prompt: Prompts, rollout: Rollout, score, verdicts, masks) -> Exhibit:
        task, tokenizer = self._task, self._bundle.tokenizer
        panels = [Panel("truth", task.truth_rings(prompt.truth))]
        for number, (ids, used) in enumerate(zip(rollout.ids, rollout.used, strict=True)):
            text = tokenizer.decode(np.asarray(ids)[used])
            drawn = {} if masks is None else {"mask": masks[number]}
            panels.append(
                Panel(
                    f"answer {number + 1}",
                    task.answer_rings(text, prompt.truth, **drawn),
                    iou=None if np.isnan(score[number]) else float(score[number]),
                    verdict=Verdict(int(verdicts[number])),
                    text=text,
                )
            )
        image = self._bundle.encoder.image_from_patches(prompt.images)
        return Exhibit(image, self._question(prompt), panels)

    def _question(self, prompt: Prompts) -> str:
        """Returns what is asked after the image, up to the end of the turn."""
        ids = np.asarray(prompt.tokens.ids)
        after = ids[np.flatnonzero(prompt.tokens.visual_tokens >= 0)[-1] + 1 :]
        return read_back.question_text(self._bundle.tokenizer, after)


def sheet(exhibits: Sequence[Exhibit]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns all exhibits as one image: a row each, its question above, figures below."""
    rows = [_row(exhibit) for exhibit in exhibits]
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [
            np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )


def _own(leaf) -> np.ndarray:
    """Returns the array on the host, or of a divided one the first rows that lie here."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = min(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0).data
    return np.asarray(leaf)


def _own_device(leaf: Any) -> Any:
    """Returns what lies of an array on the first device of this process."""
    return leaf.addressable_shards[0].data


def _row(exhibit: Exhibit) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an exhibit's panels side by side."""
    longer = max(exhibit.image.shape)
    scale = _TILE_PX / longer if longer > _TILE_PX else max(1, _TILE_PX // longer)
    tiles = [
        overlay.draw(
            exhibit.image,
            panel.rings_unit,
            colour=_ANSWER if panel.verdict is not None else _TRUTH,
            scale=scale,
        )
        for panel in exhibit.panels
    ]
    height, width = tiles[0].shape[:2]
    size = (_GAP_PX + len(tiles) * (width + _GAP_PX), height + 2 * _LINE_PX + _GAP_PX)
    canvas = Image.new("RGB", size, "white")
    _write(canvas, (_GAP_PX, 0), exhibit.question)
    for number, (panel, tile) in enumerate(zip(exhibit.panels, tiles, strict=True)):
        left = _GAP_PX + number * (width + _GAP_PX)
        canvas.paste(Image.fromarray(tile), (left, _LINE_PX))
        words = panel.caption
        if panel.verdict is not None:
            odd = "" if panel.verdict == Verdict.OK else f", {panel.verdict.name}"
            value = "" if panel.iou is None else f": {panel.iou:.3f}"
            words = f"{panel.caption}{value}{odd}"
        _write(canvas, (left, _LINE_PX + height), words)
    return np.asarray(canvas)


def _write(canvas: Image.Image, place: tuple[int, int], text: str) -> None:
    """Writes one line; letters that the small built-in font may lack become question marks."""
    plain = " ".join(text.encode("ascii", "replace").decode().split())
    font = ImageFont.load_default(12)
    ImageDraw.Draw(canvas).text((place[0], place[1] + 2), plain, fill=(40, 44, 48), font=font)
