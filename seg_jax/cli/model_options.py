"""How programs that ask a model bring it in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from jax.sharding import Mesh
from tyro.conf import Suppress

from seg_jax.data import encode
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.models import families
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import sampler
from seg_jax.runs import experiments
from seg_jax.tasks.task import Task


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

    def predictor(
        self,
        *,
        on: Mesh | None = None,
        nothing: bool | None = None,
        refill: sampler.Refill | None = None,
    ) -> Predictor:
        """Returns the model, ready to be asked.

        Args:
          on: the mesh to lay it over; None: the default device.
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
        folder = self.folder
        dtype = self.dtype or families.noted_dtype(folder)
        compute = Compute(dtype=dtype, param_dtype=dtype)
        bundle = bundles.load(
            folder,
            compute=compute,
            on=on,
            visual_tokens=self.visual_tokens,
            task_kind=self.task,
            adapter=self.adapter,
        )
        return Predictor(bundle, grammar=self.grammar, nothing=nothing, refill=refill)
