"""Draws several answers to each question beside the greedy one and says what they are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seg_jax.data import pipeline
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.evaluation import best_of, task_metrics
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.inference.predictor import Predictor
from seg_jax.models.parallel import sharding
from seg_jax.records import Prompts, Sample
from seg_jax.runs import console, evaluation
from seg_jax.runs.batches import sharded_batches
from seg_jax.tasks.own_scores import OwnScores
from seg_jax.tasks.task import Example, Task
from seg_jax.training import advantages, processes, steps


def worths(
    bundle: Bundle,
    prompts: Iterable[tuple[Sequence[Example], Prompts]],
    *,
    task: Task,
    sampling: steps.Sampling,
    weights: Mapping[str, float],
    seed: int,
    rows: int,
    mesh: Mesh,
    models: Sequence[Any],
    frozen: Frozen = NOTHING,
) -> list[best_of.Groups]:
    """Returns what the answers of each model are worth, drawn as training draws them (host).

    Args:
      bundle: graph and tokenizer of the models.
      prompts: batches of questions with the rows of each, padded to `rows`.
      task: that asks and judges.
      sampling: how answers are drawn.
      weights: of the scores in the reward.
      seed: of the answers; all models get the same random numbers.
      rows: of a batch.
      mesh: that the weights lie on.
      models: weights of each.
      frozen: draws what answers point at, for a task whose scores are of masks.
    """
    actor = steps.Actor(bundle.graph, bundle.tokenizer, ends=bundle.end_ids)
    draw = steps.sampler(actor, sampling, seed=seed, task=task)
    score = steps.scorer(actor, task, weights=weights, segment=frozen.segment)
    parts: list[list[best_of.Groups]] = [[] for _ in models]
    for number, (examples, batch) in enumerate(prompts):
        placed = pipeline.to_device(batch, sharding.batch(mesh), rows=rows)
        for part, params in zip(parts, models, strict=True):
            with jax.set_mesh(mesh):
                answers = draw(params, placed, jnp.int32(number))
                worth = score(answers, placed.truth, *frozen.argument)
            part.append(_host(worth, len(examples)))
    return [_concatenate(part) for part in parts]


def _host(worth: steps.Worth, count: int) -> best_of.Groups:
    """Returns the first rows on the host."""
    return best_of.Groups(*jax.tree.map(lambda leaf: np.asarray(leaf)[:count], tuple(worth)))


def _concatenate(parts: Sequence[best_of.Groups]) -> best_of.Groups:
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def beside_greedy(
    predictor: Predictor,
    source: Source | Sequence[Sample],
    outcome: task_metrics.Outcome,
    *,
    task: Task,
    sampling: steps.Sampling,
    batch: int,
    mesh: Mesh,
) -> dict[str, Any]:
    """Returns what drawn answers to the questions of an outcome are worth, see `best_of`.

    The reward is that of the task's usual weights.

    Args:
      predictor: the model that was asked.
      source: of the questions, as the outcome's.
      outcome: of the greedy answers.
      task: that asks.
      sampling: how answers are drawn.
      batch: questions at once; as many more as the devices of the mesh need.
      mesh: that the weights lie on.
    """
    bundle = predictor.bundle
    rows = evaluation.whole_rows(min(batch, len(source)), mesh)
    prompts = pipeline.batches_in_order(
        source, task, bundle.encoder, batch=rows, findings=Findings()
    )
    with console.progress("drawn answers", len(outcome.examples)) as move:
        (drawn,) = worths(
            bundle,
            _telling_progress(prompts, lambda done: move(done, len(outcome.examples), "")),
            task=task,
            sampling=sampling,
            weights=task.reward_weights,
            seed=0,
            rows=rows,
            mesh=mesh,
            models=[bundle.params],
            frozen=predictor.frozen,
        )
    greedy = {"reward": np.asarray(advantages.reward(outcome.scores, task.reward_weights))}
    greedy |= {name: np.asarray(values) for name, values in outcome.scores.items()}
    found = best_of.summarise(greedy, drawn)
    main = next(iter(task.reward_weights))
    if task_metrics.rows_by_kind(outcome.examples):
        taught = task_metrics.true_answers(
            task,
            outcome.examples,
            bundle.encoder,
            segment=predictor.frozen.segment,
            drawing=predictor.frozen.argument,
        )
        found["by_kind"] = best_of.by_kind(
            outcome.examples, greedy[main], drawn.scores[main], taught=taught.scores[main]
        )
    return found | {"temperature": sampling.temperature}


def _telling_progress(prompts: Iterable[tuple[Any, Any]], told: Any) -> Iterator[tuple[Any, Any]]:
    """Yields batches and tells how many questions were asked before."""
    done = 0
    for examples, batch in prompts:
        yield examples, batch
        done += len(examples)
        told(done)


def tell(found: Mapping[str, Any], *, main: str) -> None:
    """Prints what `beside_greedy` found as tables, and what it says.

    Args:
      found: the numbers.
      main: the score that is told by kind.
    """
    count = found["answers"]
    header = ("greedy", f"mean of {count}", f"best of {count}")

    def cells(ways: Mapping[str, Any]) -> list[str]:
        return [_text(ways[way]) for way in best_of.WAYS]

    rows = [[name, *cells(ways)] for name, ways in found["scores"].items()]
    console.table(f"{count} drawn answers, best by truth", ("", *header), rows)
    console.say(f"groups that differ: {_text(found['groups_that_differ'])}")
    kinds = found.get("by_kind", {})
    rows = [
        [kind, str(ways["questions"]), *(f"{ways[way]['mean']:.3f}" for way in _KIND_WAYS)]
        for kind, ways in kinds.items()
    ]
    if rows:
        console.table(f"{main} by kind of thing", ("", "questions", "as taught", *header), rows)
    console.say(found["indication"])


_KIND_WAYS = ("taught", *best_of.WAYS)


def _text(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def tell_before(
    run: Any,
    bundle: Bundle,
    params: Any,
    *,
    draw: Any,
    mesh: Mesh,
    frozen: Frozen,
    own: OwnScores | None = None,
) -> None:
    """Says on two lines what the first prompts of a run are answered with before its first step.

    These are prompts to learn from, not held-out ones: what the run begins to be rewarded for.
    The run itself goes on untouched: the prompts are read by an iterator of their own, and random
    numbers belong to steps.

    Args:
      run: a configuration of reinforcement, with `probe` batches.
      bundle: the model, its task and layout those of the run.
      params: its weights on the mesh.
      draw: the jitted sampler of the run.
      mesh: of the run.
      frozen: the model that draws beside it, if there is one.
      own: scores of a user beside the task's.
    """
    actor = steps.Actor(bundle.graph, bundle.tokenizer, ends=bundle.end_ids)
    weights = run.weights or bundle.task.reward_weights
    # The greedy decoder may have more room: what a token costs is the same.
    penalty = run.policy.length_penalty / run.sampling.max_tokens
    score = steps.scorer(
        actor,
        bundle.task,
        weights=weights,
        token_penalty=penalty,
        segment=frozen.segment,
        own=own,
    )
    # As the run calls its sampler: another signature would be another program to compile.
    first = (np.int32(0),) if run.gathers else ()
    alone = dataclasses.replace(run, feed=dataclasses.replace(run.feed, workers=0))
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    source = sharded_batches(alone, bundle.task, encoder, mesh=mesh, rows="prompts")
    asked = Predictor(bundle, grammar=run.sampling.grammar, refill=run.sampling.refill)
    drawn, greedy = [], []
    for number in range(run.probe):
        with jax.set_mesh(mesh):
            prompts = source.to_device(next(source.iterator))
            step = jax.device_put(jnp.int32(number), sharding.replicated_sharding(mesh))
            answers, _ = asked.judged_answer(params, prompts)
            greedy.append(sharding.gather(score(answers, prompts.truth, *frozen.argument)))
            rollout = draw(params, prompts, step, *first)
            drawn.append(sharding.gather(score(rollout, prompts.truth, *frozen.argument)))
    if not processes.is_first():
        return
    one, many = (_concatenate([_host(w, run.feed.batch) for w in part]) for part in (greedy, drawn))
    told = {"reward": one.reward, **one.scores}
    found = best_of.summarise({name: values[:, 0] for name, values in told.items()}, many)
    asked_about = f"{len(many.differ)} prompts to learn from, {found['answers']} answers each"
    console.say(f"before the first step, {asked_about}: {best_of.line(found)}")
    console.say(best_of.INDICATION)
