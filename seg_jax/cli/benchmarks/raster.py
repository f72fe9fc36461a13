"""Measures masks and IoU of polygons against the usual libraries: time, agreement, growth.

Every side gets the same polygons and the same true masks, prepared beforehand in the form that it
likes best, and one core. Times are of this process alone on a CPU (what others take of the core
does not count) and those of a clock on an accelerator; runs take turns and medians are shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import console

# This file is imported again in a process of its own: JAX has to find itself on one core there.

_SAMPLE = {"skimage": 8, "shapely": 32}
"""Polygons of a batch that slow peers get; the others get `_MOST`."""
_MOST = 256
_DETOURS = {"cv2+numpy": "cv2"}
"""Peers whose module has another name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the raster kernels."""

    full: bool = False
    """All kinds, points, sizes and batches; the default takes about three minutes."""
    kinds: tuple[str, ...] = ("blob", "star", "thin")
    """Of shapes: blob, star, thin."""
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
        wrong = set(self.kinds) - {"blob", "star", "thin"}
        if wrong or not self.kinds:
            raise ValueError(f"expected kinds among blob, star, thin, got {sorted(wrong)}")
        for name, low, high in (("points", 4, 4096), ("sizes", 16, 4096), ("batches", 1, 65536)):
            values = getattr(self, name)
            if not values or not all(low <= value <= high for value in values):
                raise ValueError(f"expected {name} of {low} to {high}, got {values}")
        if self.rounds < 1 or self.seed < 0:
            raise ValueError(
                f"expected rounds >= 1 and a seed >= 0, got {self.rounds} and {self.seed}"
            )


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of polygons."""

    kind: str
    points: int
    height: int
    width: int
    batch: int
    radius: float | None = None
    """Of blobs, as a fraction of the shorter side; None for all sizes."""


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

    peers = {name: _module(name) for name in _PEERS}
    cpu = jax.devices("cpu")[0]
    accelerator = jax.devices()[0] if jax.devices()[0].platform != "cpu" else None
    if missing := [name for name, module in peers.items() if module is None]:
        console.say(f"not installed: {', '.join(missing)}; do: pip install 'seg-jax[benchmark]'")
    todo = cases(config)
    found: dict[str, Any] = {"machine": harness.machine(), "cases": [], "accelerator": []}
    with console.progress("benchmark", len(todo) + 3) as move:
        for number, case in enumerate(todo):
            move(number, len(todo) + 3, f"{case.kind} {case.points} {case.height} {case.batch}")
            data = _data(case, config.seed)
            with jax.default_device(cpu):
                found["cases"].append(_compare(case, data, peers, config.rounds))
            if accelerator is not None:
                with jax.default_device(accelerator):
                    found["accelerator"].append(_dense(case, data, config.rounds))
        with jax.default_device(cpu):
            base = todo[0]
            move(len(todo), len(todo) + 3, "growth")
            found["growth"] = _growth(base, config)
            move(len(todo) + 1, len(todo) + 3, "roofline")
            found["roofline"] = _roofline(base, found["cases"][0], config)
            move(len(todo) + 2, len(todo) + 3, "reader")
            found["reader"] = _reader(base, config)
    found["missing"] = [name for name, module in peers.items() if module is None]
    return found


def _module(peer: str) -> ModuleType | None:
    """Returns the module of a peer, or None if it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(_DETOURS.get(peer, peer))
    return None


# --- Shapes --------------------------------------------------------------------------------------


def _data(case: Case, seed: int):
    """Returns true rings and answers near them, f32[batch, points, 2] in pixels."""
    import numpy as np

    rng = np.random.default_rng(seed)
    count, many, size = case.points, case.batch, np.array([case.width, case.height])
    side = min(case.height, case.width)
    angle = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi, (many, 1))
    low, high = np.log([0.04, 0.35])
    scale = np.exp(rng.uniform(low, high, (many, 1))) if case.radius is None else case.radius
    radius = scale * side * np.ones((many, count))
    centre = rng.uniform(0.1, 0.9, (many, 1, 2)) * size
    if case.kind == "thin":  # A stroke of one to four pixels, there and back.
        turn, width = rng.uniform(0, np.pi, (many, 1)), rng.uniform(0.5, 2, (many, 1))
        x, y = radius * np.cos(angle), width * np.sign(np.sin(angle))
        x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    elif case.kind == "star":
        inner = rng.uniform(0.2, 0.7, (many, 1))
        radius *= np.where(np.arange(count) % 2 == 0, 1, inner)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
    else:
        waves = np.arange(1, 8)[:, None]
        phase = rng.uniform(0, 2 * np.pi, (many, 7, 1))
        bumps = rng.normal(size=(many, 7, 1)) * np.cos(waves * angle[:, None] + phase) / waves
        radius *= np.clip(1 + 0.35 * bumps.sum(1), 0.15, 2.5)
        stretch = np.exp(rng.normal(size=(many, 1)) * 0.3)
        x, y = radius * np.cos(angle) * stretch, radius * np.sin(angle) / stretch
    offset = np.stack([x, y], -1)
    true = np.clip(centre + offset, 0, size)
    extent = true.max(1, keepdims=True) - true.min(1, keepdims=True) + 1
    waves = np.arange(4)[:, None]
    turns = np.arange(count) * 2 * np.pi / count
    sway = np.cos(waves * turns + rng.uniform(0, 2 * np.pi, (many, 4, 1))) / (waves + 1)
    shift = (rng.normal(size=(many, 4, 1, 2)) * sway[..., None]).sum(1) * 0.05
    answer = np.clip(true + shift * extent, 0, size)
    return np.float32(true), np.float32(answer)


# --- Peers ---------------------------------------------------------------------------------------
#
# Each gets (module, true rings, answers, height, width), prepares what can be, and returns a
# function of the number of an answer that gives its IoU.


def _pycocotools(_, true, answers, height, width):
    import numpy as np
    from pycocotools import mask

    flat = [[ring.astype(np.float64).ravel().tolist()] for ring in answers]
    truth = [
        mask.frPyObjects([ring.astype(np.float64).ravel().tolist()], height, width) for ring in true
    ]

    def score(i):
        found = np.asarray(mask.iou(mask.frPyObjects(flat[i], height, width), truth[i], [0]))
        return found[0, 0]

    return score


def _subpixels(rings):
    import numpy as np

    return [np.round(ring * 16).astype(np.int32)[None] for ring in rings]


def _painted(cv2, rings, height, width):
    """Returns masks row by row in memory; those of pycocotools are not, and slow OpenCV down."""
    import numpy as np

    masks = np.zeros((len(rings), height, width), np.uint8)
    for mask, ring in zip(masks, _subpixels(rings), strict=True):
        cv2.fillPoly(mask, ring, 1, 8, 4)
    return masks


def _opencv_numpy(cv2, true, answers, height, width):
    import numpy as np

    cv2.setNumThreads(1)
    truth, rings = _painted(cv2, true, height, width).astype(bool), _subpixels(answers)

    def score(i):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, rings[i], 1, 8, 4)
        mask = mask.astype(bool)
        union = np.logical_or(mask, truth[i]).sum()
        return np.logical_and(mask, truth[i]).sum() / max(union, 1)

    return score


def _opencv(cv2, true, answers, height, width):
    import numpy as np

    cv2.setNumThreads(1)
    truth, rings = _painted(cv2, true, height, width), _subpixels(answers)
    areas = [cv2.countNonZero(mask) for mask in truth]
    mask, both = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)

    def score(i):
        mask[:] = 0
        cv2.fillPoly(mask, rings[i], 1, 8, 4)
        shared = cv2.countNonZero(cv2.bitwise_and(mask, truth[i], both))
        return shared / max(cv2.countNonZero(mask) + areas[i] - shared, 1)

    return score


def _scikit_image(_, true, answers, height, width):
    import numpy as np
    from skimage.draw import polygon2mask

    rows = [ring[:, ::-1] - 0.5 for ring in answers]
    truth = [polygon2mask((height, width), ring[:, ::-1] - 0.5) for ring in true[: len(rows)]]

    def score(i):
        mask = polygon2mask((height, width), rows[i])
        union = np.logical_or(mask, truth[i]).sum()
        return np.logical_and(mask, truth[i]).sum() / max(union, 1)

    return score


def _shapely(shapely, true, answers, height, width):
    del height, width
    truth = [shapely.make_valid(shapely.Polygon(ring)) for ring in true]

    def score(i):
        shape = shapely.Polygon(answers[i])
        shape = shape if shape.is_valid else shapely.make_valid(shape)
        shared = shape.intersection(truth[i]).area
        return shared / max(shape.area + truth[i].area - shared, 1e-9)

    return score


_PEERS: dict[str, Callable[..., Callable[[int], float]]] = {
    "pycocotools": _pycocotools,
    "cv2+numpy": _opencv_numpy,
    "cv2": _opencv,
    "skimage": _scikit_image,
    "shapely": _shapely,
}


# --- Measurements --------------------------------------------------------------------------------


def _ours(case: Case, true, answers):
    """Returns a function that scores a batch, its polygons on the device and the true words."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from seg_jax.geometry import bitmask, overlap, raster

    size = {"height": case.height, "width": case.width}
    used = jnp.ones((case.batch, 1, case.points), bool)
    points = jnp.asarray(answers)[:, None]
    words = raster.fill(jnp.asarray(true)[:, None], used, **size)
    area = bitmask.area(words)

    @jax.jit
    def score(points, used, words, area):
        covered, shared = raster.fill_counts(points, used, words, **size)
        union = covered + area - shared
        return jnp.where(union > 0, shared / jnp.maximum(union, 1).astype(np.float32), 0.0)

    arguments = jax.block_until_ready((points, used, words, area))
    return (lambda: jax.block_until_ready(score(*arguments))), arguments, overlap


def _compare(case: Case, data, peers: dict[str, ModuleType | None], rounds: int) -> dict[str, Any]:
    """Returns microseconds a polygon of all sides, ratios, and how far they agree."""
    import numpy as np

    true, answers = data
    ours, arguments, _ = _ours(case, true, answers)
    timed: dict[str, Callable[[], Any]] = {"ours": ours}
    many, scores = {"ours": case.batch}, {}
    for name, module in peers.items():
        if module is None:
            continue
        count = many[name] = min(case.batch, _SAMPLE.get(name, _MOST))
        score = _PEERS[name](module, true[:count], answers[:count], case.height, case.width)
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
    """Returns microseconds a polygon on the accelerator, where every edge asks every column."""
    ours, _, _ = _ours(case, *data)
    taken = harness.by_turns({"ours": ours}, rounds, time.perf_counter)["ours"]
    return {**dataclasses.asdict(case), "microseconds": 1e6 * taken / case.batch}


def _growth(base: Case, config: Config) -> list[dict[str, Any]]:
    """Returns how the cost grows with each of points, outline, height and width alone."""
    start = dataclasses.replace(base, kind="blob", points=64, radius=0.1)
    side = start.height
    changed = [dataclasses.replace(start, points=count) for count in (16, 64, 256)]
    changed += [dataclasses.replace(start, radius=radius) for radius in (0.05, 0.2, 0.4)]
    far = 0.1 * side  # The shape stays as it is while the canvas grows.
    for height, width in ((2 * side, side), (side, 2 * side), (2 * side, 2 * side)):
        changed.append(
            dataclasses.replace(start, height=height, width=width, radius=far / min(height, width))
        )
    timed, found = {}, []
    for case in changed:
        true, answers = _data(case, config.seed)
        timed[str(case)] = _ours(case, true, answers)[0]
        found.append((case, _columns(answers)))
    medians = harness.by_turns(timed, config.rounds, harness.process_seconds)
    return [
        {
            **dataclasses.asdict(case),
            "columns": columns,
            "microseconds": 1e6 * medians[str(case)] / case.batch,
        }
        for case, columns in found
    ]


def _columns(rings) -> float:
    """Returns how many columns the edges of a ring cross, on the average."""
    import numpy as np

    return float(np.abs(np.diff(rings, axis=1, append=rings[:, :1])[..., 0]).sum(1).mean())


_EDGE, _TOGGLE, _WORD = 60, 18, 18
"""Integer operations that an edge, a column of an edge and a word of the box need."""


def _roofline(case: Case, measured: dict[str, Any], config: Config) -> dict[str, Any]:
    """Returns what a polygon needs against what the processor can do and what was reached."""
    import numpy as np

    _, answers = _data(case, config.seed)
    low, high = np.floor(answers.min(1)), np.ceil(answers.max(1))
    words = float(((high - low)[:, 0] * (high[:, 1] // 32 - low[:, 1] // 32 + 1)).mean())
    columns = _columns(answers)
    operations = case.points * _EDGE + columns * _TOGGLE + words * _WORD
    size = 4 * words + 8 * case.points
    speed, bandwidth = _ceilings(config.rounds)
    floor = max(operations / speed, size / bandwidth)
    reached = measured["microseconds"]["ours"] * 1e-6
    return {
        "kind": case.kind,
        "points": case.points,
        "columns": columns,
        "words": words,
        "operations": operations,
        "bytes": size,
        "operations_per_second": speed,
        "bytes_per_second": bandwidth,
        "floor_microseconds": 1e6 * floor,
        "reached_microseconds": 1e6 * reached,
        "share_of_operations": operations / speed / reached,
        "share_of_bytes": size / bandwidth / reached,
    }


def _ceilings(rounds: int) -> tuple[float, float]:
    """Returns int32 operations and bytes a second of this core, as XLA reaches them at best."""
    import jax
    import jax.numpy as jnp

    steps, lanes = 64, 1 << 12
    small, large = jnp.arange(lanes, dtype=jnp.uint32), jnp.ones(1 << 24, jnp.uint32)

    @jax.jit
    def compute(x):
        def step(i, x):
            for shift in range(1, steps // 2 + 1):
                x = x ^ (x << (1 + shift % 30))
            return x + i.astype(jnp.uint32)

        return jax.lax.fori_loop(0, 256, step, x)

    read = jax.jit(lambda x: jax.lax.reduce(x, jnp.uint32(0), jax.lax.bitwise_xor, (0,)))
    timed = {
        "compute": lambda: jax.block_until_ready(compute(small)),
        "read": lambda: jax.block_until_ready(read(large)),
    }
    taken = harness.by_turns(timed, rounds, harness.process_seconds)
    return lanes * steps * 256 / taken["compute"], large.nbytes / taken["read"]


def _reader(case: Case, config: Config) -> dict[str, Any]:
    """Returns what reading answers costs beside scoring them, one character a token."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from seg_jax.grammar import outline, reader
    from seg_jax.records import Kind

    true, answers = _data(case, config.seed)
    size = np.array([case.width, case.height])
    texts = [outline.write_mask([ring / size]).encode() for ring in np.asarray(answers)]
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), np.int32)
    used = np.arange(longest) < np.array([len(text) for text in texts])[:, None]
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    table = reader.table([bytes([byte]) for byte in range(256)])
    read = jax.jit(
        lambda ids, used: reader.read(ids, used, table, kind=Kind.MASK, rings=1, points=case.points)
    )
    ids, used = jnp.asarray(ids), jnp.asarray(used)
    timed = {
        "read": lambda: jax.block_until_ready(read(ids, used)),
        "score": _ours(case, true, answers)[0],
    }
    taken = harness.by_turns(timed, config.rounds, harness.process_seconds)
    return {
        "tokens": longest,
        "points": case.points,
        "read_microseconds": 1e6 * taken["read"] / case.batch,
        "score_microseconds": 1e6 * taken["score"] / case.batch,
        "nanoseconds_per_token": 1e9 * taken["read"] / case.batch / longest,
        "read_over_score": taken["read"] / taken["score"],
    }


# --- Tables --------------------------------------------------------------------------------------


def _show(found: dict[str, Any]) -> None:
    """Prints the tables."""
    console.say(" ".join(f"{name} {value}" for name, value in found["machine"].items()))
    peers = [name for name in _PEERS if name not in found["missing"]]
    rows, same = [], []
    for case in found["cases"]:
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
            for g in found["growth"]
        ],
    )
    _show_rest(found)


def _show_rest(found: dict[str, Any]) -> None:
    line, read = found["roofline"], found["reader"]
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
    for case in found["accelerator"]:
        rate = math.inf if not case["microseconds"] else 1 / case["microseconds"]
        console.say(
            f"{found['machine']['device']}: {case['kind']} {case['points']}, {case['height']} px, "
            f"{case['batch']}: {rate:.3f} million polygons a second, every edge asking every column"
        )
