"""A minute of fuzzing with fixed seeds, and proof that the harness sees what it should."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NAMES = (
    "coco",
    "panoptic",
    "refer",
    "refclef",
    "grefs",
    "masks",
    "reasonseg",
    "folder",
    *(["parquet"] if importlib.util.find_spec("pyarrow") else []),  # As the reader does without.
    "png",
    "jpeg",
    "webp",
    "bmp",
    "gif",
    "tiff",
    "ppm",
    "built",
    "array_record",
    "example",
    "parts",
    "yolo",
    "labelme",
    "label_studio",
    "cvat",
    "voc",
    "conversations",
    "safetensors",
    "torch_archive",
    "index",
    "tokenizer",
    "tiktoken",
    "template",
    "bundle",
    "hub",
    "answer",
    "answers",
    "checkpoint",
    "metrics",
    "run",
    "http",
    "conversion",
    "shards",
    "questions",
    "journal",
)
CASES = 120
"""Of each format; about a minute in all on a quiet machine."""


def run(program, *words):
    """Returns what a program of this folder prints; it runs in a process that knows no JAX yet."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, FOLDER / program, *words],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment,
    )


def test_the_harness_sees_every_kind_of_fault():
    done = run("planted_faults.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: one["kinds"][0] for name, one in found.items() if one["kinds"]} == {
        "a type": "TypeError",
        "a form": "ValueError in another form",
        "an error while it tells": "ValueError in another form",
        "a panic": "Panic",
        "slow": "slow",
        "asleep": "stalled",
        "large": "memory",
        "a crash": "ended the process, status 11",
        "an exit": "ended the process, status 768",
        "a terminal": "output with control characters",
        "a file elsewhere": "writes outside",
        "a program": "starts a program",
    }
    assert all(one["numbers"] == [0, 1] for one in found.values() if one["kinds"])
    assert found["nothing"]["read"] == 2
    # Lines are escaped and cut where they are printed.
    refused = ("a line", "a missing file", "a control character", "a long line")
    assert all(found[name]["refused"] == 2 for name in refused)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Returns what came of the cases of every format."""
    path = tmp_path_factory.mktemp("fuzz") / "numbers.json"
    done = run("run.py", "--cases", str(CASES), "--seed", "20", "--json", str(path))
    assert path.exists(), done.stderr
    found = json.loads(path.read_text())
    assert tuple(found) == NAMES, "expected every format by its name above"
    return found


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_read_or_refused_in_one_line(outcomes, name):
    outcome = outcomes[name]
    assert outcome["valid"] == [], "expected the valid files to be read"
    assert outcome["read"] > 0
    assert outcome["causes"] == []
