"""A run of toy steps over all devices of its processes, for tests to kill and to resume."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from seg_jax.data import passing, pipeline
from seg_jax.models.parallel import sharding
from seg_jax.training import cluster, loop, processes, state
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Log, SilentLog

BATCH, WIDTH = 8, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a test asks of it."""

    out: Path
    processes: cluster.Processes = cluster.Processes()
    loop: loop.Loop = loop.Loop(steps=12, log_every=1, save_minutes=1e-9)
    seconds: float = 0.0
    """Of each step, at least."""
    fail: str = ""
    """INDEX:STEP:WHAT, where WHAT is `raise` or `hang`."""


def main(config: Config) -> None:
    """Runs to the end, or as the config says."""
    with processes.join(config.processes):
        _run(config)


def _run(config: Config) -> None:
    mesh = sharding.mesh()
    rows = sharding.batch(mesh, BATCH)
    numbers = grain.MapDataset.range(1000).seed(1).shuffle().repeat().map(_Row())
    held = pipeline.local_rows(rows, BATCH)
    local = pipeline._LocalRows(passing.PassOver(numbers), BATCH, tuple(held))
    batches = pipeline.Batches(local, pipeline.Feed(batch=BATCH), len(held))
    kernel = np.ones((2, WIDTH, 4), np.float32)
    params = {"q": {"kernel": jnp.asarray(kernel)}}
    moments = {"m": {"q": {"kernel": jnp.zeros_like(kernel)}}}
    first = state.State(jnp.int32(0), jnp.int32(config.loop.steps), params, moments)
    current = sharding.place(first, sharding.shardings(first, mesh))
    checkpoints = Checkpoints(config.out / "state")
    seconds = 0.0
    if checkpoints.latest() is not None:
        current, record = checkpoints.restore(current, batches, warn=print)
        seconds = record["seconds"]
    log = Log(config.out) if processes.is_first() else SilentLog()
    log.forget_after("toy", int(current.step))
    with jax.set_mesh(mesh), log:
        end, _ = loop.run(
            config.loop,
            _body(config, batches, rows),
            current,
            stage="toy",
            log=log,
            checkpoints=checkpoints,
            iterator=batches,
            record={},
            progress=lambda *told: None,
            seconds_before=seconds,
        )
    checkpoints.close()
    whole = sharding.gather(end.params)
    if processes.is_first():
        np.save(config.out / "end.npy", np.asarray(whole["q"]["kernel"]))


class _Row(grain.transforms.Map):
    def map(self, element: int) -> np.ndarray:
        return np.array([element], np.float32)


@jax.jit
def _step(current: state.State, batch: jax.Array) -> tuple[state.State, dict[str, jax.Array]]:
    noise = jax.random.normal(state.step_key(0, current.step), (2, WIDTH, 4))
    grad = 1e-3 * batch.mean() * noise
    params = jax.tree.map(lambda w: 0.9 * w + grad, current.params)
    moments = jax.tree.map(lambda m: 0.5 * m + grad, current.moments)
    metrics = {"loss": sum(jnp.abs(w).sum() for w in jax.tree.leaves(params))}
    # Weights tell which samples came, and in which order.
    metrics |= {f"row{i}": batch[i, 0] for i in range(BATCH)}
    after = sharding.constrain_weights(
        current._replace(step=current.step + 1, params=params, moments=moments)
    )
    return after, metrics


def _body(config: Config, batches: pipeline.Batches, rows: jax.sharding.Sharding) -> Callable:
    index, step, what = (*config.fail.split(":"), "", "", "")[:3]

    def body(current: state.State) -> tuple[state.State, dict[str, jax.Array]]:
        time.sleep(config.seconds)
        number = int(current.step) + 1
        (config.out / f"at-{number}-{jax.process_index()}").touch()
        if what and number == int(step) and jax.process_index() == int(index):
            if what == "raise":
                raise ValueError("the disk of this one is full")
            os.kill(os.getpid(), 19)  # SIGSTOP: alive, but silent.
        return _step(current, pipeline.to_device(next(batches), rows, rows=BATCH))

    return body


if __name__ == "__main__":
    main(tyro.cli(Config))
