"""What clicks are worth by the masks that a frozen model draws of them: answers, and fixed ones.

Axes here: `E` rows and columns of the frame, `c` prompts that are tried on each of n pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, UInt32

from seg_jax.data import pipeline
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Clicks, Prompts, Sample, Verdict
from seg_jax.runs import console, evaluation
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.task import Example
from seg_jax.training import advantages

AT_ONCE = 64
"""Prompts of a picture that are tried at once."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A box, clicks, or both, that a model draws a mask of (host)."""

    points_unit: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    """1 for a click on the object, 0 for one beside it."""
    box_unit: tuple[float, float, float, float] | None = None
    """x0 y0 x1 y1."""


class Answered(NamedTuple):
    """What answers to questions about pictures are worth, and what was drawn of them (host)."""

    texts: list[str]
    scores: Mapping[str, Float[np.ndarray, " n"]]
    """Scores of the task, and with them `reward`: all but the format, by the task's weights."""
    masks: UInt32[np.ndarray, "n K E"]
    """What was drawn in the frame, packed as the truth."""


def reward_weights(task: Prompted) -> dict[str, float]:
    """Returns the weights of a reward of masks alone, without the format."""
    return {name: weight for name, weight in task.reward_weights.items() if name != "format"}


class Questions:
    """Questions about pictures, beside the model that draws: many models are asked the same."""

    def __init__(
        self,
        bundle: Bundle,
        samples: Sequence[Sample],
        *,
        frozen: Frozen,
        mesh: Mesh,
        batch: int = 64,
    ):
        """Draws up the questions.

        Args:
          bundle: of the models that are asked, with the task that asks and judges.
          samples: two or more pictures, about each of which is one question.
          frozen: the model that draws.
          mesh: that weights lie on.
          batch: questions at once; as many more as the devices need.
        """
        assert isinstance(bundle.task, Prompted)
        self._bundle, self._frozen, self._mesh, self.task = bundle, frozen, mesh, bundle.task
        self._rows = evaluation.whole_rows(min(batch, len(samples)), mesh)
        self.examples: list[Example] = []
        self._batches: list[tuple[int, Prompts]] = []
        for examples, prompts in pipeline.batches_in_order(
            samples, self.task, bundle.encoder, batch=self._rows
        ):
            self.examples += examples
            self._batches.append((len(examples), prompts))
        self._answer, self._draw = jax.jit(self._greedy), jax.jit(self._draw_and_judge)

    def truth(self, index: int) -> Any:
        """Returns the truth record of one question."""
        batch, row = divmod(index, self._rows)
        return jax.tree.map(lambda leaf: leaf[row], self._batches[batch][1].truth)

    def answered(self, params: Any, *, title: str, shuffled: bool = False) -> Answered:
        """Returns what a model's greedy answers are worth.

        Args:
          params: its weights.
          title: of the progress bar.
          shuffled: whether it is shown the next question's picture, the last one the first's. The
            mask is drawn in the right one all the same.
        """
        batches, texts, parts = self._batches, [], []
        if shuffled:
            batches = _with_next_picture(batches)
        with console.progress(title, len(self.examples)) as move:
            for real, prompts in batches:
                placed = self._on_devices(prompts)
                with jax.set_mesh(self._mesh):
                    ids, used, answer, verdict = self._answer(params, placed)
                    drawn = self._draw(answer, verdict, placed.truth, *self._frozen.argument)
                parts.append(_first_of(drawn, real))
                rows = (np.asarray(leaf)[:real, 0] for leaf in (ids, used))
                for row, keep in zip(*rows, strict=True):
                    texts.append(self._bundle.tokenizer.decode(row[keep].tolist()))
                move(len(texts), len(self.examples), "")
        drawn = _joined_parts(parts)
        scores = {name: values[:, 0] for name, values in drawn.scores.items()}
        reward = np.asarray(advantages.reward(scores, reward_weights(self.task)))
        return Answered(texts, {"reward": reward, **scores}, drawn.masks[:, 0])

    def worth(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "n c"]:
        """Returns the reward of each prompt about each picture, whatever a whole answer needs."""
        columns = []
        for begin in range(0, len(prompts), AT_ONCE):
            some = [*prompts[begin : begin + AT_ONCE]]
            padded = some + some[-1:] * (AT_ONCE - len(some))
            found = self._of_prompts([padded] * len(self.examples))
            columns.append(found.drawn["reward"][:, : len(some)])
        return np.concatenate(columns, 1)

    def worth_of_own(self, prompts: Sequence[Prompt]) -> Answered:
        """Returns what one prompt for each picture is worth, as it is drawn."""
        found = self._of_prompts([[one] for one in prompts])
        scores = {name: values[:, 0] for name, values in found.drawn.items()}
        return Answered([""] * len(prompts), scores, found.masks[:, 0])

    def _of_prompts(self, prompts: Sequence[Sequence[Prompt]]) -> _Drawn:
        """Returns what prompts [n c] are worth (host)."""
        parts, begin = [], 0
        for real, batch in self._batches:
            mine = [*prompts[begin : begin + real]]
            clicks = _stacked(mine + mine[-1:] * (self._rows - real), most=self.task.points)
            verdict = np.full(clicks.thought.shape, Verdict.OK, np.int32)
            placed, whole, sure = self._on_devices((batch.truth, clicks, verdict))
            with jax.set_mesh(self._mesh):
                drawn = self._draw(whole, sure, placed, *self._frozen.argument)
            parts.append(_first_of(drawn, real))
            begin += real
        return _joined_parts(parts)

    def _on_devices(self, batch: Any) -> Any:
        """Returns a tree of rows on the devices of the mesh."""
        return pipeline.to_device(batch, sharding.batch(self._mesh), rows=self._rows)

    def _greedy(self, params: Any, prompts: Prompts) -> Any:
        """Returns greedy answers and what they say, as `jax.jit` traces it."""
        bundle = self._bundle
        rollout = sampler.generate(
            nnx.merge(bundle.graph, params),
            prompts.tokens,
            prompts.images,
            answers=1,
            max_tokens=bundle.layout.max_answer,
            sampler=sampler.Greedy(),
            end_ids=bundle.end_ids,
            pad_id=bundle.tokenizer.pad_id,
            key=jax.random.key(0),
        )
        read = self.task.reader(bundle.tokenizer.pieces)
        return rollout.ids, rollout.used, *read(rollout.ids, rollout.used, None)

    def _draw_and_judge(self, clicks: Clicks, verdict: Any, truth: Any, drawing: Any) -> _Drawn:
        """Returns what clicks [B c] are worth, as `jax.jit` traces it."""
        assert self._frozen.segment is not None
        masks = self._frozen.segment(drawing, truth, clicks)
        count = verdict.shape[1]
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:, None], (len(leaf), count, *leaf.shape[1:])), truth
        )
        judged = self.task.judge(clicks, verdict, repeated, masks=masks)
        told = judged.measures
        union = told["union"]
        drawn: dict[str, Any] = {
            "iou": jnp.where(union > 0, told["intersection"] / jnp.maximum(union, 1), 0.0),
            "structure": jnp.clip(told["drawn_structure"], 0.0, 1.0),
        }
        drawn["reward"] = advantages.reward(drawn, reward_weights(self.task))
        return _Drawn(judged.scores, drawn, masks)


class _Drawn(NamedTuple):
    """What prompts are worth."""

    scores: Mapping[str, Any]
    """Scores as the task judges answers: 0 where a part is missing."""
    drawn: Mapping[str, Any]
    """Scores of the masks as they were drawn, their reward among them."""
    masks: Any


def _first_of(drawn: _Drawn, count: int) -> _Drawn:
    """Returns the first rows on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], drawn)


def _joined_parts(parts: Sequence[_Drawn]) -> _Drawn:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Blind(NamedTuple):
    """A prompt that is the same for every picture, chosen by what it is worth."""

    prompt: Prompt
    reward: float
    """Mean over the pictures that it was chosen on."""


def best_blind(questions: Questions, *, grid: int, boxed: bool = False) -> Blind:
    """Returns the best fixed prompt of a kind that the task's answers have room for.

    Clicks: the best one on the object of a grid; a further one, on it or beside it, is added for as
    long as the mean rises and an answer has room. Boxes: the best of all between lines of a grid.

    Args:
      questions: about the pictures that it is chosen on.
      grid: places, or lines less one, of a side.
      boxed: whether a box is chosen, or clicks.
    """
    if boxed:
        return _best(questions, boxes_between(grid))
    places = [((x + 0.5) / grid, (y + 0.5) / grid) for y in range(grid) for x in range(grid)]
    found = _best(questions, [Prompt((place,), (1,)) for place in places])
    while len(found.prompt.labels) < questions.task.points:
        before = found.prompt
        more = [
            Prompt((*before.points_unit, place), (*before.labels, label))
            for label in (1, 0)
            for place in places
            if place not in before.points_unit
        ]
        if not more or (longer := _best(questions, more)).reward <= found.reward:
            break
        found = longer
    return found


def boxes_between(grid: int) -> list[Prompt]:
    """Returns all boxes whose sides lie on the lines that cut a picture into grid x grid cells."""
    spans = [(a / grid, b / grid) for a in range(grid) for b in range(a + 1, grid + 1)]
    return [Prompt(box_unit=(x0, y0, x1, y1)) for y0, y1 in spans for x0, x1 in spans]


def _best(questions: Questions, prompts: Sequence[Prompt]) -> Blind:
    means = questions.worth(prompts).mean(0)
    place = int(means.argmax())
    return Blind(prompts[place], float(means[place]))


def _stacked(prompts: Sequence[Sequence[Prompt]], *, most: int) -> Clicks:
    """Returns prompts [B c] as a record of so many clicks each."""
    every = [one for row in prompts for one in row]
    shape = (len(prompts), len(prompts[0]))
    boxes, boxed = np.zeros((len(every), 1, 4), np.float32), np.zeros((len(every), 1), bool)
    points = np.zeros((len(every), most, 2))
    labels, used = np.zeros((len(every), most), np.int32), np.zeros((len(every), most), bool)
    for row, one in enumerate(every):
        count = len(one.labels)
        points[row, :count] = np.array(one.points_unit).reshape(-1, 2)
        labels[row, :count], used[row, :count] = one.labels, True
        if one.box_unit is not None:
            boxes[row, 0], boxed[row, 0] = one.box_unit, True
    thought = np.zeros(len(every), bool)
    whole = Clicks(boxes, boxed, points, labels, used, thought)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), whole)


def _with_next_picture(batches: Sequence[tuple[int, Prompts]]) -> list[tuple[int, Prompts]]:
    """Returns the batches with the picture that a model is shown taken from the next question."""
    shown = [jax.tree.map(lambda leaf, real=real: leaf[:real], one.images) for real, one in batches]
    whole = jax.tree.map(lambda *leaves: np.roll(np.concatenate(leaves), -1, 0), *shown)
    found, begin = [], 0
    for real, one in batches:
        places = begin + np.minimum(np.arange(len(one.tokens.ids)), real - 1)
        images = jax.tree.map(lambda leaf, places=places: leaf[places], whole)
        found.append((real, one._replace(images=images)))
        begin += real
    return found


def iou(words: UInt32[np.ndarray, "K E"], truth: UInt32[np.ndarray, "K E"]) -> float:
    """Returns the IoU of two packed masks, 0 of two empty ones."""
    both, either = (int(np.bitwise_count(one).sum()) for one in (words & truth, words | truth))
    return both / either if either else 0.0
