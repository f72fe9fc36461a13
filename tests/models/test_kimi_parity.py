"""Holds Kimi-VL to transformers on tiny random models, live.

transformers has no Kimi-VL; its Kimi-K2.5 with a DeepSeek-V3 decoder of Moonlight's shape computes
the same for still images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import proofs
import pytest
import tiny_kimi
import tiny_vlm
from flax import nnx
from tiny_vlm import IMAGE

from seg_jax.models.nn import blocks, layer_stack
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import kimi_vl, likelihood, moonvit, sampler

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair():
    """Returns a model of transformers and ours with the same weights."""
    return build(tiny_kimi.config())


def reference_config(config):
    """Returns the config of transformers' Kimi-K2.5 that means the same."""
    published = config.to_hf()
    text = published["text_config"] | {"num_nextn_predict_layers": 0}
    vision = {
        name: published["vision_config"][name]
        for name in ("patch_size", "hidden_size", "intermediate_size", "num_attention_heads")
    }
    vision |= {"num_hidden_layers": config.vision.num_hidden_layers, "pos_emb_time": 4}
    vision |= {"pos_emb_height": config.vision.init_pos_emb_height}
    vision |= {"pos_emb_width": config.vision.init_pos_emb_width}
    found = transformers.Kimi_K25Config(
        text_config=text,
        vision_config=vision,
        projection_hidden_size=config.vision.hidden_size,
        image_token_id=config.media_placeholder_token_id,
        video_token_id=config.media_placeholder_token_id + 1,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    found._attn_implementation = "eager"
    return found


def build(config):
    """Returns both models; amplified matrices, drawn norms and biases make every mistake show."""
    torch.manual_seed(0)
    theirs = transformers.Kimi_K25ForConditionalGeneration(reference_config(config)).eval().float()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
            elif "position_embeddings" in name:
                weight.copy_(torch.randn_like(weight) * 0.5)
            elif "gate.weight" in name:
                weight.copy_(torch.randn_like(weight))
            else:
                weight.mul_(3.0)
        for name, bias in theirs.named_buffers():
            if "e_score_correction" in name:
                bias.copy_(torch.randn_like(bias) * 0.3)
        # transformers embeds no placeholder where there is no image: none may be drawn.
        theirs.lm_head.weight[IMAGE : IMAGE + 2] = 0
    return theirs, ours(theirs, config)


def ours(theirs, config):
    state = tiny_kimi.from_hub(config, tiny_kimi.hub(theirs, dict(theirs.state_dict())))
    return nnx.merge(nnx.split(tiny_kimi.blank(config))[0], state)


def inputs(row, config) -> dict:
    """Returns the arguments of transformers' forward for one row."""
    found = {"input_ids": torch.tensor(row.ids)[None].long()}
    if row.grids:
        side = config.vision.patch_size
        raw = tiny_kimi.raster(row).reshape(-1, 3, side, side).astype(np.float32) / 255
        mean, std = (
            np.float32(values)[:, None, None]
            for values in (config.vision.image_mean, config.vision.image_std)
        )
        found["pixel_values"] = torch.tensor((raw - mean) / std)
        found["image_grid_thw"] = torch.tensor([(1, *grid) for grid in row.grids])
    return found


def reference(theirs, row, config) -> np.ndarray:
    """Returns transformers' logits [T V] of one row."""
    with torch.no_grad():
        return theirs(**inputs(row, config)).logits[0].numpy()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens, images):
    model = nnx.merge(graph, params)
    return model.logits(model.hidden(tokens, images))


def logits(model, tokens, images) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(_logits(*nnx.split(model), tokens, images))


def rows() -> list[tiny_vlm.Row]:
    """Returns rows with three images, smaller and larger than the grid, with one, with none."""
    rng = np.random.default_rng(1)
    return [
        tiny_vlm.row(rng, [(10, 6), (2, 14), (8, 8)], texts=(5, 2, 1, 9)),
        tiny_vlm.row(rng, [(4, 18)], texts=(3, 11)),
        tiny_vlm.row(rng, [], texts=(17,)),
    ]


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_logits_equal_transformers_row_by_row_and_padded_together(tie):
    theirs, ours = build(tiny_kimi.config(tie=tie))
    wanted = [reference(theirs, row, ours.config) for row in rows()]
    together = logits(ours, *tiny_kimi.stack(rows(), patches=200))
    for row, want, got in zip(rows(), wanted, together, strict=True):
        np.testing.assert_allclose(got[-row.ids.size :], want, rtol=0, atol=TOLERANCE)
        assert np.abs(want).max() > 0.5
    only_text, _ = tiny_kimi.stack([rows()[2]], left=False, length=30)
    got = logits(ours, only_text, None)[0, :17]
    np.testing.assert_allclose(got, wanted[2], rtol=0, atol=TOLERANCE)


ROUTERS = {
    "one of two groups": {"n_group": 2, "topk_group": 1},
    "three of four groups": {"n_group": 4, "topk_group": 3, "num_experts_per_tok": 5},
    "weights as scored": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "one expert": {"num_experts_per_tok": 1, "n_shared_experts": 1},
    "all experts": {"num_experts_per_tok": 8},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_every_branch_of_the_router(name):
    theirs, ours = build(tiny_kimi.config(text=ROUTERS[name]))
    layer, mixture = (
        theirs.model.language_model.layers[1].mlp,
        layer_stack.unstack(ours.blocks.ffn)[0],
    )
    x = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    with torch.no_grad():
        _, weights, chosen = layer.gate(torch.tensor(x))
        want = layer(torch.tensor(x)[None])[0]
    with jax.default_matmul_precision("highest"):
        got, shares = mixture.router(jnp.asarray(x))
        out = nnx.jit(lambda mixture, x: mixture(x))(mixture, jnp.asarray(x))
    order, mine = np.argsort(chosen.numpy(), -1), np.argsort(got, -1)
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(got), mine, -1),
        np.take_along_axis(chosen.numpy(), order, -1),
    )
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(shares), mine, -1),
        np.take_along_axis(weights.numpy(), order, -1),
        rtol=0,
        atol=1e-6,
    )
    np.testing.assert_allclose(out, want.numpy(), rtol=0, atol=TOLERANCE)


def test_every_block_of_the_vision_tower(pair):
    theirs, ours = pair
    row = rows()[0]
    _, images = tiny_kimi.stack([row])
    found = inputs(row, ours.config)
    tower = theirs.model.vision_tower
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in tower.layers
    ]
    with torch.no_grad():
        want = torch.cat(
            theirs.model.get_image_features(
                found["pixel_values"], found["image_grid_thw"]
            ).pooler_output
        )
    for hook in hooks:
        hook.remove()
    order = tiny_kimi.raster(row._replace(patches=np.arange(len(row.patches))[:, None]))[:, 0]

    @nnx.jit
    def every(tower, images):
        x, step = tower.embed(images), tower.step(images)
        out = []
        for block in layer_stack.unstack(tower.blocks):
            x, _ = step(block, x, None)
            out.append(x[0])
        return out, tower(images)[0]

    with jax.default_matmul_precision("highest"):
        blocks, visual_tokens = every(ours.vision, images)
    assert len(blocks) == len(seen) == 3
    for got, block in zip(blocks, seen, strict=True):
        np.testing.assert_allclose(got[order], block.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(visual_tokens, want.numpy(), rtol=0, atol=TOLERANCE)


def test_the_grid_is_resized_as_torch_does():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 12, 5)).astype(np.float32)
    learned = moonvit.Grid(table.shape, std=1.0, dtype="float32", rngs=nnx.Rngs(0))
    learned.embedding[...] = jnp.asarray(table)
    sizes = [(8, 12), (2, 4), (14, 24), (30, 2), (4, 34)]
    row = tiny_vlm.row(rng, sizes, texts=(1,) * 6)
    _, images = tiny_kimi.stack([row], patches=800)
    got = np.asarray(jax.jit(lambda p: learned(p.place, p.image))(images))[0]
    for i, size in enumerate(sizes):
        want = torch.nn.functional.interpolate(
            torch.tensor(table).permute(2, 0, 1)[None], size=size, mode="bicubic"
        )[0].permute(1, 2, 0)
        mine = images.image[0] == i
        row_, column = images.place[0, mine].T
        np.testing.assert_allclose(got[mine], want.numpy()[row_, column], rtol=0, atol=TOLERANCE)
    mine = images.image[0] == 0
    np.testing.assert_array_equal(got[mine], table[tuple(images.place[0, mine].T)])


@pytest.mark.slow
def test_small_activations_show_the_epsilon_of_every_norm():
    shallow = {"num_hidden_layers": 2}
    config = tiny_kimi.config(text=shallow, vision=shallow)
    theirs, _ = build(config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            small = ("embed_tokens", "patch_embed", "o_proj", "down_proj", "attn.proj", "fc2")
            small += ("final_layernorm", "kv_a_proj")
            if any(part in name for part in small):
                weight.mul_(1e-2)
    ours_ = ours(theirs, config)
    row = rows()[1]
    want = reference(theirs, row, config)
    batch = tiny_kimi.stack([row])
    vision = ours_.vision
    norms = [ours_.norm, ours_.first.norm_attention, ours_.blocks.norm_ffn]
    norms += [ours_.blocks.attention.kv_norm, ours_.first.attention.kv_norm]
    norms += [vision.norm, vision.merge_norm, vision.blocks.norm_attention, vision.blocks.norm_ffn]
    others = [1.1e-5 - norm.eps for norm in norms]  # 1e-5 and 1e-6 change places
    proofs.same_with_other_epsilons(ours_, batch, want, norms=norms, others=others)


def test_mistakes_are_loud(pair, monkeypatch):
    theirs, ours = pair
    row = rows()[0]
    want = reference(theirs, row, ours.config)
    tokens, images = tiny_kimi.stack([row])
    flipped = images.place[..., ::-1].copy()
    mistakes = {
        "images see each other": (tokens, images._replace(image=0 * images.image)),
        "rows for columns": (tokens, images._replace(place=flipped)),
    }
    for name, mistake in mistakes.items():
        assert np.abs(logits(ours, *mistake)[0] - want).max() > 1e-3, name
    # Rows tell the positions that Qwen's models turn by, which are not its.
    laid = tokens._replace(positions=tiny_vlm.stack([row])[0].positions)
    assert (laid.positions != tokens.positions).any()
    np.testing.assert_allclose(logits(ours, laid, images)[0], want, rtol=0, atol=TOLERANCE)

    def loud() -> float:
        _logits.clear_cache()
        return np.abs(logits(ours, tokens, images)[0] - want).max()

    with monkeypatch.context() as patch:
        patch.setattr(moonvit, "CUBIC", -0.5)
        assert loud() > 1e-3
    with monkeypatch.context() as patch:
        exact = functools.partial(jax.nn.gelu)
        patch.setattr(blocks.jax.nn, "gelu", lambda x, approximate: exact(x, approximate=False))
        assert loud() > 2 * TOLERANCE
    _logits.clear_cache()


def test_cached_decoding_step_by_step_for_several_answers(pair):
    theirs, ours = pair
    rng = np.random.default_rng(5)
    answers = rng.integers(0, 280, (3, 2, 7)).astype(np.int32)
    tokens, images = tiny_kimi.stack(rows())

    graph, params = nnx.split(ours)
    prefill, extend = (
        jax.jit(lambda params, *given, do=do: do(nnx.merge(graph, params), *given))
        for do in (
            lambda model, *batch: model.prefill(*batch),
            lambda model, ids, prefix, suffix: model.decoder().extend(ids, prefix, suffix),
        )
    )
    with jax.default_matmul_precision("highest"):
        prefix = prefill(params, tokens, images)
        suffix = ours.decoder().empty(prefix, answers=2, length=9)
        found, at = [], 0
        for length in (1, 1, 3, 1, 1):
            hidden, suffix = extend(params, answers[..., at : at + length], prefix, suffix)
            found.append(hidden)
            at += length
        first = ours.logits(prefix.hidden)
        stepwise = ours.logits(jnp.concatenate(found, 2))
        whole = ours.logits(
            nnx.jit(lambda model, *given: model.extend(*given))(ours, answers, prefix)
        )
    for i, row in enumerate(rows()):
        for g in range(2):
            longer = row._replace(ids=np.concatenate([row.ids, answers[i, g]]))
            want = reference(theirs, longer, ours.config)[row.ids.size - 1 :]
            np.testing.assert_allclose(first[i], want[0], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(stepwise[i, g], want[1:], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(whole[i, g], want[1:], rtol=0, atol=TOLERANCE)


def test_sixty_four_greedy_tokens_equal_transformers_generate(pair):
    theirs, ours = pair
    tokens, images = tiny_kimi.stack(rows())
    theirs.generation_config.pad_token_id = 0
    graph, params = nnx.split(ours)

    @jax.jit
    def run(params, tokens, images):
        return sampler.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=1,
            max_tokens=64,
            sampler=sampler.Greedy(),
            end_ids=(10**6,),
            key=jax.random.key(0),
        )

    with jax.default_matmul_precision("highest"):
        got = run(params, tokens, images)
    for i, row in enumerate(rows()):
        with torch.no_grad():
            want = theirs.generate(
                **inputs(row, ours.config), max_new_tokens=64, do_sample=False, eos_token_id=None
            )[0, row.ids.size :]
        assert len(set(want.tolist())) > 5
        np.testing.assert_array_equal(got.ids[i, 0], want.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rows", "prompts and answers"])
def test_gradients_of_every_weight_equal_transformers(pair, way):
    theirs, ours = pair
    row = rows()[0]
    split = 4  # tokens at the end that are an answer
    theirs.zero_grad()
    out = torch.log_softmax(theirs(**inputs(row, ours.config)).logits[0], -1)
    ids = torch.tensor(row.ids).long()
    from_ = len(ids) - split - 1
    loss = -out[torch.arange(from_, len(ids) - 1), ids[from_ + 1 :]].mean()
    loss.backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters()}
    grads |= {
        name: torch.zeros_like(bias)
        for name, bias in theirs.state_dict().items()
        if "e_score_correction" in name
    }
    want = tiny_kimi.from_hub(ours.config, tiny_kimi.hub(theirs, grads))
    tokens, images = tiny_kimi.stack([row])
    compute = Compute(remat="full" if way == "rows" else "dots")
    graph, _ = nnx.split(tiny_kimi.blank(ours.config, compute))

    def by_rows(params):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)[:, from_:-1]
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids[:, from_ + 1 :]).mean()

    def by_answers(params):
        model = nnx.merge(graph, params)
        prompt = jax.tree.map(lambda leaf: leaf[..., :-split], tokens)
        answer = tokens.ids[:, None, -split:]
        return -likelihood.answer_likelihood(model, prompt, images, ids=answer).logp.mean()

    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.value_and_grad(by_rows if way == "rows" else by_answers))(
            nnx.split(ours)[1]
        )
    np.testing.assert_allclose(found[0], loss.item(), rtol=0, atol=TOLERANCE)
    theirs_, mine = (jax.tree_util.tree_leaves_with_path(tree) for tree in (want, found[1]))
    for (path, a), (_, b) in zip(theirs_, mine, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=str(path))
        names = tiny_kimi.names_of(path)
        assert np.asarray(a).any() != (names[-2:] == ("router", "bias")), names


def test_the_published_model_has_the_shapes_of_the_reference():
    config = kimi_vl.Config()
    with torch.device("meta"):
        theirs = transformers.Kimi_K25ForConditionalGeneration(reference_config(config))
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in tiny_kimi.hub(theirs, dict(theirs.state_dict())).items()
    }
    found = {}
    params = nnx.split(tiny_kimi.blank(config))[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tiny_kimi.names_of(path)
        lead = tiny_kimi.lead_of(names, leaf.shape)
        shape = leaf.shape[len(lead) :]
        shape = shape[::-1] if names[-1] == "kernel" else shape
        for name, _, parts in tiny_kimi.slots(names, lead):
            found[name] = (shape[0] * parts, *shape[1:])
    patch = "vision_tower.patch_embed.proj.weight"
    assert found[patch] == (1152, 3 * 14 * 14)
    assert found | {patch: (1152, 3, 14, 14)} == wanted
