"""The kernel that fills on a TPU: bit for bit what other devices fill, on a budget of cycles."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import many_processes
import numpy as np
import pytest

from seg_jax.geometry import raster
from seg_jax.kernels import fill as tiles


def draw(seed, count, rings, points, height, width):
    """Returns rings of every kind, some off the canvas, padded or degenerate, and what is used."""
    rng = np.random.default_rng(seed)
    ring = (rng.random((count, rings, points, 2)) * 1.4 - 0.2) * [width, height]
    ring[1::5] = np.round(ring[1::5])  # Ties, which only exact rows get right.
    ring[2::5] = np.round(ring[2::5] * 5) / 5
    ring[3::5] = ring[3::5, :, :1] + rng.integers(-2, 3, ring[3::5].shape)  # Tiny, and off by far.
    ring[3, 0] += 3000
    ring[4::5, :, :, 1] = ring[4::5, :, :1, 1]  # Level.
    used = np.arange(points) < rng.integers(0, points + 1, (count, rings, 1))
    used[0] = True
    ring[0, 0, 0] = np.nan
    return ring.astype(np.float32), used


@functools.partial(jax.jit, static_argnames=("height", "width", "rule", "rings"))
def plain(points, used, *, height, width, rule, rings):
    shapes = raster._shapes(raster._steps(points, rule), used, rings)
    return raster._dense(shapes, raster._RULES[rule], height, width)


@functools.partial(
    jax.jit,
    static_argnames=("height", "width", "rule", "rings"),
    compiler_options={"xla_backend_optimization_level": 0},  # It runs once.
)
def on_tpu(points, used, words, which, *, height, width, rule, rings):
    """Returns what a TPU fills and counts, worked out one operation after the other."""
    shapes = raster._shapes(raster._steps(points, rule), used, rings)
    edges, rows = raster._edges(shapes, raster._RULES[rule], height, width)
    assert tiles.fits(edges, height=height, width=width)
    filled = tiles.fill(edges, *rows, height=height, width=width, interpret=True)
    return filled, tiles.counts(
        edges, *rows, words=words, which=which, height=height, interpret=True
    )


@pytest.mark.parametrize(
    ("rule", "rings", "size", "shape"),
    [
        ("coco", "evenodd", (300, 140), (5, 3, 47)),  # More edges than lanes.
        ("center", "union", (40, 129), (9, 2, 11)),  # More shapes than a pass takes.
        pytest.param("center", "evenodd", (1, 129), (5, 1, 7), marks=pytest.mark.slow),
        pytest.param("coco", "evenodd", (1, 1), (5, 2, 9), marks=pytest.mark.slow),
        pytest.param("coco", "evenodd", (513, 700), (9, 1, 300), marks=pytest.mark.slow),
        pytest.param("center", "evenodd", (511, 512), (16, 4, 64), marks=pytest.mark.slow),
        pytest.param("coco", "union", (1025, 257), (8, 4, 40), marks=pytest.mark.slow),
        pytest.param("center", "union", (96, 1300), (8, 3, 33), marks=pytest.mark.slow),
    ],
)
def test_the_kernel_fills_what_other_devices_fill(rule, rings, size, shape):
    options = {"height": size[0], "width": size[1], "rule": rule, "rings": rings}
    points, used = draw(len(rule) + size[0], *shape, *size)
    rng = np.random.default_rng(3)
    words = rng.integers(0, 2**32, (3, -(-size[0] // 32), size[1]), dtype=np.uint32)
    which = rng.integers(0, 3, shape[0])
    filled, (area, shared) = on_tpu(points, used, words, which, **options)
    expected = np.asarray(plain(points, used, **options))
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(area, np.bitwise_count(expected).sum((1, 2)))
    np.testing.assert_array_equal(shared, np.bitwise_count(expected & words[which]).sum((1, 2)))
    assert len(np.unique(area)) > 2 or size == (1, 1)


def lowered(*platforms, points=8, side=100):
    """Returns the programs of a fill and a count for platforms, under vmap and a batch."""
    shapes = (
        jax.ShapeDtypeStruct((3, 2, 1, points, 2), jnp.float32),
        jax.ShapeDtypeStruct((3, 2, 1, points), jnp.bool_),
        jax.ShapeDtypeStruct((3, 1, -(-side // 32), side), jnp.uint32),
    )

    def both(points, used, words):
        options = {"height": side, "width": side}
        return raster.fill(points, used, **options), raster.fill_counts(
            points, used, words, **options
        )

    traced = jax.jit(jax.vmap(both)).trace(*shapes)
    return [traced.lower(lowering_platforms=(name,)).as_text() for name in platforms]


def test_a_tpu_gets_the_kernel_if_a_shape_fits_a_core_and_other_devices_do_not():
    tpu, cuda = lowered("tpu", "cuda", side=raster.MAX_SIDE)
    assert tpu.count("@tpu_custom_call") == 2
    assert "tpu_custom_call" not in cuda
    assert "tpu_custom_call" not in lowered("tpu", points=40_000)[0]


def compiled(names, side, folder):
    """Returns what programs for a TPU cost; their compiler runs in a process of its own."""
    script = Path(__file__).with_name("fill_on_tpu.py")
    env = many_processes.for_tpus()
    command = [sys.executable, str(script), str(side), ",".join(names), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = map(json.loads, done.stdout.splitlines()[-len(names) :])
    return dict(zip(names, told, strict=True))


def blobs(count, points, side):
    """Returns wavy outlines of all sizes, f32[count, 1, points, 2]."""
    rng = np.random.default_rng(0)
    angle = np.arange(points) * 2 * np.pi / points + rng.random((count, 1))
    wave = np.cos(np.arange(2, 6)[:, None, None] * angle + 7 * rng.random((4, count, 1)))
    scale = np.exp(rng.uniform(*np.log([0.04, 0.35]), (count, 1))) * side
    radius = scale * (1 + 0.1 * wave.sum(0))
    ring = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.float32(ring + rng.uniform(0.1, 0.9, (count, 1, 2)) * side)[:, None]


def visits(points, side):
    """Returns means of the numbers of visits of straight and of other edges, and of the tiles."""
    rule, used = raster._RULES["coco"], np.ones(points.shape[:-1], bool)
    shapes = raster._shapes(raster._steps(points, "coco"), used, "union")
    edges, _ = raster._edges(shapes, rule, side, side)
    plan = tiles._plan(edges, side, side)
    straight, other = (
        np.asarray(tiles._visits(edges.first, jnp.where(sure, edges.end, 0), plan))[:, 0]
        for sure in (edges.sure, ~edges.sure)
    )
    # A list takes one more visit than it has, unless it has none.
    made = [(found[:, 0] + (found[:, 0] > 0)).mean() for found in (straight, other)]
    span = straight[:, 2]
    return *made, ((span >> tiles._TILE_BITS) - (span & 63)).mean()


@pytest.mark.slow
def test_the_kernel_takes_fewer_cycles_than_xla(tmp_path):
    pytest.importorskip("libtpu")
    side, points = 512, 64
    told = compiled(["shared", "fill", "dense"], side, tmp_path)
    assert max(one["temporary"] for one in told.values()) < 16 * 2**20
    straight, other, tile = visits(blobs(256, points, side), side)
    for name in ("shared", "fill"):
        schedule = told[name]["schedule"]
        turned, *walks, filled = schedule["loops"]
        assert walks[0] <= 4 * tiles._EDGES
        assert walks[1] <= 9 * tiles._EDGES
        cycles = schedule["shape"] + turned + straight * walks[0] + other * walks[1] + tile * filled
        assert cycles < 0.75 * points * told["dense"]["schedule"]
