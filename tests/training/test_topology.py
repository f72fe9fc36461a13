"""Holds names of topologies to devices, and what is no name to one line."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from seg_jax.training import topology


@pytest.mark.parametrize("name", ["v5e:4", "v5p:4x4", "v5e:4x4x4", "h100:8", "cpu:0", "cpu", ""])
def test_what_is_no_topology_is_told_what_is(name):
    with pytest.raises(ValueError, match=r"expected cpu:8, v5e:16x16, .* or the like, got '"):
        topology.of(name)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts CPU devices")
def test_cpu_devices_are_as_many_as_asked_for():
    found = topology.of("cpu:8" if jax.device_count() >= 8 else "cpu:1")
    assert found.devices == jax.devices("cpu")[: len(found.devices)]
    assert found.hbm_bytes is None
    with pytest.raises(ValueError, match="XLA_FLAGS=--xla_force_host_platform_device_count=9999"):
        topology.of("cpu:9999")


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu.*do: pip install 'seg-jax\[tpu\]' \(no TPU"):
        topology.of("v5e:2x2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(
    ("name", "chips", "gib"), [("v5e:2x2", 4, 16), ("v5p:2x2x4", 16, 95), ("v6e:16x16", 256, 32)]
)
def test_chips_that_are_not_here_are_described(name, chips, gib):
    found = topology.of(name)
    assert len(found.devices) == chips * found.devices_per_chip
    assert {device.platform for device in found.devices} == {"tpu"}
    assert found.hbm_bytes * found.devices_per_chip == gib * 2**30
