"""Measures the data pipeline with packed rows against a plain PyTorch DataLoader.

Both read the same built data set with as many processes: images of COCO's sizes as JPEG, masks as
run lengths, expressions. Ours gives packed rows, pixels as bytes; the DataLoader gives batches
padded to their longest, pixels normalised. They take turns; medians of a clock are shown.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness, torch_loader, torch_peer
from seg_jax.data import packing, pipeline
from seg_jax.data.build import dataset
from seg_jax.data.encode import Encoder
from seg_jax.data.packing import Pack
from seg_jax.data.sources import Built
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.runs import console, experiments, run_folder

SIZES = {(480, 640): 0.45, (427, 640): 0.2, (640, 480): 0.2, (640, 427): 0.05, (375, 500): 0.1}
"""Height and width of images with their shares, about as in COCO."""
_WARM = 2
"""Batches that are drawn before a turn is timed: what was ready before it is gone then."""


def _full_size() -> ModuleType:
    """Returns the configuration whose rows and task are measured."""
    return experiments.load("simpleseg/qwen25_vl_7b_sft.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the pipeline."""

    images: int = 256
    """Images of the data set."""
    rows: int = 4
    """Packed rows of a batch."""
    pack: Pack = Pack()
    questions: int = 1
    """About each image, of ours, whose rows must hold so many; the DataLoader asks one."""
    batch: int = 16
    """Samples of a batch of the DataLoader."""
    workers: int = 2
    """Processes that read, of each side; 0: all is read in this one."""
    rounds: int = 3
    """Turns of each side; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        for name in ("images", "rows", "questions", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"data: expected {name} >= 1, got {getattr(self, name)}; do: choose values in "
                    "this range"
                )
        if self.seed < 0 or self.workers < 0:
            raise ValueError(
                f"data: expected a seed and workers >= 0, got {self.seed} and {self.workers}; do: "
                "choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the tables; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    lost = torch_peer.missing(*torch_loader.PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        source = data_set(config, Path(folder))
        tokenizer = tokens.train(_corpus(), folder=Path(folder) / "tokenizer")
        encoder = Encoder(tokenizer, _full_size().LAYOUT)
        ours = _Ours(config, source, encoder)
        theirs = None if lost else _Theirs(config, source, Path(folder) / "tokenizer")
        sides = {"ours": ours} | ({} if theirs is None else {"dataloader": theirs})
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for turn, (name, side) in itertools.product(range(config.rounds), sides.items()):
            console.say(f"turn {turn + 1} of {config.rounds}: {name}")
            taken[name].append(side.turn())
        results = {
            "machine": harness.machine() | {"cores": str(len(os.sched_getaffinity(0)))},
            **run_folder.plain(config),
            "missing": lost,
            "samples_per_second": {name: statistics.median(some) for name, some in taken.items()},
            "all_turns": taken,
            "useful": useful(config, source, encoder),
            "milliseconds": {"ours": ours.stations()},
        }
        if theirs is not None:
            results["milliseconds"]["dataloader"] = theirs.stations()
            speeds = results["samples_per_second"]
            results["ratio"] = speeds["ours"] / speeds["dataloader"]
        for side in sides.values():
            side.close()
    return results


class _Ours:
    """Our pipeline, beside the DataLoader."""

    def __init__(self, config: Config, source: Built, encoder: Encoder):
        self._config, self._source, self._encoder = config, source, encoder
        feed = pipeline.Feed(
            batch=config.rows,
            questions=config.questions,
            workers=config.workers,
            threads=1 if config.workers else 2,
            pack=config.pack,
            seed=config.seed,
        )
        self._batches = pipeline.batches(source, _full_size().TASK, encoder, feed=feed, rows="sft")

    def turn(self) -> float:
        """Returns samples a second over about as many as there are images."""
        for _ in range(_WARM):
            next(self._batches)
        begin, drawn = time.perf_counter(), 0
        while drawn < self._config.images * self._config.questions:
            segments = next(self._batches).tokens.segments
            drawn += int(np.sum(segments.max(1)))
        return drawn / (time.perf_counter() - begin)

    def stations(self) -> dict[str, float]:
        """Returns the milliseconds of a sample by what they are spent on, in one process."""
        config, encoder, task, watch = self._config, self._encoder, _full_size().TASK, _Watch()
        rng, pieces = np.random.default_rng(config.seed), []
        for index in range(min(config.images, 64)):
            record = watch("read", lambda index=index: self._source.record(index))
            known = index, record, watch("decode", record.pixels)
            sample = watch("masks", lambda known=known: self._source.sample(*known))
            example = watch("outline", lambda sample=sample: task.example(sample, rng))
            patches = watch(
                "scale and cut", lambda image=sample.image: encoder.image_patches(image)
            )
            made = watch(
                "tokens",
                lambda e=example, patches=patches: packing.item_from_patches(encoder, [e], patches),
            )
            pieces.append(made)
        for four in zip(*[iter(pieces)] * 4, strict=False):
            if sum(one.size.tokens for one in four) <= config.pack.tokens:
                watch(
                    "join", lambda four=four: packing.pack_row(encoder, four, config.pack), share=4
                )
        medians = watch.median_milliseconds()
        return medians | {"join": medians.get("join", float("nan"))}

    def close(self) -> None:
        """Ends the workers."""
        del self._batches


class _Theirs:
    """A plain DataLoader."""

    def __init__(self, config: Config, source: Built, tokenizer: Path):
        self._samples = torch_loader.Samples(
            source, tokenizer, _full_size().LAYOUT, _full_size().TASK, config.seed
        )
        self._loader = torch_loader.loader(
            self._samples, batch=config.batch, workers=config.workers
        )
        self._config = config
        for _ in self._loader:  # Workers start and load what they need.
            pass

    def turn(self) -> float:
        """Returns samples a second over all images, from an idle start."""
        begin, drawn = time.perf_counter(), 0
        for batch in self._loader:
            drawn += len(batch["input_ids"])
        return drawn / (time.perf_counter() - begin)

    def stations(self) -> dict[str, float]:
        """Returns the milliseconds of a sample by what they are spent on, in one process."""
        watch, samples = _Watch(), self._samples
        rows = []
        for index in range(min(self._config.images, 64)):
            record = watch("read", lambda index=index: samples.source.record(index))
            image = watch("decode", record.pixels)
            seen = watch(
                "scale, normalise and cut", lambda image=image: samples.process_image(image)
            )
            tell = functools.partial(samples.row_of_record, record, seen, index)
            rows.append(watch("masks, outline and tokens", tell))
        for start in range(0, len(rows), self._config.batch):
            some = rows[start : start + self._config.batch]
            watch("collate", lambda some=some: samples.collate(some), share=len(some))
        return watch.median_milliseconds()

    def close(self) -> None:
        """Ends the workers."""
        del self._loader


class _Watch:
    """Adds up what things take, by their names."""

    def __init__(self):
        self._taken: dict[str, list[float]] = {}

    def __call__(self, name: str, do: Callable[[], Any], *, share: int = 1) -> Any:
        begin = time.perf_counter()
        value = do()
        self._taken.setdefault(name, []).append((time.perf_counter() - begin) / share)
        return value

    def median_milliseconds(self) -> dict[str, float]:
        """Returns the median milliseconds of each."""
        return {name: 1e3 * statistics.median(some) for name, some in self._taken.items()}


def useful(config: Config, source: Built, encoder: Encoder) -> dict[str, dict[str, float]]:
    """Returns the shares of tokens and patches that are no padding, packed and otherwise."""
    feed = pipeline.Feed(
        batch=config.rows, questions=config.questions, pack=config.pack, seed=config.seed
    )
    batches = pipeline.batches(source, _full_size().TASK, encoder, feed=feed, rows="sft")
    count = max(1, config.images // (8 * config.rows))
    packed = [next(batches) for _ in range(count)]
    shares = {
        "packed": {
            "tokens": float(np.mean([batch.tokens.segments > 0 for batch in packed])),
            "patches": float(np.mean([batch.images.image >= 0 for batch in packed])),
            "images_a_row": float(np.mean([b.images.image.max(1) + 1 for b in packed])),
        }
    }
    sizes = np.array([*itertools.islice(_sizes(source, encoder, config.seed), 256)])
    layout = encoder.layout
    whole = layout.max_prompt + layout.max_answer
    shares["a_row_each"] = {
        "tokens": float(sizes[:, 0].mean() / whole),
        "patches": float(sizes[:, 1].mean() / layout.max_patches),
    }
    full_batches = sizes[: len(sizes) // config.batch * config.batch or None]
    groups = full_batches.reshape(-1, min(config.batch, len(full_batches)), 2)
    longest = (groups / groups.max(1, keepdims=True)).mean((0, 1))
    shares["padded_to_longest"] = {"tokens": float(longest[0]), "patches": float(longest[1])}
    return shares


def _sizes(source: Built, encoder: Encoder, seed: int) -> Iterator[packing.Size]:
    """Yields what samples take, one question about each image."""
    task = _full_size().TASK
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        example = task.example(source[index], np.random.default_rng([seed, index]))
        yield packing.encode_item(encoder, [example]).size


def data_set(config: Config, folder: Path) -> Built:
    """Returns a data set like RefCOCO, built as `seg-jax build folder` does."""
    rng = np.random.default_rng(config.seed)
    raw, out = folder / "raw", folder / "built"
    (raw / "images").mkdir(parents=True)
    lines = []
    with console.progress("images", config.images) as move:
        for number in range(config.images):
            lines.append(json.dumps(_draw_image(rng, raw, f"images/{number}.jpg")))
            move(number + 1, config.images, "")
    (raw / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plan = dataset.Plan(name="folder", source=raw, out=out)
    with dataset.claim_build(plan, anew=False):
        file_plan = dataset.plan_files(plan)
        parts = dataset.make_files(file_plan.tasks, workers=1, progress=lambda done: None)
        dataset.finish_build(plan, file_plan, parts)
    return Built(folders=(out,))


def _draw_image(rng: np.random.Generator, folder: Path, name: str) -> dict[str, Any]:
    """Draws an image with objects, and returns its line of a data set."""
    from PIL import Image

    which = rng.choice(len(SIZES), p=list(SIZES.values()))
    height, width = [*SIZES][which]
    image = _texture(rng, height, width)
    objects, phrases = [], []
    for number in range(int(rng.integers(2, 6))):
        outline = _blob(rng, height, width)
        objects.append({"segmentation": [outline.ravel().round(2).tolist()], "name": "thing"})
        phrases += [{"text": _phrase(rng), "objects": [number]} for _ in range(rng.integers(2, 4))]
    Image.fromarray(image).save(folder / name, "JPEG", quality=90)
    return {"image": name, "objects": objects, "phrases": phrases}


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns noise of all scales, whose JPEG is about as large as that of a photograph."""
    import cv2

    image = np.full((height, width, 3), 128.0, np.float32)
    for cell in (1, 2, 4, 8, 16, 32, 64, 128):
        small = rng.normal(size=(-(-height // cell), -(-width // cell), 3)).astype(np.float32)
        image += (16.0 if cell == 1 else 5.0 * cell**0.5) * cv2.resize(small, (width, height))
    return np.clip(image, 0, 255).astype(np.uint8)


def _blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns the outline of an object as an annotator clicks it.

    Traced and thinned out at 0.005 it has 22 vertices in the mean, as the paper's 221 tokens tell.
    """
    count = int(rng.integers(30, 90))
    angles = 2 * np.pi * np.sort(rng.random(count))
    waves = sum(
        rng.normal() * wave**-0.5 * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        for wave in range(1, int(rng.integers(6, 27)))
    )
    radius = np.clip(np.exp(rng.uniform(0.2, 0.7) * waves), 0.2, 2.2)[:, None]
    sides = rng.uniform(0.08, 0.28, 2) * [width, height]
    centre = rng.uniform(0.25, 0.75, 2) * [width, height]
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * sides + centre
    return np.clip(ring, 0, [width, height])


_WORDS = (
    ("", "left", "right", "middle", "closest", "tall", "small", "second"),
    ("red", "white", "dark", "striped", "blurry", "old", "front", "standing"),
    ("man", "woman", "giraffe", "pizza", "bus", "chair", "dog", "umbrella", "kid", "horse"),
    ("", "", "on the left", "in the back", "with a hat", "next to the wall", "holding a bag"),
)
"""What expressions are made of: three and a half words in the mean, as RefCOCO's."""


def _phrase(rng: np.random.Generator) -> str:
    words = [some[int(rng.integers(len(some)))] for some in _WORDS]
    return " ".join(filter(None, words))


def _corpus() -> list[str]:
    return [*chat.sentences(" ".join(filter(None, one)) for one in itertools.product(*_WORDS))]


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    cores = min(max(1, results["workers"]), int(results["machine"]["cores"]))
    console.table(
        f"{results['workers']} processes",
        ("", "samples a second", "a core"),
        [
            (name, f"{speed:.1f}", f"{speed / cores:.1f}")
            for name, speed in results["samples_per_second"].items()
        ],
    )
    if "ratio" in results:
        console.say(f"ours is {results['ratio']:.2f} times as fast as the DataLoader")
    console.table(
        "useful share",
        ("", "tokens", "patches"),
        [
            (name.replace("_", " "), f"{share['tokens']:.1%}", f"{share['patches']:.1%}")
            for name, share in results["useful"].items()
        ],
    )
    for name, stations in results["milliseconds"].items():
        console.table(
            f"milliseconds of a sample in one process, {name}",
            ("", "ms"),
            [(station, f"{spent:.2f}") for station, spent in stations.items()],
        )
