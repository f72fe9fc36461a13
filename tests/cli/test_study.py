"""Studies: variants of one setting, trained and compared on the same unseen scenes."""

import json
import types

import numpy as np
import pytest
import small_run
from cheap_runs import interrupt

from seg_jax.cli import study
from seg_jax.evaluation import task_metrics
from seg_jax.records import Kind
from seg_jax.runs import chapters, experiments, stage
from seg_jax.tasks.referring import RegionExample

FILE = """
import dataclasses
from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments
from seg_jax.training import optimizers

def few(run, **changes):
    return dataclasses.replace(
        run,
        feed=dataclasses.replace(run.feed, batch=8),
        optimizer=optimizers.AdamW(),
        loop=dataclasses.replace(run.loop, steps=3),
        validate=dataclasses.replace(run.validate, samples=2, every=2),
        source=dataclasses.replace(run.source, count=8),
        **changes,
    )

def config():
    sft = few(experiments.load("simpleseg/quickstart_sft.py").config())
    gspo = few(experiments.load("simpleseg/quickstart_gspo.py").config())
    more = dataclasses.replace(sft, loop=dataclasses.replace(sft.loop, steps=2))
    return Study(
        title="a study",
        variants=(
            Variant(name="SFT only", sft=sft),
            Variant(name="then GSPO", sft=sft, gspo=gspo),
            Variant(name="then more", sft=sft, more_sft=more),
            Variant(name="GSPO only", gspo=gspo),
        ),
    )
"""
SHIPPED = ("points", "epsilon", "reward", "order", "stages", "options", "several")


@pytest.fixture(autouse=True, scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        small_run.on_one_device(patch)
        yield


@pytest.mark.slow
def test_a_study_that_is_interrupted_resumes_to_the_same_table(
    run, steps, reinforcing, answers, given, tmp_path
):
    file = tmp_path / "variants.py"
    file.write_text(FILE)
    words = "study", file, "--start", given, "--scenes", 4, "--out", tmp_path / "run"
    reinforcing[2] = interrupt
    status, printed, line = run(*words)
    assert (status, printed, line.partition(":")[2][:12]) == (130, "", " interrupted"), line
    reinforcing.clear()
    assert run(*words, "--resume")[0] == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["variant"] for row in found["rows"]] == [
        "SFT only",
        "then GSPO",
        "then more",
        "GSPO only",
    ]
    assert found["rows"][3]["after SFT"] == ""
    assert found["rows"][0]["over the first"] == ""
    assert all(row["over SFT"] for row in found["rows"][1:3])
    states = {path.name for path in (tmp_path / "run" / "state").iterdir()}
    # The fine-tuning that three variants share is done once.
    assert states == {"SFT-only-sft", "then-GSPO-gspo", "then-more-more-sft", "GSPO-only-gspo"}
    table = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert len(table) == 8
    assert table[-1].endswith("paired, with 95 % bootstrap intervals.")
    assert table[0].startswith("| variant | teacher | after SFT |")
    only = *words[:-1], tmp_path / "one", "--only", "GSPO only"
    assert run(*only)[0] == 0
    again = json.loads((tmp_path / "one" / "summary.json").read_text())["rows"]
    assert [row["variant"] for row in again] == ["GSPO only"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_compare_what_their_names_say(name):
    found = experiments.load(f"simpleseg/study_{name}.py").config()
    assert len(found.variants) >= 3
    for variant in found.variants:
        for run in (variant.sft, variant.gspo, variant.more_sft):
            assert run is None or run.completed(experiments.QUICKSTART_START)


def test_a_study_about_several_things_tells_of_them():
    examples = [
        RegionExample(
            key=str(number),
            image=np.zeros((2, 2, 3), np.uint8),
            question="q",
            answer="a",
            category=category,
            kind=Kind.MASK,
            mask=np.ones((2, 2), bool),
        )
        for number, category in enumerate(("circle", "square", "", ""))
    ]

    def row(name, iou, summary):
        outcome = task_metrics.Outcome(
            examples=examples,
            texts=["[]"] * 4,
            scores={"iou": np.array(iou)},
            measures={},
            verdicts=np.zeros(4, int),
            tokens=np.ones(4, int),
        )
        trained = stage.Trained(types.SimpleNamespace(), 60.0)
        last = chapters.Chapter(name, small_run.bundle(), outcome, summary, trained)
        return study._Row(name, None, last, outcome)

    number = {"mean": 0.25, "low": 0.2, "high": 0.3}
    first = row("first", [0.5, 0.7, 0.9, 0.1], {"n_acc_said": number, "several_recall": number})
    second = row("second", [0.6, 0.7, 0.9, 0.4], {"several_recall": number})
    one, other = study._table([first, second])
    assert (one["curved"], one["straight"]) == ("0.500", "0.700")  # Groups are neither.
    assert (one["N-acc"], one["recall, several"]) == ("0.250", "0.250")
    assert other["N-acc"] == ""
    assert other["over the first"].startswith("0.100 [0.0")
    assert "T-acc" not in one
    assert one.keys() == other.keys()


def test_what_is_no_study_is_refused_in_one_line(fails, tmp_path):
    assert "expected a configuration file with variants, got none" in fails("study", status=2)
    line = fails("study", "configs/simpleseg/quickstart_sft.py", status=2)
    assert "expected a configuration of study" in line
    line = fails("study", "configs/simpleseg/study_points.py", "--only", "5 points", status=2)
    assert "expected some of 4 points, GSPO, " in line
    line = fails("study", "configs/simpleseg/study_points.py", "--start", tmp_path / "none")
    assert "expected a checkpoint folder" in line
    with pytest.raises(ValueError, match="expected variants with different names"):
        study.Study(title="", variants=())
    gspo = experiments.load("simpleseg/quickstart_gspo.py").config()
    for alike in (("a b", "a-b"), ("GSPO", "gspo!"), ("+",)):  # They would share a folder.
        with pytest.raises(ValueError, match="expected variants whose names differ in letters"):
            study.Study(
                title="", variants=tuple(study.Variant(name=one, gspo=gspo) for one in alike)
            )
    sft = experiments.load("simpleseg/quickstart_sft.py").config()
    with pytest.raises(ValueError, match="expected sft or gspo, and more_sft only without gspo"):
        study.Variant(name="both", gspo=gspo, more_sft=sft)
    with pytest.raises(ValueError, match="expected sft or gspo"):
        study.Variant(name="nothing")
