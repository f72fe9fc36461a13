"""A training run of a model that is no VLM: an image encoder learns given features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tiny_encoder
from flax import nnx
from jax.sharding import Mesh

from seg_jax.models import flops
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.runs import lowering
from seg_jax.runs.lowering import Measured, Step
from seg_jax.training import optimizers, state, steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What such a run is configured by; there is no task, layout or tokenizer."""

    checkpoint: Path | None = None
    """Folder of the encoder; None: random weights."""
    model: tiny_encoder.Config = tiny_encoder.Config()
    compute: Compute = Compute()
    mesh: steps.Mesh = steps.Mesh()
    optimizer: optimizers.AdamW = optimizers.AdamW()
    batch: int = 16
    """Images of a step."""

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run as it is: its checkpoint decides nothing."""
        del check
        return self if checkpoint is None else dataclasses.replace(self, checkpoint=checkpoint)

    def unlowered(self) -> tuple[str, ...]:
        """Returns the options that no step depends on: there is none."""
        return ()

    def plan(self, devices: list[Any]) -> Plan:
        """Returns the steps of the run over some devices."""
        graph, params = nnx.split(weights.blank(self.model, self.compute))
        return Plan(self, graph, params, self.mesh.build(devices))

    def measured_step(self, plan: Plan) -> Measured:
        """Returns the step of training with random arguments."""
        return Measured(plan.fit(), plan.draw, self.compute.dtype)


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
    def state(self) -> state.State:
        """The state of training as it lies on the devices."""
        return state.shapes(self.params, self._transform, self.mesh)

    @property
    def _transform(self) -> Any:
        return optimizers.build(self.run.optimizer)

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes each step, by name."""
        return {"fit": self.fit, "encode": self.encode}

    def fit(self) -> Step:
        """Returns the step of training: (state, patches, features) -> (state, metrics)."""
        optimizer, transform = self.run.optimizer, self._transform

        def step(now: state.State, patches: jax.Array, wanted: jax.Array):
            def loss(params: Any) -> jax.Array:
                features = nnx.merge(self.graph, params)(patches)
                return jnp.mean(jnp.square(features - wanted))

            value, grads = jax.value_and_grad(loss)(now.params)
            now, _ = state.advance(now, grads, optimizer=optimizer, transform=transform)
            return sharding.constrain_weights(now), {"loss": value}

        patches = self._patches()
        shape = (*patches.shape[:1], patches.shape[1] + 1, self.run.model.hidden_size)
        wanted = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=patches.sharding)
        arguments = (self.state, patches, wanted)
        advice = ("a smaller batch",)
        function = jax.jit(step, donate_argnums=0)
        return Step("fit", function, arguments, self._work(3), advice=advice)

    def encode(self) -> Step:
        """Returns the step that only encodes."""

        def features(params: Any, patches: jax.Array) -> jax.Array:
            return nnx.merge(self.graph, params)(patches)

        arguments = (self.state.params, self._patches())
        return Step("encode", jax.jit(features), arguments, self._work(1))

    def draw(self) -> tuple[Any, ...]:
        """Draws a state and the inputs of a step of training."""
        run, key = self.run, jax.random.key(0)
        model = tiny_encoder.Encoder(run.model, compute=run.compute, rngs=nnx.Rngs(0))
        now = state.fresh(nnx.state(model), self._transform, horizon=1)
        inputs = self.fit().arguments[1:]
        return now, *(jax.random.normal(key, one.shape, one.dtype) for one in inputs)

    def _patches(self) -> jax.ShapeDtypeStruct:
        sizes = self.run.model
        count = (sizes.image_size // sizes.patch_size) ** 2
        shape = (self.run.batch, count, 3 * sizes.patch_size**2)
        place = sharding.batch(self.mesh, self.run.batch)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    def _work(self, passes: int) -> flops.Flops:
        """Returns two operations for each weight and token of a pass."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        tokens = self.run.batch * (self._patches().shape[1] + 1)
        return {"vision": 2.0 * passes * size * tokens}
