"""Runs the programs as a clumsy user would: wrong files, wrong values, full disks, Ctrl-C.

Steps and answers are stand-ins that cost nothing: what is tested is all around them.
"""

import dataclasses
import importlib.util
import json
import signal
import types

import numpy as np
import pytest
import small_run
from cheap_runs import CONFIG, curve_of, interrupt, weights_of
from PIL import Image

from seg_jax import files
from seg_jax.cli import main
from seg_jax.cli import predict as cli_predict
from seg_jax.data import image_files
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.report import html_page
from seg_jax.runs import experiments
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import optimizers

WORDS = ("--text", "the red star")


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Lays runs over one device; what eight hold and save is seen in test_start."""
    with pytest.MonkeyPatch.context() as patch:
        small_run.on_one_device(patch)
        yield


# Images and questions.


def test_predict_refuses_wrong_images(fails, given, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.new("RGB", (1, 4000)).save(tmp_path / "thin.png")
    for name, word in {
        "missing.png": "no file",
        "empty.png": "an empty file",
        "text.png": "something else",
        "huge.png": "at most 80 million pixels",
        "thin.png": "aspect ratio",
        ".": "a folder",
        "nul\0.png": "a path that no file can have",
        "\udcff\x1b.png": "no file",
        "long" * 2000: "file name too long",
    }.items():
        line = fails("predict", "--checkpoint", given, "--image", tmp_path / name, *WORDS)
        assert word in line


def test_a_model_of_clicks_is_asked_for_all_of_the_foreground(image, monkeypatch, capsys):
    task = Prompted(stage="prerl")

    def predict(image, clue, kind):
        return task.predict(
            task.ask(image, clue, kind), "<points>[[3,4]]</points> <labels>[1]</labels>"
        )

    asked = types.SimpleNamespace(bundle=types.SimpleNamespace(task=task), predict_one=predict)
    monkeypatch.setattr(cli_predict.Config, "asked_task", lambda config: task)
    monkeypatch.setattr(cli_predict.Config, "predictor", lambda config, **_: asked)
    assert main.main(["predict", "--image", str(image)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["labels"]) == ("OK", [1])
    assert "sparse set of point prompts" in told["question"]


@pytest.mark.parametrize(
    ("words", "say"),
    [
        ([], "exactly one of --text, --point and --box, got 0"),
        (["--text", "a", "--point", "0.5", "0.5"], "got 2"),
        (["--text", " "], "empty --text"),
        (["--text", "word " * 10_000], "tokens in the prompt"),
        (["--text", "x" * 1_000_000], "at most 100000 characters, got 1000000"),
        (["--text", "a\0b"], "got the character U+0000"),
        (["--text", "\x1b[2J"], "got the character U+001B"),
        (["--text", "\udcff"], "got the character U+DCFF"),
        (["--point", "nan", "0.5"], "0..1"),
        (["--point", "-1", "0.5"], "0..1"),
        (["--box", "0.1", "0.1", "12", "40"], "0..1"),
        (["--box", "0.9", "0.9", "0.1", "0.1"], "x0 < x1"),
    ],
)
def test_predict_refuses_wrong_questions(fails, given, image, words, say):
    assert say in fails("predict", "--checkpoint", given, "--image", image, *words)


def test_unknown_options_are_named(fails):
    for program in main.PROGRAMS:
        assert "'--colour'" in fails(program, "--colour", "red", status=2)


def test_predict_knows_before_its_work_where_it_cannot_write(fails, given, image, tmp_path):
    ask = ("predict", "--checkpoint", given, "--image", image, *WORDS)
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        line = fails(*ask, "--out", tmp_path / out)
        assert f"{tmp_path / out}: expected a folder for the overlay, got a file" in line
        assert "; do: name a folder" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert fails(*ask, "--out", "/proc/nowhere")


def test_predict_on_a_full_disk_leaves_no_half_overlay(
    fails, given, image, small_disk, monkeypatch
):
    folder, fill = small_disk
    fill()
    nothing = np.zeros((1, 1, 4), np.int32), np.zeros((1, 1, 4), bool)
    rollout = type("Rollout", (), {"ids": nothing[0], "used": nothing[1]})
    monkeypatch.setattr(Predictor, "answer", lambda *_: (rollout, None))
    line = fails("predict", "--checkpoint", given, "--image", image, *WORDS, "--out", folder)
    assert line.startswith("disk full")
    assert [path.name for path in folder.iterdir()] == ["filler"]


# Checkpoint folders.


@pytest.mark.parametrize("program", ["predict", "evaluate", "finetune", "reinforce"])
def test_a_folder_that_is_no_checkpoint_is_named(fails, program, image, tmp_path):
    more = ("--image", image, *WORDS) if program == "predict" else ()
    more += ("--out", tmp_path / "out") if program in ("finetune", "reinforce") else ()
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file", "."):
        line = fails(program, "--checkpoint", tmp_path / name, *more)
        assert str(tmp_path / name) in line
    assert not (tmp_path / "out").exists(), "a run that cannot begin claims no folder"


def test_quickstart_refuses_a_wrong_start_before_it_works(fails, tmp_path):
    line = fails("quickstart", "--start", tmp_path / "none", "--out", tmp_path / "out")
    assert "expected a checkpoint folder" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "option", "value"),
    [
        ("quickstart", "--minutes", "nan"),
        ("quickstart", "--scenes", "0"),
        ("quickstart", "--gallery", "5000"),
        ("quickstart", "--sampled-scenes", "5000"),
        ("clickstart", "--minutes", "nan"),
        ("clickstart", "--blind-scenes", "1"),
        ("clickstart", "--gallery", "5000"),
        ("evaluate", "--scenes", "0"),
        ("evaluate", "--batch", "-1"),
        ("evaluate", "--seed", "-1"),
        ("finetune", "--loop.steps", "0"),
        ("finetune", "--loop.save-minutes", "nan"),
        ("reinforce", "--loop.log-every", "0"),
    ],
)
def test_wrong_values_are_refused(run, given, tmp_path, program, option, value):
    words = () if program in ("quickstart", "clickstart") else ("--checkpoint", given)
    words += ("--out", tmp_path / "out") if program != "evaluate" else ()
    status, out, line = run(program, *words, option, value)
    assert status in (1, 2)
    assert out == ""
    assert "expected" in line
    assert option.removeprefix("--").replace("-", "_") in line
    assert len(line) < 250, "the value at fault, not the whole configuration"
    assert not (tmp_path / "out").exists()


def test_evaluate_knows_before_its_work_where_it_cannot_write(fails, given, tmp_path):
    assert "folder" in fails("evaluate", "--checkpoint", given, "--json", tmp_path)


# Runs: refused, resumed, replaced.


def test_a_second_run_is_resumed_or_replaced_by_choice(run, fails, steps, tune, tmp_path):
    out = tmp_path / "run"
    assert run(*tune(out))[:2] == (0, f"{out / 'checkpoint'}\n")
    first, curve = weights_of(out), curve_of(out)
    assert [line["step"] for line in curve] == [1, 2, 3, 4]
    assert "--resume" in fails(*tune(out))
    assert "both" in fails(*tune(out, "--resume", "--anew"))
    line = fails(*tune(out, "--resume", "--optimizer.lr", "0.5", "--feed.seed", "3"))
    assert "optimizer.lr" in line
    assert "feed.seed" in line
    assert weights_of(out) == first
    assert curve_of(out) == curve
    assert run(*tune(out, "--anew", "--feed.seed", "3"))[0] == 0
    assert weights_of(out) != first
    assert len(curve_of(out)) == 4


def test_an_interrupted_run_resumes_as_if_undisturbed(run, steps, tune, tmp_path):
    assert run(*tune(tmp_path / "whole"))[0] == 0
    steps[2] = lambda: signal.raise_signal(signal.SIGINT)
    out = tmp_path / "run"
    status, printed, line = run(*tune(out))
    assert (status, printed) == (130, "")
    assert line == "seg-jax finetune: interrupted: sft stopped after step 2, which is saved"
    assert not (out / "checkpoint").exists()
    steps.clear()
    assert run(*tune(out, "--resume"))[0] == 0
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert curve_of(out) == curve_of(tmp_path / "whole")


def test_a_second_interrupt_is_obeyed_at_once(run, steps, tune, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    steps[2] = twice
    out = tmp_path / "run"
    assert run(*tune(out))[0] == 130
    steps.clear()
    assert run(*tune(out, "--resume"))[0] == 0


def test_an_interrupt_while_the_model_is_written_leaves_none(
    run, steps, tune, tmp_path, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(bundles.weights, "save", interrupt)
        assert run(*tune(out))[0] == 130
    assert not [path for path in out.iterdir() if path.name.startswith("checkpoint")]
    assert run(*tune(out, "--resume"))[0] == 0
    bundles.load(out / "checkpoint")


@pytest.fixture(autouse=True)
def listening():
    """Makes Ctrl-C count even where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupted_reinforcement_resumes_as_if_undisturbed(run, reinforcing, given, tmp_path):
    file = tmp_path / "four.py"
    file.write_text(CONFIG.replace("tiny_sft", "tiny_gspo"))
    words = "reinforce", file, "--checkpoint", given, "--out"
    assert run(*words, tmp_path / "whole")[0] == 0
    reinforcing[3] = interrupt
    status, printed, line = run(*words, tmp_path / "run")
    assert (status, printed) == (130, "")
    assert line == "seg-jax reinforce: interrupted: gspo stopped after step 3, which is saved"
    reinforcing.clear()
    assert run(*words, tmp_path / "run", "--resume")[0] == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
    assert curve_of(tmp_path / "run") == curve_of(tmp_path / "whole")
    for folder in ("whole", "run"):
        page = (tmp_path / folder / "report.html").read_text()
        assert "mean reward" in page
        assert "seg-jax reinforce" in page


def test_a_missing_board_costs_no_run(fails, given, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = "reinforce", "--checkpoint", given, "--out", tmp_path / "run", "--log.wandb"
    assert "expected the package wandb, got none" in fails(*words)
    assert not (tmp_path / "run").exists()


def test_interrupted_evaluation_writes_nothing(run, answers, given, tmp_path):
    words = "evaluate", "--checkpoint", given, "--scenes", 32, "--batch", 8, "--json"
    answers[2] = interrupt
    status, printed, line = run(*words, tmp_path / "numbers.json")
    assert (status, printed, line) == (130, "", "seg-jax evaluate: interrupted")
    assert not list(tmp_path.iterdir())
    answers.clear()
    assert run(*words, tmp_path / "numbers.json")[0] == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["verdicts"]["EMPTY"] == 32


@pytest.fixture
def little(monkeypatch):
    """Gives the stages of the quickstart few weights, a plain optimizer and few rows a step."""

    def lessened(real):
        def config(**words):
            base = real(**words)
            feed = dataclasses.replace(base.feed, batch=8)
            validate = dataclasses.replace(base.validate, every=2)
            changes = {"feed": feed, "optimizer": optimizers.AdamW(), "validate": validate}
            return dataclasses.replace(base, **changes)

        return config

    for name in ("simpleseg/quickstart_sft.py", "simpleseg/quickstart_gspo.py"):
        experiment = experiments.load(name)
        monkeypatch.setattr(experiment, "config", lessened(experiment.config))


@pytest.mark.slow
def test_a_quickstart_that_is_interrupted_in_every_stage_resumes(
    run, little, steps, reinforcing, answers, given, tmp_path
):
    out = tmp_path / "run"
    words = "quickstart", "--start", given, "--out", out, "--sft-steps", 3, "--gspo-steps", 3
    words = *words, "--scenes", 4, "--sampled-scenes", 4, "--gallery", 2, "--labelled", 8
    words = *words, "--validation", 2

    def control():
        if (out / "state" / "control").exists():
            interrupt()

    # One run, resumed where the last interrupt left it: in SFT, an evaluation, GSPO, the control.
    places = [(steps, 2, interrupt), (answers, 1, interrupt), (reinforcing, 2, interrupt)]
    places += [(answers, 4, interrupt), (steps, 1, control)]
    for begun, (events, number, act) in enumerate(places):
        events[number] = act
        status, printed, line = run(*words, *["--resume"][:begun])
        assert (begun, status, printed) == (begun, 130, "")
        assert line.startswith("seg-jax quickstart: interrupted")
        assert not (out / "checkpoint").exists()
        assert not (out / "report.html").exists()
        events.clear()
    assert run(*words, "--resume")[0] == 0
    bundles.load(out / "checkpoint")
    lines = curve_of(out)
    for name in ("loss", "validation/iou"):
        curve = [(line["stage"], line["step"]) for line in lines if name in line]
        assert len(set(curve)) == len(curve)
        assert {("sft", 3), ("gspo", 3)} <= set(curve)
    assert "<html" in (out / "report.html").read_text()
    assert image_files.read(out / "gallery.png").shape[0] > 100
    assert json.loads((out / "summary.json").read_text())["gspo"]["giou"] == 0.0


def test_a_wrong_checkpoint_does_not_cost_the_run_that_it_replaces(fails, run, steps, tune, given):
    out = given.parent / "kept"
    assert run(*tune(out))[0] == 0
    words = [*tune(out, "--anew")]
    words[words.index(given)] = given.parent / "typo"
    fails(*words)
    words[words.index(given.parent / "typo")] = out / "checkpoint"
    assert "would remove" in fails(*words)
    bundles.load(out / "checkpoint")


def test_a_damaged_checkpoint_is_named(fails, run, steps, tune, tmp_path):
    out = tmp_path / "run"
    assert run(*tune(out))[0] == 0
    state = out / "state" / "sft" / "4" / "state"
    for path in state.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    line = fails(*tune(out, "--resume"))
    assert str(out / "state" / "sft" / "4") in line


def test_an_out_that_is_a_file_is_refused(fails, steps, tune, tmp_path):
    (tmp_path / "file").write_text("mine")
    for more in ((), ("--anew",), ("--resume",)):
        line = fails(*tune(tmp_path / "file", *more))
        assert "expected a folder for the run, got a file" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert fails(*tune("/proc/nowhere"))


# Full disks.


def test_a_full_disk_while_a_checkpoint_is_saved(run, fails, steps, tune, small_disk):
    folder, fill = small_disk
    steps[3] = fill
    line = fails(*tune(folder / "run", "--loop.save-minutes", "0"))
    assert line.startswith("disk full")
    steps.clear()
    (folder / "filler").unlink()
    assert run(*tune(folder / "run", "--loop.save-minutes", "0", "--resume"))[0] == 0
    assert [line["step"] for line in curve_of(folder / "run")] == [1, 2, 3, 4]
    bundles.load(folder / "run" / "checkpoint")


def test_a_full_disk_while_the_model_is_saved(run, fails, steps, tune, small_disk, monkeypatch):
    folder, fill = small_disk
    save = bundles.save
    with monkeypatch.context() as patch:
        patch.setattr(bundles, "save", lambda *words: (fill(), save(*words)))
        assert fails(*tune(folder / "run")).startswith("disk full")
    names = [path.name for path in (folder / "run").iterdir()]
    assert not [name for name in names if name.startswith("checkpoint")]
    (folder / "filler").unlink()
    assert run(*tune(folder / "run", "--resume"))[0] == 0
    bundles.load(folder / "run" / "checkpoint")


def test_a_full_disk_while_the_report_and_numbers_are_written(small_disk):
    folder, fill = small_disk
    page = html_page.Report("t", config={})
    (folder / "report.html").write_text("before")
    fill()
    with pytest.raises(OSError):
        html_page.write(folder / "report.html", page)
    with pytest.raises(OSError):
        files.write_json(folder / "summary.json", {"a": ["b" * 100] * 100})
    with pytest.raises(OSError):
        image_files.write(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert {path.name for path in folder.iterdir()} == {"filler", "report.html"}
    assert (folder / "report.html").read_text() == "before"
