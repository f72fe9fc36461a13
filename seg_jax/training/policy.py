"""Reinforcement on judged answers: group advantages, GSPO and GRPO losses, the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from seg_jax.records import Array, Prompts, Rollout
from seg_jax.training import state as states
from seg_jax.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What is maximised: GSPO by default, GRPO with `ratio="token"` and clips of 0.2.

    Source: GSPO, arXiv 2507.18071, equations 5 to 8; GRPO, arXiv 2402.03300.
    """

    ratio: Literal["sequence", "token"] = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    minibatches: int = 4
    """Updates per rollout batch; the prompts are split among them."""
    kl: float = 0.0
    """Weight of the KL penalty to the starting weights (k3 estimate per token)."""
    spread_floor: float = 0.0
    """Least standard deviation that a group's rewards are divided by. With 0 every group is
    scaled to unit spread, which turns noise into gradient where all answers are equally bad."""

    def __post_init__(self):
        if self.minibatches < 1:
            raise ValueError(f"policy.minibatches: expected >= 1, got {self.minibatches}")


def reward(
    scores: Mapping[str, Float[Array, "*n"]], weights: Mapping[str, float]
) -> Float[Array, "*n"]:
    """Returns the weighted sum of named scores.

    Raises:
      ValueError: a weight names no score.
    """
    unknown = set(weights) - set(scores)
    if unknown:
        raise ValueError(f"expected weights for {sorted(scores)}, got {sorted(unknown)}")
    return jnp.sum(jnp.stack([weight * scores[name] for name, weight in weights.items()]), 0)


def advantages(
    rewards: Float[Array, "B G"], *, spread_floor: float = 0.0, tiny: float = 1e-6
) -> Float[Array, "B G"]:
    """Returns (r - mean) / max(std, floor) within each group; 0 where all rewards are equal.

    Source: GSPO equation 6.
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    spread = jnp.sqrt(jnp.mean(jnp.square(centred), 1, keepdims=True))
    return jnp.where(spread > tiny, centred / jnp.maximum(spread, max(spread_floor, tiny)), 0.0)


class Loss(NamedTuple):
    """The objective to minimise and what to log of it."""

    value: Float[Array, ""]
    metrics: dict[str, Any]


def loss(
    config: Policy,
    logp: Float[Array, "*n L"],
    old_logp: Float[Array, "*n L"],
    used: Bool[Array, "*n L"],
    advantage: Float[Array, "*n"],
    reference_logp: Float[Array, "*n L"] | None = None,
) -> Loss:
    """Returns the clipped surrogate, averaged over answers.

    sequence: s = exp(mean over tokens of log-ratio); token: one ratio per token, averaged over
    the tokens of the answer. Both are min(s A, clip(s, 1 - low, 1 + high) A).
    """
    length = jnp.maximum(used.sum(-1), 1)
    gap = jnp.where(used, logp - old_logp, 0.0)
    if config.ratio == "sequence":
        log_ratio, gain = gap.sum(-1) / length, advantage
        share = jnp.ones_like(log_ratio)
    else:
        log_ratio, gain = gap, advantage[..., None]
        share = used / length[..., None]
    # A ratio beyond e^20 is a broken run, not a gradient: the bound keeps it finite for the log.
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    bounded = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = jnp.minimum(ratio * gain, bounded * gain)
    answers = advantage.size
    value = -jnp.sum(share * surrogate) / answers
    clipped = (ratio * gain > bounded * gain).astype(jnp.float32)
    metrics = {
        "clip_fraction": jnp.sum(share * clipped) / answers,
        "ratio_max": jnp.max(jnp.where(share > 0, ratio, 0.0)),
        "ratio_mean": jnp.sum(share * ratio) / answers,
        "policy_kl": -jnp.sum(gap) / jnp.maximum(used.sum(), 1),
    }
    if reference_logp is not None and config.kl > 0:
        drift = jnp.where(used, reference_logp - logp, 0.0)
        k3 = jnp.exp(jnp.clip(drift, -20.0, 20.0)) - drift - 1.0
        kl = jnp.sum(jnp.sum(k3, -1) / length) / answers
        value = value + config.kl * kl
        metrics["reference_kl"] = kl
    return Loss(value, metrics | {"loss": value})


ScoreAnswers = Callable[[Any, Prompts, Rollout], Float[Array, "B G L"]]
"""(params, prompts, rollout) -> log-probability of each answer token under the weights."""


def update(
    config: Policy,
    optimizer: Optimizer,
    transform: optax.GradientTransformation,
    score: ScoreAnswers,
    state: states.State,
    prompts: Prompts,
    rollout: Rollout,
    advantage: Float[Array, "B G"],
    reference: Any | None = None,
) -> tuple[states.State, dict[str, Float[Array, ""]]]:
    """Returns the state after one update per minibatch of prompts, with mean metrics.

    A step is a batch of prompts: its minibatches share a learning rate and count once.
    The old log-probabilities are the sampler's: it runs the same code as `score`.
    """
    rows = advantage.shape[0]
    if rows % config.minibatches:
        raise ValueError(
            f"policy.minibatches: expected a divisor of {rows} prompts, got {config.minibatches}"
        )

    def one(state, piece):
        prompts, rollout, advantage = piece

        def objective(params):
            logp = score(params, prompts, rollout)
            ref = None
            if config.kl > 0:
                ref = jax.lax.stop_gradient(score(reference, prompts, rollout))
            result = loss(config, logp, rollout.logp, rollout.used, advantage, ref)
            return result.value, result.metrics

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        metrics["grad_norm"] = optax.global_norm(grads)
        after, metrics["learning_rate"] = states.advance(state, grads, optimizer, transform)
        return after._replace(step=state.step), metrics

    pieces = jax.tree.map(
        lambda leaf: leaf.reshape(config.minibatches, rows // config.minibatches, *leaf.shape[1:]),
        (prompts, rollout, advantage),
    )
    after, metrics = jax.lax.scan(one, state, pieces)
    return after._replace(step=state.step + 1), {
        name: values.max() if name.endswith("_max") else values.mean()
        for name, values in metrics.items()
    }
