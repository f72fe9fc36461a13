"""Chips are found by what their devices say they are."""

import math

import pytest

from seg_jax.models.parallel import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("TPU7x", "tpu7x"),
    ],
)
def test_a_device_is_of_its_chip(kind, name):
    assert chips.of_kind(kind) is chips.CHIPS[name]
    assert chips.memory_gib(kind) == chips.CHIPS[name].hbm_gib


@pytest.mark.parametrize(
    "kind",
    ["", "cpu", "TPU v4 lite", "TPU v7", "NVIDIA", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D"],
)
def test_no_device_is_taken_for_another(kind):
    assert chips.of_kind(kind) is None
    assert chips.memory_gib(kind) == (chips.CPU_GIB if kind == "cpu" else math.inf)
