"""Measures the reading of boxes and clicks on one core, on the device and on the host.

The answers are the true ones of drawn scenes in the words of Seg-R1; the host reads their texts,
the device their tokens, and both say the same. The time is that of the processor.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the reader."""

    answers: int = 96
    """Answers that are read at once: 24 prompts of four."""
    columns: int = 400
    """Tokens that every answer has room for; longer ones are cut off."""
    rounds: int = 10
    """Turns of both; medians are shown."""
    seed: int = 3
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if min(self.answers, self.columns, self.rounds) < 1 or self.seed < 0:
            raise ValueError(
                "reader: expected answers, columns and rounds >= 1 and a seed >= 0, got "
                f"{self.answers}, {self.columns}, {self.rounds} and {self.seed}; do: choose values "
                "in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    return run_folder.plain(config) | harness.on_one_core(row, config)


def row(config: Config) -> dict[str, Any]:
    """Returns what an answer takes of this core, on the device and on the host by turns."""
    import jax

    texts, ids, used, pieces, task = _answers(config)
    read = task.reader(pieces)
    on_device = jax.jit(lambda ids, used: read(ids, used, None))
    runs = {
        "ours": lambda: jax.block_until_ready(on_device(ids, used)),
        "host": lambda: [task.predict(example, text) for example, text in texts],
    }
    seconds = harness.by_turns(runs, config.rounds, harness.process_seconds)
    answer, verdict = on_device(ids, used)
    told = runs["host"]()
    gap = max(
        float(
            np.abs(np.asarray(answer.points_unit[n])[: len(one.labels)] - one.points_unit).max(
                initial=0
            )
        )
        for n, one in enumerate(told)
    )
    return {
        "machine": harness.machine(),
        "mean_tokens": float(used.sum(-1).mean()),
        "differ": sum(int(one) != int(two.verdict) for one, two in zip(verdict, told, strict=True)),
        "reading": [
            {
                "columns": str(config.columns),
                "ours_microseconds": 1e6 * seconds["ours"] / config.answers,
                "host_microseconds": 1e6 * seconds["host"] / config.answers,
                "ratio": seconds["host"] / seconds["ours"],
                "largest_gap": gap,
            }
        ],
    }


def _answers(config: Config) -> tuple[list[tuple[Any, str]], np.ndarray, np.ndarray, Any, Any]:
    """Returns questions with the texts of answers, their ids [N L], what is used, pieces, task."""
    from seg_jax.data import sources
    from seg_jax.runs import start
    from seg_jax.tasks.prompted import Prompted

    task, rng = Prompted(), np.random.default_rng(config.seed)
    scenes = sources.Scenes(seed=config.seed, count=config.answers)
    examples = [task.example(scenes[n], rng) for n in range(config.answers)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = start.make_tokenizer(scenes, task, Path(folder))
    ids = np.zeros((config.answers, config.columns), np.int32)
    used, texts = np.zeros(ids.shape, bool), []
    for place, example in enumerate(examples):
        turn = tokenizer.encode(example.answer)[: config.columns]
        ids[place, : len(turn)], used[place, : len(turn)] = turn, True
        texts.append((example, tokenizer.decode(turn)))
    return texts, ids, used, tokenizer.pieces, task


def _show(results: dict[str, Any]) -> None:
    harness.show_ratios(
        results,
        f"Reading {results['answers']} answers of {results['mean_tokens']:.0f} tokens, "
        f"{results['differ']} verdicts apart",
        rows="reading",
        name="columns",
        peer=("host", "host_microseconds"),
    )
