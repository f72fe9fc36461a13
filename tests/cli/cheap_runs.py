"""Four steps of fine-tuning as a configuration file, and what runs leave in their folders."""

import dataclasses
import json
import signal

import jax

CONFIG = """
import dataclasses
from seg_jax.runs import experiments
from seg_jax.data.pipeline import Feed
from seg_jax.training import loop, optimizers

def config():
    return dataclasses.replace(
        experiments.load("simpleseg/tiny_sft.py").config(),
        model=None,  # The checkpoint's.
        feed=Feed(batch=8),
        optimizer=optimizers.AdamW(),
        loop=loop.Loop(steps=4, log_every=1),
    )
"""


def small(base):
    """Returns a model of few weights."""
    text = dataclasses.replace(
        base.text,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        mrope_section=(2, 3, 3),
    )
    vision = dataclasses.replace(
        base.vision,
        depth=1,
        hidden_size=32,
        intermediate_size=32,
        num_heads=2,
        fullatt_block_indexes=(0,),
    )
    return dataclasses.replace(base, text=text, vision=vision)


@jax.jit
def moved(params, change):
    """Returns other weights; one program, where eager ones are as many as shapes."""
    return jax.tree.map(lambda leaf: leaf + change, params)


def weights_of(out):
    return (out / "checkpoint" / "model.safetensors").read_bytes()


def curve_of(out):
    """Returns the metrics of a run without its times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "tokens_per_second/", "data_wait")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(timed)}
        for line in lines
    ]


def interrupt():
    """Presses Ctrl-C, also where the tests were started in the background, which is deaf to it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
