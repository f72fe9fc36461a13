"""A run that teaches a segmenter to draw masks: its configuration and its stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, UInt8

from seg_jax.data.sources import scene_seed
from seg_jax.inference import segmenter
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.sam2.config import Config as Sizes
from seg_jax.records import check_least
from seg_jax.runs import learner, segmentation, stage
from seg_jax.runs.lowering import Measured, Step
from seg_jax.scenes import draw, world
from seg_jax.training import mask_learning, optimizers, steps
from seg_jax.training.loop import Loop
from seg_jax.training.mask_learning import Objects

HELD_OUT = 2**20
"""Added to the seed of the scenes that are learnt from: those that the segmenter is tried on."""
MOST_EMPTY = 100
"""Scenes in succession whose things are all too small for the model's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """What a step is made of."""

    batch: int = 16
    """Scenes of a step, of all devices together."""
    objects: int = 4
    """Objects of a scene that are asked for; some twice where it has fewer."""
    ground: float = 0.0
    """Share of them, drawn by chance, in whose stead the ground is asked for: what no thing covers.
    Without it a click beside things is taken for one on the nearest."""
    seed: int = 0
    """Seed of the scenes."""

    def __post_init__(self):
        check_least(self, "feed", batch=1, objects=1, ground=0, seed=0)
        if self.ground > 1:
            raise ValueError(
                f"feed.ground: expected a share in 0..1, got {self.ground}; do: give a fraction"
            )
        if self.seed >= HELD_OUT:
            raise ValueError(f"feed.seed: expected below {HELD_OUT}, got {self.seed}; do: less")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A segmenter of random weights, or of a checkpoint, learns the masks of drawn scenes."""

    out: Path = Path("runs/teach")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Folder of a segmenter to start from; None: random weights."""
    model: segmentation.Model | None = None
    """Sizes of a segmenter of random weights; a checkpoint has its own, which these must be."""
    compute: Compute = Compute()
    mesh: steps.Mesh = steps.Mesh()
    offload: bool = False
    """Keep the optimizer's moments in the memory of the hosts between steps."""
    world: world.Config = world.Config()
    """What is drawn; scenes are stretched to the model's side."""
    feed: Feed = Feed()
    objective: mask_learning.Objective = mask_learning.Objective()
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.AdamW()
    loop: Loop = Loop()
    seed: int = 0
    """Seed of prompts and of random weights."""
    held_out: int = 256
    """Further scenes that the segmenter is tried on at the end; 0: none."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        check_least(self, "teach", seed=0, held_out=0)
        if self.loop.epochs is not None:
            raise ValueError(
                f"loop.epochs: expected steps, as drawn scenes have no end, got {self.loop.epochs} "
                "passes; do: give loop.steps"
            )

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run with the sizes of its checkpoint, or of its model.

        Raises:
          ValueError: there is no segmenter in the folder, one of other sizes, or none is named.
        """
        held = segmentation.Config(checkpoint=self.checkpoint, model=self.model)
        found = held.completed(checkpoint, check=check)
        return dataclasses.replace(self, checkpoint=found.checkpoint, model=found.model)

    def unlowered(self) -> tuple[str, ...]:
        """Returns the options that no step depends on."""
        return ("out", "world", "loop", "held_out", "feed.seed", "resume", "anew")

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the steps of the run over some devices."""
        run = self.completed()
        graph, shapes = nnx.split(weights.blank(run.model, run.compute))
        return Plan(run, graph, shapes, run.mesh.build(list(devices)))

    def measured_step(self, plan: Plan) -> Measured:
        """Returns the step with what draws random weights and one batch of scenes."""
        step = plan.teach()

        def arguments() -> tuple[Any, ...]:
            objects = next(Scenes(plan.run, plan.side))
            return plan.fresh(), jax.device_put(objects, plan.rows)

        return Measured(step, arguments, self.compute.dtype)


@dataclasses.dataclass(frozen=True)
class Plan(learner.Plan):
    """The step of the run from shapes alone."""

    run: Config

    @property
    def side(self) -> int:
        """Rows and columns of the images."""
        return cast(Sizes, self.run.model).side

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes the step, by name."""
        return {"teach": self.teach}

    def teach(self) -> Step:
        """Returns the step (state, objects) -> (state, metrics)."""
        run, side = self.run, self.side
        function = mask_learning.step(self.graph, run.objective, run.optimizer, seed=run.seed)
        shapes = (
            ((run.feed.batch, side, side, 3), jnp.uint8),
            ((run.feed.batch, run.feed.objects, side, side), jnp.bool_),
        )
        parts: Any = [jax.ShapeDtypeStruct(*one, sharding=self.rows) for one in shapes]
        objects = Objects(*parts)
        advice = ("a smaller feed.batch", "fewer feed.objects")
        return Step("teach", function, (self.state, objects), self._work(), advice=advice)

    def _work(self) -> dict[str, float]:
        run = self.run
        counts = families.family_of(run.model).segmenter
        assert counts is not None
        turns = run.objective.corrections + 1
        asked = run.feed.batch * run.feed.objects * turns
        vision = run.feed.batch * counts.encoding(run.model)
        head = asked * counts.decoding(run.model, 4 + run.objective.corrections)
        return {"vision": vision, "head": head, "backward": 2 * (vision + head), "recomputed": 0.0}


class Scenes:
    """Batches of drawn scenes without end: scene after scene of a seed (host)."""

    def __init__(self, run: Config, side: int):
        """Begins with the first scene."""
        self._run, self._side, self._drawn = run, side, 0

    def __iter__(self) -> Iterator[Objects]:
        """Returns itself."""
        return self

    def __next__(self) -> Objects:
        """Returns the next batch; images and masks have the model's side."""
        feed, side = self._run.feed, self._side
        images = np.empty((feed.batch, side, side, 3), np.uint8)
        masks = np.empty((feed.batch, feed.objects, side, side), bool)
        for row in range(feed.batch):
            number, image, found = self._next_scene()
            rng = np.random.default_rng((feed.seed, number))
            places = rng.permutation(len(found))
            images[row], masks[row] = image, found[np.resize(places, feed.objects)]
            ground = ~found.any(0)
            if feed.ground and ground.any():
                masks[row, rng.random(feed.objects) < feed.ground] = ground
        return Objects(images, masks)

    def _next_scene(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the next scene of which a mask is left, with its number."""
        for _ in range(MOST_EMPTY):
            number, self._drawn = self._drawn, self._drawn + 1
            image, found = scene(self._run, number, seed=self._run.feed.seed, side=self._side)
            if len(found):
                return number, image, found
        raise ValueError(
            f"world: expected things that have a pixel left at {self._side}x{self._side}, got "
            f"none in {MOST_EMPTY} scenes; do: draw larger things (world.size_unit) or smaller "
            "images (world.height, world.width)"
        )

    def get_state(self) -> dict[str, int]:
        """Returns the position, as plain values."""
        return {"drawn": self._drawn}

    def set_state(self, position: dict[str, int]) -> None:
        """Moves to a position."""
        self._drawn = position["drawn"]


def scene(
    run: Config, index: int, *, seed: int, side: int
) -> tuple[UInt8[np.ndarray, "side side 3"], Bool[np.ndarray, "M side side"]]:
    """Returns a scene of a seed and the masks of all its things that have a pixel left."""
    image, masks = draw.render(world.make(run.world, scene_seed(seed, index)))
    if image.shape[:2] == (side, side):
        return image, masks
    rows, columns = ((np.arange(side) * size) // side for size in image.shape[:2])
    masks = masks[:, rows][:, :, columns]
    return segmenter.stretched(image, side), masks[masks.any((1, 2))]


def train(run: Config, place: stage.Place) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place."""
    plan = run.plan(jax.devices())
    return learner.train(plan, plan.teach().function, Scenes(run, plan.side), place=place)


def tried(run: Config, model: Any) -> dict[str, float]:
    """Returns the median IoU, on held-out scenes, of a box around a thing and of a click within it.

    The click is at the place farthest from the edge. Every scene is asked for its first thing.
    """
    drawer, found = segmenter.Segmenter(model), {"box": [], "click": []}
    seed = run.feed.seed + HELD_OUT
    for index in range(run.held_out):
        image, masks = scene(run, index, seed=seed, side=model.config.side)
        if not len(masks):
            continue
        mask = masks[0]
        rows, columns = np.nonzero(mask)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
        prompts = [segmenter.prompt(box_px=box), segmenter.prompt(clicks_px=_inner(mask))]
        for name, drawn in zip(found, drawer.draw(image, prompts), strict=True):
            both, either = (drawn.mask & mask).sum(), (drawn.mask | mask).sum()
            found[name].append(both / either)
    return {f"iou_{name}": float(np.median(values)) for name, values in found.items() if values}


def _inner(mask: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """Returns the centre [1 2] of the last pixel that is left when the mask shrinks and shrinks."""
    left = mask
    while True:
        padded = np.pad(left, 1)
        less = left & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not less.any():
            row, column = np.argwhere(left)[len(np.argwhere(left)) // 2]
            return np.array([[column + 0.5, row + 0.5]])
        left = less
