"""Reinforcement on judged answers: the clipped objectives and their update."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from seg_jax.models.vlm.likelihood import Likelihood
from seg_jax.records import Array, Prompts, Rollout, check_least
from seg_jax.training import advantages, gradients
from seg_jax.training import state as states
from seg_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """Truncated importance weights, for a sampler that is not quite the trainer.

    With a level, the old log-probabilities are the trainer's own, scored once more before the
    first update, and what a token adds to the objective is multiplied by min(trainer / sampler,
    cap), which is a constant to the gradient.

    Source: truncated importance sampling, Ionides 2008; for language models Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training", with a cap of 2.
    """

    level: Literal["off", "token", "sequence"] = "off"
    """A weight for each token, or for each answer the product of its tokens'."""
    cap: float = 2.0
    """The largest weight."""

    def __post_init__(self):
        if not self.cap > 0:
            raise ValueError(
                f"policy.correction.cap: expected > 0, got {self.cap}"
                "; do: give a bound above 0, as 2.0"
            )
        if self.level == "off" and self.cap != 2.0:
            raise ValueError(
                f"policy.correction.cap: expected a policy.correction.level beside it, got "
                f"{self.cap} alone; do: choose the level too, or leave the cap out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What is maximised: GSPO by default; the other papers are other choices of the same parts.

    | paper                  | ratio          | average  | spread     | clips     | and         |
    |------------------------|----------------|----------|------------|-----------|-------------|
    | GSPO, 2507.18071       | sequence       | answers  | population | 3e-4 4e-4 |             |
    | GSPO-token, there 4.3  | sequence_token | answers  | population | 3e-4 4e-4 |             |
    | GRPO, 2402.03300       | token          | answers  | population | 0.2 0.2   | kl 0.04     |
    | DAPO, 2503.14476       | token          | tokens   | population | 0.2 0.28  | drop_equal  |
    | Dr. GRPO, 2503.20783   | token          | constant | none       | 0.2 0.2   |             |
    | GOPO, 2602.03876       | token          | answers  | none       | 0.2 0.2   | ranked      |
    | Seg-R1, 2506.22624     | token          | answers  | sample     | none      | kl 0.04     |

    Seg-R1's release, whose one update a batch leaves nothing to clip, has `anchor` self and
    `spread_eps` 1e-4 as well, as TRL had where it was taken from.

    DAPO samples on until a batch is full of groups that differ: `rounds` of `reinforce`. Without it
    the equal ones are left out and the others weigh more.
    """

    ratio: Literal["sequence", "sequence_token", "token"] = "sequence"
    """What is clipped: one ratio of an answer, the geometric mean of its tokens'; the same in
    value with a gradient for each token, which advantages per token need; or each token's own."""
    average: Literal["answers", "tokens", "constant"] = "answers"
    """The mean over the tokens of each answer, then over answers; over all tokens of the
    minibatch; or a sum over tokens divided by answers times the longest that could be sampled."""
    spread: advantages.Spread = "population"
    """What a group's centred rewards are divided by: the root of their mean square; the same with
    G - 1 instead of G, as torch.std and so TRL have it; nothing. The papers write `std` alone."""
    spread_floor: float = 0.0
    """Least standard deviation that a group's rewards, or their ranks, are divided by. With 0 every
    group is scaled to unit spread, which turns noise into gradient where all answers are equally
    bad."""
    spread_eps: float = 0.0
    """Added to what a group's rewards, or their ranks, are divided by; TRL has 1e-4 here and
    no floor."""
    ranked: bool = False
    """Put ranks in the place of a group's rewards: 2 for the best answer, -2 for the worst, equal
    steps between; equal answers share the mean of their ranks. How far rewards differ is lost."""
    truth: Literal["off", "judged", "smoothed"] = "off"
    """Whether the true answer, as it is written, is one more answer of its group, G + 1 in all, as
    in ViSurf (2510.10606, equations 6 and 7): with the reward that it is judged to have or, where a
    sampled one has no less (smoothed), with the mean of the sampled ones, so that it teaches
    nothing where the model does as well. It was not sampled: its old log-probabilities are the
    trainer's own before the first update, so its ratio begins at 1 and is clipped as the others'
    are, of tokens or of the whole answer."""
    length_penalty: float = 0.0
    """What the reward loses for an answer as long as there is room for, and a shorter one in
    proportion: reward - length_penalty tokens / sampling.max_tokens. The formula is ours: SimpleSeg
    says no more than that such a term did harm."""
    drop_equal: bool = False
    """Leave groups of equal rewards out of the averages; they have no advantage either way."""
    anchor: Literal["sampler", "self"] = "sampler"
    """What ratios begin at: the sampler's log-probabilities; or the trainer's own of the same
    update, held constant. Every ratio is 1 then and nothing is clipped: the gradient is that of
    the advantage times the log-probability. Only for one update a batch and a ratio of tokens; how
    far the sampler's numbers are from the trainer's does not enter."""
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    kl: float = 0.0
    """Weight of the KL penalty to the starting weights (k3 estimate per token)."""
    correction: Correction = Correction()
    minibatches: int = 4
    """Updates per rollout batch; the prompts are split among them."""
    accumulate: int = 1
    """Pieces that a minibatch is cut into to save memory; the loss and its gradient stay those of
    the whole, however long the answers of a piece are."""

    def __post_init__(self):
        check_least(self, "policy", minibatches=1, accumulate=1, spread_floor=0, spread_eps=0)
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0 and 0 <= self.kl < math.inf):
            raise ValueError(
                "policy: expected 0 <= clip_low <= 1, clip_high >= 0 and a finite kl >= 0, "
                f"got {self.clip_low}, {self.clip_high} and {self.kl}"
                "; do: correct the one that is out of range"
            )
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(
                f"policy.length_penalty: expected a finite number >= 0, got {self.length_penalty}"
                "; do: give one, as 0.2, which is taken from the reward"
            )
        for name in ("spread_floor", "spread_eps"):
            if self.spread == "none" and getattr(self, name) > 0:
                raise ValueError(
                    f"policy.{name}: expected 0 where nothing is divided by the spread, "
                    f"got {getattr(self, name)}"
                    "; do: set it to 0, or choose another policy.spread"
                )
        if self.anchor == "self":
            self._check_alone()

    def _check_alone(self) -> None:
        """Raises ValueError where a choice could do nothing while every ratio is 1."""
        fields = type(self).__dataclass_fields__
        wanted = {"ratio": "token", "minibatches": 1}
        wanted |= {name: fields[name].default for name in ("clip_low", "clip_high", "correction")}
        for name, value in wanted.items():
            if (found := getattr(self, name)) != value:
                raise ValueError(
                    f"policy.{name}: expected {value} beside policy.anchor self, whose ratios are "
                    f"all 1, got {found}; do: set it so, or leave the anchor out"
                )


def without_length(
    config: Policy, rewards: Float[Array, "*n"], used: Bool[Array, "*n L"]
) -> Float[Array, "*n"]:
    """Returns rewards less the policy's penalty on the share of all token places that are used."""
    if not config.length_penalty:
        return rewards
    return rewards - config.length_penalty * used.mean(-1)


def rewards_to_learn(config: Policy, rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Returns rewards as the policy learns from them; a true answer's is the last of a group."""
    return advantages.smooth_truth(rewards) if config.truth == "smoothed" else rewards


class Loss(NamedTuple):
    """The objective to minimise and what to log of it."""

    value: Float[Array, ""]
    metrics: dict[str, Any]


def loss(
    config: Policy,
    logp: Float[Array, "*n L"],
    *,
    old_logp: Float[Array, "*n L"],
    used: Bool[Array, "*n L"],
    advantage: Float[Array, "*n"] | Float[Array, "*n L"],
    reference_logp: Float[Array, "*n L"] | None = None,
    importance: Float[Array, "*n L"] | None = None,
    kept: Bool[Array, "*n"] | None = None,
    total: Float[Array, ""] | Int[Array, ""] | int | None = None,
) -> Loss:
    """Returns the clipped surrogate min(s A, clip(s, 1 - low, 1 + high) A), averaged, negated.

    The ratio s is exp of the log-ratio: of each token, or its mean over the tokens of the answer.
    With the anchor self it is exp(logp - constant logp), which is not clipped.

    Args:
      config: what is maximised.
      logp: of the answers' tokens under the weights that learn.
      old_logp: under the weights before the first update; the anchor self does not ask for it.
      used: tokens that count.
      advantage: of each answer, or of each token.
      reference_logp: under the frozen weights, for the KL penalty.
      importance: weight of each token from `importance_weights`; 1 if None.
      kept: answers that count; all if None.
      total: of the whole minibatch that these answers are a piece of, as `normaliser` counts;
        their own if None.

    Source: GSPO equations 5, 7 and, for tokens, 13 and 14; GRPO equation 3; DAPO equation 8.
    """
    if config.ratio == "sequence" and advantage.ndim == used.ndim:
        raise ValueError(
            "advantage: expected one per answer for policy.ratio sequence, got one per token; "
            "do: choose sequence_token"
        )
    total = normaliser(config, used, kept) if total is None else total
    length = jnp.maximum(used.sum(-1, keepdims=True), 1)
    counts = (used if kept is None else used & kept[..., None]).astype(jnp.float32)
    alone = config.anchor == "self"
    old_logp = jax.lax.stop_gradient(logp) if alone else old_logp
    gap = jnp.where(used, logp - old_logp, 0.0)
    ratio = _ratio(config, jnp.where(used, logp, 0.0), gap, length)
    gain = advantage if advantage.ndim == used.ndim else advantage[..., None]
    clips = 1.0 - config.clip_low, 1.0 + config.clip_high
    bounded = ratio if alone else jnp.clip(ratio, *clips)
    surrogate = jnp.minimum(ratio * gain, bounded * gain)
    share = _shares(config, counts if importance is None else counts * importance, length)
    value = -jnp.sum(share * surrogate) / total
    metrics = _ratio_metrics(ratio, ratio * gain > bounded * gain, used, length)
    metrics["policy_kl"] = -jnp.sum(gap) / jnp.maximum(used.sum(), 1)
    if reference_logp is not None and config.kl > 0:
        drift = jnp.where(used, reference_logp - logp, 0.0)
        k3 = jnp.exp(jnp.clip(drift, -20.0, 20.0)) - drift - 1.0
        weight = counts / length if config.average == "answers" else counts
        kl = jnp.sum(weight * k3) / total
        value = value + config.kl * kl
        metrics["reference_kl"] = kl
    return Loss(value, metrics | {"loss": value})


def normaliser(
    config: Policy, used: Bool[Array, "*n L"], kept: Bool[Array, "*n"] | None = None
) -> Int[Array, ""] | int:
    """Returns what the sum over a minibatch is divided by: its answers, tokens or token places."""
    if config.average == "tokens":
        counts = used if kept is None else used & kept[..., None]
        return jnp.maximum(counts.sum(), 1)
    answers = math.prod(used.shape[:-1]) if kept is None else jnp.maximum(kept.sum(), 1)
    return answers * used.shape[-1] if config.average == "constant" else answers


def importance_weights(
    correction: Correction,
    logp: Float[Array, "*n L"],
    sampler_logp: Float[Array, "*n L"],
    *,
    used: Bool[Array, "*n L"],
) -> Float[Array, "*n L"]:
    """Returns min(trainer / sampler, cap) at each token; within an answer equal for `sequence`."""
    gap = jnp.where(used, logp - sampler_logp, 0.0)
    if correction.level == "sequence":
        gap = jnp.broadcast_to(gap.sum(-1, keepdims=True), gap.shape)
    return jnp.exp(jnp.minimum(gap, math.log(correction.cap)))


def _ratio(config: Policy, logp, gap, length) -> Float[Array, "*n _"]:
    """Returns the ratio of each token, or of each answer in a single column.

    A ratio beyond e^20 is a broken run, not a gradient: the bound keeps it finite for the log.
    """
    if config.ratio == "token":
        return jnp.exp(jnp.clip(gap, -20.0, 20.0))
    mean = gap.sum(-1, keepdims=True) / length
    ratio = jnp.exp(jnp.clip(mean, -20.0, 20.0))
    if config.ratio == "sequence_token":
        # A factor whose value is 1, with the gradient of the token's log-probability.
        ratio = jax.lax.stop_gradient(ratio) * jnp.exp(logp - jax.lax.stop_gradient(logp))
    return ratio


def _shares(config: Policy, counts, length) -> Float[Array, "*n _"]:
    """Returns what each ratio counts for, before the division by `normaliser`."""
    if config.ratio == "sequence":
        counts = counts.sum(-1, keepdims=True)
    return counts / length if config.average == "answers" else counts


def _ratio_metrics(ratio, clipped, used, length) -> dict[str, Array]:
    """Returns how far the ratios went, each answer counting the same."""
    one = ratio.shape[-1] == 1
    known = jnp.ones(ratio.shape, bool) if one else used
    share = known if one else used / length
    clipped = jnp.broadcast_to(clipped, jnp.broadcast_shapes(clipped.shape, used.shape))
    answers = math.prod(used.shape[:-1])
    return {
        "clip_fraction": jnp.sum(used / length * clipped) / answers,
        "ratio/mean": jnp.sum(share * ratio) / answers,
        "ratio/p99": quantile(ratio, known, 0.99),
        "ratio/max": jnp.max(jnp.where(known, ratio, 0.0)),
    }


def quantile(values: Float[Array, "*n"], known: Bool[Array, "*n"], share: float):
    """Returns the least known value that at least this share of the known values do not exceed."""
    rising = jnp.sort(jnp.where(known, values, jnp.inf).ravel())
    place = jnp.ceil(share * known.sum()).astype(jnp.int32) - 1
    return rising[jnp.clip(place, 0, rising.size - 1)]


Score = Callable[[Any, Prompts, Rollout], Likelihood]
"""(params, prompts, rollout) -> log-probability and entropy [B G L] of each answer token."""


class Experience(NamedTuple):
    """Answers to prompts with their advantages, of a step, a minibatch or a piece (device)."""

    prompts: Prompts
    rollout: Rollout
    advantage: Float[Array, "B G"]
    kept: Bool[Array, "B G"] | None = None
    """The answers that count; all if None."""
    old_logp: Float[Array, "B G L"] | None = None
    """Log-probabilities under the trainer before the first update; the sampler's if None."""


def experience(
    config: Policy, prompts: Prompts, rollout: Rollout, *, rewards: Float[Array, "B G"]
) -> Experience:
    """Returns what is learned from: rewarded answers with their advantages.

    With `config.truth` the last answer of each group is the true one, as `with_truth` adds it.
    """
    rewards = rewards_to_learn(config, rewards)
    advantage = advantages.within_groups(
        rewards,
        spread=config.spread,
        spread_floor=config.spread_floor,
        spread_eps=config.spread_eps,
        ranked=config.ranked,
    )
    kept = None
    if config.drop_equal:
        kept = jnp.broadcast_to(advantages.differ(rewards)[:, None], rewards.shape)
    return Experience(prompts, rollout, advantage, kept)


def with_truth(config: Policy, prompts: Prompts, rollout: Rollout) -> Rollout:
    """Returns the answers of each group and, if the policy has it so, the true one after them.

    Nobody has drawn it: until the update scores it, its log-probabilities are 0.
    """
    if config.truth == "off":
        return rollout
    if prompts.answer is None:
        raise ValueError(
            f"policy.truth: expected prompts with their true answers for {config.truth}, got "
            "prompts without; do: make them with answer_tokens"
        )
    ids, used = (leaf[:, None] for leaf in prompts.answer)
    added = Rollout(
        ids, used, jnp.zeros(ids.shape, rollout.logp.dtype), jnp.zeros(ids.shape[:2], jnp.int32)
    )
    if rollout.computed is None:
        added = added._replace(computed=None)
    return jax.tree.map(lambda *both: jnp.concatenate(both, 1), rollout, added)


def own_answers(config: Policy, values: Array) -> Array:
    """Returns values [B G ..] of the sampled answers alone."""
    return values if config.truth == "off" else values[:, :-1]


class _Seen(NamedTuple):
    """What a pass over answers leaves for the log."""

    logp: Float[Array, "B G L"]
    entropy: Float[Array, "B G L"]
    reference_logp: Float[Array, "B G L"] | None


def update(
    config: Policy,
    state: states.State,
    experience: Experience,
    *,
    score: Score,
    optimizer: Optimizer,
    transform: optax.GradientTransformation,
    reference: Any | None = None,
) -> tuple[states.State, dict[str, Float[Array, ""]]]:
    """Returns the state after one update per minibatch of prompts, with metrics of all of them.

    A step is a batch of prompts: its minibatches share a learning rate and count once. The old
    log-probabilities are the sampler's, which runs the same code as `score`, unless the
    correction is on; those of a true answer are always scored. A minibatch with a loss or
    gradient that is not finite changes no weight.
    """
    rows, pieces = experience.advantage.shape[0], config.minibatches * config.accumulate
    if rows % pieces:
        raise ValueError(
            f"policy.minibatches times policy.accumulate: expected a divisor of {rows} prompts, "
            f"got {config.minibatches} times {config.accumulate}"
            "; do: choose numbers whose product divides the prompts of a step"
        )
    experience = _with_old_logp(
        config, experience, lambda *row: score(state.params, *row).logp, pieces
    )

    def one(state, minibatch):
        value, grads, seen = _gradient(config, score, state.params, minibatch, reference)
        norm = optax.global_norm(grads)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        after, rate = states.advance(
            state, grads, optimizer=optimizer, transform=transform, sound=sound
        )
        shown = {"loss": value, "grad_norm": norm, "learning_rate": rate}
        return after._replace(step=state.step), (shown, seen)

    minibatches = gradients.split(experience, config.minibatches)
    after, (shown, seen) = jax.lax.scan(one, state, minibatches)
    metrics = _metrics(config, experience, gradients.merge(seen), rows // config.minibatches)
    metrics |= {name: values.mean() for name, values in shown.items()}
    return after._replace(step=state.step + 1), metrics


def _with_old_logp(
    config: Policy, experience: Experience, logp: Callable[..., Array], pieces: int
) -> Experience:
    """Returns experience with the old log-probabilities that are not the sampler's.

    Args:
      config: says which: all with a correction, those of true answers.
      experience: before the first update.
      logp: (prompts, rollout) -> log-probabilities under the trainer.
      pieces: that are scored one after the other.
    """
    corrects, rollout = config.correction.level != "off", experience.rollout
    if not corrects and (config.truth == "off" or config.anchor == "self"):
        return experience
    given = rollout if corrects else jax.tree.map(lambda leaf: leaf[:, -1:], rollout)
    parts = gradients.split((experience.prompts, given), pieces)
    scored = gradients.merge(jax.lax.map(lambda part: logp(*part), parts))
    scored = jax.lax.stop_gradient(scored)
    if config.truth != "off":
        own = jnp.concatenate([own_answers(config, rollout.logp), scored[:, -1:]], 1)
        experience = experience._replace(rollout=rollout._replace(logp=own))
    return experience._replace(old_logp=scored) if corrects else experience


def _gradient(
    config: Policy, score: Score, params: Any, minibatch: Experience, reference: Any | None
):
    """Returns the loss of a minibatch, its gradient and what was seen, however it is cut."""
    total = normaliser(config, minibatch.rollout.used, minibatch.kept)

    def objective(params, piece: Experience):
        logp, entropy = score(params, piece.prompts, piece.rollout)
        ref = None
        if config.kl > 0:
            ref = jax.lax.stop_gradient(score(reference, piece.prompts, piece.rollout).logp)
        result = _loss(config, logp, piece, ref, total)
        return result.value, _Seen(logp, entropy, ref)

    return gradients.accumulate(objective, params, minibatch, pieces=config.accumulate)


def _loss(config: Policy, logp, experience: Experience, reference_logp=None, total=None) -> Loss:
    """Returns the loss of experience whose answers have these log-probabilities."""
    rollout, old, importance = experience.rollout, experience.old_logp, None
    if old is None:
        old = rollout.logp
    else:
        importance = importance_weights(config.correction, old, rollout.logp, used=rollout.used)
    return loss(
        config,
        logp,
        old_logp=old,
        used=rollout.used,
        advantage=experience.advantage,
        reference_logp=reference_logp,
        importance=importance,
        kept=experience.kept,
        total=total,
    )


def _metrics(config: Policy, experience: Experience, seen: _Seen, first: int) -> dict[str, Array]:
    """Returns what to log of all minibatches; the first rows were scored before any update."""
    metrics = _loss(config, seen.logp, experience, seen.reference_logp).metrics
    rollout = jax.tree.map(lambda leaf: own_answers(config, leaf), experience.rollout)
    entropy, logp = own_answers(config, seen.entropy), own_answers(config, seen.logp)
    old = rollout.logp if experience.old_logp is None else own_answers(config, experience.old_logp)
    used, count = rollout.used, jnp.maximum(rollout.used.sum(), 1)
    metrics["policy_kl"] = jnp.sum(jnp.where(used, old - logp, 0.0)) / count
    metrics["entropy"] = jnp.sum(jnp.where(used, entropy, 0.0)) / count
    gap = jnp.abs(logp - rollout.logp)[:first]
    metrics["sampler_gap/p99"] = quantile(gap, used[:first], 0.99)
    metrics["sampler_gap/max"] = jnp.max(jnp.where(used[:first], gap, 0.0))
    if experience.old_logp is not None:
        used = experience.rollout.used
        weights = importance_weights(
            config.correction, experience.old_logp, experience.rollout.logp, used=used
        )
        metrics["importance"] = jnp.sum(jnp.where(used, weights, 0.0)) / jnp.maximum(used.sum(), 1)
    return metrics
