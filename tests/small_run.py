"""The tiny setting made smaller still: both routes in seconds, compiled once for all tests."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import random_weights
from flax import nnx

from seg_jax.data import pipeline
from seg_jax.data.packing import Pack
from seg_jax.inference.bundle import Bundle
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import kimi_vl, moonlight, moonvit
from seg_jax.runs import experiments, reinforcement, supervised
from seg_jax.runs import start as start_of_run
from seg_jax.tasks.referring import Referring
from seg_jax.training import optimizers, state, steps

TINY = experiments.load("simpleseg/tiny_sft.py")
TINY_GSPO = experiments.load("simpleseg/tiny_gspo.py")
BATCH = 8
ANSWERS = 4
HORIZON = 50
PACK = Pack(tokens=280, patches=40, ahead=4)
"""Rows of two images."""


def sft_config(**changes: Any) -> supervised.Config:
    """Returns supervised fine-tuning of a model of fifty thousand weights on 32-pixel images."""
    base = TINY.config()
    text = dataclasses.replace(
        base.model.text,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        mrope_section=(2, 3, 3),
    )
    vision = dataclasses.replace(
        base.model.vision, depth=2, hidden_size=16, intermediate_size=32, num_heads=2
    )
    small = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, text=text, vision=vision),
        compute=Compute(),
        optimizer=dataclasses.replace(base.optimizer, newton_schulz_steps=1),
        layout=dataclasses.replace(base.layout, max_pixels=1024, max_patches=16, max_prompt=44),
        feed=pipeline.Feed(batch=BATCH, questions=2),
        loop=dataclasses.replace(base.loop, steps=HORIZON, log_every=1),
    )
    return dataclasses.replace(small, **changes)


def gspo_config(**changes: Any) -> reinforcement.Config:
    """Returns GSPO of the same model, with two minibatches a step."""
    base, start = TINY_GSPO.config(), sft_config()
    small = dataclasses.replace(
        base,
        model=start.model,
        layout=start.layout,
        compute=Compute(),
        feed=dataclasses.replace(base.feed, batch=BATCH),
        sampling=dataclasses.replace(base.sampling, answers=ANSWERS, max_tokens=10),
        policy=dataclasses.replace(base.policy, minibatches=2),
        loop=dataclasses.replace(base.loop, steps=HORIZON, log_every=1),
        probe=0,
    )
    return dataclasses.replace(small, **changes)


@functools.cache
def bundle() -> Bundle:
    """Returns the model with random weights; they are never donated."""
    config = sft_config()
    blank = start_of_run.blank_model(config, _folder() / "tokenizer")
    params = start_of_run.weight_initializer(config, blank, alone())()
    # On the default device, free to be laid over any mesh.
    return dataclasses.replace(blank, params=jax.device_put(jax.device_get(params)))


def model() -> tuple[Any, Any, Any]:
    """Returns the config, graph and random weights of that model."""
    return sft_config().model, bundle().graph, bundle().params


@functools.cache
def kimi() -> tuple[Any, Any, Any]:
    """Returns the same of a Kimi-VL with eight experts a layer, which reads the same batches."""
    text = moonlight.Text(
        vocab_size=sft_config().model.text.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        n_routed_experts=8,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        rope_theta=300.0,
    )
    vision = moonvit.Vision(
        patch_size=TINY.PATCH,
        merge_kernel_size=(1, 1),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        init_pos_emb_height=4,
        init_pos_emb_width=4,
    )
    config = kimi_vl.Config(text=text, vision=vision, tie_word_embeddings=True)
    graph, shapes = nnx.split(weights.blank(config, Compute()))
    return config, graph, random_weights.drawn(shapes)


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _folder() -> Path:
    return Path(_keep().name)


def actor(chunk: int | None = None) -> steps.Actor:
    """Returns the model's graph with its tokenizer."""
    return steps.Actor(bundle().graph, bundle().tokenizer, chunk=chunk)


def task(rows: str) -> Referring:
    """Returns the task of a route."""
    if rows == "sft":
        return TINY.TASK
    return gspo_config().task


def batches(rows: str, **changes: Any) -> Any:
    """Returns the pipeline of a route; changes are of its feed."""
    config = sft_config() if rows == "sft" else gspo_config()
    feed = dataclasses.replace(config.feed, **changes)
    return pipeline.batches(config.source, task(rows), bundle().encoder, feed=feed, rows=rows)


@functools.cache
def batch(rows: str) -> Any:
    """Returns the first batch of a route, on the host."""
    return next(batches(rows))


@functools.cache
def supervised_step(**changes: Any) -> Any:
    """Returns the compiled supervised step; changes are of its objective."""
    config = sft_config()
    objective = dataclasses.replace(config.objective, **changes)
    return steps.supervised_step(actor(), objective, config.optimizer)


@functools.cache
def sampler() -> Any:
    """Returns the compiled sampler."""
    return steps.sampler(actor(), gspo_config().sampling, seed=0)


@functools.cache
def reinforcing_step() -> Any:
    """Returns the compiled step of reinforcement."""
    config = gspo_config()
    return steps.reinforcing_step(
        actor(),
        task("prompts"),
        policy=config.policy,
        weights=Referring.reward_weights,
        optimizer=config.optimizer,
        sampling=config.sampling,
    )


def fresh(config: Any, on: jax.sharding.Mesh | None = None, *, horizon: int = HORIZON) -> Any:
    """Returns the first state of a run, on one device or laid over a mesh; it may be donated."""
    on = alone() if on is None else on
    params = laid(bundle().params, on)
    return state.fresh(params, optimizers.build(config.optimizer), horizon=horizon, on=on)


def alone() -> jax.sharding.Mesh:
    """Returns the mesh of one device."""
    return sharding.mesh(devices=jax.devices()[:1])


def laid(params: Any, on: jax.sharding.Mesh) -> Any:
    """Returns copies of weights, laid over a mesh; they may be donated."""
    # A placed array may share the memory of the one that it was made from.
    copies = jax.tree.map(np.array, jax.device_get(params))
    return jax.device_put(copies, sharding.shardings(copies, on))


def on_one_device(patch: Any) -> None:
    """Lays every run over one device while a `pytest.MonkeyPatch` lasts."""
    mesh = alone()
    patch.setattr(steps.Mesh, "build", lambda self, devices=None: mesh)


def host(tree: Any) -> list[np.ndarray]:
    """Returns copies of the leaves on the host."""
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one: Any, other: Any) -> None:
    """Asserts that two trees are equal bit by bit."""
    for a, b in zip(host(one), host(other), strict=True):
        np.testing.assert_array_equal(a, b)
