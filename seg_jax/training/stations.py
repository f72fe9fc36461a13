"""The jitted stations of training for one model: supervised step, sampling, RL step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.grammar import reader, tokens
from seg_jax.grammar.tokens import Tokenizer
from seg_jax.models import decode, likelihood, sharding
from seg_jax.records import Array, Batch, Prompts, Rollout, Verdict
from seg_jax.tasks.task import Task, judge
from seg_jax.training import optimizer as optimizers
from seg_jax.training import policy, sft
from seg_jax.training.state import State, step_key

SOFTENED_REACH = 3.0
"""Soft targets end at so many standard deviations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices are arranged; -1 takes what is left."""

    data: int = 1
    """Copies of the weights."""
    fsdp: int = -1
    """Shards of the weights; batches are divided among data x fsdp."""
    tensor: int = 1
    """Shards of each layer's work."""

    def build(self, devices: list[Any] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over the devices, over all if None.

        Raises:
          ValueError: the sizes do not multiply to the number of devices.
        """
        return sharding.mesh(dataclasses.asdict(self), devices)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model's graph and the tokenizer that it speaks with."""

    graph: nnx.GraphDef
    tokenizer: Tokenizer
    chunk: int | None = None
    """Tokens of a row whose logits exist at once; None: all."""

    def model(self, params: Any) -> Any:
        """Returns the model with the weights; merge inside jit only."""
        return nnx.merge(self.graph, params)


def supervised_step(
    speaker: Speaker, objective: sft.Objective, optimizer: optimizers.Optimizer
) -> Any:
    """Returns the jitted function (state, batch) -> (state, metrics); the state is donated."""
    transform = optimizers.build(optimizer)
    soft = None
    if objective.soften_bins > 0:
        reach = max(1, round(SOFTENED_REACH * objective.soften_bins))
        near = tokens.neighbours(speaker.tokenizer, objective.soften_bins, reach)
        soft = [jnp.asarray(part) for part in near]

    def token_loss(params: Any, batch: Batch) -> Float[Array, "B G L"]:
        model = speaker.model(params)
        prefix = model.prefill(batch.tokens, batch.pictures)
        hidden = model.extend(batch.ids, prefix, batch.packing)
        if soft is None:
            return -likelihood.token_logp(
                hidden, model.unembed(), batch.targets, chunk=speaker.chunk
            )
        return likelihood.soft_cross_entropy(
            hidden,
            model.unembed(),
            batch.targets,
            neighbours=soft[0],
            shares=soft[1],
            chunk=speaker.chunk,
        )

    def step(state: State, batch: Batch):
        state, metrics = sft.update(objective, optimizer, transform, token_loss, state, batch)
        return sharding.kept(state), metrics

    return jax.jit(step, donate_argnums=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn while learning."""

    answers: int = 8
    """G, answers per prompt."""
    temperature: float = 1.0
    max_tokens: int = 64


def sampler(speaker: Speaker, sampling: Sampling, *, seed: int) -> Any:
    """Returns the jitted function (params, prompts, step) -> Rollout; every step has its key."""

    def draw(params: Any, prompts: Prompts, step: Int[Array, ""]) -> Rollout:
        return decode.generate(
            speaker.model(params),
            prompts.tokens,
            prompts.pictures,
            answers=sampling.answers,
            max_tokens=sampling.max_tokens,
            sampler=decode.Sample(temperature=sampling.temperature),
            end_ids=(speaker.tokenizer.end_id,),
            pad_id=speaker.tokenizer.pad_id,
            key=step_key(seed, step),
        )

    return jax.jit(draw)


def appraiser(
    speaker: Speaker,
    task: Task,
    weights: Mapping[str, float],
    sampling: Sampling,
    *,
    seed: int,
) -> Any:
    """Returns the jitted (params, prompts, step) -> rewards [B G] of sampled answers."""
    draw = sampler(speaker, sampling, seed=seed)
    judged_rows = _judge(speaker, task)

    def appraise(params: Any, prompts: Prompts, step: Int[Array, ""]) -> Float[Array, "B G"]:
        judged, _ = judged_rows(draw(params, prompts, step), prompts.truth)
        return policy.reward(judged.scores, weights)

    return jax.jit(appraise)


def reinforcing_step(
    speaker: Speaker,
    task: Task,
    config: policy.Policy,
    weights: Mapping[str, float],
    optimizer: optimizers.Optimizer,
    sampling: Sampling,
) -> Any:
    """Returns the jitted (state, prompts, rollout, reference) -> (state, metrics); state donated.

    It reads, judges and learns without returning to the host.
    """
    transform = optimizers.build(optimizer)
    judged_rows = _judge(speaker, task)

    def score(params: Any, prompts: Prompts, rollout: Rollout) -> Float[Array, "B G L"]:
        return likelihood.answer_logp(
            speaker.model(params),
            prompts.tokens,
            prompts.pictures,
            ids=rollout.ids,
            chunk=speaker.chunk,
            temperature=sampling.temperature,
        )

    def step(state: State, prompts: Prompts, rollout: Rollout, reference: Any):
        judged, verdict = judged_rows(rollout, prompts.truth)
        reward = policy.reward(judged.scores, weights)
        advantage = policy.advantages(reward, spread_floor=config.spread_floor)
        state, metrics = policy.update(
            config, optimizer, transform, score, state, prompts, rollout, advantage, reference
        )
        metrics |= {f"scores/{name}": values.mean() for name, values in judged.scores.items()}
        metrics |= {f"verdicts/{v.name}": (verdict == v).mean() for v in Verdict}
        metrics["reward"] = reward.mean()
        metrics["reward_spread"] = reward.std(1).mean()
        metrics["answer_tokens"] = rollout.used.sum(-1).mean()
        return sharding.kept(state), metrics

    return jax.jit(step, donate_argnums=0)


def _judge(speaker: Speaker, task: Task) -> Any:
    """Returns the function (rollout, truth) -> (judgement, verdicts); devices judge their rows."""
    table = reader.table(speaker.tokenizer.pieces)
    return sharding.by_rows(lambda rollout, truth: judge(task, table, rollout, truth))
