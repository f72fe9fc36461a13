"""Runs of models that are no VLM go through the programs as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import encoder_run
import jax
import pytest
import small_run
import tiny_encoder

from seg_jax.cli import main
from seg_jax.models import families
from seg_jax.runs import lowering

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() < 8, reason="needs eight CPU devices"
)


@pytest.fixture
def config(monkeypatch, tmp_path) -> str:
    """Returns the configuration file of an image encoder's run; its family is in the table."""
    monkeypatch.setitem(families.FAMILIES, "tiny_encoder", tiny_encoder.FAMILY)
    path = tmp_path / "encoder.py"
    path.write_text("import encoder_run\ndef config():\n    return encoder_run.Config()\n")
    return str(path)


def test_compile_takes_the_steps_that_a_run_has(config, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["compile", config, "--topology", "cpu:8", "--json", str(out)]
    assert (
        main.main([*words, "--mesh.tensor", "2", "--batch", "32", "--model.hidden-size", "64"]) == 0
    )
    table = capsys.readouterr().err
    assert "fit" in table
    assert "encode" in table
    told = json.loads(out.read_text())
    assert [step["step"] for step in told["steps"]] == ["fit", "encode"]
    assert (told["mesh"]["fsdp"], told["mesh"]["tensor"]) == (4, 2)
    assert told["run"]["batch"] == 32
    assert told["run"]["model"]["hidden_size"] == 64
    fit, encode = told["steps"]
    assert fit["memory"]["donated"] > 0 == encode["memory"]["donated"]
    assert fit["text"]["collectives"]

    assert main.main([*words[:4], "--only", "fit", "--hbm", "1e-6"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "fit does not fit; try more chips or a larger mesh.fsdp x mesh.tensor" in text
    assert "or a smaller batch; or more chips" in text
    assert main.main([*words[:4], "--only", "sft"]) == 1
    assert "only: expected steps among fit, encode, got ['sft']" in capsys.readouterr().err
    assert main.main([*words[:4], "--loss-chunk", "8"]) == 2
    assert "expected an option of this program, got '--loss-chunk'" in capsys.readouterr().err


def test_benchmark_measures_the_step_that_a_run_has(config, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["benchmark", "step", config, "--rounds", "2", "--batch", "8"]
    assert main.main([*words, "--json", str(out)]) == 0
    assert "only ours is measured" in " ".join(capsys.readouterr().err.split())
    told = json.loads(out.read_text())
    ours = told["ours"]
    assert len(ours["all_seconds"]) == 2
    assert ours["loss"] > 0
    assert ours["needed"] == ours["operations"]["vision"] > 0
    assert ours["gib"] > 0
    assert "transformers" not in told


def test_what_offers_no_step_is_refused(tmp_path, capsys):
    assert isinstance(encoder_run.Config(), lowering.Measurable)
    assert isinstance(small_run.sft_config(), lowering.Measurable)
    assert isinstance(small_run.gspo_config(), lowering.Lowerable)
    assert not isinstance(small_run.gspo_config(), lowering.Measurable)
    path = tmp_path / "sampled.py"
    path.write_text("import small_run\ndef config():\n    return small_run.gspo_config()\n")
    assert main.main(["benchmark", "step", str(path)]) == 2
    assert "expected a configuration of finetune" in capsys.readouterr().err
    path.write_text("def config():\n    return 3\n")
    assert main.main(["compile", str(path)]) == 2
    assert "expected a configuration of finetune or reinforce" in capsys.readouterr().err


def test_the_programs_name_no_kind_of_run():
    """What a run is made of, `compile` asks of the run."""
    folder = Path(main.__file__).parent
    text = (folder / "compile.py").read_text()
    assert "supervised" not in text
    assert "reinforcement" not in text
