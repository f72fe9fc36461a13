"""Gradients of many pieces against the whole batch, with weights that round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.models.vlm.likelihood import Likelihood
from seg_jax.records import Batch, Prompts, Rollout
from seg_jax.training import gradients, optimizers, policy, sft, state

PIECES = 512
"""So many equal terms do not fit a bfloat16 sum: it stays at 256 times one of them."""
SGD = optimizers.AdamW(
    lr=1.0, b1=0.0, b2=0.0, schedule=optimizers.Schedule(warmup=0.0, final=1.0), weight_decay=0.0
)


@pytest.mark.parametrize("pieces", [1, 4, PIECES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pieces_of_a_batch_add_up_to_it(dtype, pieces):
    params = {"weight": jnp.ones((2,), dtype)}
    batch = np.ones((PIECES, 2), np.float32)

    def objective(params, piece):
        return jnp.sum(params["weight"] * piece), piece[:, 0]

    value, grads, shown = jax.jit(
        lambda params: gradients.accumulate(objective, params, batch, pieces=pieces)
    )(params)
    assert float(value) == 2 * PIECES
    assert grads["weight"].dtype == dtype
    np.testing.assert_array_equal(grads["weight"].astype(np.float32), [PIECES, PIECES])
    np.testing.assert_array_equal(shown, batch[:, 0])


def gradient_of(update, params):
    """Returns the gradient norm that a step with weights of bfloat16 tells."""
    transform = optimizers.build(SGD)
    begin = state.fresh(params, transform, horizon=1)
    return float(jax.jit(lambda begin: update(begin, transform))(begin)[1]["grad_norm"])


def test_supervised_pieces_are_summed_in_float32():
    weights = np.ones((PIECES, 1, 1), np.float32)
    batch = Batch(tokens=None, images=None, ids=None, targets=None, weights=weights, packing=None)

    def token_loss(params, piece):
        return PIECES * params["weight"] * piece.weights

    def norm(accumulate):
        return gradient_of(
            lambda begin, transform: sft.update(
                sft.Objective(accumulate=accumulate),
                begin,
                batch,
                token_loss=token_loss,
                optimizer=SGD,
                transform=transform,
            ),
            {"weight": jnp.ones((), jnp.bfloat16)},
        )

    assert norm(PIECES) == norm(1) == PIECES


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 1e6, 1e20])
def test_a_supervised_loss_is_the_same_for_weights_of_any_scale(scale):
    weights = np.array([[[1.0, 3.0]]], np.float32) * np.float32(scale)
    batch = Batch(tokens=None, images=None, ids=None, targets=None, weights=weights, packing=None)
    transform = optimizers.build(SGD)
    _, told = sft.update(
        sft.Objective(),
        state.fresh({"weight": jnp.ones(())}, transform, horizon=1),
        batch,
        token_loss=lambda params, _: params["weight"] * jnp.array([2.0, 6.0]),
        optimizer=SGD,
        transform=transform,
    )
    np.testing.assert_allclose(told["loss"], 5.0 if scale else 0.0, rtol=1e-6)
    np.testing.assert_allclose(told["answer_tokens"], 4 * scale, rtol=1e-6)


def test_pieces_of_a_policy_are_summed_in_float32():
    answers = np.zeros((PIECES, 2, 1), np.float32)
    rollout = Rollout(np.zeros(answers.shape, np.int32), np.ones(answers.shape, bool), answers)
    nothing = np.zeros(PIECES, np.int32)
    prompts = Prompts(tokens=nothing, images=nothing, truth=nothing)
    rewards = np.tile(np.array([1.0, 0.0], np.float32), (PIECES, 1))

    def score(params, prompts, rollout):
        slope = jnp.array([PIECES, 0.0])[:, None] * params["weight"]
        logp = rollout.logp + slope - jax.lax.stop_gradient(slope)
        return Likelihood(logp, jnp.zeros_like(logp))

    def norm(accumulate):
        config = policy.Policy(minibatches=1, accumulate=accumulate)
        experience = policy.experience(config, prompts, rollout, rewards=rewards)
        return gradient_of(
            lambda begin, transform: policy.update(
                config,
                begin,
                experience,
                score=score,
                optimizer=SGD,
                transform=transform,
            ),
            {"weight": jnp.ones((), jnp.bfloat16)},
        )

    assert norm(PIECES) == norm(1) == PIECES / 2
