"""Measures what sharing prompts, refilling rows and holding answers to the grammar cost and save.

Work on prompts is counted in the operations of compiled programs, useful tokens by the sampler
itself, the rest by a clock; runs take turns and medians are shown.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import console, run_folder

_NEVER = (2**30,)
"""End tokens of answers that do not end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of rollouts."""

    prompts: int = 32
    answers: int = 8
    """Answers of each prompt, G."""
    tokens: int = 80
    """Tokens of the longest answers; all others have a tenth."""
    long_share: float = 0.1
    """Share of answers that are long."""
    rows: int = 8
    """Answers decoded at once where rows are refilled."""
    chunk: int = 1
    """Tokens between looks for free rows."""
    rounds: int = 5
    """Turns of each run; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        for name, low in (("prompts", 1), ("answers", 2), ("tokens", 20), ("rounds", 1)):
            if getattr(self, name) < low:
                raise ValueError(
                    f"rollout: expected {name} >= {low}, got {getattr(self, name)}; do: choose "
                    "values in this range"
                )
        if not 0 < self.long_share < 1 or self.seed < 0 or self.rows < 1 or self.chunk < 1:
            raise ValueError(
                "rollout: expected 0 < long-share < 1, rows and chunk >= 1 and a seed >= 0, got "
                f"{self.long_share}, {self.rows}, {self.chunk} and {self.seed}; do: choose values "
                "in this range"
            )


def main(config: Config) -> int:
    """Prints the tables; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    from seg_jax.cli.benchmarks import torch_peer

    questions = torch_peer.questions(config.prompts, config.seed)
    return {
        "machine": harness.machine(),
        **run_folder.plain(config),
        "prompt_work": _prompt_work(config, questions),
        "refill": _refill(config, questions),
        "grammar": _grammar(config, questions),
    }


def _program(questions, answers: int, tokens: int, **options: Any) -> Callable[..., Any]:
    """Returns the sampler as (params, prompts, limits) -> answers; to be jitted."""
    import jax
    from flax import nnx

    from seg_jax.models.vlm import sampler

    def sample(params, prompts, limits):
        return sampler.generate(
            nnx.merge(questions.bundle.graph, params),
            prompts.tokens,
            prompts.images,
            answers=answers,
            max_tokens=tokens,
            sampler=sampler.Sample(),
            end_ids=_NEVER,
            key=jax.random.key(0),
            kinds=prompts.truth.kind,
            limits=limits,
            **options,
        )

    return sample


def _prompt_work(config: Config, questions) -> dict[str, float]:
    """Returns compiled operations up to the first token, per answer: shared by G and unshared."""
    import jax

    copies = jax.tree.map(lambda leaf: np.repeat(leaf, config.answers, 0), questions.prompts)
    per_answer = {}
    for name, answers, prompts in (
        ("shared", config.answers, questions.prompts),
        ("unshared", 1, copies),
    ):
        # Without a loop: the compiler counts every operation once.
        program = jax.jit(_program(questions, answers, 1))
        compiled = program.lower(questions.bundle.params, prompts, None).compile()
        count = config.prompts * config.answers
        per_answer[name] = harness.operations(compiled) / count
    return per_answer | {"ratio": per_answer["unshared"] / per_answer["shared"]}


def _refill(config: Config, questions) -> dict[str, Any]:
    """Returns useful tokens and seconds of a length distribution with a tail, both ways."""
    import jax

    from seg_jax.models.vlm import sampler

    rng = np.random.default_rng(config.seed)
    shape = config.prompts, config.answers
    long = rng.random(shape) < config.long_share
    limits = np.where(long, config.tokens, config.tokens // 10).astype(np.int32)
    refill = sampler.Refill(rows=config.rows, chunk=config.chunk)
    arguments = jax.device_put((questions.bundle.params, questions.prompts, limits))
    timed, made = {}, {}
    for name, how in (("together", None), ("refilled", refill)):
        program = jax.jit(_program(questions, config.answers, config.tokens, refill=how))
        timed[name] = lambda program=program: jax.block_until_ready(program(*arguments))
        made[name] = jax.tree.map(np.asarray, timed[name]())
    taken = harness.by_turns(timed, config.rounds, time.perf_counter)
    useful = int(limits.sum())
    ids = [rollout.ids for rollout in made.values()]
    return {
        "answers": int(limits.size),
        "long": int(long.sum()),
        "useful_tokens": useful,
        "computed_tokens": {name: int(made[name].computed.sum()) for name in made},
        "useful_share": {name: useful / int(made[name].computed.sum()) for name in made},
        "seconds": taken,
        "tokens_per_second": {name: useful / taken[name] for name in taken},
        "equal_tokens": float((ids[0] == ids[1]).mean()),
    }


def _grammar(config: Config, questions) -> dict[str, float]:
    """Returns what holding answers to the grammar adds to a step of decoding.

    Answers do not end, so that both ways take as many steps.
    """
    import jax

    bundle = questions.bundle
    table = bundle.task.grammar(bundle.tokenizer.pieces, bundle.end_ids)
    arguments = jax.device_put((bundle.params, questions.prompts))
    timed = {}
    for name, grammar in (("free", None), ("held", table)):
        for length in (1, config.tokens):
            program = jax.jit(_program(questions, config.answers, length, grammar=grammar))
            timed[f"{name} {length}"] = lambda program=program: jax.block_until_ready(
                program(*arguments, None)
            )
    # What the grammar adds is small: what others take of the processors must not count.
    alone = jax.devices()[0].platform == "cpu"
    clock = harness.process_seconds if alone else time.perf_counter
    taken = harness.by_turns(timed, config.rounds, clock)
    steps = config.tokens - 1
    free, held = (
        (taken[f"{name} {config.tokens}"] - taken[f"{name} 1"]) / steps for name in ("free", "held")
    )
    return {
        "free_step_seconds": free,
        "held_step_seconds": held,
        "share_of_a_step": (held - free) / held,
        "share_of_sampling": 1 - taken[f"free {config.tokens}"] / taken[f"held {config.tokens}"],
    }


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    work, refill, grammar = results["prompt_work"], results["refill"], results["grammar"]
    console.table(
        "Work on a prompt for each of its answers",
        ("", "shared", "unshared", "ratio"),
        [
            (
                f"million operations, {results['answers']} answers",
                f"{work['shared'] / 1e6:.2f}",
                f"{work['unshared'] / 1e6:.2f}",
                f"{work['ratio']:.2f}",
            )
        ],
    )
    console.table(
        f"{refill['long']} of {refill['answers']} answers have {results['tokens']} tokens, "
        f"all others {results['tokens'] // 10}",
        ("", "rows", "useful", "computed", "share", "seconds", "tokens/s"),
        [
            (
                name,
                str(results["rows"] if name == "refilled" else refill["answers"]),
                str(refill["useful_tokens"]),
                str(refill["computed_tokens"][name]),
                f"{refill['useful_share'][name]:.1%}",
                f"{refill['seconds'][name]:.2f}",
                f"{refill['tokens_per_second'][name]:.0f}",
            )
            for name in ("together", "refilled")
        ],
    )
    console.say(f"equal tokens: {refill['equal_tokens']:.2%}")
    console.say(
        f"grammar: {1e3 * grammar['free_step_seconds']:.2f} ms a step without, "
        f"{1e3 * grammar['held_step_seconds']:.2f} ms with: {grammar['share_of_a_step']:.1%} of a "
        f"step, {grammar['share_of_sampling']:.1%} of sampling"
    )
