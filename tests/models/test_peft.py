"""Holds adapters to peft on tiny random models, live: logits, gradients and training."""

from __future__ import annotations

import functools

import jax
import numpy as np
import proofs
import pytest
import tables
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx

from seg_jax.models.adapters import lora, peft_folder
from seg_jax.models.adapters.lora import LoRA, Parts
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import likelihood, qwen3_vl, qwen25_vl
from seg_jax.training import optimizers, state

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK, STEPS, RATE = 4, 6, 0.01
ALL = Parts(vision="adapted", merger="adapted", text="adapted")
QWEN = {
    "Qwen2.5-VL": (
        tiny_vlm.config,
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        qwen25_vl.NAMES,
    ),
    "Qwen3-VL": (
        tiny_qwen3.config,
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        qwen3_vl.NAMES,
    ),
}
LINEAR = r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv|attn\.proj|mlp\.0|mlp\.2"
LINEAR += r"|linear_fc\d)"


@functools.cache
def base(family):
    """Returns the config of a tiny model, a maker of transformers' and our graph and weights."""
    config, theirs, hf, names = QWEN[family]
    config = config()
    hf = getattr(transformers, hf)(**config.to_hf())
    hf._attn_implementation = "eager"

    def make():
        torch.manual_seed(0)
        model = getattr(transformers, theirs)(hf).eval().float()
        proofs.amplify(model)
        return model

    graph, shapes = nnx.split(weights.blank(config, Compute()))
    tensors = proofs.arrays(make().state_dict())
    aliases = (("model.visual.", "visual."), ("model.language_model.", "model."))
    if family == "Qwen2.5-VL":
        tensors = {weights.hub_name(name, aliases): one for name, one in tensors.items()}
    return config, make, graph, tables.fill(names, shapes, tensors)


def adapted_by_peft(theirs, **options):
    """Returns a model of peft with loud adapters on every linear layer."""
    told = {"r": RANK, "lora_alpha": 10, "target_modules": LINEAR} | options
    model = peft.get_peft_model(theirs, peft.LoraConfig(**told))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def ours(graph, params, folder, config):
    """Returns graph, learned and frozen weights of our model with the adapter of a folder."""
    found = peft_folder.Folder(folder, config)
    graph, shapes = lora.attach(graph, params, found.learning)
    put = peft_folder.lay_arrays(found.leaves(), shapes)
    learned, frozen = found.learning.split(lora.all_weights(params, put))
    return found.learning, graph, learned, frozen


def same_logits(model, graph, params, config):
    for row, got in zip(
        proofs.rows(), proofs.logits(nnx.merge(graph, params), *proofs.batch()), strict=True
    ):
        want = proofs.reference(model, row, config)
        np.testing.assert_allclose(got[-row.ids.size :], want, rtol=0, atol=proofs.TOLERANCE)


def their_loss(model, row, config):
    logp = torch.log_softmax(model(**proofs.inputs(row, config)).logits[0], -1)
    ids = torch.tensor(row.ids).long()
    return -logp[torch.arange(len(ids) - 1), ids[1:]].mean()


def our_loss(graph, frozen, learned, row):
    tokens, images = tiny_vlm.stack([row])
    model = nnx.merge(graph, learned, frozen)
    hidden = model.hidden(tokens, images)[:, :-1]
    return -likelihood.token_logp(hidden, model.unembed(), tokens.ids[:, 1:]).mean()


def assert_close(found, want, tolerance):
    """Asserts that each tensor of `found` is that of `want`, relative to its largest number."""
    assert found.keys() == want.keys()
    for name, one in want.items():
        scale = np.abs(one).max()
        np.testing.assert_allclose(found[name], one, rtol=0, atol=tolerance * scale, err_msg=name)


def theirs_by_name(model, what):
    """Returns adapters, or their gradients, by the names that peft writes."""
    return {
        name.replace(".default", ""): what(weight).detach().numpy()
        for name, weight in model.named_parameters()
        if "lora_" in name
    }


def ours_by_name(learning, tree):
    return peft_folder._tensors(
        learning, {path: np.asarray(leaf) for path, leaf in weights.leaves(tree).items()}
    )


@pytest.mark.parametrize("stabilised", [False, True], ids=["alpha/r", "rsLoRA"])
@pytest.mark.parametrize("family", QWEN)
def test_an_adapter_of_pefts_gives_its_logits_and_its_gradients(family, stabilised, tmp_path):
    config, make, graph, params = base(family)
    model = adapted_by_peft(make(), use_rslora=stabilised)
    before = proofs.reference(make(), proofs.rows()[0], config)
    assert np.abs(proofs.reference(model, proofs.rows()[0], config) - before).max() > 0.05
    model.save_pretrained(tmp_path)
    learning, graph, learned, frozen = ours(graph, params, tmp_path, config)
    same_logits(model, graph, lora.all_weights(learned, frozen), config)
    row = proofs.rows()[0]
    their_loss(model, row, config).backward()
    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.grad(lambda one: our_loss(graph, frozen, one, row)))(learned)
    assert_close(
        ours_by_name(learning, found), theirs_by_name(model, lambda weight: weight.grad), 1e-4
    )


@pytest.mark.parametrize("family", QWEN)
def test_training_goes_as_with_peft_and_the_result_goes_back(family, tmp_path):
    config, make, graph, params = base(family)
    model = adapted_by_peft(make())
    model.save_pretrained(tmp_path / "start")
    learning, graph, learned, frozen = ours(graph, params, tmp_path / "start", config)
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    theirs = torch.optim.AdamW(learns, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    settled = optimizers.Schedule(warmup=0.0, final=1.0)
    chosen = optimizers.AdamW(lr=RATE, schedule=settled)
    transform, row = optimizers.build(chosen), proofs.rows()[1]
    current = state.fresh(learned, transform, horizon=STEPS)

    @jax.jit
    def step(current):
        value, grads = jax.value_and_grad(lambda one: our_loss(graph, frozen, one, row))(
            current.params
        )
        return state.advance(current, grads, optimizer=chosen, transform=transform)[0], value

    wanted, got = [], []
    for _ in range(STEPS):
        theirs.zero_grad()
        loss = their_loss(model, row, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        theirs.step()
        wanted.append(loss.item())
        with jax.default_matmul_precision("highest"):
            current, value = step(current)
        got.append(float(value))
    assert wanted[-1] < 0.7 * wanted[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    learned = current.params
    folder = tmp_path / "end"
    folder.mkdir()
    peft_folder.write(folder, learning, learned, base="tiny")
    back = peft.PeftModel.from_pretrained(make(), folder).eval()
    assert_close(theirs_by_name(back, lambda weight: weight), ours_by_name(learning, learned), 0)
    same_logits(back, graph, lora.all_weights(learned, frozen), config)


def test_parts_that_were_trained_whole_go_both_ways(tmp_path):
    config, make, graph, params = base("Qwen3-VL")
    learning = lora.plan(
        config, LoRA(rank=RANK, targets=("q_proj",)), Parts(merger="trained", text="adapted")
    )
    graph, shapes = lora.attach(graph, params, learning)
    drawn = lora.draw(lora.only_adapters(shapes), seed=0)
    learned, frozen = learning.split(lora.all_weights(params, drawn))
    learned = jax.tree.map(lambda leaf: leaf + 0.01, learned)
    peft_folder.write(tmp_path, learning, learned, base="tiny")
    back = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    same_logits(back, graph, lora.all_weights(learned, frozen), config)
    back.save_pretrained(tmp_path / "again")
    again = peft_folder.Folder(tmp_path / "again", config)
    assert again.learning.trained == learning.trained
    found = peft_folder.lay_arrays(again.leaves(), shapes)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(one, other)


KIMI = (
    r".*language_model.*(q_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|shared_experts\.\w+_proj|"
    r"layers\.0\.mlp\.\w+_proj)"
)


def test_latent_attention_and_shared_experts_of_kimi_as_peft_adapts_them(tmp_path):
    theirs, config = _kimi()
    model = adapted_by_peft(theirs, target_modules=KIMI)
    model.save_pretrained(tmp_path)
    row = proofs.rows()[2]
    with torch.no_grad():
        want = model(input_ids=torch.tensor(row.ids)[None].long()).logits[0].numpy()
    their_base = {
        name.replace(".base_layer", ""): one
        for name, one in model.base_model.model.state_dict().items()
        if "lora_" not in name
    }
    params = tiny_kimi.from_hub(
        config, {n: one.detach() for n, one in tiny_kimi.hub(theirs, their_base).items()}
    )
    with (tmp_path / peft_folder.WEIGHTS).open("rb") as file:
        tensors = _renamed(theirs, file.read())
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / peft_folder.WEIGHTS)
    graph = nnx.split(tiny_kimi.blank(config))[0]
    _, graph, learned, frozen = ours(graph, params, tmp_path, config)
    tokens, _ = tiny_kimi.stack([row])
    with jax.default_matmul_precision("highest"):
        model = nnx.merge(graph, learned, frozen)
        got = model.logits(model.hidden(tokens, None))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=proofs.TOLERANCE)


def _kimi():
    import test_kimi_parity

    config = tiny_kimi.config()
    return test_kimi_parity.build(config)[0], config


def _renamed(theirs, data):
    from safetensors.numpy import load

    found = {name.removeprefix(peft_folder.PREFIX): one for name, one in load(data).items()}
    return {
        peft_folder.PREFIX + name: np.ascontiguousarray(one)
        for name, one in tiny_kimi.hub(theirs, found).items()
    }
