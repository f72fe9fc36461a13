"""Compiles an optimizer step at the shapes of a 7B model for TPU v5e 4x4; prints what it costs.

Usage: python muon_on_pod.py ours|optax|ours,optax [AXIS SIZE ..]; needs libtpu, but no TPU.
"""

from __future__ import annotations

import json
import os
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

from seg_jax.models.parallel import sharding
from seg_jax.training import hlo, muon

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
SMALL_TILES = {"xla_tpu_scoped_vmem_limit_kib": 4096}
"""To write code for large tiles of a product takes four fifths of a compilation. What a step sends
is the same with small ones, and so are the bytes of our temporaries (optax's: 4% more)."""


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
        lowered = jax.jit(step, out_shardings=places, donate_argnums=(0, 1)).lower(*given)
    return lowered.compile(SMALL_TILES)


def main(names: str, *sizes: str) -> None:
    """Prints a line of JSON for each: bytes of arguments, temporaries and collectives by kind."""
    shape = dict(zip(sizes[::2], map(int, sizes[1::2]), strict=True)) or {"fsdp": 4, "tensor": 4}
    for which in names.split(","):
        try:
            made = compiled(which, shape)
        except jax.errors.JaxRuntimeError as error:  # More than the chip has.
            print(json.dumps({"error": str(error)[:2000]}))
            continue
        memory, text = made.memory_analysis(), hlo.read_text(made.as_text())
        told = {
            "temporary": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "collectives": {kind: traffic.payload for kind, traffic in text.collectives.items()},
        }
        print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
