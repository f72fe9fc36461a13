"""Sends thousands of requests, some broken or given up, to a server whose model is a stand-in.

`python tests/serving/fault_run.py 10000` prints what came of them and how the memory grew; the
device, which `seg-jax benchmark serve --faulty 0.25` has beside it, costs nothing here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import pytest
import scripted

from seg_jax.cli.benchmarks import serve
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.serving.limits import Limits

SHARE = 0.25
"""Requests that are broken or given up."""


def run(count: int, *, clients: int = 16) -> dict[str, Any]:
    """Returns what came of the requests, and what the engine holds after them."""
    limits = Limits(requests=1024, waiting=1024, seconds=600.0)
    sizes = Sizes(slots=8, chunk=8)
    image = scripted.data_uri(scripted.picture(96, 96))
    bodies = [json.dumps({"image": image, "text": f"thing {n}"}).encode() for n in range(32)]
    asked = [(None, "", body) for body in bodies]
    config = serve.Config(requests=count, rounds=1, faulty=SHARE, clients=(clients,))
    with (
        pytest.MonkeyPatch.context() as patch,
        scripted.serve(patch, limits=limits, sizes=sizes) as served,
    ):
        port = int(served.address.rpartition(":")[2])
        found = serve._faults(config, port, asked)
        engine, service = served.service.answering.engine, served.service
        scripted.wait_for(lambda: service.seats == limits.requests)
        scripted.wait_for(lambda: not engine.taken)
        return found | {"engine": vars(engine.counts) | {"waiting": engine.waiting}}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1])), indent=1))
