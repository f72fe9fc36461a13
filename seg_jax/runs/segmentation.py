"""A segmenter at work on batches of images, as a run whose steps can be compiled."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from tyro.conf import subcommand

from seg_jax.models import families
from seg_jax.models.facts.family import Segmenter
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.runs import learner, lowering
from seg_jax.runs.lowering import Step
from seg_jax.training import steps

if TYPE_CHECKING:
    Model = Any
else:  # All are called Config: the names are for the parser of options.
    Model = functools.reduce(
        operator.or_,
        [
            Annotated[family.config, subcommand(name)]
            for name, family in families.FAMILIES.items()
            if family.segmenter is not None
        ],
    )
"""Sizes of a model that draws masks, of any family."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Images are encoded, then prompts of each are decoded; nothing is trained."""

    checkpoint: Path | None = None
    """Folder of the model, whose sizes count; None: `model` says them."""
    model: Model | None = None
    """Sizes of the model; a checkpoint has its own."""
    compute: Compute = Compute(dtype="bfloat16", param_dtype="bfloat16")
    mesh: steps.Mesh = steps.Mesh()
    images: int = 8
    """Images of a step, of all devices together."""
    prompts: int = 16
    """Prompts of an image."""
    points: int = 16
    """Clicks and corners of a prompt."""

    def __post_init__(self):
        for name in ("images", "prompts", "points"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected at least 1, got {getattr(self, name)}; do: give more"
                )

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run with the sizes of its checkpoint.

        Raises:
          ValueError: the folder holds no model that draws masks, or other sizes; or there are none.
        """
        fits = families.check_segmenter
        return learner.completed(self, checkpoint, fits=fits, check=check)

    def unlowered(self) -> tuple[str, ...]:
        """Returns the options that no step depends on: there is none."""
        return ()

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the steps of the run over some devices."""
        run = self.completed()
        graph, params = nnx.split(weights.blank(run.model, run.compute))
        return Plan(run, graph, params, run.mesh.build(list(devices)))


@dataclasses.dataclass(frozen=True)
class Plan(lowering.Plan):
    """The steps of the run from shapes alone."""

    run: Config
    graph: Any
    weights: Any
    mesh: Mesh

    @property
    def params(self) -> Any:
        """Shapes of the weights."""
        return self.weights

    @property
    def state(self) -> Any:
        """The weights as they lie on the devices."""
        return sharding.with_shardings(self.weights, sharding.shardings(self.weights, self.mesh))

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes each step, by name."""
        return {"encode": self.encode, "decode": self.decode}

    def encode(self) -> Step:
        """Returns the step (weights, images) -> features."""
        work = {"vision": self.run.images * self._counts.encoding(self.run.model)}
        advice = ("fewer images",)
        arguments = (self.state, self._images())
        return Step("encode", jax.jit(self._encode), arguments, work, advice=advice)

    def decode(self) -> Step:
        """Returns the step (weights, features, points, labels, used) -> masks."""
        run = self.run
        with jax.set_mesh(self.mesh):
            features = jax.eval_shape(self._encode, self.state, self._images())
        count = (run.images, run.prompts, run.points)
        inputs = (((*count, 2), jnp.float32), (count, jnp.int32), (count, jnp.bool_))
        points, labels, used = (jax.ShapeDtypeStruct(*one, sharding=self._rows) for one in inputs)
        features = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows), features
        )

        def decode(params, features, points, labels, used):
            return nnx.merge(self.graph, params).decode(features, points, labels, used=used)

        each = self._counts.decoding(run.model, run.points)
        work = {"head": run.images * run.prompts * each}
        arguments = (self.state, features, points, labels, used)
        return Step("decode", jax.jit(decode), arguments, work, advice=("fewer prompts",))

    @property
    def _counts(self) -> Segmenter:
        found = families.family_of(self.run.model).segmenter
        assert found is not None
        return found

    @property
    def _rows(self) -> Any:
        return sharding.batch(self.mesh, self.run.images)

    def _encode(self, params: Any, images: Any) -> Any:
        model = nnx.merge(self.graph, params)
        return model.encode(model.normalise(images))

    def _images(self) -> jax.ShapeDtypeStruct:
        assert self.run.model is not None
        side = self.run.model.side
        shape = (self.run.images, side, side, 3)
        return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=self._rows)
