"""Estimates how long a compiled step takes on a machine that is not here."""

from __future__ import annotations

from seg_jax.runs.compilation import Result
from seg_jax.training import topology

ASSUMED = (
    "estimate, not measured: a step takes at least as long as its operations at the peak of "
    "bfloat16, as reading its weights for one token after another, and as its collectives in rings "
    "at full link speed; neither attention masks nor padding, caches, norms or waiting are counted"
)
TRAINING, DECODING = 0.49, 0.31
"""Shares of the datasheet's peak at which one H200 did all operations of a training step of
Qwen2.5-VL-7B (8 rows), and of decoding 512 answers at once (configs/simpleseg/README.md)."""
MEASURED = (
    f"expected: a training step at {TRAINING:.0%} of the chip's peak and decoding at "
    f"{DECODING:.0%}, as measured with a 7B on one H200 and nowhere else; with fewer rows at once, "
    "or on other chips, it can be far from that"
)


def least_seconds(result: Result, target: topology.Topology) -> dict[str, float]:
    """Returns the least time of a step: by its operations, by memory, by its collectives."""
    if target.chip is None or result.text is None:
        return {}
    sent = sum(traffic.sent for traffic in result.text.collectives.values())
    share, chip = target.devices_per_chip, target.chip
    times = {
        "operations": sum(result.operations.values()) * share / chip.flops,
        "collectives": sent * share / chip.link,
    }
    if result.passed_bytes:
        times["weights read"] = result.passed_bytes * share / chip.bandwidth
    return times


def expected_seconds(result: Result, target: topology.Topology) -> float | None:
    """Returns the time of a step with operations as fast as they were where it was measured."""
    least = least_seconds(result, target)
    if not least or not result.operations:
        return None
    reached = TRAINING if result.step in ("sft", "update") else DECODING
    arithmetic = least["operations"] / reached
    return max(arithmetic, least.get("weights read", 0.0)) + least["collectives"]
