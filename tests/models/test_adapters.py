"""Adapters in every family: as merged kernels, decoded, kept apart from what is frozen."""

from __future__ import annotations

import jax
import numpy as np
import proofs
import pytest
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx
from safetensors.numpy import load_file, save_file

from seg_jax.models.adapters import lora, peft_folder
from seg_jax.models.adapters.lora import LoRA, Parts
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.training import optimizers, state

ALL = Parts(vision="adapted", merger="adapted", text="adapted")
FAMILIES = {
    "qwen2_5_vl": (tiny_vlm.config, tiny_vlm.stack),
    "qwen3_vl": (tiny_qwen3.config, tiny_vlm.stack),
    "kimi_vl": (tiny_kimi.config, tiny_kimi.stack),
}
RANK = 3


def built(family, *, adapter=LoRA(rank=RANK, alpha=5.0), parts=ALL, compute=Compute()):  # noqa: B008
    """Returns config, what learns, graphs without and with adapters, base and adapters."""
    config = FAMILIES[family][0]()
    graph, shapes = nnx.split(weights.blank(config, compute))
    rng = np.random.default_rng(0)
    base = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape) * 0.08, leaf.dtype), shapes
    )
    learning = lora.plan(config, adapter, parts)
    adapted, shapes = lora.attach(graph, base, learning)
    flat = sorted(nnx.to_flat_state(lora.only_adapters(shapes)), key=lambda one: one[0])
    added = nnx.from_flat_state(
        [
            (path, leaf.replace(rng.normal(size=leaf.shape).astype(np.float32) * 0.08))
            for path, leaf in flat
        ]
    )
    return config, learning, graph, adapted, base, added


def merged(config, learning, base, added, folder):
    """Returns the weights that the files of a base and of its adapter are merged to."""
    learned, _ = learning.split(lora.all_weights(base, added))
    peft_folder.write(folder, learning, learned, base="tiny")
    found = peft_folder.Folder(folder, config)
    reader = weights.ModelTensors(config, base)
    tensors = {
        entry.name: np.concatenate(
            [
                np.atleast_1d(block)
                for _, block in found.add_to(entry.name, iter([(0, reader.read(entry.name))]))
            ]
        )
        for entry in reader.entries()
    }
    return nnx.split(weights.load(tensors, config=config))[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_do_what_merged_kernels_do(family, tmp_path):
    config, learning, graph, adapted, base, added = built(family)
    tokens, images = FAMILIES[family][1](proofs.rows())
    with_adapters = nnx.merge(adapted, lora.all_weights(base, added))
    got = proofs.logits(with_adapters, tokens, images)
    one = merged(config, learning, base, added, tmp_path)
    want = proofs.logits(nnx.merge(graph, one), tokens, images)
    used = np.asarray(tokens.segments) > 0
    np.testing.assert_allclose(got[used], want[used], rtol=0, atol=2e-5)
    before = proofs.logits(nnx.merge(graph, base), tokens, images)
    assert np.abs(want - before)[used].max() > 0.01
    paths = {path[:-1] for path, _ in nnx.to_flat_state(added) if path[-1] == "lora_b"}
    kernels = [path[:-1] for path, _ in nnx.to_flat_state(base) if path[-1] == "kernel"]
    left = {path[-1] for path in kernels if path not in paths}
    assert left == {"patch"} | ({"router"} if family == "kimi_vl" else set())
    # Every adapter counts.
    for path, leaf in nnx.to_flat_state(added):
        if path[-1] == "lora_b":
            kernel = dict(nnx.to_flat_state(base))[*path[:-1], "kernel"][...]
            changed = np.asarray(dict(nnx.to_flat_state(one))[*path[:-1], "kernel"][...])
            assert np.abs(changed - kernel).max() > 1e-3, path
            assert leaf.shape[-1] == kernel.shape[-1]


def test_answers_are_decoded_with_the_adapters_of_latent_attention_and_experts():
    _, _, _, adapted, base, added = built("kimi_vl")
    model = nnx.merge(adapted, lora.all_weights(base, added))
    tokens, images = tiny_kimi.stack([proofs.rows()[1]])
    ids = np.random.default_rng(5).integers(0, 280, (1, 2, 4)).astype(np.int32)

    @jax.jit
    def both(params):
        model = nnx.merge(adapted, params)
        prefix = model.prefill(tokens, images)
        decoder = model.decoder()
        stepwise, _ = decoder.extend(ids, prefix, decoder.empty(prefix, answers=2, length=4))
        return stepwise, model.extend(ids, prefix)

    with jax.default_matmul_precision("highest"):
        stepwise, whole = both(nnx.split(model)[1])
    np.testing.assert_allclose(stepwise, whole, rtol=0, atol=2e-5)


def test_states_hold_what_learns_alone():
    parts = Parts(merger="trained", text="adapted")
    config, learning, _, _, base, added = built("qwen3_vl", parts=parts)
    learned, frozen = learning.split(lora.all_weights(base, added))
    assert learning.modes == {"vision": "frozen", "merger": "trained", "text": "adapted"}
    held = {path for path, _ in nnx.to_flat_state(learned)}
    assert {path[:2] for path in held if path[-1] not in lora.ADAPTERS} == {
        ("vision", "merger"),
        ("vision", "deep"),
    }
    assert all(path[0] == "blocks" for path in held if path[-1] in lora.ADAPTERS)
    for chosen in (optimizers.AdamW(), optimizers.Muon()):
        begun = state.fresh(learned, optimizers.build(chosen), horizon=1)
        moments = sum(leaf.size for leaf in jax.tree.leaves(begun.moments) if leaf.ndim)
        count = sum(leaf.size for leaf in jax.tree.leaves(learned))
        assert moments <= 2 * count
    assert len(jax.tree.leaves(learned)) + len(jax.tree.leaves(frozen)) == len(
        jax.tree.leaves(base)
    ) + len(jax.tree.leaves(added))
    assert lora.plan(config, LoRA(), Parts()).is_whole


def test_a_gradient_costs_no_products_for_frozen_kernels():
    _, learning, _, adapted, base, added = built("qwen2_5_vl", parts=Parts())
    tokens, images = tiny_vlm.stack([proofs.rows()[1]])
    whole = lora.all_weights(base, added)
    learned, frozen = lora.plan(learning.config, learning.lora, Parts()).split(whole)

    def loss(model):
        return jax.numpy.sum(model.hidden(tokens, images) ** 2)

    def flops(function, *arguments):
        found = jax.jit(jax.grad(function)).lower(*arguments).cost_analysis()
        return found["flops"]

    some = flops(lambda one, rest: loss(nnx.merge(adapted, one, rest)), learned, frozen)
    every = flops(lambda all_: loss(nnx.merge(adapted, all_)), whole)
    assert some < 0.8 * every


def test_the_first_draw_is_that_of_peft_and_changes_nothing():
    config, learning, _, _, base, _ = built("qwen2_5_vl")
    _, shapes = lora.attach(nnx.split(weights.blank(config, Compute()))[0], base, learning)
    drawn = lora.draw(lora.only_adapters(shapes), seed=3)
    for path, leaf in nnx.to_flat_state(drawn):
        value = np.asarray(leaf[...])
        if path[-1] == "lora_b":
            assert not value.any()
            continue
        bound = value.shape[-2] ** -0.5
        assert 0.8 * bound < np.abs(value).max() <= bound
        assert abs(value.mean()) < 0.2 * bound
    again = lora.draw(lora.only_adapters(shapes), seed=3)
    for one, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_tensors_of_one_weight_are_refused(tmp_path):
    """A file may have a weight by two names of the hub: nobody can know which is meant."""
    config, learning, *_, added = built("qwen2_5_vl")
    peft_folder.write(tmp_path, learning, added, base="base")
    path = tmp_path / peft_folder.WEIGHTS
    tensors = load_file(path)
    peft_folder.Folder(tmp_path, config)
    for name in sorted(tensors)[:2]:
        bare = name.removeprefix(peft_folder.PREFIX)
        save_file(tensors | {bare: tensors[name]}, path)
        with pytest.raises(
            ValueError, match=r"expected one tensor of each weight, got .* too; do: "
        ):
            peft_folder.Folder(tmp_path, config)
