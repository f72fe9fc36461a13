"""What runs share that teach a model which is no VLM: its sizes, its plan, its stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import jax
from flax import nnx
from jax.sharding import Mesh

from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.parallel import sharding
from seg_jax.runs import lowering, stage
from seg_jax.runs.start import Start
from seg_jax.training import optimizers, state

RunT = TypeVar("RunT")


def completed(
    run: RunT,
    checkpoint: Path | None,
    *,
    fits: Callable[[Any], None],
    model: str = "model",
    check: bool = True,
) -> RunT:
    """Returns a run with the sizes of its checkpoint, or of its model.

    Args:
      run: a dataclass with `checkpoint` and `model`.
      checkpoint: folder in the place of the run's own.
      fits: raises ValueError for sizes of a model that the run is not for.
      model: what is expected, in words.
      check: whether a run without sizes, or with others, is refused.

    Raises:
      ValueError: there is no such model in the folder, one of other sizes, or none is named.
    """
    given: Any = run
    folder = checkpoint or given.checkpoint
    if folder is None:
        if check and given.model is None:
            raise ValueError(
                f"model: expected the sizes of a {model} or a checkpoint, got neither; do: give "
                "--checkpoint DIR"
            )
        return run
    found = families.read(folder)
    try:
        fits(found)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if check and given.model is not None and given.model != found:
        raise ValueError(
            f"model: expected the sizes of {folder}, got others; do: leave --model out"
        )
    return dataclasses.replace(given, checkpoint=folder, model=found)


@dataclasses.dataclass(frozen=True)
class Plan(lowering.Plan):
    """A model that learns whole, as shapes; who inherits adds the steps."""

    run: Any
    """Completed: has `model`, `checkpoint`, `compute`, `optimizer`, `offload`, `seed`, `feed`."""
    graph: Any
    shapes: Any
    mesh: Mesh

    @property
    def params(self) -> Any:
        """Shapes of the weights."""
        return self.shapes

    @property
    def state(self) -> state.State:
        """The state of training as it lies on the devices."""
        transform = optimizers.build(self.run.optimizer)
        return state.shapes(self.shapes, transform, self.mesh, offload=self.run.offload)

    @property
    def rows(self) -> Any:
        """How batches are divided."""
        return sharding.batch(self.mesh, self.run.feed.batch)

    def fresh(self) -> state.State:
        """Returns the state of a run that begins, with random weights."""
        transform = optimizers.build(self.run.optimizer)
        return state.fresh(self.draw_weights(), transform, horizon=1, on=self.mesh)

    def draw_weights(self) -> Any:
        """Returns random weights in their shards; each device makes its own and no others."""
        run = self.run

        def draw() -> Any:
            kind = families.family_of(run.model).model
            return nnx.state(kind(run.model, compute=run.compute, rngs=nnx.Rngs(run.seed)))

        return jax.jit(draw, out_shardings=sharding.shardings(self.shapes, self.mesh))()

    def first_weights(self) -> Any:
        """Returns the weights that the run begins with, in their shards."""
        run = self.run
        if run.checkpoint is None:
            return self.draw_weights()
        return nnx.state(weights.load(run.checkpoint, compute=run.compute, on=self.mesh))


class _Weights(NamedTuple):
    """As much of a bundle as a stage looks at."""

    params: Any


def train(plan: Plan, step: Any, batches: Iterator[Any], *, place: stage.Place) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place.

    Args:
      plan: of the run.
      step: (state, batch) -> (state, metrics), jitted.
      batches: without end; they know their position.
      place: where the stage is kept.
    """

    def body(current: state.State) -> Any:
        return step(current, jax.device_put(next(batches), plan.rows))

    start = Start(cast(Any, _Weights(plan.params)), plan.first_weights)
    return stage.run_stage(plan.run, body, start, batches=batches, place=place, mesh=plan.mesh)
