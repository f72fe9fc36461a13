"""Compiles an optimizer step at the shapes of a 7B model for TPU v5e 4x4; prints what it costs.

Usage: python muon_on_pod.py ours|optax [AXIS SIZE ..]; needs libtpu, but no TPU.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from seg_jax.models import sharding
from seg_jax.training import muon

LAYERS, WIDTH, KEYS, FFN = 28, 3584, 512, 18_944
SHAPES = {
    "q": (WIDTH, WIDTH),
    "k": (WIDTH, KEYS),
    "v": (WIDTH, KEYS),
    "o": (WIDTH, WIDTH),
    "gate": (WIDTH, FFN),
    "up": (WIDTH, FFN),
    "down": (FFN, WIDTH),
}
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def transform(which: str, params) -> optax.GradientTransformation:
    """Returns Moonlight's update before weight decay and rate, ours or optax's."""
    if which == "ours":
        return muon.scale_by_muon(momentum=0.95, steps=5, dtype=jnp.dtype(jnp.bfloat16))
    numbers = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), params)
    return optax.contrib.muon(
        1.0, weight_decay=0.0, consistent_rms=0.2, muon_weight_dimension_numbers=numbers
    )


def compiled(which: str, sizes: dict[str, int]):
    """Returns the compiled step (params, moments, gradients) -> (params, moments)."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", chips_per_host_bounds=(2, 2, 1)
    )
    on = sharding.mesh(sizes, list(topology.devices))
    shapes = {
        name: {"kernel": jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32)}
        for name, shape in SHAPES.items()
    }
    change = transform(which, shapes)

    def laid(tree):
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            tree,
            sharding.shardings(tree, on),
        )

    def step(params, moments, grads):
        direction, moments = change.update(grads, moments, params)
        params = jax.tree.map(lambda weight, way: 0.9 * weight - 1e-3 * way, params, direction)
        return params, moments

    given = (laid(shapes), laid(jax.eval_shape(change.init, shapes)), laid(shapes))
    places = jax.tree.map(lambda leaf: leaf.sharding, given[:2])
    with jax.set_mesh(on):
        return jax.jit(step, out_shardings=places, donate_argnums=(0, 1)).lower(*given).compile()


def collectives(text: str) -> dict[str, int]:
    """Returns the bytes that come out of the collectives in a device's program, by kind.

    What stands in a loop counts once: a lower bound, exact where no loop has a collective.
    """
    found = dict.fromkeys(KINDS, 0)
    pattern = rf" = (\(?[^=\n]*?) ({'|'.join(KINDS)})(-start)?\("
    for out, kind, start in re.findall(pattern, text):
        parts = [
            BYTES[dtype] * math.prod(map(int, filter(None, size.split(","))))
            for dtype, size in re.findall(r"(\w+)\[([\d,]*)\]", out)
            if dtype in BYTES
        ]
        # What is started has its input beside its output.
        found[kind] += max(parts) if start else sum(parts)
    return found


def main(which: str, *sizes: str) -> None:
    """Prints one line of JSON: bytes of arguments, of temporaries, of collectives by kind."""
    shape = dict(zip(sizes[::2], map(int, sizes[1::2]), strict=True)) or {"fsdp": 4, "tensor": 4}
    try:
        program = compiled(which, shape)
    except jax.errors.JaxRuntimeError as error:  # More than the chip has.
        print(json.dumps({"error": str(error)[:2000]}))
        return
    memory, text = program.memory_analysis(), program.as_text()
    told = {
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": collectives(text),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
