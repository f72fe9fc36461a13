"""Measures the reward alone on an accelerator: python .measured/reward_on_gpu.py FILE.json."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.cli.benchmarks import harness, torch_peer
from seg_jax.cli.benchmarks import raster as raster_benchmark
from seg_jax.data import pipeline
from seg_jax.data.encode import Encoder
from seg_jax.geometry import cpu_fill, raster
from seg_jax.grammar import reader
from seg_jax.records import Rollout
from seg_jax.runs.start import make_tokenizer
from seg_jax.tasks.referring import Mixture
from seg_jax.tasks.task import judge

FULL_SIZE = experiments.load("simpleseg/qwen25_vl_7b_sft.py")
PROMPTS, ANSWERS, COLUMNS = 64, 8, 512
SHAPES = (
    ("blob", 32, 512, 4096),
    ("blob", 64, 256, 4096),
    ("blob", 64, 512, 4096),
    ("blob", 64, 1024, 4096),
    ("star", 64, 512, 4096),
    ("blob", 256, 512, 4096),
    ("blob", 64, 512, 16384),
)


def seconds(run, rounds=10):
    """Returns the median seconds of a run."""
    timed = {"run": lambda: jax.block_until_ready(run())}
    return harness.by_turns(timed, rounds, time.perf_counter)["run"]


def judging():
    """Returns tokens of an answer and the seconds in which all answers are read and scored."""
    task = dataclasses.replace(FULL_SIZE.TASK, mixture=Mixture())
    source = dataclasses.replace(torch_peer.large(3), count=PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(source, task, Path(folder))
    encoder = Encoder(tokenizer, FULL_SIZE.LAYOUT)
    [(examples, prompts)] = pipeline.batches_in_order(source, task, encoder, batch=PROMPTS)
    ids = np.zeros((PROMPTS, ANSWERS, COLUMNS), np.int32)
    used = np.zeros(ids.shape, bool)
    for row, example in enumerate(examples):
        turn = tokenizer.encode(example.answer)[:COLUMNS]
        ids[row, :, : len(turn)], used[row, :, : len(turn)] = turn, True
    table = reader.table(tokenizer.pieces)
    computed = np.full(ids.shape[:2], COLUMNS, np.int32)
    rollout = Rollout(ids=ids, used=used, logp=np.zeros(ids.shape, np.float32), computed=computed)
    given = jax.device_put((rollout, prompts.truth))
    score = jax.jit(lambda rollout, truth: judge(task, table, rollout, truth))
    return float(used.sum(-1).mean()), seconds(lambda: score(*given))


def dense():
    """Returns millions of polygons a second, by shape."""
    found = {}
    for kind, points, side, batch in SHAPES:
        case = raster_benchmark.Case(kind, points, side, side, batch)
        run = raster_benchmark._ours(case, *raster_benchmark._data(case, 0))[0]
        found[f"{kind} {points}, {side} px, {batch} at once"] = batch / seconds(run) / 1e6
    return found


def serial():
    """Returns the seconds of 64 polygons in the form that CPUs use, and whether it agrees."""
    case = raster_benchmark.Case("blob", 64, 512, 512, 64)
    points = jnp.asarray(raster_benchmark._data(case, 0)[1])[:, None]
    used = jnp.ones(points.shape[:-1], bool)
    rule = raster._RULES["coco"]
    shapes = raster._shapes(points, used, rule, "union")
    fill = jax.jit(lambda shapes: cpu_fill.fill(shapes, rule, height=512, width=512))
    wanted = raster.fill(points, used, height=512, width=512)
    equal = bool((fill(shapes).reshape(wanted.shape) == wanted).all())
    return seconds(lambda: fill(shapes), 1), equal


def ceilings():
    """Returns bytes copied and integer operations a second, as XLA reaches them at best."""
    long, lanes = jnp.ones(1 << 28, jnp.float32), jnp.arange(1 << 22, dtype=jnp.uint32)

    def step(i, x):
        for shift in range(1, 33):
            x = x ^ (x << (1 + shift % 30))
        return x + i.astype(jnp.uint32)

    copy = jax.jit(lambda x: x + 1)
    compute = jax.jit(lambda x: jax.lax.fori_loop(0, 16, step, x))
    bytes_a_second = 2 * long.nbytes / seconds(lambda: copy(long))
    return bytes_a_second, lanes.size * 64 * 16 / seconds(lambda: compute(lanes))


def main(path: Path) -> None:
    """Writes all numbers."""
    tokens, judged = judging()
    copied, operations = ceilings()
    taken, equal = serial()
    found = {
        "machine": harness.machine(),
        "answers": PROMPTS * ANSWERS,
        "columns": COLUMNS,
        "mean_tokens": tokens,
        "judge_seconds": judged,
        "dense_million_polygons_a_second": dense(),
        "serial_seconds_of_64": taken,
        "serial_equal": equal,
        "copied_bytes_a_second": copied,
        "integer_operations_a_second": operations,
    }
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
