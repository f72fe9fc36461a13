"""The log of a run: what it holds, what a killed process leaves, what a resumed run forgets."""

import json
import math

from seg_jax.training.log import Log


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_reach_the_disk_at_once_and_nan_is_null(tmp_path):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5, "bad": math.nan})
        (found,) = records(tmp_path)
    assert found.pop("seconds") >= 0
    assert found == {"stage": "sft", "step": 1, "loss": 2.5, "bad": None}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_torn_last_line_is_cut_and_the_rest_goes_on(tmp_path):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "sft", "st')
    with Log(tmp_path) as log:
        log.write("sft", 2, {"loss": 1.5})
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    path.write_text('{"stage"')
    with Log(tmp_path):
        assert path.read_text() == ""


def test_a_resumed_stage_forgets_only_its_own_records_beyond_its_checkpoint(tmp_path):
    with Log(tmp_path) as log:
        for stage in ("sft", "gspo"):
            for step in (1, 2, 3):
                log.write(stage, step, {"loss": float(step)})
        log.forget_after("gspo", 1)
        log.write("gspo", 2, {"loss": -2.0})
    found = [(record["stage"], record["step"], record["loss"]) for record in records(tmp_path)]
    assert found == [("sft", 1, 1), ("sft", 2, 2), ("sft", 3, 3), ("gspo", 1, 1), ("gspo", 2, -2)]
    assert not (tmp_path / "metrics.tmp").exists()
