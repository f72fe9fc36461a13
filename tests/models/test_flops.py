"""Holds counted arithmetic to hand counts, to XLA's own count and to every product traced."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx
from jax.interpreters import partial_eval

from seg_jax.models import families, flops
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import likelihood, protocol, qwen25_vl
from seg_jax.records import Images, Packing, Tokens

B, T, S, G, L = 2, 24, 32, 3, 10
SMALL = {
    "qwen2_5_vl": tiny_vlm.config(),
    "qwen3_vl": tiny_qwen3.config(),
    "kimi_vl": tiny_kimi.config(),
}


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def blank(config, compute):
    kind = families.family_of(config).model
    return nnx.split(nnx.eval_shape(lambda: kind(config, compute=compute, rngs=nnx.Rngs(0))))


def rows(config, tokens=T, patches=S):
    pixels = jax.ShapeDtypeStruct((B, patches, 3 * config.vision.patch_size**2), jnp.uint8)
    images = Images(pixels, ints(B, patches, 2), ints(B, patches), ints(B, patches))
    return Tokens(ints(B, tokens), ints(B, tokens), ints(B, 3, tokens), ints(B, tokens)), images


def products(jaxpr) -> float:
    """Returns the operations of all matrix products of a trace, scans as often as they run."""
    done = 0.0
    for line in jaxpr.eqns:
        name, told = line.primitive.name, line.params
        out = line.outvars[0].aval if line.outvars else None
        if name == "dot_general":
            (axes, _), _ = told["dimension_numbers"]
            shape = line.invars[0].aval.shape
            done += 2.0 * out.size * math.prod(shape[axis] for axis in axes)
        elif name.startswith("ragged_dot"):
            done += ragged(line)
        elif name == "cond":
            done += max(products(branch.jaxpr) for branch in told["branches"])
        else:
            times = told["length"] if name == "scan" else 1
            for value in told.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    done += times * products(inner)
    return done


def ragged(line) -> float:
    """Returns the operations of a product of rows with the kernel of their group.

    Such a product and its gradients have the rows, and the two sides of a kernel.
    """
    rows, other = (variable.aval.shape for variable in line.invars[:2])
    out = line.outvars[0].aval.shape
    if len(out) == 3:  # The gradient of kernels [E k n], of rows [m k] and [m n].
        return 2.0 * rows[0] * out[1] * out[2]
    return 2.0 * rows[0] * other[1] * other[2]


def traced(function, *shapes) -> float:
    """Returns the operations of a function without what nothing needs."""
    closed = jax.make_jaxpr(function)(*shapes)
    kept, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return products(kept)


def test_a_hand_count():
    config = qwen25_vl.Config(
        text=qwen25_vl.Text(
            vocab_size=100,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            mrope_section=(1, 1, 0),
        ),
        vision=qwen25_vl.Vision(
            depth=1, hidden_size=16, intermediate_size=20, num_heads=2, patch_size=2
        ),
    )
    counter = flops.Counter(config, Compute(remat="full"))
    vision, text = counter.read(3, 5, 4)
    # q and o 8 x 8, k and v 8 x 4, gate, up and down 8 x 12, and 5 x 5 scores of 2 heads of 4.
    token = 2 * (64 + 64 + 32 + 32 + 3 * 96)
    assert text.forward == 3 * 2 * (5 * token + 2 * 2 * 5 * 5 * 8)
    assert text.backward == 2 * text.forward
    assert text.again == text.forward - 3 * 2 * 5 * 2 * 96  # all but the last product
    # Patches of 12 numbers; four 16 x 16, three 16 x 20; a visual token of four: 64 x 64, 64 x 8.
    patches = 4 * 2 * (12 * 16 + 4 * 256 + 3 * 320) + 4 * 4 * 4 * 16
    assert vision.forward == 3 * (patches + 2 * (64 * 64 + 64 * 8))
    assert vision.backward == 2 * vision.forward - 3 * 4 * 2 * 12 * 16  # none to the pixels
    assert counter.head(3, 5, None) == ("head", 3 * 5 * 1600, 2 * 3 * 5 * 1600, 0, 0)
    assert counter.head(3, 5, 4).forward == 3 * 8 * 1600  # two chunks of four
    drawn, head = counter.decode(3, 2, 7, behind=5)
    assert drawn.forward == 3 * 2 * 6 * 2 * (token + 2 * 2 * 11 * 8)
    assert head.forward == (3 + 3 * 2 * 6) * 1600
    # Frozen kernels want no gradient of their own; attention has two factors that move.
    assert text.pairs == 3 * 2 * 2 * 2 * 5 * 5 * 8
    modes = {"vision": "frozen", "merger": "frozen", "text": "adapted"}
    done = flops.with_gradient([vision, text], modes)
    assert done["backward"] == text.forward + text.pairs
    assert done["recomputed"] == text.again
    done = flops.with_gradient([vision, text], modes | {"vision": "adapted"})
    assert done["backward"] == sum(part.forward + part.pairs for part in (vision, text))
    assert done["recomputed"] == vision.again + text.again
    every = dict.fromkeys(modes, "trained")
    assert flops.with_gradient([vision, text], every) == flops.with_gradient([vision, text])


def test_the_7b_costs_six_operations_a_weight_and_token():
    config = qwen25_vl.Config()
    counter = flops.Counter(config, Compute())
    tokens = 512
    text = counter.extend(1, 1, tokens, behind=0)
    head = counter.head(1, tokens, None)
    done = flops.with_gradient([text, head])
    weights = 7_615_616_512 - 152_064 * 3584  # of the decoder; a look-up is no product
    least = 6 * weights * tokens
    assert least < sum(done.values()) < 1.02 * least  # attention on top


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_every_product_of_a_training_step_is_counted(name, remat):
    config, chunk = SMALL[name], 4
    compute = Compute(remat=remat)
    graph, params = blank(config, compute)

    def loss(params, tokens, images, ids):
        model = nnx.merge(graph, params)
        prefix = model.prefill(tokens, images)
        packing = Packing(jnp.ones_like(ids), jnp.zeros_like(ids))
        hidden = model.extend(ids, prefix, packing)
        logp = likelihood.token_logp(hidden, model.unembed(), ids, chunk=chunk)
        # The prompts' outputs too: a scan would make them, wanted or not.
        return logp.mean() + prefix.hidden.mean()

    shapes = (params, *rows(config), ints(B, G, L))
    counter = flops.Counter(config, compute)
    parts = [
        *counter.read(B, T, S),
        counter.extend(B, G, L, behind=T),
        counter.head(B * G, L, chunk),
    ]
    assert traced(loss, *shapes) == pytest.approx(
        sum(flops.without_gradient(parts).values()), rel=1e-9
    )
    # Gradients of a few small products are saved or made again as JAX sees fit.
    done = traced(jax.value_and_grad(loss), *shapes)
    assert done == pytest.approx(sum(flops.with_gradient(parts).values()), rel=0.02)


@pytest.mark.parametrize("tokens", [1200, 2050])
def test_long_rows_are_counted_in_the_parts_that_they_are_worked_off_in(tokens):
    config = SMALL["qwen2_5_vl"]
    graph, params = blank(config, Compute())

    def hidden(params, tokens, images):
        return nnx.merge(graph, params).hidden(tokens, images)

    parts = flops.Counter(config, Compute()).read(B, tokens, 4 * tokens)
    done = traced(hidden, params, *rows(config, tokens, 4 * tokens))
    total = sum(flops.without_gradient(parts).values())
    # Every block of the tower holds both ways to look; the trace takes the longer for each.
    blocks = families.vlm_facts(config).arithmetic(config).tower
    whole = 4.0 * config.vision.hidden_size * B * flops._pairs(4 * tokens, 0)[0]
    near = 4.0 * config.vision.hidden_size * B * flops._pairs(4 * tokens, blocks[1].reach)[0]
    assert done - total == pytest.approx(blocks[1].count * (whole - near), rel=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_every_product_of_decoding_is_counted(name):
    config = SMALL[name]
    graph, params = blank(config, Compute())

    def token(params, ids, cache):
        decoder = nnx.merge(graph, params).decoder()
        prefix = protocol.Prefix(cache, jnp.ones((B, T), bool), jnp.zeros(B, jnp.int32), None)
        suffix = decoder.empty(prefix, answers=G, length=L - 1)
        hidden, _ = decoder.extend(ids, prefix, suffix)
        return decoder.logits(hidden)

    def prefill(params, tokens, images):
        return nnx.merge(graph, params).prefill(tokens, images)

    cache = jax.eval_shape(prefill, params, *rows(config)).cache
    done = traced(token, params, ints(B, G, 1), cache) * (L - 1)
    text, head = flops.Counter(config, Compute()).decode(B, G, L, behind=T)
    first = 2 * B * config.text.hidden_size * config.text.vocab_size
    assert done == pytest.approx(text.forward + head.forward - first, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])  # XLA runs all experts on all tokens.
def test_xla_counts_as_much(name):
    config, compute = SMALL[name], Compute(unroll=True)
    graph, params = blank(config, compute)

    def loss(params, tokens, images):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return likelihood.token_logp(hidden, model.unembed(), tokens.ids).mean()

    counter = flops.Counter(config, compute)
    parts = [*counter.read(B, T, S), counter.head(B, T, None)]
    told = jax.jit(jax.grad(loss)).lower(params, *rows(config)).compile().cost_analysis()
    # What is not a product is counted there as well; in models this small it is a tenth.
    counted = sum(flops.with_gradient(parts).values())
    assert counted < told["flops"] < 1.2 * counted
