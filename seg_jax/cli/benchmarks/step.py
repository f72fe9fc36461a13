"""Measures a training step of a configuration: seconds, memory, share of the peak.

Weights are random and one drawn batch is used again and again; beside it stands, for a Qwen2.5-VL,
the same model of transformers (bfloat16 weights, fused AdamW) on as many tokens and patches.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import numpy as np
from tyro.conf import arg

from seg_jax.cli import arguments
from seg_jax.cli.benchmarks import harness, torch_peer
from seg_jax.models import flops
from seg_jax.runs import console, lowering, run_folder, supervised
from seg_jax.training import hlo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement; the options of the run are laid over its configuration.

    What no step depends on, such as `out` and `loop`, is refused as an option.
    """

    given: ClassVar[Any] = None
    """The run as its configuration file has it."""
    run: Any = None
    rounds: int = 5
    """Steps that are timed one by one; the median is shown."""
    peer: bool = True
    """Whether to measure transformers too."""
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(
                f"step: expected rounds >= 1, got {self.rounds}; do: choose values in this range"
            )

    @classmethod
    def of_run(cls, run: Any) -> Config:
        """Returns the default measurement of a run; its class has the run's options.

        Raises:
          UsageError: it is no run whose training step can be measured.
        """
        if not isinstance(run, lowering.Measurable):
            raise arguments.UsageError(
                f"step: expected a configuration of finetune, got one of {type(run)}; do: give one "
                "of finetune"
            )
        fields = [("run", Annotated[type(run), arg(name="")], dataclasses.field(default=run))]
        kind = dataclasses.make_dataclass("Config", fields, bases=(cls,), frozen=True, kw_only=True)
        kind.__doc__, kind.given = cls.__doc__, run
        return kind()

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the configuration with its run as the checkpoint completes it."""
        if self.run is None:
            return self
        return dataclasses.replace(self, run=self.run.completed(checkpoint, check=check))


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    if config.run is None:
        raise arguments.UsageError(
            "step: expected a configuration file CONFIG.py of finetune, got none; do: name one "
            "before the options"
        )
    lowering.check_options(config.run, config.given or config.run)
    if getattr(config.run, "fit", False):
        raise ValueError(
            "fit: expected a step as it is, got fit; do: find its options by seg-jax compile"
        )
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    peer = None
    lost = torch_peer.reason_without_step(config.run) if config.peer else ""
    if lost:
        console.say(f"{lost}: only ours is measured")
    elif config.peer:  # In a process of its own, which leaves the device's memory to us.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peer = pool.submit(_theirs, config.run, config.rounds).result()
    ours = _ours(config.run, config.rounds)
    ours["share_of_product"] = ours["needed"] / ours["seconds"] / ours["product_per_second"]
    results = {"machine": harness.machine(), **run_folder.plain(config), "ours": ours}
    if peer is not None:
        results |= {"transformers": peer, "ratio": peer["seconds"] / ours["seconds"]}
    return results


def _ours(run: lowering.Measurable, rounds: int) -> dict[str, Any]:
    """Returns what a step takes, and what the device's best product of matrices does."""
    plan = run.plan(jax.devices()[:1])
    step, draw, dtype = run.measured_step(plan)
    with jax.set_mesh(plan.mesh):
        lowered = step.function.lower(*step.arguments)
        begin = time.monotonic()
        made = hlo.compile(lowered, step.arguments)
        compiling = time.monotonic() - begin
        current, *others = draw()
        taken = []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            current, metrics = jax.block_until_ready(made(current, *others))
            taken.append(time.perf_counter() - begin)
    memory = hlo.memory(made, lowered, step.arguments)
    loss = float(metrics["loss"])
    del current
    return {
        "seconds": float(np.median(taken[1:])),
        "all_seconds": taken[1:],
        "compile_seconds": compiling,
        "loss": loss,
        "needed": sum(step.work.get(name, 0.0) for name in flops.NEEDED),
        "operations": step.work,
        "product_per_second": harness.product_per_second(max(rounds, 10), dtype),
        "memory": dataclasses.asdict(memory),
        "gib": memory.total / 2**30,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(plan.params)),
    }


def _theirs(run: supervised.Config, rounds: int) -> dict[str, Any] | None:
    """Returns what a step of transformers takes, None without PyTorch; in a process of its own."""
    jax.config.update("jax_platforms", "cpu")  # Ours only draws the batch here.
    if torch_peer.missing("torch", "transformers"):
        return None
    import torch

    transformers = importlib.import_module("transformers")
    plan = run.plan(jax.devices("cpu")[:1])
    batch = plan.drawn_batch()
    device = torch_peer.device()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        config = transformers.Qwen2_5_VLConfig(**plan.config.to_hf())
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    if run.compute.remat != "none":
        model.gradient_checkpointing_enable()
    inputs = _rows(plan, run, batch)
    model.train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    taken = []
    try:
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            loss = model(**inputs).loss
            loss.backward()
            adamw.step()
            adamw.zero_grad()
            last_loss = float(loss.detach())  # Waits for the device.
            taken.append(time.perf_counter() - begin)
    except torch.OutOfMemoryError:
        console.say("transformers: out of memory; give a smaller --feed.batch to compare")
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"seconds": float(np.median(taken[1:])), "loss": last_loss, "gib": peak}


def _rows(plan: supervised.Plan, run: supervised.Config, batch: Any) -> dict[str, Any]:
    """Returns a batch as transformers takes it: prompt and first answer of a row in one."""
    import torch

    questions = torch_peer.Questions(plan.bundle, [], batch, plan.config, run.compute)
    inputs = torch_peer.inputs(questions, batch)
    answers = torch.tensor(np.asarray(batch.ids[:, 0])).long().to(inputs["input_ids"].device)
    used = torch.tensor(np.asarray(batch.weights[:, 0] > 0)).to(answers.device)
    ids = torch.cat([inputs["input_ids"], answers], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], used.long()], 1)
    kinds = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(answers).int()], 1)
    labels = torch.where(used, answers, -100)
    outside = torch.full_like(inputs["input_ids"], -100)
    return inputs | {"input_ids": ids, "labels": torch.cat([outside, labels], 1)}


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    ours, peer = results["ours"], results.get("transformers")
    rows = [
        ("seconds", f"{ours['seconds']:.3f}", "-" if peer is None else f"{peer['seconds']:.3f}"),
        (
            "memory, GiB",
            f"{ours['gib']:.1f}",
            "-" if peer is None or peer["gib"] is None else f"{peer['gib']:.1f}",
        ),
        ("needed, TFLOP", f"{ours['needed'] / 1e12:.4g}", ""),
        ("share of the best product", f"{ours['share_of_product']:.1%}", ""),
        ("best product, TFLOP/s", f"{ours['product_per_second'] / 1e12:.0f}", ""),
    ]
    title = f"a step of {ours['parameters'] / 1e9:.2f} billion weights"
    console.table(title, ("", "ours", "transformers"), rows)
