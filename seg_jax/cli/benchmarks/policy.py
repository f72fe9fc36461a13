"""Measures a step of GSPO with images against TRL's trainer: sampling, judging and learning.

Both sides start from the same weights, get the same images and questions and make as many
answers of at most the same length from them. Both read the images anew in every step and take
turns, a step each, on all cores of the machine; medians of a clock are shown, first steps left out.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import console, run_folder

_CLIPS = 3e-4, 4e-4
_FORMAT = 0.1
"""Weight of an answer that can be read in the reward; that of its IoU is 1."""
_WARM = 2
"""First steps, which are not counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of a step."""

    prompts: int = 4
    """Prompts of a step."""
    answers: int = 8
    """Answers of each prompt, G."""
    tokens: int = 28
    """Tokens of an answer at most."""
    rounds: int = 5
    """Steps of each side that are counted."""
    lr: float = 1e-6
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        for name, low in (("prompts", 1), ("answers", 2), ("tokens", 2), ("rounds", 1)):
            if getattr(self, name) < low:
                raise ValueError(
                    f"policy: expected {name} >= {low}, got {getattr(self, name)}; do: choose "
                    "values in this range"
                )
        if self.seed < 0 or self.lr <= 0:
            raise ValueError(
                f"policy: expected a seed >= 0 and lr > 0, got {self.seed} and {self.lr}; do: "
                "choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    from seg_jax.cli.benchmarks import torch_peer

    lost = torch_peer.missing("torch", "transformers", "trl", "PIL", "cv2")
    questions = torch_peer.questions(config.prompts, config.seed)
    ours, logged = _ours(config, questions)
    steps: dict[str, list[dict[str, float]]] = {"ours": []}

    def turn() -> None:
        begin = _clocks()
        metrics = ours()
        steps["ours"].append(_since(begin) | {name: metrics[key] for name, key in logged})

    if lost:
        for _ in range(_WARM + config.rounds):
            turn()
    else:
        steps["trl"] = _train(config, questions, turn)
    counted = {
        side: {name: statistics.median(step[name] for step in made[_WARM:]) for name in made[_WARM]}
        for side, made in steps.items()
    }
    results = {
        "machine": harness.machine(),
        **run_folder.plain(config),
        "missing": lost,
        "steps": steps,
        "median": counted,
    }
    if "trl" in counted:
        for name in ("seconds", "processor_seconds"):
            ratio = counted["trl"][name] / counted["ours"][name]
            results["ratio" if name == "seconds" else "processor_ratio"] = ratio
    return results


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), harness.process_seconds()


def _since(begin: tuple[float, float]) -> dict[str, float]:
    """Returns the seconds that have passed, and those that processors worked for this process."""
    now = _clocks()
    return {"seconds": now[0] - begin[0], "processor_seconds": now[1] - begin[1]}


def _ours(config: Config, questions) -> tuple[Callable[[], dict[str, float]], tuple]:
    """Returns a step of ours, from images to new weights, and the names and keys of its metrics."""
    import jax

    from seg_jax.models.parallel import sharding
    from seg_jax.training import optimizers, policy, state
    from seg_jax.training import steps as jitted_steps

    bundle, examples = questions.bundle, questions.examples
    adam = optimizers.AdamW(lr=config.lr, schedule=optimizers.Schedule(warmup=0.0, final=1.0))
    sampling = jitted_steps.Sampling(answers=config.answers, max_tokens=config.tokens)
    rules = policy.Policy(minibatches=1, clip_low=_CLIPS[0], clip_high=_CLIPS[1], spread="sample")
    actor = jitted_steps.Actor(bundle.graph, bundle.tokenizer)
    draw = jitted_steps.sampler(actor, sampling, seed=config.seed, task=bundle.task)
    weights = {"iou": 1.0, "format": _FORMAT}
    learn = jitted_steps.reinforcing_step(
        actor, bundle.task, policy=rules, weights=weights, optimizer=adam, sampling=sampling
    )
    mesh = harness.mesh(config.prompts)
    begin = state.fresh(bundle.params, optimizers.build(adam), horizon=1000)
    now = jax.device_put(begin, sharding.shardings(begin, mesh))
    place = sharding.batch(mesh, config.prompts)

    def step() -> dict[str, float]:
        nonlocal now
        with jax.set_mesh(mesh):
            rows = [bundle.encoder.prompt_row(bundle.task, example) for example in examples]
            prompts = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), place)
            now, metrics = learn(now, prompts, draw(now.params, prompts, now.step), None)
            return {name: float(value) for name, value in metrics.items()}

    return step, (("reward", "reward"), ("tokens", "length/mean"))


def _train(config: Config, questions, turn: Callable[[], None]) -> list[dict[str, float]]:
    """Returns the steps of TRL's trainer; after each of them ours has its turn."""
    transformers, trl = map(importlib.import_module, ("transformers", "trl"))
    from seg_jax.cli.benchmarks import torch_peer

    made: list[dict[str, float]] = []

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = _clocks()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            made.append(_since(self.begin))
            turn()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                made[-1]["reward"] = logs["reward"]
                made[-1]["tokens"] = logs["completions/mean_length"]

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Of names that newer versions have.
        trainer = trl.GRPOTrainer(
            torch_peer.model(questions),
            _reward(questions),
            args=_arguments(config, folder),
            train_dataset=_dataset(questions),
            processing_class=torch_peer.processor(questions),
            callbacks=[Turns()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return made


def _dataset(questions) -> Any:
    """Returns the questions as TRL takes them."""
    import datasets
    from PIL import Image

    rows = [
        {
            "prompt": [{"role": "user", "content": example.question}],
            "image": Image.fromarray(example.image),
            "number": number,
        }
        for number, example in enumerate(questions.examples)
    ]
    return datasets.Dataset.from_list(rows)


def _arguments(config: Config, folder: str) -> Any:
    """Returns TRL's settings of the same step."""
    from seg_jax.cli.benchmarks import torch_peer

    return importlib.import_module("trl").GRPOConfig(
        output_dir=folder,
        use_cpu=torch_peer.device() == "cpu",
        bf16=False,
        seed=config.seed,
        per_device_train_batch_size=config.prompts * config.answers,
        num_generations=config.answers,
        max_completion_length=config.tokens,
        importance_sampling_level="sequence",
        loss_type="grpo",
        beta=0.0,
        epsilon=_CLIPS[0],
        epsilon_high=_CLIPS[1],
        temperature=1.0,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        max_steps=_WARM + config.rounds,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _reward(questions) -> Callable[..., list[float | None]]:
    """Returns the reward for TRL: IoU by OpenCV, and whether the answer can be read."""
    import cv2

    from seg_jax.grammar import outline
    from seg_jax.records import Kind, Verdict

    def one(text: str, mask: np.ndarray) -> float:
        reading = outline.read(text, Kind.MASK)
        if not reading.rings:
            return 0.0
        size = np.array(mask.shape[::-1])
        rings = [np.floor(ring * size).astype(np.int32) for ring in reading.rings]
        drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), rings, 1).astype(bool)
        iou = (drawn & mask).sum() / max(1, (drawn | mask).sum())
        return float(iou) + _FORMAT * (reading.verdict == Verdict.OK)

    def reward(completions: list, number: list[int], **_: Any) -> list[float | None]:
        texts = [completion[0]["content"] for completion in completions]
        masks = [questions.examples[index].mask for index in number]
        return [one(text, mask) for text, mask in zip(texts, masks, strict=True)]

    return reward


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    console.table(
        f"{results['prompts']} images x {results['answers']} answers of up to {results['tokens']}",
        ("", "seconds", "of processors", "reward", "tokens"),
        [
            (
                side,
                f"{medians['seconds']:.3f}",
                f"{medians['processor_seconds']:.3f}",
                f"{medians['reward']:.3f}",
                f"{medians['tokens']:.1f}",
            )
            for side, medians in results["median"].items()
        ],
    )
    if "ratio" in results:
        console.say(
            f"TRL takes {results['ratio']:.1f} times as long, "
            f"and {results['processor_ratio']:.1f} times as much of the processors"
        )
