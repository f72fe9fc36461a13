"""Measures masks and IoU of polygons against the usual libraries: time, agreement, growth.

Every side gets the same polygons and the same true masks, prepared beforehand in the form that it
likes best, and one core. Times are of this process alone on a CPU (what others take of the core
does not count) and those of a clock on an accelerator; runs take turns and medians are shown.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from seg_jax.cli.benchmarks import harness, polygon_cases, raster_costs, raster_peers
from seg_jax.cli.benchmarks.polygon_cases import Case
from seg_jax.cli.benchmarks.raster_peers import Pairs
from seg_jax.runs import console

# This file is imported again in a process of its own: JAX has to find itself on one core there.

_SAMPLE = {"skimage": 8, "shapely": 32}
"""Polygons of a batch that slow peers get; the others get `_MOST`."""
_MOST = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the raster kernels."""

    full: bool = False
    """All kinds, points, sizes and batches; the default takes about three minutes."""
    kinds: tuple[str, ...] = ("blob", "star", "thin")
    """Kinds of shapes: blob, star, thin."""
    points: tuple[int, ...] = (32, 64, 256)
    """Vertices of a polygon."""
    sizes: tuple[int, ...] = (512,)
    """Height and width of the masks in pixels."""
    batches: tuple[int, ...] = (256,)
    """Polygons at once."""
    rounds: int = 7
    """Turns of each run; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        for name in ("kinds", "points", "sizes", "batches") if self.full else ():
            if getattr(self, name) != Config.__dataclass_fields__[name].default:
                raise ValueError(
                    f"raster: expected no --{name} beside --full, which measures all, got "
                    f"{getattr(self, name)}; do: leave one out"
                )
        wrong = set(self.kinds) - {"blob", "star", "thin"}
        if wrong or not self.kinds:
            raise ValueError(
                f"raster: expected kinds among blob, star, thin, got {sorted(wrong)}; do: choose "
                "among these"
            )
        for name, low, high in (("points", 4, 4096), ("sizes", 16, 4096), ("batches", 1, 65536)):
            values = getattr(self, name)
            if not values or not all(low <= value <= high for value in values):
                raise ValueError(
                    f"raster: expected {name} of {low} to {high}, got {values}; do: choose values "
                    "in this range"
                )
        if self.rounds < 1 or self.seed < 0:
            raise ValueError(
                f"raster: expected rounds >= 1 and a seed >= 0, got {self.rounds} and {self.seed}; "
                "do: choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the tables; the numbers go to the JSON file, or to standard output without one."""
    alone = functools.partial(harness.on_one_core, measure)
    return harness.report(config, alone, _show)


def cases(config: Config) -> list[Case]:
    """Returns what is measured: all combinations, or those that differ from the default by one."""
    if config.full:
        kinds, points = ("blob", "star", "thin"), (32, 64, 128, 256)
        return [
            Case(kind, count, side, side, batch)
            for side in (256, 512, 1024)
            for batch in (64, 256, 4096)
            for kind in kinds
            for count in points
        ]
    grid = [
        Case(kind, count, side, side, batch)
        for side in config.sizes
        for batch in config.batches
        for kind in config.kinds
        for count in config.points
    ]
    if config == Config(rounds=config.rounds, seed=config.seed, json=config.json):
        grid += [Case("blob", 64, side, side, 256) for side in (256, 1024)]
        grid += [Case("blob", 64, 512, 512, batch) for batch in (64, 4096)]
    return grid


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers; runs in a process of its own."""
    import jax

    peers = {name: raster_peers.find_module(name) for name in raster_peers.PEERS}
    cpu = jax.devices("cpu")[0]
    accelerator = jax.devices()[0] if jax.devices()[0].platform != "cpu" else None
    if missing := [name for name, module in peers.items() if module is None]:
        console.say(f"not installed: {', '.join(missing)}; do: pip install 'seg-jax[benchmark]'")
    todo = cases(config)
    results: dict[str, Any] = {"machine": harness.machine(), "cases": [], "accelerator": []}
    with console.progress("benchmark", len(todo) + 3) as move:
        for number, case in enumerate(todo):
            move(number, len(todo) + 3, f"{case.kind} {case.points} {case.height} {case.batch}")
            data = polygon_cases.draw(case, config.seed)
            with jax.default_device(cpu):
                results["cases"].append(_compare(case, data, peers, rounds=config.rounds))
            if accelerator is not None:
                with jax.default_device(accelerator):
                    results["accelerator"].append(_dense(case, data, config.rounds))
        with jax.default_device(cpu):
            base, options = todo[0], {"rounds": config.rounds, "seed": config.seed}
            move(len(todo), len(todo) + 3, "growth")
            results["growth"] = raster_costs.growth(base, **options)
            move(len(todo) + 1, len(todo) + 3, "roofline")
            results["roofline"] = raster_costs.roofline(base, results["cases"][0], **options)
            move(len(todo) + 2, len(todo) + 3, "reader")
            results["reader"] = raster_costs.reading(base, **options)
            results["clicks"] = raster_costs.clicking(**options)
    results["missing"] = [name for name, module in peers.items() if module is None]
    return results


def _compare(
    case: Case, data, peers: dict[str, ModuleType | None], *, rounds: int
) -> dict[str, Any]:
    """Returns microseconds a polygon of all sides, ratios, and how far they agree."""
    import numpy as np

    true, answers = data
    ours, arguments = polygon_cases.scorer(case, true, answers)
    timed: dict[str, Callable[[], Any]] = {"ours": ours}
    many, scores = {"ours": case.batch}, {}
    for name, module in peers.items():
        if module is None:
            continue
        count = many[name] = min(case.batch, _SAMPLE.get(name, _MOST))
        score = raster_peers.PEERS[name](
            module, Pairs(true[:count], answers[:count], case.height, case.width)
        )
        timed[name] = scores[name] = lambda score=score, n=count: [score(i) for i in range(n)]
    medians = harness.by_turns(timed, rounds, harness.process_seconds)
    microseconds = {name: 1e6 * taken / many[name] for name, taken in medians.items()}
    mine = np.asarray(ours())
    agreement = {}
    for name, score in scores.items():
        theirs = np.array(score())
        gaps = np.abs(mine[: len(theirs)] - theirs)
        equal = int((mine[: len(theirs)] == np.float32(theirs)).sum())
        agreement[name] = {"pairs": len(theirs), "equal": equal, "largest_gap": float(gaps.max())}
    if peers.get("pycocotools") is not None:
        agreement["pycocotools"]["differing_bits"] = _differing_bits(case, answers, arguments)
    return {
        **dataclasses.asdict(case),
        "microseconds": microseconds,
        "ratio": {n: t / microseconds["ours"] for n, t in microseconds.items() if n != "ours"},
        "agreement": agreement,
    }


def _differing_bits(case: Case, answers, arguments) -> int:
    """Returns how many pixels of our masks differ from those of pycocotools."""
    import numpy as np
    from pycocotools import mask

    from seg_jax.geometry import bitmask, raster

    words = raster.fill(*arguments[:2], height=case.height, width=case.width)
    total = 0
    for i in range(min(case.batch, _MOST)):
        flat = [answers[i].astype(np.float64).ravel().tolist()]
        theirs = mask.decode(mask.frPyObjects(flat, case.height, case.width)[0]).astype(bool)
        total += int((np.asarray(bitmask.unpack(words[i], height=case.height)) != theirs).sum())
    return total


def _dense(case: Case, data, rounds: int) -> dict[str, Any]:
    """Returns microseconds a polygon on the accelerator, where every edge meets every column."""
    ours, _ = polygon_cases.scorer(case, *data)
    taken = harness.by_turns({"ours": ours}, rounds, time.perf_counter)["ours"]
    return {**dataclasses.asdict(case), "microseconds": 1e6 * taken / case.batch}


def _show(results: dict[str, Any]) -> None:
    """Prints the tables."""
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    peers = [name for name in raster_peers.PEERS if name not in results["missing"]]
    rows, same = [], []
    for case in results["cases"]:
        name = f"{case['kind']} {case['points']} {case['height']}px x{case['batch']}"
        cells = [f"{case['ratio'][p]:.1f}" for p in peers]
        rows.append((name, f"{case['microseconds']['ours']:.2f}", *cells))
        equal = [case["agreement"][p] for p in peers]
        bits = case["agreement"].get("pycocotools", {}).get("differing_bits")
        gaps = [f"{e['equal'] / e['pairs']:.0%} {e['largest_gap']:.3f}" for e in equal]
        same.append((name, "-" if bits is None else str(bits), *gaps))
    console.table(
        "Fill and IoU: our microseconds a polygon, how many times as long peers take",
        ("polygons", "ours", *peers),
        rows,
    )
    console.table(
        "Agreement: bits that differ from pycocotools; share of equal IoU, largest gap",
        ("polygons", "bits", *peers),
        same,
    )
    console.table(
        "Growth of the cost with one thing at a time",
        ("points", "columns", "height", "width", "microseconds"),
        [
            (
                str(g["points"]),
                f"{g['columns']:.0f}",
                str(g["height"]),
                str(g["width"]),
                f"{g['microseconds']:.2f}",
            )
            for g in results["growth"]
        ],
    )
    _show_rest(results)


def _show_rest(results: dict[str, Any]) -> None:
    line, read = results["roofline"], results["reader"]
    console.table(
        f"Roofline of {line['kind']} {line['points']} on this core",
        ("", "needed", "ceiling a second", "share reached"),
        [
            (
                "integer operations",
                f"{line['operations']:.0f}",
                f"{line['operations_per_second']:.2e}",
                f"{line['share_of_operations']:.1%}",
            ),
            (
                "bytes",
                f"{line['bytes']:.0f}",
                f"{line['bytes_per_second']:.2e}",
                f"{line['share_of_bytes']:.1%}",
            ),
        ],
    )
    console.say(
        f"reading {read['tokens']} tokens: {read['read_microseconds']:.1f} us an answer, "
        f"{read['nanoseconds_per_token']:.0f} ns a token, {read['read_over_score']:.1f} times its "
        "score: a token waits for the one before it, edges do not"
    )
    clicks = results["clicks"]
    console.say(
        f"reading {clicks['tokens']} tokens of thoughts, boxes and clicks: "
        f"{clicks['read_microseconds']:.1f} us an answer"
    )
    for case in results["accelerator"]:
        rate = math.inf if not case["microseconds"] else 1 / case["microseconds"]
        console.say(
            f"{results['machine']['device']}: {case['kind']} {case['points']}, "
            f"{case['height']} px, {case['batch']}: {rate:.3f} million polygons a second, "
            "every edge in every column"
        )
