"""Compiles fills of 256 shapes of 64 vertices for a TPU v5e; prints the schedules of their loops.

Usage: python fill_on_tpu.py SIDE NAME[,NAME..] FOLDER; NAME is fill, shared or dense (what devices
without a kernel run), FOLDER is empty and takes what the compiler dumps. Needs libtpu, but no TPU.
A bundle is what a core does in a cycle unless it waits; how often a loop runs depends on the
shapes.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from pathlib import Path

SHAPES, POINTS = 256, 64
Loop = tuple[int, int]


def loops(text: str) -> list[Loop]:
    """Returns the first bundle of each loop of a schedule, and one beyond its last, in order."""
    begin, found = {}, []
    for line in text.splitlines():
        place = re.match(r"\s*(0x[0-9a-f]+|0) +(?:(LB)|[A-Z]{2})? *:", line)
        if place is None:
            continue
        number = int(place[1], 16)
        if place[2]:
            begin |= dict.fromkeys(re.findall(r"Start region (\d+)", line), number)
        back = re.search(r"sbr\.rel \(!%\w+\) target = \$region(\d+)", line)
        if back and back[1] in begin:
            found.append((begin[back[1]], number + 5))  # A branch acts four bundles later.
    return sorted(found)


def within(loop: Loop, others: list[Loop]) -> list[Loop]:
    """Returns the loops that lie in another one."""
    return [one for one in others if loop[0] <= one[0] and one[1] <= loop[1] and one != loop]


def size(path: Path) -> int:
    """Returns the bundles of a schedule."""
    return len(re.findall(r"^ *0(?:x[0-9a-f]+)? .*:", path.read_text(), re.MULTILINE))


def schedules(folder: Path) -> dict[str, Path]:
    """Returns where the schedule of each operation lies; those that are the same share one."""
    (same,) = folder.glob("*-TLP-*-deduplication-map.txt")
    groups = re.findall(r"^equivalent_hlos.*\n((?:  .*\n)*)", same.read_text(), re.MULTILINE)
    found = {}
    for path in folder.iterdir():
        name = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name)
        if name and not name[1].endswith("schedule-analysis"):
            found[name[1]] = path
    for group in map(str.split, groups):
        known = [found[name] for name in group if name in found]
        found |= dict.fromkeys(group, known[0]) if known else {}
    return found


def kernel(folder: Path, name: str) -> dict[str, int | list[int]]:
    """Returns bundles of a kernel: all, those a shape costs aside from loops, and of its loops.

    The loops of a shape: edges turned, straight edges, other edges, tiles filled.
    """
    (path,) = (path for key, path in schedules(folder).items() if key.partition(".")[0] == name)
    found = loops(path.read_text())
    passes = max(found, key=lambda loop: loop[1] - loop[0])
    shape = max(within(passes, found), key=lambda loop: loop[1] - loop[0])
    inner = [end - begin for begin, end in within(shape, found)]
    return {"all": size(path), "shape": shape[1] - shape[0] - sum(inner), "loops": inner}


def dense(folder: Path, program: str) -> float:
    """Returns bundles per edge of the loop of a program: each fusion as often as it is run."""
    parts = re.split(r"\n(?=%|ENTRY)", program)
    body = re.search(r"while\(.*?body=%([\w.\-]+)", program)[1]
    (body,) = (part for part in parts if part.startswith(f"%{body} "))
    found, total = schedules(folder), 0
    for name, line in re.findall(r"%([\w.\-]+) = (.* (?:fusion|copy)\(.*)", body):
        times = re.search(r'"iteration_bounds":\[([^\]]*)\]', line)
        times = math.prod(map(int, re.findall(r"\d+", times[1]))) if times else 1
        total += size(found[name]) * times if name in found else 0
    return total / (8 * SHAPES)


def main(side: str, names: str, folder: str) -> None:
    """Prints a line of JSON for each name: seconds to compile, bytes of temporaries, schedule."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Every pass of the compiler would take longer to write down than to run.
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication",
    }
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from seg_jax.geometry import bitmask, raster

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=(2, 2, 1)
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    size = {"height": int(side), "width": int(side)}

    def plain(points, used, words):
        shapes = raster._shapes(raster._steps(points, "coco"), used, "union")
        filled = raster._dense(shapes, raster._RULES["coco"], **size)
        return bitmask.area(filled), bitmask.area(filled & words)

    functions = {
        "fill": lambda points, used, words: raster.fill(points, used, **size),
        "shared": lambda *given: raster.fill_counts(*given, **size),
        "dense": plain,
    }
    shapes = {
        (SHAPES, 1, POINTS, 2): jnp.float32,
        (SHAPES, 1, POINTS): jnp.bool_,
        (SHAPES, -(-int(side) // 32), int(side)): jnp.uint32,
    }
    given = [jax.ShapeDtypeStruct(s, dtype, sharding=place) for s, dtype in shapes.items()]
    for name in names.split(","):
        lowered = jax.jit(functions[name]).lower(*given)
        begin = time.perf_counter()
        program = lowered.compile()
        seconds, where = time.perf_counter() - begin, Path(folder) / name
        dumped = [path for path in Path(folder).iterdir() if path.is_file()]
        where.mkdir()
        for path in dumped:
            path.rename(where / path.name)
        if name == "dense":
            schedule = dense(where, program.as_text())
        else:
            schedule = kernel(where, "fill" if name == "fill" else "fill_counts")
        temporary = program.memory_analysis().temp_size_in_bytes
        print(json.dumps({"seconds": seconds, "temporary": temporary, "schedule": schedule}))


if __name__ == "__main__":
    main(*sys.argv[1:])
