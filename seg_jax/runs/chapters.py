"""A trained model and what it makes of unseen scenes: what stories of several models consist of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from seg_jax.data.sources import Scenes
from seg_jax.evaluation import task_metrics
from seg_jax.evaluation.task_metrics import Outcome
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Sample
from seg_jax.runs import evaluation, experiments
from seg_jax.runs.stage import Trained
from seg_jax.tasks import referring
from seg_jax.tasks.task import Example

_WORLD = "simpleseg/quickstart_base.py"
"""Whose scenes are drawn, and which of their things are curved."""


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A trained model and how it did on the unseen scenes."""

    caption: str
    bundle: Bundle
    outcome: Outcome
    summary: dict[str, Any]
    trained: Trained


def is_curved(examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
    """Returns which questions are about things with a curved outline."""
    names = {str(kind) for kind in experiments.load(_WORLD).CURVED}
    return np.array([one.category in names for one in examples], bool)


def chapter(
    caption: str,
    predictor: Predictor,
    trained: Trained,
    *,
    samples: Sequence[Sample],
    mesh: jax.sharding.Mesh,
) -> Chapter:
    """Returns what a trained model makes of unseen scenes.

    Args:
      caption: of the model.
      predictor: of a model that is alike but for its weights.
      trained: the weights.
      samples: that it is asked about.
      mesh: that the weights lie on.
    """
    params = trained.state.params
    bundle = dataclasses.replace(predictor.bundle, params=params)
    outcome = evaluation.answer_greedily(
        predictor,
        samples,
        title=f"  {caption}",
        task=bundle.task,
        batch=128,
        params=params,
        mesh=mesh,
    )
    return Chapter(caption, bundle, outcome, task_metrics.summarise(bundle.task, outcome), trained)


def finds_the_thing(outcome: Outcome, samples: Sequence[Sample]) -> Bool[np.ndarray, " n"]:
    """Returns whether each answer covers more of what was asked about than of any other thing."""
    found = np.zeros(len(outcome.texts), bool)
    for row, (example, text, sample) in enumerate(
        zip(outcome.examples, outcome.texts, samples, strict=True)
    ):
        assert isinstance(example, referring.RegionExample)
        assert example.kind is not None
        drawn = referring.draw(text, example.kind, example.image.shape[:2]).mask
        covered = (sample.masks & drawn).sum((1, 2))
        asked = (sample.masks == example.mask).all((1, 2))
        found[row] = covered[asked].max() > covered[~asked].max(initial=0)
    return found


def held_out(count: int, like: Scenes | None = None) -> list[Sample]:
    """Returns so many unseen scenes, drawn once for all who ask.

    Args:
      count: of the scenes.
      like: what they are like, but for seed and count; None: those of the quickstart's world.
    """
    source = experiments.load(_WORLD).scenes(seed=0) if like is None else like
    source = dataclasses.replace(source, seed=evaluation.HELD_OUT, count=count)
    return [source[index] for index in range(count)]


def teacher(one: Chapter) -> Outcome:
    """Returns how good the answers are that a model is taught, to the questions it was asked."""
    return task_metrics.true_answers(one.bundle.task, one.outcome.examples, one.bundle.encoder)
