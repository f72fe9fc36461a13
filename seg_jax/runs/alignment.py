"""A run in which images and texts learn which belong together: its configuration and its stage."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tyro.conf import subcommand

from seg_jax import files
from seg_jax.data import centre_crop
from seg_jax.data.sources import scene_seed
from seg_jax.grammar.tokenizer import sentences
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.inference.matcher import Matcher
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.records import check_least
from seg_jax.runs import learner, matching, stage
from seg_jax.runs.lowering import Measured, Step
from seg_jax.scenes import contrasts
from seg_jax.training import contrastive, optimizers, steps
from seg_jax.training.contrastive import Objective, Pairs
from seg_jax.training.loop import Loop

HELD_OUT = 2**20
"""Added to the seed of the cases that are learnt from: those that the model is tried on."""

if TYPE_CHECKING:
    Model = Any
else:  # All are called Config: the names are for the parser of options.
    Model = functools.reduce(
        operator.or_,
        [
            Annotated[family.config, subcommand(name)]
            for name, family in families.FAMILIES.items()
            if family.pairs is not None
        ],
    )
"""Sizes of a model that brings images and texts into one space, of any family."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """What a step is made of."""

    batch: int = 120
    """Pairs of a step, of all devices together."""
    whole: bool = True
    """Whether a step has all pairs of its cases; else one pair each of so many cases."""
    seed: int = 0
    """Seed of the cases."""

    def __post_init__(self):
        check_least(self, "feed", batch=2, seed=0)
        if self.seed >= HELD_OUT:
            raise ValueError(f"feed.seed: expected below {HELD_OUT}, got {self.seed}; do: less")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A CLIP of random weights, or of a checkpoint, learns which text fits which drawn image."""

    out: Path = Path("runs/align")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Folder of a CLIP to start from, with its tokenizer; None: random weights."""
    model: Model | None = None
    """Sizes of a CLIP of random weights; a checkpoint has its own, which these must be."""
    compute: Compute = Compute()
    mesh: steps.Mesh = steps.Mesh()
    offload: bool = False
    """Keep the optimizer's moments in the memory of the hosts between steps."""
    cases: contrasts.Config = contrasts.Config()
    """What is drawn; images are scaled to the model's side."""
    feed: Feed = Feed()
    objective: Objective = Objective()
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.AdamW()
    loop: Loop = Loop()
    seed: int = 0
    """Seed of random weights."""
    held_out: int = 120
    """Further cases that the model is tried on before and after, and as many names; 0: none."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        check_least(self, "align", seed=0, held_out=0)
        if self.loop.epochs is not None:
            raise ValueError(
                f"loop.epochs: expected steps, as drawn cases have no end, got {self.loop.epochs} "
                "passes; do: give loop.steps"
            )
        each = sum(contrasts.ALTERNATIVES[subset] for subset in self.cases.subsets)
        if self.feed.whole and self.feed.batch % each:
            raise ValueError(
                f"feed.batch: expected a multiple of the {each} pairs of one case of each subset, "
                f"got {self.feed.batch}; do: give such a number, or --no-feed.whole"
            )

    @property
    def sizes(self) -> Any:
        """Sizes of the model of a completed run."""
        assert self.model is not None
        return self.model

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run with the sizes of its checkpoint, or of its model.

        Raises:
          ValueError: there is no such model in the folder, one of other sizes, or none is named.
        """
        fits = families.check_pairs
        return learner.completed(self, checkpoint, fits=fits, model="CLIP", check=check)

    def unlowered(self) -> tuple[str, ...]:
        """Returns the options that no step depends on."""
        told = ("out", "cases", "loop", "seed", "held_out", "resume", "anew")
        return (*told, "feed.seed", "feed.whole")

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the steps of the run over some devices."""
        run = self.completed()
        graph, shapes = nnx.split(weights.blank(run.model, run.compute))
        return Plan(run, graph, shapes, run.mesh.build(list(devices)))

    def measured_step(self, plan: Plan) -> Measured:
        """Returns the step with what draws random weights and one random batch."""
        step = plan.align()

        def arguments() -> tuple[Any, ...]:
            rng, run = np.random.default_rng(0), plan.run
            shapes = step.arguments[1]
            pairs = Pairs(
                rng.integers(0, 256, shapes.pixels.shape, dtype=np.uint8),
                rng.integers(0, run.sizes.text.vocab_size, shapes.ids.shape, dtype=np.int32),
                np.arange(run.feed.batch, dtype=np.int32) // 2,
                np.arange(run.feed.batch) % 2 == 0,
            )
            return plan.fresh(), jax.device_put(pairs, plan.rows)

        return Measured(step, arguments, self.compute.dtype)


@dataclasses.dataclass(frozen=True)
class Plan(learner.Plan):
    """The steps of the run from shapes alone: learning, and both towers at work."""

    run: Config

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes each step, by name."""
        return {"align": self.align, "images": self.images, "texts": self.texts}

    def align(self) -> Step:
        """Returns the step (state, pairs) -> (state, metrics)."""
        run = self.run
        function = contrastive.step(self.graph, run.objective, run.optimizer)
        each = (self._shape((), jnp.int32), self._shape((), jnp.bool_))
        parts: Any = [self._pixels(), self._ids(), *each]
        pairs = Pairs(*parts)
        forward = self._work("image") + self._work("text")
        head = 4.0 * run.feed.batch**2 * run.sizes.projection_dim
        again = {"none": 0.0, "dots": 0.0, "full": forward}[run.compute.remat]
        work = {
            "vision": self._work("image"),
            "text": self._work("text"),
            "head": head,
            "backward": 2 * (forward + head),
            "recomputed": again,
        }
        advice = ("a smaller feed.batch", "compute.remat full")
        return Step("align", function, (self.state, pairs), work, advice=advice)

    def images(self) -> Step:
        """Returns the step (weights, pixels) -> vectors."""

        def encode(params: Any, pixels: Any) -> Any:
            return nnx.merge(self.graph, params).image(pixels)

        work = {"vision": self._work("image")}
        arguments = (self.state.params, self._pixels())
        return Step("images", jax.jit(encode), arguments, work, advice=("a smaller feed.batch",))

    def texts(self) -> Step:
        """Returns the step (weights, tokens) -> vectors."""

        def encode(params: Any, ids: Any) -> Any:
            return nnx.merge(self.graph, params).text(ids)

        work = {"text": self._work("text")}
        arguments = (self.state.params, self._ids())
        return Step("texts", jax.jit(encode), arguments, work, advice=("a smaller feed.batch",))

    def _pixels(self) -> jax.ShapeDtypeStruct:
        side = self.run.sizes.side
        return self._shape((side, side, 3), jnp.uint8)

    def _ids(self) -> jax.ShapeDtypeStruct:
        return self._shape((self.run.sizes.length,), jnp.int32)

    def _shape(self, inner: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        shape = (self.run.feed.batch, *inner)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.rows)

    def _work(self, tower: str) -> float:
        """Returns the operations of one tower on a batch."""
        counts = families.family_of(self.run.model).pairs
        assert counts is not None
        return self.run.feed.batch * getattr(counts, tower)(self.run.model)


class Cases:
    """Batches of pairs of drawn cases without end: case after case of a seed (host)."""

    def __init__(self, run: Config, tokenizer: Tokenizer):
        """Begins with the first case."""
        self._run, self._tokenizer, self._drawn = run, tokenizer, 0

    def __iter__(self) -> Iterator[Pairs]:
        """Returns itself."""
        return self

    def __next__(self) -> Pairs:
        """Returns the next batch; of each case one random member is the anchor."""
        run, images, texts, cases, anchors = self._run, [], [], [], []
        while len(images) < run.feed.batch:
            case = contrasts.make(run.cases, scene_seed(run.feed.seed, self._drawn))
            rng = np.random.default_rng((run.feed.seed, self._drawn))
            chosen = int(rng.integers(len(case.texts)))
            for member in range(len(case.texts)) if run.feed.whole else [chosen]:
                images.append(centre_crop.square(case.images[member], run.sizes.side))
                texts.append(case.texts[member])
                cases.append(self._drawn)
                anchors.append(member == chosen)
            self._drawn += 1
        found = sentences.rows(self._tokenizer, texts, length=run.sizes.length)
        numbers = np.asarray(cases, np.int64) - cases[0]
        return Pairs(np.stack(images), found.ids, numbers.astype(np.int32), np.array(anchors))

    def get_state(self) -> dict[str, int]:
        """Returns the position, as plain values."""
        return {"drawn": self._drawn}

    def set_state(self, position: dict[str, int]) -> None:
        """Moves to a position."""
        self._drawn = position["drawn"]


def tokenizer(run: Config) -> tuple[Tokenizer, Path]:
    """Returns the checkpoint's tokenizer, or one of what cases say, and the folder of its files.

    Raises:
      ValueError: the checkpoint has none, or the model no room for its tokens.
    """
    folder = run.checkpoint
    if folder is None:
        folder = run.out / "tokenizer"
        found = sentences.train(contrasts.corpus(run.cases), folder=folder)
        told = run.sizes.to_preprocessor()
        files.write_json(folder / "preprocessor_config.json", told)
    else:
        found = Tokenizer.load(folder)
    if found.vocab_size > (room := run.sizes.text.vocab_size):
        raise ValueError(
            f"model.text.vocab_size: expected at least the tokenizer's {found.vocab_size}, got "
            f"{room}; do: raise it"
        )
    return found, folder


def train(run: Config, words: Tokenizer, place: stage.Place) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place."""
    plan = run.plan(jax.devices())
    return learner.train(plan, plan.align().function, Cases(run, words), place=place)


def tried(run: Config, model: Any, words: Tokenizer) -> dict[str, Any]:
    """Returns how a model does on held-out cases, and on the names of things."""
    if not run.held_out:
        return {}
    matcher, seed = Matcher(model, words), run.feed.seed + HELD_OUT
    scored = matching.score_drawn(matcher, run.cases, run.held_out, seed=seed)
    told = matching.summarise(scored, model="held-out cases", data="drawn", drawn=True)
    names = matching.name_accuracy(matcher, run.cases, run.held_out, seed=seed)
    return {"names": dataclasses.asdict(names), "cases": told}
