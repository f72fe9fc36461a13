"""The jitted steps of training for one model: supervised step, sampling, RL step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from seg_jax.grammar import automaton
from seg_jax.grammar.tokenizer import tokens
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import likelihood
from seg_jax.models.vlm import sampler as samplers
from seg_jax.records import (
    Array,
    Automaton,
    Batch,
    PackedBatch,
    Prompts,
    Rollout,
    Verdict,
    check_least,
)
from seg_jax.tasks.own_scores import INVALID, OwnScores
from seg_jax.tasks.task import Judgement, Task, judge
from seg_jax.training import advantages, optimizers, rounds, sft
from seg_jax.training import policy as policies
from seg_jax.training.state import State, step_key

SOFTENED_REACH = 3.0
"""Soft targets end at so many standard deviations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices are arranged; -1 takes what is left."""

    data: int = 1
    """Copies of the weights."""
    fsdp: int = -1
    """Shards of the weights; batches are divided among data x fsdp x expert."""
    tensor: int = 1
    """Shards of each layer's work."""
    expert: int = 1
    """Shards of the experts; of all other weights as `fsdp`."""
    context: int = 1
    """Shards of long rows of tokens and patches, for batches of fewer rows than devices."""

    def build(self, devices: list[Any] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over the devices, over all if None.

        Raises:
          ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple
            of the slices that they are in.
        """
        return sharding.mesh(dataclasses.asdict(self), devices)


@dataclasses.dataclass(frozen=True)
class Actor:
    """The network that learns and answers: a model's graph and the tokenizer that it writes in."""

    graph: nnx.GraphDef
    tokenizer: Tokenizer
    chunk: int | None = None
    """Tokens of a row whose logits exist at once; None: all."""
    ends: tuple[int, ...] = ()
    """Tokens that end an answer beside the one that ends a turn."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return tuple(dict.fromkeys((self.tokenizer.end_id, *self.ends)))

    def model(self, params: Any, frozen: Any = None) -> Any:
        """Returns the model with its weights; merge inside jit only.

        Args:
          params: all weights, or those that learn.
          frozen: the others, if there are any.
        """
        return nnx.merge(self.graph, params, *(() if frozen is None else (frozen,)))


def supervised_step(actor: Actor, objective: sft.Objective, optimizer: optimizers.Optimizer) -> Any:
    """Returns the jitted function (state, batch, frozen) -> (state, metrics).

    The state, whose weights learn, is donated; the frozen ones are left out where there are none.
    """
    transform = optimizers.build(optimizer)
    soft = None
    if objective.soften_bins > 0:
        reach = max(1, round(SOFTENED_REACH * objective.soften_bins))
        near = tokens.neighbours(actor.tokenizer, objective.soften_bins, reach)
        soft = [jnp.asarray(part) for part in near]

    def token_loss(params: Any, batch: Batch | PackedBatch, *, frozen: Any) -> Float[Array, "*n L"]:
        model = actor.model(params, frozen)
        hidden = outputs(model, batch)
        if soft is None:
            return -likelihood.token_logp(hidden, model.unembed(), batch.targets, chunk=actor.chunk)
        return likelihood.soft_cross_entropy(
            hidden,
            model.unembed(),
            batch.targets,
            neighbours=soft[0],
            shares=soft[1],
            chunk=actor.chunk,
        )

    def step(state: State, batch: Batch | PackedBatch, frozen: Any = None):
        state, metrics = sft.update(
            objective,
            state,
            batch,
            token_loss=functools.partial(token_loss, frozen=frozen),
            optimizer=optimizer,
            transform=transform,
        )
        if isinstance(batch, PackedBatch):
            metrics["useful_tokens"] = jnp.mean(batch.tokens.segments > 0)
            metrics["useful_patches"] = jnp.mean(batch.images.image >= 0)
        return sharding.constrain_weights(state), metrics

    return jax.jit(step, donate_argnums=0)


def outputs(model: Any, batch: Batch | PackedBatch) -> Float[Array, "*n L D"]:
    """Returns the outputs of a model at every token that has a target."""
    if isinstance(batch, PackedBatch):
        return model.hidden(batch.tokens, batch.images)
    prefix = model.prefill(batch.tokens, batch.images)
    return model.extend(batch.ids, prefix, batch.packing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn while learning."""

    answers: int = 8
    """G, answers per prompt."""
    temperature: float = 1.0
    max_tokens: int = 64
    grammar: bool = False
    """Draw only tokens that the grammar allows, so that every answer can be read. Sampler and
    trainer then share the distribution over these tokens alone: it is what is learnt."""
    rows: int = 0
    """Answers decoded at once, on all devices together; one that ends leaves its row to the next
    that waits. 0: all of a step. Where a few answers are far longer than most, a quarter of them
    or fewer saves most of the time; answers are the same."""
    chunk: int = 1
    """Tokens between looks for rows that are free."""

    def __post_init__(self):
        check_least(self, "sampling", answers=1, max_tokens=1, rows=0, chunk=1)
        if self.chunk != 1 and not self.rows:
            raise ValueError(
                f"sampling.chunk: expected sampling.rows beside it, got {self.chunk} alone; "
                "do: give --sampling.rows"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"sampling.temperature: expected > 0, got {self.temperature}"
                "; do: give a temperature above 0, as 1.0"
            )

    @property
    def refill(self) -> samplers.Refill | None:
        """How rows are filled again, if they are."""
        return samplers.Refill(rows=self.rows, chunk=self.chunk) if self.rows else None


def sampler(actor: Actor, sampling: Sampling, *, seed: int, task: Task | None = None) -> Any:
    """Returns the jitted (params, prompts, step, first) -> Rollout; every step has its key.

    Of several batches of a step `first` counts the prompts before; it may be left out of one.
    The task is asked for with a grammar only: its decimals and limits are the grammar's.
    """
    grammar = _grammar(actor, sampling, task)

    def draw(
        params: Any, prompts: Prompts, step: Int[Array, ""], first: Int[Array, ""] | None = None
    ) -> Rollout:
        rows = None if first is None else first + jnp.arange(prompts.tokens.ids.shape[0])
        return samplers.generate(
            actor.model(params),
            prompts.tokens,
            prompts.images,
            answers=sampling.answers,
            max_tokens=sampling.max_tokens,
            sampler=samplers.Sample(temperature=sampling.temperature),
            end_ids=actor.end_ids,
            pad_id=actor.tokenizer.pad_id,
            key=step_key(seed, step),
            rows=rows,
            grammar=grammar,
            kinds=None if task is None or grammar is None else task.grammar_start(prompts.truth),
            refill=sampling.refill,
        )

    return jax.jit(draw)


class Worth(NamedTuple):
    """What sampled answers are worth (device)."""

    reward: Float[Array, "B G"]
    scores: Mapping[str, Float[Array, "B G"]]
    differ: Bool[Array, " B"]
    """Which groups have rewards that differ; training learns nothing from the others."""


def scorer(
    actor: Actor,
    task: Task,
    *,
    weights: Mapping[str, float],
    segment: Segment | None = None,
    own: OwnScores | None = None,
    token_penalty: float = 0.0,
) -> Any:
    """Returns the jitted function (rollout, truth, segmenter) -> Worth: what a step would learn of.

    The reward loses the penalty with each token of an answer. The segmenter, the weights of
    `segment`, is left out where there is none.
    """
    judge_rows = _judge(actor, task, segment, own)

    def score(rollout: Rollout, truth: Any, segmenter: Any = None) -> Worth:
        judged = judge_rows(rollout, truth, segmenter)
        reward = advantages.reward(judged.scores, weights)
        if token_penalty:
            reward = reward - token_penalty * rollout.used.sum(-1)
        return Worth(reward, judged.scores, advantages.differ(reward))

    return jax.jit(score)


def gathering_step(
    actor: Actor,
    task: Task,
    *,
    policy: policies.Policy,
    weights: Mapping[str, float],
    segment: Segment | None = None,
    own: OwnScores | None = None,
) -> Any:
    """Returns the jitted (groups, prompts, rollout, segmenter) -> (groups, told).

    It judges the answers to a batch and adds their groups to those gathered of this step, None
    before the first; see `rounds.fill`.
    """
    judge_rows = _judge(actor, task, segment, own)

    def gather(
        groups: rounds.Groups | None, prompts: Prompts, rollout: Rollout, segmenter: Any = None
    ) -> tuple[rounds.Groups, rounds.Told]:
        group = policies.with_truth(policy, prompts, rollout)
        judged = judge_rows(group, prompts.truth, segmenter)
        reward = advantages.reward(judged.scores, weights)
        reward = policies.without_length(policy, reward, group.used)
        differ = advantages.differ(policies.rewards_to_learn(policy, reward))
        own = policies.own_answers(policy, reward)
        groups = rounds.fill(groups, rounds.Groups(prompts, rollout, differ))
        penalty = policy.length_penalty
        solved = advantages.share_of_attainable(own.mean(1), weights, length_penalty=penalty)
        told = rounds.Told(groups.differ.sum(), differ.mean(), own.mean(), solved)
        return groups, sharding.constrain_whole(told)

    return jax.jit(gather, donate_argnums=0)


def reinforcing_step(
    actor: Actor,
    task: Task,
    *,
    policy: policies.Policy,
    weights: Mapping[str, float],
    optimizer: optimizers.Optimizer,
    sampling: Sampling,
    segment: Segment | None = None,
    own: OwnScores | None = None,
) -> Any:
    """Returns the jitted (state, prompts, rollout, reference, segmenter, frozen) -> (state, ..).

    It reads, judges and learns without returning to the host, and tells metrics; the state, whose
    weights learn, is donated. The reference has weights as the state has them: frozen ones, left
    out where there are none, are those of both.

    Args:
      actor: that learns.
      task: that judges.
      policy: the objective.
      weights: of the task's scores in the reward.
      optimizer: of the updates.
      sampling: how the answers were drawn.
      segment: draws what answers point at, for a task that prompts a model for masks; its weights
        are an argument of the step, which is left out where there is none.
      own: scores of a user beside the task's.
    """
    transform = optimizers.build(optimizer)
    judge_rows = _judge(actor, task, segment, own)
    grammar = _grammar(actor, sampling, task)

    def score(
        params: Any, prompts: Prompts, rollout: Rollout, *, frozen: Any
    ) -> likelihood.Likelihood:
        return likelihood.answer_likelihood(
            actor.model(params, frozen),
            prompts.tokens,
            prompts.images,
            ids=rollout.ids,
            chunk=actor.chunk,
            temperature=sampling.temperature,
            grammar=grammar,
            kinds=prompts.truth,
        )

    def step(
        state: State,
        prompts: Prompts,
        rollout: Rollout,
        reference: Any,
        segmenter: Any = None,
        frozen: Any = None,
    ):
        group = policies.with_truth(policy, prompts, rollout)
        judged = judge_rows(group, prompts.truth, segmenter)
        reward = advantages.reward(judged.scores, weights)
        reward = policies.without_length(policy, reward, group.used)
        # Of the truth nothing is needed any more but where the grammar begins: images that a
        # model has drawn on would be cut into minibatches for nothing.
        begin = None if grammar is None else task.grammar_start(prompts.truth)
        prompts = prompts._replace(truth=begin)
        experience = policies.experience(policy, prompts, group, rewards=reward)
        state, metrics = policies.update(
            policy,
            state,
            experience,
            score=functools.partial(score, frozen=frozen),
            optimizer=optimizer,
            transform=transform,
            reference=reference,
        )
        metrics |= _judged_metrics(policy, judged, reward) | _lengths(rollout, actor.end_ids)
        return sharding.constrain_weights(state), metrics

    return jax.jit(step, donate_argnums=0)


def _judged_metrics(policy: policies.Policy, judged: Judgement, reward: Float[Array, "B G"]):
    """Returns how sampled answers were judged, and the true ones among them."""
    own = functools.partial(policies.own_answers, policy)
    told = {f"scores/{name}": own(values).mean() for name, values in judged.scores.items()}
    invalid = {n: share for n, share in judged.measures.items() if n.startswith(INVALID)}
    told |= {name: own(share).mean() for name, share in invalid.items()}
    told |= {f"verdicts/{v.name}": (own(judged.verdict) == v).mean() for v in Verdict}
    told["reward"] = own(reward).mean()
    told["reward_spread"] = own(reward).std(1).mean()
    told["groups_that_differ"] = advantages.differ(policies.rewards_to_learn(policy, reward)).mean()
    if policy.truth != "off":
        truth = reward[:, -1]
        told["truth/reward"] = truth.mean()
        told["truth/reached"] = (own(reward).max(1) >= truth).mean()
    return told


def _lengths(rollout: Rollout, end_ids: tuple[int, ...]) -> dict[str, Array]:
    """Returns how long the answers are, and how much of what was computed they needed."""
    length = rollout.used.sum(-1)
    # Without refilling the loop of the sampler ends with its longest answer; the others wait.
    together = length.size * jnp.maximum(length.max(), 1)
    computed = together if rollout.computed is None else rollout.computed.sum()
    unended = rollout.used[..., -1] & ~jnp.isin(rollout.ids[..., -1], jnp.asarray(end_ids))
    return {
        "length/mean": length.mean(),
        "length/max": length.max(),
        "truncated": unended.mean(),
        "useful_tokens": length.sum() / computed,
        "useful_tokens_unfilled": length.sum() / together,
    }


Segment = Callable[[Any, Any, Any], Any]
"""(weights, truth [B ..], what the answers say [B G ..]) -> masks [B G ..]: see `tasks.Segment`."""


def _judge(
    actor: Actor, task: Task, segment: Segment | None = None, own: OwnScores | None = None
) -> Any:
    """Returns the function (rollout, truth, segmenter) -> judgement; devices judge their rows."""
    if task.needs_segmenter and segment is None:
        raise ValueError(
            f"segment: expected a model that draws for the task {task.name!r}, whose scores are of "
            "masks, got none; do: hand one over, or reinforce another task"
        )
    reader = task.reader(actor.tokenizer.pieces)
    add = None if own is None else own.added

    def judge_rows(rollout: Rollout, truth: Any, segmenter: Any = None) -> Judgement:
        bound = None if segment is None else functools.partial(segment, segmenter)
        by_rows = sharding.map_rows
        return judge(task, rollout, truth, reader=reader, segment=bound, by_rows=by_rows, add=add)

    return judge_rows


def _grammar(actor: Actor, sampling: Sampling, task: Task | None) -> Automaton | None:
    """Returns what answers to the task are held to; None without a grammar."""
    if not sampling.grammar:
        return None
    if task is None:
        raise ValueError(
            "sampling.grammar: expected the task whose answers are drawn, got none; "
            "do: pass task=, or switch the grammar off"
        )
    held = task.grammar(actor.tokenizer.pieces, actor.end_ids)
    automaton.check_max_tokens(held, sampling.max_tokens, task.kinds, names=task.kind_names)
    return held
