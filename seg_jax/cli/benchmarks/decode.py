"""Measures the sampler against `generate` of transformers: same model, questions and lengths.

Both sides get prompts that are ready and all cores of the machine; runs take turns and medians of
a clock are shown. No answer ends before its last token.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness, torch_peer
from seg_jax.runs import console, run_folder

GROUP = 8
"""Answers per prompt where they share it."""
_NEVER = (2**30,)
"""End tokens of answers that do not end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the sampler."""

    size: torch_peer.Size = "tiny"
    """Model: the quickstart's, or Qwen2.5-VL with random weights in bfloat16 (for GPUs)."""
    rows: int = 64
    """Answers at once; a multiple of 8."""
    groups: tuple[int, ...] = (1, GROUP)
    """Answers that share a prompt; each makes a case."""
    tokens: int = 64
    """Tokens of each answer."""
    peer: bool = True
    """Whether to measure transformers too."""
    rounds: int = 5
    """Turns of each run; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if self.rows < GROUP or self.rows % GROUP or not 2 <= self.tokens <= 1024:
            raise ValueError(
                f"decode: expected rows of a multiple of {GROUP} and 2 to 1024 tokens, got "
                f"{self.rows} rows and {self.tokens} tokens; do: choose values in this range"
            )
        if not self.groups or any(group < 1 or self.rows % group for group in self.groups):
            raise ValueError(
                f"groups: expected divisors of the {self.rows} rows, got {self.groups}; do: choose "
                "values in this range"
            )
        if self.rounds < 1 or self.seed < 0:
            raise ValueError(
                f"decode: expected rounds >= 1 and a seed >= 0, got {self.rounds} and {self.seed}; "
                "do: choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the tables; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    lost = torch_peer.missing("torch", "transformers") if config.peer else []
    count = config.rows // min(config.groups)
    questions = torch_peer.questions(count, config.seed, config.size)
    peer = torch_peer.model(questions, config.size) if config.peer and not lost else None
    cases = [_compare(config, questions, peer, group) for group in config.groups]
    ceilings = _ceilings(config.rounds, questions.compute.dtype)
    return {
        "machine": harness.machine(),
        **run_folder.plain(config),
        "missing": lost,
        "cases": cases,
        "ceilings": ceilings,
        "utilisation": _utilisation(config, questions, cases, ceilings),
    }


def _compare(config: Config, questions, peer: Any, group: int) -> dict[str, Any]:
    """Returns seconds and agreement of `group` answers to each of rows / group prompts."""
    import jax

    count = config.rows // group
    prompts = jax.tree.map(lambda leaf: leaf[:count], questions.prompts)
    ours = {
        name: _ours(questions.bundle, prompts, group, length)
        for name, length in (("ours", config.tokens), ("first token", 1))
    }
    timed: dict[str, Any] = dict(ours)
    if peer is not None:
        timed["transformers"] = _theirs(peer, questions, prompts, group, config.tokens)
    taken = harness.by_turns(timed, config.rounds, time.perf_counter)
    made = config.rows * config.tokens
    results = {
        "prompts": count,
        "answers": group,
        "tokens_per_second": {name: made / taken[name] for name in taken if name != "first token"},
        "prefill_share": taken["first token"] / taken["ours"],
        "seconds": taken,
    }
    if peer is not None:
        results["ratio"] = taken["transformers"] / taken["ours"]
        if group == 1 and config.size == "tiny":  # Else the weights are not the same.
            same = np.asarray(timed["ours"]().ids)[:, 0] == timed["transformers"]()
            results["equal_tokens"] = float(same.mean())
    return results


def _ours(bundle, prompts, group: int, tokens: int) -> Any:
    """Returns the run of our sampler."""
    import jax
    from flax import nnx

    from seg_jax.models.parallel import sharding
    from seg_jax.models.vlm import sampler as samplers

    sampler = samplers.Greedy() if group == 1 else samplers.Sample()
    mesh = harness.mesh(len(prompts.tokens.ids))

    @jax.jit
    def sample(params, prompts):
        return samplers.generate(
            nnx.merge(bundle.graph, params),
            prompts.tokens,
            prompts.images,
            answers=group,
            max_tokens=tokens,
            sampler=sampler,
            end_ids=_NEVER,
            key=jax.random.key(0),
        )

    whole = jax.NamedSharding(mesh, jax.P())
    places = sharding.batch(mesh, len(prompts.tokens.ids))
    params, inputs = jax.device_put((bundle.params, prompts), (whole, places))

    def run():
        with jax.set_mesh(mesh):
            return jax.block_until_ready(sample(params, inputs))

    return run


def _theirs(peer: Any, questions, prompts, group: int, tokens: int) -> Any:
    """Returns the run of transformers' `generate`: of every prompt `group` copies, as it has it."""
    import jax
    import torch

    copies = jax.tree.map(lambda leaf: np.repeat(leaf, group, 0), prompts)
    inputs = torch_peer.inputs(questions, copies)
    start = inputs["input_ids"].shape[1]
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = questions.bundle.tokenizer.pad_id
    options = {"do_sample": False} if group == 1 else {"do_sample": True, "top_k": 0}

    def run():
        with torch.inference_mode():
            made = peer.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        return made[:, start:].cpu().numpy()  # Waits for the device too.

    return run


def _ceilings(rounds: int, dtype: str) -> dict[str, float]:
    """Returns operations of a dtype and bytes copied a second, as XLA reaches them at best."""
    import jax
    import jax.numpy as jnp

    long = jnp.ones(16 * (1024 if jax.devices()[0].platform == "cpu" else 8192) ** 2)
    copy = jax.jit(lambda x: x + 1)
    run = {"copy": lambda: jax.block_until_ready(copy(long))}
    taken = harness.by_turns(run, rounds, time.perf_counter)
    return {
        "operations_per_second": harness.product_per_second(rounds, dtype),
        "bytes_per_second": 2 * long.nbytes / taken["copy"],
    }


def _utilisation(
    config: Config, questions, cases: list[dict[str, Any]], ceilings: dict[str, float]
) -> list[dict[str, float]]:
    """Returns what the decoding of each case, without its prompts, makes of the machine."""
    from seg_jax.models import flops

    counter = flops.Counter(questions.config, questions.compute)
    weights, entry = _read_bytes(questions)
    behind = questions.prompts.tokens.ids.shape[1]
    rows = []
    for case in cases:
        parts = counter.decode(case["prompts"], case["answers"], config.tokens, behind=behind)
        seconds = case["seconds"]["ours"] - case["seconds"]["first token"]
        reach = case["prompts"] * behind + config.rows * config.tokens / 2  # On the average.
        size = (config.tokens - 1) * (weights + entry * reach)
        done = sum(flops.without_gradient(parts).values())
        rows.append(
            {
                "operations": done,
                "bytes": float(size),
                "share_of_operations": done / seconds / ceilings["operations_per_second"],
                "share_of_bytes": size / seconds / ceilings["bytes_per_second"],
            }
        )
    return rows


def _read_bytes(questions) -> tuple[int, int]:
    """Returns the bytes of all weights that decoding reads, and of a token's keys and values."""
    import jax
    from flax import nnx

    params = nnx.to_pure_dict(questions.bundle.params)
    tied = questions.config.tie_word_embeddings
    unread = {"vision"} if tied else {"vision", "embed"}
    read = {name: part for name, part in params.items() if name not in unread}
    leaves, text = jax.tree.leaves(read), questions.config.text
    entry = 2 * leaves[0].dtype.itemsize * text.num_hidden_layers * text.num_key_value_heads
    entry *= text.hidden_size // text.num_attention_heads
    return sum(leaf.nbytes for leaf in leaves), entry


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    rows = []
    for case, used in zip(results["cases"], results["utilisation"], strict=True):
        speed = case["tokens_per_second"]
        peer = speed.get("transformers")
        rows.append(
            (
                f"{case['prompts']} x {case['answers']}",
                f"{speed['ours']:.0f}",
                "-" if peer is None else f"{peer:.0f}",
                "-" if peer is None else f"{case['ratio']:.1f}",
                f"{case['prefill_share']:.0%}",
                f"{used['share_of_operations']:.0%}",
                f"{used['share_of_bytes']:.0%}",
            )
        )
    console.table(
        f"Answers of {results['tokens']} tokens; shares of the machine's best",
        ("prompts", "ours, tok/s", "generate", "ratio", "prefill", "operations", "bytes"),
        rows,
    )
    console.say("bytes: against a copy through memory; what fits a cache can be read faster")
    if "equal_tokens" in results["cases"][0]:
        console.say(f"equal greedy tokens: {results['cases'][0]['equal_tokens']:.2%}")
