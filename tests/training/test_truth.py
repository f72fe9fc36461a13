"""The true answer as one of its group: rewards, ratios and updates as ViSurf has them, in torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import torch
from few_steps_gspo import ADAM

from seg_jax.data import pipeline
from seg_jax.models.vlm import likelihood
from seg_jax.models.vlm.likelihood import Likelihood
from seg_jax.records import Prompts, Rollout, WrittenAnswer
from seg_jax.tasks.task import TooLong
from seg_jax.training import advantages, optimizers, policy, state, steps
from seg_jax.training.policy import Correction, Policy

ROWS, ANSWERS, LENGTH, VOCABULARY = 4, 3, 5, 6
RATE = optimizers.AdamW(lr=0.1, schedule=optimizers.Schedule(warmup=0.0, final=1.0), eps=1e-4)


def test_a_truth_that_is_reached_has_the_mean_of_the_others():
    rewards = np.array([[0.2, 0.4, 0.9], [0.2, 0.9, 0.9], [1.0, 0.4, 0.9]], np.float32)
    expected = [[0.2, 0.4, 0.9], [0.2, 0.9, 0.55], [1.0, 0.4, 0.7]]
    np.testing.assert_allclose(advantages.smooth_truth(rewards), expected, rtol=1e-6)
    for truth, wanted in (("smoothed", expected), ("judged", rewards)):
        shaped = policy.rewards_to_learn(Policy(truth=truth), rewards)
        np.testing.assert_allclose(shaped, wanted, rtol=1e-6)
    # As good as the model is no lesson, neither for the truth nor for whether a group is one.
    gains = advantages.within_groups(advantages.smooth_truth(rewards))
    np.testing.assert_allclose(np.asarray(gains)[1:, -1], 0.0, atol=1e-6)
    equal = np.array([[0.5, 0.5, 0.4]], np.float32)
    told = [
        advantages.differ(policy.rewards_to_learn(Policy(truth=t), equal))
        for t in ("judged", "smoothed")
    ]
    assert [bool(one[0]) for one in told] == [True, False]


# A model of a few weights: a softmax over the vocabulary for each prompt and column.


def score(params, prompts, rollout):
    logits = params["kernel"][prompts.tokens][:, None] + params["bias"]
    logp = jax.nn.log_softmax(logits, -1)[:, None]
    chosen = jnp.take_along_axis(logp, rollout.ids[..., None], -1)[..., 0]
    return Likelihood(chosen, jnp.broadcast_to(-jnp.sum(jnp.exp(logp) * logp, -1), chosen.shape))


def case():
    """Returns weights, prompts with true answers, sampled answers and rewards of both."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def answers(*shape):
        used = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (*shape, 1))
        return rng.integers(0, VOCABULARY, (*shape, LENGTH), dtype=np.int32), used

    params = {"kernel": draw(ROWS, VOCABULARY), "bias": draw(LENGTH, VOCABULARY)}
    numbers = np.arange(ROWS, dtype=np.int32)
    prompts = Prompts(numbers, numbers, numbers, WrittenAnswer(*answers(ROWS)))
    rollout = Rollout(*answers(ROWS, ANSWERS), np.zeros((ROWS, ANSWERS, LENGTH), np.float32))
    own = np.asarray(jax.jit(score)(params, prompts, rollout).logp)
    # What sampled is not quite the trainer.
    rollout = rollout._replace(logp=own + 0.05 * draw(*own.shape))
    rewards = rng.random((ROWS, ANSWERS + 1), dtype=np.float32)
    rewards[:2, -1] = 1.5  # Of these no sampled answer reaches the truth.
    return params, prompts, rollout, rewards


def torch_gradient(config, params, before, rows, rollout, prompts, rewards):
    """Returns the gradient of ViSurf's objective (equations 6 to 8), one answer at a time.

    Sampled answers have the sampler's old log-probabilities, the truth those under `before`.
    """
    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}

    def logp(weights, row, ids):
        logits = weights["kernel"][row] + weights["bias"]
        chosen = torch.log_softmax(logits, -1)
        return chosen[torch.arange(LENGTH), torch.tensor(ids, dtype=torch.long)]

    total = 0.0
    for row in rows:
        gains = [float(x) for x in rewards[row]]
        if config.truth == "smoothed" and max(gains[:-1]) >= gains[-1]:
            gains[-1] = sum(gains[:-1]) / ANSWERS
        gains = (np.array(gains) - np.mean(gains)) / np.std(gains)
        told = list(zip(rollout.ids[row], rollout.used[row], rollout.logp[row], strict=True))
        told.append((prompts.answer.ids[row], prompts.answer.used[row], None))
        for gain, (ids, used, old) in zip(gains.tolist(), told, strict=True):
            then = logp({k: torch.tensor(v) for k, v in before.items()}, row, ids)
            old, now = then if old is None else torch.tensor(old), logp(leaves, row, ids)
            gap = (now - old)[: used.sum()]
            ratio = gap.exp() if config.ratio == "token" else gap.mean().exp().expand(len(gap))
            bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            total = total - torch.minimum(ratio * gain, bounded * gain).mean()
    (total / (len(rows) * (ANSWERS + 1))).backward()
    return {name: leaf.grad.numpy() for name, leaf in leaves.items()}


@pytest.mark.parametrize("truth", ["judged", "smoothed"])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_updates_are_those_of_the_papers_objective(ratio, truth):
    config = Policy(ratio=ratio, truth=truth, minibatches=2, clip_low=0.2, clip_high=0.2)
    params, prompts, rollout, rewards = case()
    transform = optimizers.build(RATE)

    @jax.jit
    def ours(params, rewards):
        group = policy.with_truth(config, prompts, rollout)
        given = policy.experience(config, prompts, group, rewards=rewards)
        begin = state.fresh(params, transform, horizon=10)
        return policy.update(config, begin, given, score=score, optimizer=RATE, transform=transform)

    @jax.jit
    def step(current, grads):
        return state.advance(current, grads, optimizer=RATE, transform=transform)[0]

    after, metrics = ours(params, rewards)
    current, norms = state.fresh(params, transform, horizon=10), []
    for rows in ([0, 1], [2, 3]):
        now = {name: np.asarray(x) for name, x in current.params.items()}
        grads = torch_gradient(config, now, params, rows, rollout, prompts, rewards)
        norms.append(np.sqrt(sum(np.square(x).sum() for x in grads.values())))
        current = step(current, grads)._replace(step=current.step)
    np.testing.assert_allclose(metrics["grad_norm"], np.mean(norms), rtol=1e-4)
    for name in params:
        np.testing.assert_allclose(after.params[name], current.params[name], rtol=1e-4, atol=1e-5)
    # What is told of the sampler is told of what it has drawn.
    assert 0.01 < float(metrics["sampler_gap/max"]) < 0.5


def test_a_correction_weighs_what_was_sampled_alone():
    config = Policy(truth="judged", minibatches=1, correction=Correction(level="token", cap=9.0))
    params, prompts, rollout, rewards = case()

    @jax.jit
    def scored(params):
        group = policy.with_truth(config, prompts, rollout)
        given = policy.experience(config, prompts, group, rewards=rewards)
        given = policy._with_old_logp(config, given, lambda *row: score(params, *row).logp, 2)
        weights = policy.importance_weights(
            config.correction, given.old_logp, given.rollout.logp, used=given.rollout.used
        )
        return weights, score(params, prompts, given.rollout).logp, given.old_logp

    weights, logp, old = scored(params)
    np.testing.assert_allclose(old, logp, rtol=1e-6)
    np.testing.assert_array_equal(weights[:, -1], 1.0)
    expected = np.where(rollout.used, np.exp(np.asarray(logp)[:, :-1] - rollout.logp), 1.0)
    np.testing.assert_allclose(weights[:, :-1], expected, rtol=1e-5)


def test_prompts_without_answers_are_refused():
    _, prompts, rollout, _ = case()
    bare = prompts._replace(answer=None)
    assert policy.with_truth(Policy(), bare, rollout) is rollout
    with pytest.raises(ValueError, match=r"policy\.truth: expected prompts with their true"):
        policy.with_truth(Policy(truth="judged"), bare, rollout)


def feed(length, **changes):
    config = small_run.gspo_config()
    return pipeline.batches(
        config.source,
        small_run.task("prompts"),
        small_run.bundle().encoder,
        feed=dataclasses.replace(config.feed, **changes),
        rows="prompts",
        answer_tokens=length,
    )


def test_prompts_have_their_true_answers_as_they_are_taught():
    encoder, task = small_run.bundle().encoder, small_run.task("prompts")
    example = task.example(small_run.gspo_config().source[3], np.random.default_rng(0))
    row = encoder.prompt_row(task, example, answer_tokens=40)
    assert encoder.tokenizer.decode(row.answer.ids[row.answer.used]) == example.answer
    taught = encoder.batch_row([example])
    np.testing.assert_array_equal(
        row.answer.ids[row.answer.used], taught.targets[taught.weights > 0]
    )
    assert (row.answer.ids[~row.answer.used] == encoder.tokenizer.pad_id).all()
    assert encoder.prompt_row(task, example).answer is None
    count = int(row.answer.used.sum())
    with pytest.raises(
        TooLong, match=f"at most {count - 1} tokens in the true answer, got {count}"
    ):
        encoder.prompt_row(task, example, answer_tokens=count - 1)


def test_questions_with_too_long_an_answer_are_passed_over():
    lengths = next(feed(40, batch=64)).answer.used.sum(1)
    bound = int(np.median(lengths))
    batches = feed(bound, batch=64)
    assert next(batches).answer.used.sum(1).max() <= bound < lengths.max()
    assert sum(batches.findings.counts.values()) >= (lengths > bound).sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("grammar", [False, True])
def test_a_step_learns_from_true_answers(grammar):
    """What is true is judged to be good, has a likelihood, and grows likelier."""
    base = small_run.gspo_config()
    sampling = dataclasses.replace(base.sampling, max_tokens=40, grammar=grammar)
    plan = Policy(truth="judged", minibatches=2, clip_low=0.2, clip_high=0.2)
    task = small_run.task("prompts")
    prompts = next(feed(40))
    learn = steps.reinforcing_step(
        small_run.actor(),
        task,
        policy=plan,
        weights={"iou": 1.0, "format": 0.1},
        optimizer=ADAM,
        sampling=sampling,
    )
    current = small_run.fresh(small_run.gspo_config(optimizer=ADAM))
    told = []
    draw = steps.sampler(small_run.actor(), sampling, seed=0, task=task)
    for _ in range(4):
        rollout = draw(current.params, prompts, current.step)
        before = truth_logp(current.params, prompts)
        current, metrics = learn(current, prompts, rollout, None)
        told.append(float(truth_logp(current.params, prompts) - before))
        assert float(metrics["truth/reward"]) > 0.8 > 0.5 > float(metrics["reward"])
        assert float(metrics["truth/reached"]) < 0.5 < float(metrics["groups_that_differ"])
        assert float(metrics["sampler_gap/max"]) < 1e-4
        assert np.isfinite(float(metrics["grad_norm"]))
    assert np.mean(told) > 0.01


@jax.jit
def truth_logp(params, prompts):
    answer = prompts.answer
    logp = likelihood.answer_likelihood(
        small_run.actor().model(params), prompts.tokens, prompts.images, ids=answer.ids[:, None]
    ).logp[:, 0]
    return jnp.sum(jnp.where(answer.used, logp, 0.0)) / answer.used.sum()


def test_the_room_of_an_answer_is_that_of_a_sampled_one():
    config = small_run.gspo_config(policy=Policy(truth="judged"))
    assert config.answer_tokens == config.sampling.max_tokens
    assert small_run.gspo_config().answer_tokens is None
    assert small_run.sft_config().answer_tokens is None
