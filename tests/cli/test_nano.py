"""The model that comes with the package: small, whole, and as good as its card says."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import drawings
import many_processes
import numpy as np
import pytest
import safetensors
from PIL import Image

from seg_jax import checksums
from seg_jax.cli import main as shell
from seg_jax.cli import model_options, predict
from seg_jax.evaluation import task_metrics
from seg_jax.runs import evaluation, experiments
from seg_jax.tasks.referring import Mixture

NANO = experiments.load("simpleseg/nano_sft.py")
SHAPES = experiments.load("simpleseg/nano_shapes_sft.py")
LIMIT = 8 * 2**20


def test_it_is_small_and_says_how_it_was_made():
    files = [path for path in experiments.NANO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in files
    }
    with safetensors.safe_open(experiments.NANO / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize(
    "folder", [experiments.NANO, experiments.QUICKSTART_START, experiments.CLICKSTART_START]
)
def test_damage_to_a_packaged_model_is_noticed(folder):
    sums = checksums.read(folder / checksums.FILE)
    others = {
        "README.md",
        "curves.svg",
        "drawings.png",
        "example.png",
        checksums.FILE,
    }  # no part of the model
    assert sums.keys() == {*checksums.files_of(folder)} - others
    assert checksums.find_damage(folder, sums) is None


def test_it_is_the_model_of_its_configuration():
    predictor = model_options.ModelOptions().predictor()
    assert predictor.bundle.layout == SHAPES.LAYOUT
    assert predictor.bundle.task == SHAPES.TASK


@pytest.mark.slow
def test_it_outlines_scenes_that_it_has_not_seen():
    scenes = dataclasses.replace(NANO.scenes(seed=evaluation.HELD_OUT), count=64)
    predictor = model_options.ModelOptions(dtype="float32").predictor()
    task = evaluation.with_mixture(predictor.bundle.task, Mixture())
    outcome = evaluation.answer_greedily(predictor, scenes, title="nano", task=task, batch=64)
    summary = task_metrics.summarise(task, outcome)
    assert summary["giou"]["mean"] > 0.7
    assert summary["parse_rate"]["mean"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", drawings.SIZES)
def test_it_outlines_drawings_of_another_program_in_images_of_any_shape(size):
    predictor = model_options.ModelOptions(dtype="float32").predictor()
    assert drawings.giou(predictor, size, count=24) > 0.8


@pytest.mark.slow
def test_a_prediction_needs_no_checkpoint(tmp_path, capsys):
    sample = NANO.scenes(seed=3)[0]
    image = tmp_path / "scene.png"
    Image.fromarray(np.asarray(sample.image)).save(image)
    told = ["predict", "--image", str(image), "--text", sample.phrases[0][0]]
    assert shell.main(told) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "OK"
    assert predict.Config(image=Path(image)).folder == experiments.NANO


@pytest.mark.slow
def test_ctrl_c_while_it_is_compiled_is_one_line(tmp_path):
    told = tmp_path / "told"
    changes = {"JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    with told.open("wb") as file:
        life = subprocess.Popen(
            [sys.executable, "-m", "seg_jax", "evaluate", "--scenes", "64"],
            stderr=file,
            env=many_processes.environment(1, JAX_LOG_COMPILES="1", **changes),
            # Programs in the background of a script ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    end = time.monotonic() + 60
    while "Compiling jit" not in told.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    life.send_signal(signal.SIGINT)
    assert life.wait(60) == 130
    assert told.read_text().splitlines()[-1] == "seg-jax evaluate: interrupted"
