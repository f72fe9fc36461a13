"""What a port of a Qwen model must show beside transformers, for any of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
from flax import nnx
from tiny_vlm import IMAGE

from seg_jax.models.nn import layer_stack
from seg_jax.models.vlm import likelihood, sampler

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
PATCHES, LENGTH = 208, 76
"""Of all batches, so that few programs are compiled."""


def amplify(theirs: Any, *, loud: float = 1.0) -> None:
    """Makes matrices louder and draws norms and biases, so that every mistake shows.

    Args:
      theirs: their model; changed.
      loud: the decoder's layers are so much louder still.
    """
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if weight.ndim == 2 and "language_model.layers" in name:
                weight.mul_(loud)
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
            elif "pos_embed" in name:
                weight.copy_(torch.randn_like(weight) * 0.5)
            else:
                weight.mul_(3.0)


def arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns tensors as numpy has them."""
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def rows() -> list[tiny_vlm.Row]:
    """Returns rows with three ragged images, with one, with none."""
    rng = np.random.default_rng(1)
    return [
        tiny_vlm.row(rng, [(10, 14), (6, 4), (2, 18)], texts=(5, 1, 7, 3)),
        tiny_vlm.row(rng, [(8, 16)], texts=(3, 11)),
        tiny_vlm.row(rng, [], texts=(17,)),
    ]


def batch() -> tuple:
    """Returns the rows padded to one shape."""
    return tiny_vlm.stack(rows(), patches=PATCHES, length=LENGTH)


def frames(row: tiny_vlm.Row, config: Any) -> Any:
    """Returns a row's patches as transformers takes them: normalised, each frame twice."""
    side = config.vision.patch_size
    raw = row.patches.reshape(-1, 3, 1, side, side).astype(np.float32) / 255
    mean, std = (
        np.float32(values)[:, None, None, None]
        for values in (config.vision.image_mean, config.vision.image_std)
    )
    return torch.tensor(np.repeat((raw - mean) / std, 2, 2).reshape(len(raw), -1))


def inputs(row: tiny_vlm.Row, config: Any) -> dict:
    """Returns the arguments of transformers' forward for one row."""
    found = {
        "input_ids": torch.tensor(row.ids)[None].long(),
        "mm_token_type_ids": torch.tensor(row.ids == IMAGE)[None].int(),
    }
    if row.grids:
        found["pixel_values"] = frames(row, config)
        found["image_grid_thw"] = torch.tensor([(1, *grid) for grid in row.grids])
    return found


def reference(theirs: Any, row: tiny_vlm.Row, config: Any) -> np.ndarray:
    """Returns transformers' logits [T V] of one row."""
    with torch.no_grad():
        return theirs(**inputs(row, config)).logits[0].numpy()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens, images):
    model = nnx.merge(graph, params)
    return model.logits(model.hidden(tokens, images))


def logits(model: Any, tokens: Any, images: Any) -> np.ndarray:
    """Returns our logits [B T V]."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(_logits(*nnx.split(model), tokens, images))


def traced_anew() -> None:
    """Lets the next logits be traced anew, as what they are made of has been changed."""
    _logits.clear_cache()


def same_logits(theirs: Any, ours: Any) -> None:
    """Checks the logits of all rows, in one batch."""
    for row, got in zip(rows(), logits(ours, *batch()), strict=True):
        want = reference(theirs, row, ours.config)
        np.testing.assert_allclose(got[-row.ids.size :], want, rtol=0, atol=TOLERANCE)
        assert np.abs(want).max() > 0.5


def same_text(theirs: Any, ours: Any) -> None:
    """Checks the logits of text without images: none, no patches, or padding only."""
    row = rows()[2]
    want = reference(theirs, row, ours.config)
    tokens, images = tiny_vlm.stack([row], left=False, length=30, patches=16)
    nothing = jax.tree.map(lambda leaf: leaf[:, :0], images)
    assert images.patches.shape[1] == 16
    for given in (None, nothing, images):
        got = logits(ours, tokens, given)[0, : row.ids.size]
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def same_blocks(theirs: Any, ours: Any, *, each: Any, order: Any = None) -> None:
    """Checks the output of every vision block, the visual tokens and the deep features.

    Args:
      theirs: their vision tower.
      ours: our model.
      each: a value per block for the step of our tower.
      order: of their patches inside the tower, if it is another.
    """
    row = rows()[0]
    _, images = tiny_vlm.stack([row], patches=PATCHES)
    found = inputs(row, ours.config)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in theirs.blocks
    ]
    with torch.no_grad():
        want = theirs(found["pixel_values"], found["image_grid_thw"])
    for hook in hooks:
        hook.remove()
    order = np.arange(len(row.patches)) if order is None else order

    @nnx.jit
    def every(tower, images):
        x, step = tower.embed(images), tower.step(images)
        out = []
        for block, value in zip(layer_stack.unstack(tower.blocks), each, strict=True):
            x, _ = step(block, x, value)
            out.append(x[0])
        return out, tower(images)

    with jax.default_matmul_precision("highest"):
        blocks, visual_tokens = every(ours.vision, images)
    assert len(blocks) == len(seen) == ours.config.vision.depth
    for got, block in zip(blocks, seen, strict=True):
        np.testing.assert_allclose(got[order], block.numpy(), rtol=0, atol=TOLERANCE)
    count = len(want.pooler_output)
    got = visual_tokens.visual_tokens[0, :count]
    np.testing.assert_allclose(got, want.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
    deep = getattr(want, "deepstack_features", None) or []
    assert len(deep) == (0 if visual_tokens.deep is None else len(visual_tokens.deep))
    for i, feature in enumerate(deep):
        got = visual_tokens.deep[i, 0, :count]
        np.testing.assert_allclose(got, feature.numpy(), rtol=0, atol=TOLERANCE)


def same_steps(theirs: Any, ours: Any) -> None:
    """Checks cached decoding of two answers a prompt, step by step and all at once."""
    rng = np.random.default_rng(5)
    answers = rng.integers(0, 280, (3, 2, 7)).astype(np.int32)
    graph, params = nnx.split(ours)
    prefill, extend, at_once = (
        jax.jit(lambda params, *given, do=do: do(nnx.merge(graph, params), *given))
        for do in (
            lambda model, *batch: model.prefill(*batch),
            lambda model, ids, prefix, suffix: model.decoder().extend(ids, prefix, suffix),
            lambda model, ids, prefix: model.extend(ids, prefix),
        )
    )
    with jax.default_matmul_precision("highest"):
        prefix = prefill(params, *batch())
        suffix = ours.decoder().empty(prefix, answers=2, length=9)
        found, at = [], 0
        for length in (1, 1, 3, 1, 1):
            hidden, suffix = extend(params, answers[..., at : at + length], prefix, suffix)
            found.append(hidden)
            at += length
        first = ours.logits(prefix.hidden)
        stepwise = ours.logits(jnp.concatenate(found, 2))
        whole = ours.logits(at_once(params, answers, prefix))
    for i, row in enumerate(rows()):
        for g in range(2):
            longer = row._replace(ids=np.concatenate([row.ids, answers[i, g]]))
            want = reference(theirs, longer, ours.config)[row.ids.size - 1 :]
            np.testing.assert_allclose(first[i], want[0], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(stepwise[i, g], want[1:], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(whole[i, g], want[1:], rtol=0, atol=TOLERANCE)


def same_greedy(theirs: Any, ours: Any, *, count: int = 64) -> None:
    """Checks that the likeliest tokens are the same, one after the other.

    The decoder must be loud: others soon say one token forever.
    """
    theirs.generation_config.pad_token_id = 0
    graph, params = nnx.split(ours)

    @jax.jit
    def run(params, tokens, images):
        return sampler.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=1,
            max_tokens=count,
            sampler=sampler.Greedy(),
            end_ids=(10**6,),
            key=jax.random.key(0),
        )

    with jax.default_matmul_precision("highest"):
        got = run(params, *batch())
    for i, row in enumerate(rows()):
        with torch.no_grad():
            want = theirs.generate(
                **inputs(row, ours.config), max_new_tokens=count, do_sample=False, eos_token_id=None
            )[0, row.ids.size :]
        assert len(set(want.tolist())) > 10
        np.testing.assert_array_equal(got.ids[i, 0], want.numpy())


def same_gradients(
    theirs: Any, ours: Any, *, load: Callable[[dict], Any], blank: Any, by_answers: bool
) -> None:
    """Checks the gradient of the loss with respect to every weight, relative to its scale.

    Args:
      theirs: their model.
      ours: our model.
      load: makes our state of their tensors.
      blank: our model's shapes, computing in the way that is wanted.
      by_answers: the loss of an answer behind a prompt instead of the loss of whole rows.
    """
    row = rows()[0]
    split = 4  # tokens at the end that are an answer
    from_ = len(row.ids) - split - 1 if by_answers else 0
    theirs.zero_grad()
    logp = torch.log_softmax(theirs(**inputs(row, ours.config)).logits[0], -1)
    ids = torch.tensor(row.ids).long()
    loss = -logp[torch.arange(from_, len(ids) - 1), ids[from_ + 1 :]].mean()
    loss.backward()
    want = load(arrays({name: weight.grad for name, weight in theirs.named_parameters()}))
    tokens, images = tiny_vlm.stack([row])
    graph, _ = nnx.split(blank)

    def objective(params):
        model = nnx.merge(graph, params)
        if by_answers:
            prompt = jax.tree.map(lambda leaf: leaf[..., :-split], tokens)
            answer = tokens.ids[:, None, -split:]
            return -likelihood.answer_likelihood(model, prompt, images, ids=answer).logp.mean()
        hidden = model.hidden(tokens, images)[:, :-1]
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids[:, 1:]).mean()

    with jax.default_matmul_precision("highest"):
        value, found = jax.jit(jax.value_and_grad(objective))(nnx.split(ours)[1])
    np.testing.assert_allclose(value, loss.item(), rtol=0, atol=TOLERANCE)
    pairs = (jax.tree_util.tree_leaves_with_path(tree) for tree in (want, found))
    for (path, a), (_, b) in zip(*pairs, strict=True):
        scale = np.abs(a).max()
        assert scale > 1e-7, path
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * scale, err_msg=str(path))


class _Given:
    """An epsilon that a compiled program is given: all that norms do with it is to add it."""

    value: Any = None

    def __radd__(self, power):
        return power + self.value


def same_with_other_epsilons(
    ours: Any, given: Any, want: np.ndarray, *, norms: list[Any], others: list[float]
) -> None:
    """Checks logits, and that another epsilon of any norm alone would be seen in them.

    Args:
      ours: our model; changed.
      given: tokens and images of one row.
      want: their logits [T V].
      norms: of our model.
      others: another epsilon for each.
    """
    right, places = [norm.eps for norm in norms], [_Given() for _ in norms]
    for norm, place in zip(norms, places, strict=True):
        norm.eps = place
    graph, params = nnx.split(ours)

    @jax.jit
    def run(epsilons):
        for place, epsilon in zip(places, epsilons, strict=True):
            place.value = epsilon
        return _logits(graph, params, *given)[0]

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(right), want, rtol=0, atol=TOLERANCE)
        for number, other in enumerate(others):
            got = run([*right[:number], other, *right[number + 1 :]])
            loud = np.abs(got - want).max()
            assert loud > 10 * TOLERANCE, (number, loud)


def same_with_small_inputs(
    theirs: Any, *, small: tuple[str, ...], load: Callable[[Any], Any], norms: Callable
) -> None:
    """Checks the logits where the inputs of norms are near their epsilon, and that it counts.

    Args:
      theirs: their model; changed.
      small: parts of the names of weights that make what goes into norms.
      load: makes our model of theirs.
      norms: returns the norms of our model.
    """
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if any(part in name for part in small):
                weight.mul_(1e-2)
    ours = load(theirs)
    row = rows()[0]
    given, want = tiny_vlm.stack([row]), reference(theirs, row, ours.config)
    found = norms(ours)
    same_with_other_epsilons(ours, given, want, norms=found, others=[1e-5] * len(found))
