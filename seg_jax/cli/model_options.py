"""How programs that ask a model bring it in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from jax.sharding import Mesh
from tyro.conf import Suppress

from seg_jax.data import encode
from seg_jax.data.encode import Layout
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.inference import segmenter as segmenters
from seg_jax.inference.predictor import Predictor
from seg_jax.models import families
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import sampler
from seg_jax.runs import experiments
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task

MOST_BOXES, MOST_CLICKS = 32, 64
"""Boxes and clicks of an answer of a model of Hugging Face's that are read."""
QWEN_PX = 28
"""Side of a visual token of Qwen2.5-VL, which the release is, in pixels."""
QUESTION_TOKENS = 640
"""Room for a question for boxes and clicks, whose wordings have some 300 tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model a program asks, and how it computes."""

    checkpoint: Path | None = None
    """Folder of a trained model, as runs/quickstart/checkpoint, or one of Hugging Face's; left
    out: the small model that comes with the package, for drawn scenes."""
    adapter: Path | None = None
    """Folder of an adapter (LoRA, peft's format) that works beside the checkpoint, its base."""
    grammar: bool = False
    """Hold answers to the grammar, so that each can be read whatever the model knows."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and products; None: as config.json says (float16 as bfloat16)."""
    visual_tokens: int | None = None
    """Most image tokens of a question; larger images are scaled down. None: as a trained model
    was taught, 1280 for one of Hugging Face's."""

    segmenter: Path | None = None
    """Folder of a SAM 2 that draws what a model of boxes and clicks (Seg-R1) points at. Beside it
    one of Hugging Face's is asked for boxes and clicks."""
    frame: int | None = None
    """Side of the frame in which one of Hugging Face's writes them. None: as the release has it,
    768 for what an image shows as a whole, 1024 for what text names."""

    task: Annotated[type[Task] | None, Suppress] = None
    """The class of the task that the model stores, from a configuration file, if it is none of the
    package's."""

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self.checkpoint or experiments.NANO

    @property
    def title(self) -> str:
        """How tables name the model."""
        return str(self.folder) if self.adapter is None else f"{self.folder} + {self.adapter}"

    @property
    def usual_frame(self) -> int:
        """Side of the frame that the release has for the questions of the program."""
        return 1024

    def asked_task(self) -> Task:
        """Returns the task of the model, of which small files are read.

        Raises:
          ValueError: the folder is none of a model; it does not go with the segmenter, or has a
            frame of its own.
        """
        task = bundles.own_task(self.folder, self.task, adapter=self.adapter)
        if task is None and self.segmenter is not None:
            task = self.plain_task()
        elif self.frame is not None:
            raise ValueError(
                "--frame: expected a model of Hugging Face's and --segmenter beside it, got "
                f"{self.frame} for {self.folder}; do: leave it out"
            )
        task = task or Referring()
        if self.segmenter is not None:
            frozen_segmenter.check(task, self.segmenter)
            frozen_segmenter.check_weights(self.segmenter)
        return task

    def plain_task(self) -> Prompted:
        """Returns the task of a folder that says nothing of it, as what Seg-R1 released."""
        frame = self.usual_frame if self.frame is None else self.frame
        return Prompted(square=True, frame=frame, boxes=MOST_BOXES, points=MOST_CLICKS)

    def predictor(
        self,
        *,
        on: Mesh | None = None,
        asked: Task | None = None,
        draws: Literal["masks", "scores"] | None = None,
        nothing: bool | None = None,
        refill: sampler.Refill | None = None,
    ) -> Predictor:
        """Returns the model, ready to be asked.

        Args:
          on: the mesh to lay it over; None: the default device.
          asked: the task in the place of the folder's own.
          draws: what the segmenter draws for, if there is one: the masks of predictions, or the
            scores of judged answers.
          nothing: whether an answer by the grammar may say that there is nothing; None: if the
            model was taught that.
          refill: how rows are filled again; None: not.

        Raises:
          ValueError: the folder is none of a model, or a file in it is broken.
        """
        if (
            self.visual_tokens is not None
            and not 4 <= self.visual_tokens <= encode.MAX_VISUAL_TOKENS
        ):
            raise ValueError(
                f"visual_tokens: expected 4 to {encode.MAX_VISUAL_TOKENS}, got {self.visual_tokens}"
                "; do: give a number in this range, or leave --visual-tokens out"
            )
        if self.adapter is not None and self.checkpoint is None:
            raise ValueError(
                f"adapter: expected --checkpoint BASE beside it, got {self.adapter} alone; do: "
                "give the folder of the model that it was trained on"
            )
        folder, asked = self.folder, asked or self.asked_task()
        dtype = self.dtype or families.noted_dtype(folder)
        compute = Compute(dtype=dtype, param_dtype=dtype)
        bundle = bundles.load(
            folder,
            compute=compute,
            on=on,
            visual_tokens=self._visual_tokens(asked),
            task_kind=self.task,
            adapter=self.adapter,
        )
        bundle = dataclasses.replace(bundle, task=asked, layout=self._layout(asked, bundle.layout))
        drawing = {}
        if self.segmenter is not None and draws == "masks":
            drawing["segmenter"] = segmenters.load(self.segmenter)
        if self.segmenter is not None and draws == "scores":
            drawing["frozen"] = frozen_segmenter.load(asked, self.segmenter, on=on)
        return Predictor(bundle, grammar=self.grammar, nothing=nothing, refill=refill, **drawing)

    def refuse_segmenter(self, program: str) -> None:
        """Raises ValueError if a segmenter is given to a program that has no use for it."""
        if self.segmenter is not None:
            raise ValueError(
                f"segmenter: expected none for {program}, which gives outlines as they are "
                f"written, got {self.segmenter}; do: leave it out, or ask by seg-jax predict"
            )

    def _is_plain(self, asked: Task) -> bool:
        """Returns whether a model of Hugging Face's is asked for boxes and clicks."""
        return (
            isinstance(asked, Prompted)
            and bundles.own_task(self.folder, self.task, adapter=self.adapter) is None
        )

    def _visual_tokens(self, asked: Task) -> int | None:
        """Returns the most image tokens of a question: a frame is not scaled down."""
        if self.visual_tokens is not None or not self._is_plain(asked):
            return self.visual_tokens
        assert isinstance(asked, Prompted)
        return max(encode.VISUAL_TOKENS, round(asked.frame / QWEN_PX) ** 2)

    def _layout(self, asked: Task, layout: Layout) -> Layout:
        """Returns rows with room for what is asked of a model of Hugging Face's."""
        if not self._is_plain(asked):
            return layout
        room = QUESTION_TOKENS - layout.max_question
        return dataclasses.replace(
            layout, max_question=QUESTION_TOKENS, max_prompt=layout.max_prompt + room
        )
