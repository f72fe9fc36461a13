"""The model that comes with the package: small, whole, and as good as its card says."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

from seg_jax.cli import asked, evaluate, nano, predict
from seg_jax.cli import main as shell
from seg_jax.inference import evaluation
from seg_jax.tasks.referring import Mixture

LIMIT = 8 * 2**20


def test_it_is_small_and_says_how_it_was_made():
    files = [path for path in asked.NANO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in files
    }
    with safetensors.safe_open(asked.NANO / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_it_is_the_model_of_its_configuration():
    predictor = asked.Asked().predictor()
    assert predictor.bundle.layout == nano.layout()
    assert predictor.bundle.task == nano.task()


@pytest.mark.slow
def test_it_outlines_scenes_that_it_has_not_seen():
    scenes = dataclasses.replace(nano.scenes(seed=evaluate.HELD_OUT), count=64)
    outcome = evaluate.run(
        asked.Asked(dtype="float32").predictor(),
        scenes,
        title="nano",
        mixture=Mixture(),
        batch=64,
    )
    summary = evaluation.summarise(outcome)
    assert summary["giou"]["mean"] > 0.7
    assert summary["parse_rate"]["mean"] == 1


@pytest.mark.slow
def test_a_prediction_needs_no_checkpoint(tmp_path, capsys):
    sample = nano.scenes(seed=3)[0]
    picture = tmp_path / "scene.png"
    Image.fromarray(np.asarray(sample.image)).save(picture)
    told = ["predict", "--image", str(picture), "--text", sample.phrases[0][0]]
    assert shell.main(told) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "OK"
    assert predict.Config(image=Path(picture)).folder == asked.NANO
