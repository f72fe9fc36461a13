"""Takes times of things that do the same, by turns, and says what they were taken on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PARTS = {
    "raster": "masks and IoU of polygons against pycocotools, OpenCV, scikit-image, shapely",
    "boundary": "boundary IoU and F of masks against OpenCV",
    "saliency": "S, E, IoU, MAE of masks, and all measures of grey maps, against numpy and scipy",
    "reward": "reading, filling and scoring of sampled answers on this device",
    "reader": "reading answers of boxes and clicks, on the device and on the host",
    "masks": "masks of boxes and clicks in a step: each image encoded once, or for every box",
    "segmenter": "SAM 2 encoding an image and drawing prompts, against transformers (PyTorch)",
    "decode": "the sampler against generate of transformers (PyTorch)",
    "rollout": "what sharing prompts, refilling rows and holding to the grammar cost and save",
    "data": "the pipeline with packed rows against a PyTorch DataLoader",
    "policy": "a step of GSPO with images against TRL's trainer (PyTorch)",
    "serve": "the server with 1, 8 and 32 clients against calls one after another; faults",
    "step": "a step of SFT of a configuration, any size, against transformers (PyTorch)",
}
"""What `seg-jax benchmark` measures; each is a program of its own."""


def report(
    config: Any, measure: Callable[[Any], dict[str, Any]], show: Callable[[dict[str, Any]], None]
) -> int:
    """Measures and shows; the numbers go to the JSON file, or to standard output without one."""
    from seg_jax.runs import run_folder

    run_folder.check_json(config.json)
    results = measure(config)
    show(results)
    run_folder.tell_json(results, config.json)
    return 0


def by_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Returns the median seconds of each run, after one that is not counted.

    All are run once in every round, so what else the machine does meets all of them.
    """
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = clock()
            run()
            taken[name].append(clock() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def product_per_second(rounds: int, dtype: str) -> float:
    """Returns operations a second in a product of matrices of a dtype, as XLA reaches it best."""
    import jax
    import jax.numpy as jnp

    side = 1024 if jax.devices()[0].platform == "cpu" else 8192
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.dot)
    run = {"product": lambda: jax.block_until_ready(product(square, square))}
    return 2 * side**3 / by_turns(run, rounds, time.perf_counter)["product"]


def mesh(rows: int) -> Any:
    """Returns as many devices as divide the rows, each with all weights."""
    import jax

    from seg_jax.training import steps

    devices = jax.devices()
    most = max(count for count in range(1, len(devices) + 1) if rows % count == 0)
    return steps.Mesh(data=-1, fsdp=1).build(devices[:most])


def operations(compiled: Any) -> float:
    """Returns the operations of a compiled program as its compiler counts them, loops once."""
    cost = compiled.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def on_one_core(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a function that runs in a process of its own, on one core.

    JAX counts the cores that it may use when it starts, so this one cannot be told any more.
    """
    context = multiprocessing.get_context("spawn")
    with _pinned(), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
    """Keeps this thread, and what it starts, on its last core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def process_seconds() -> float:
    """Returns the processor time of this process: what others take of the core does not count."""
    return time.process_time()


def machine() -> dict[str, str]:
    """Returns what numbers were taken on."""
    import jax
    import numpy

    import seg_jax

    return {
        "seg-jax": seg_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": numpy.__version__,
        "processor": _processor(),
        "device": jax.devices()[0].device_kind,
    }


def _processor() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show_ratios(
    results: dict[str, Any], title: str, *, rows: str, name: str, peer: tuple[str, str]
) -> None:
    """Prints what functions take beside a peer, and how far their values are apart.

    Args:
      results: the numbers; each row has its name, "ours_microseconds", those of the peer, "ratio",
        "largest_gap".
      title: of the table.
      rows: where in the results the rows are.
      name: of what a row is about, there and in the table.
      peer: its name in the table, and where its microseconds are.
    """
    from seg_jax.runs import console

    console.say(" ".join(f"{part} {value}" for part, value in results["machine"].items()))
    console.table(
        title,
        (name, "ours, us", f"{peer[0]}, us", "ratio", "largest gap"),
        [
            (
                row[name],
                f"{row['ours_microseconds']:.0f}",
                f"{row[peer[1]]:.0f}",
                f"{row['ratio']:.1f}",
                f"{row['largest_gap']:.1e}",
            )
            for row in results[rows]
        ],
    )
