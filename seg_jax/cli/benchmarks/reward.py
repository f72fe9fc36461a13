"""Measures the reward of sampled answers on this machine's device: reading, filling, scoring.

The answers are the true ones of drawn scenes as large as COCO's images, under the task and layout
of configs/simpleseg/qwen25_vl_7b_sft.py; a clock takes the time, and the median is shown.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness, torch_peer
from seg_jax.runs import console, experiments, run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the reward."""

    prompts: int = 64
    """Prompts of a step, each about an image of its own."""
    answers: int = 8
    """Answers to each prompt."""
    columns: int = 512
    """Tokens that every answer has room for; longer ones are cut off."""
    rounds: int = 10
    """Turns of the run; the median is shown."""
    seed: int = 3
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if min(self.prompts, self.answers, self.columns, self.rounds) < 1 or self.seed < 0:
            raise ValueError(
                "reward: expected prompts, answers, columns and rounds >= 1 and a seed >= 0, got "
                f"{self.prompts}, {self.answers}, {self.columns}, {self.rounds} and {self.seed}; "
                "do: choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    import jax

    score, ids, used = _scorer(config)
    run = {"score": lambda: jax.block_until_ready(score(ids, used))}
    seconds = harness.by_turns(run, config.rounds, time.perf_counter)["score"]
    judged = score(ids, used)
    return {
        "machine": harness.machine(),
        **run_folder.plain(config),
        "mean_tokens": float(used.sum(-1).mean()),
        "mean_iou": float(judged.scores["iou"].mean()),
        "seconds": seconds,
        "microseconds_an_answer": 1e6 * seconds / (config.prompts * config.answers),
    }


def _scorer(config: Config) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns the jitted function of (ids, used) to scores, and true answers as such [B G T]."""
    import jax

    from seg_jax.data import pipeline
    from seg_jax.data.encode import Encoder
    from seg_jax.records import Rollout
    from seg_jax.runs import start
    from seg_jax.tasks.referring import Mixture
    from seg_jax.tasks.task import judge

    run = experiments.load("simpleseg/qwen25_vl_7b_sft.py")
    task = dataclasses.replace(run.TASK, mixture=Mixture())
    source = dataclasses.replace(torch_peer.large(config.seed), count=config.prompts)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = start.make_tokenizer(source, task, Path(folder))
    encoder = Encoder(tokenizer, run.LAYOUT)
    [(examples, prompts)] = pipeline.batches_in_order(source, task, encoder, batch=config.prompts)
    ids = np.zeros((config.prompts, config.answers, config.columns), np.int32)
    used = np.zeros(ids.shape, bool)
    for row, example in enumerate(examples):
        turn = tokenizer.encode(example.answer)[: config.columns]
        ids[row, :, : len(turn)], used[row, :, : len(turn)] = turn, True
    read, truth = task.reader(tokenizer.pieces), jax.device_put(prompts.truth)

    @jax.jit
    def score(ids, used):
        rollout = Rollout(ids, used, np.zeros(ids.shape, np.float32))
        return judge(task, rollout, truth, reader=read)

    return score, ids, used


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    console.table(
        f"The reward of {results['prompts']} x {results['answers']} answers",
        ("columns", "tokens", "IoU", "ms", "us an answer"),
        [
            (
                str(results["columns"]),
                f"{results['mean_tokens']:.0f}",
                f"{results['mean_iou']:.3f}",
                f"{1e3 * results['seconds']:.1f}",
                f"{results['microseconds_an_answer']:.0f}",
            )
        ],
    )
