"""Holds names of topologies to devices, and what is no name to one line."""

from __future__ import annotations

import importlib.util
import os

import jax
import pytest

from seg_jax.models.parallel import chips
from seg_jax.training import gpus, topology


@pytest.mark.parametrize(
    "name", ["v5e:3", "v5p:4", "v5p:4x4", "v5e:4x4x4", "h100:2x4", "h100:0", "cpu:0", "cpu", ""]
)
def test_what_is_no_topology_is_told_what_is(name):
    with pytest.raises(
        ValueError, match=r"expected cpu:8, v5e:16x16, .* or the like, got '.*rtx4090"
    ):
        topology.from_name(name)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts CPU devices")
def test_cpu_devices_are_as_many_as_asked_for():
    found = topology.from_name("cpu:8" if jax.device_count() >= 8 else "cpu:1")
    assert found.devices == jax.devices("cpu")[: len(found.devices)]
    assert found.hbm_bytes is None
    with pytest.raises(ValueError, match="XLA_FLAGS=--xla_force_host_platform_device_count=9999"):
        topology.from_name("cpu:9999")


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu.*do: pip install 'seg-jax\[tpu\]' \(no TPU"):
        topology.from_name("v5e:2x2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(
    ("name", "chips", "gib"),
    [
        ("v5e:1", 1, 16),
        ("v5e:8", 8, 16),
        ("v5e:2x2", 4, 16),
        ("v5p:2x2x4", 16, 95),
        ("v6e:1", 1, 32),
        ("v6e:16x16", 256, 32),
        ("tpu7x:2x2x1", 4, 192),
    ],
)
def test_chips_that_are_not_here_are_described(name, chips, gib):
    found = topology.from_name(name)
    assert len(found.devices) == chips * found.devices_per_chip
    assert {device.platform for device in found.devices} == {"tpu"}
    assert found.hbm_bytes * found.devices_per_chip == gib * 2**30


CUDA = any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13))


def test_without_a_plugin_for_cuda_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"CUDA.*do: pip install 'seg-jax\[cuda\]' \(no GPU"):
        topology.from_name("h100:8")
    with pytest.raises(
        ValueError, match="whole hosts of 8, got h200:12; do: take h200:8 or h200:16"
    ):
        topology.from_name("h200:12")


@pytest.mark.skipif(not CUDA, reason="needs JAX's plugin for CUDA, the compiler for GPUs")
@pytest.mark.parametrize(
    ("name", "count", "gib"),
    [
        ("h100:8", 8, 80),
        ("h200:32", 32, 141),
        ("a100-40:1", 1, 40),
        ("a100:8", 8, 80),
        ("l4:1", 1, 22),
        ("l40s:1", 1, 44.4),
        ("rtx4090:1", 1, 23.5),
        ("rtx5090:1", 1, 31.4),
        ("b200:8", 8, 178),
    ],
)
def test_gpus_that_are_not_here_are_described(name, count, gib):
    found = topology.from_name(name)
    assert len(found.devices) == count
    assert found.hbm_bytes == pytest.approx(gib * 2**30, rel=0.02)
    assert chips.of_kind(found.devices[0].device_kind) is chips.CHIPS[name.partition(":")[0]]
    assert found.hbm_bytes - found.available_bytes == found.chip.kept_gib * 2**30
    # Hosts are wired to each other more thinly.
    own = chips.CHIPS[name.partition(":")[0]].link
    assert found.chip.link == (topology.NETWORK if count > 8 else own)
    place = jax.sharding.NamedSharding(
        jax.sharding.Mesh(found.devices, "x"), jax.sharding.PartitionSpec("x")
    )
    rows = jax.ShapeDtypeStruct((count, 64), "float32", sharding=place)
    program = jax.jit(lambda x: x.sum(0)).lower(rows).compile()
    assert ("all-reduce" in program.as_text()) == (count > 1)
    assert program.memory_analysis().argument_size_in_bytes == 256


def test_gpus_and_their_chips_agree():
    for name, gpu in gpus.GPUS.items():
        chip = chips.of_kind(gpu.kind)
        assert chip is chips.CHIPS[name]
        assert chip.hbm_gib == pytest.approx(gpu.memory / 2**30, rel=0.01)
        assert chip.bandwidth == pytest.approx(gpu.bandwidth, rel=0.01)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of CPU devices")
def test_devices_that_are_here_have_what_their_process_may_have():
    found = topology.here()
    assert found.devices == jax.devices()
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.available_bytes * jax.device_count() == pytest.approx(0.8 * whole)
