"""The command `seg-jax evaluate --protocol`: files, saved answers, one line for each mistake."""

import json

import numpy as np
import pytest
import small_run

from seg_jax.cli import main
from seg_jax.evaluation.referring import protocols, scoring
from seg_jax.evaluation.referring.answers import Model
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Kind, Rollout
from seg_jax.runs import protocol as program
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Judgement

SCENES = ("--scenes", 2)
ASKED = (*SCENES, "--batch", 4)
SHOWN = (*ASKED, "--gallery", 1)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Returns the folder of a model with random weights."""
    folder = tmp_path_factory.mktemp("given") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


@pytest.fixture
def model(monkeypatch):
    """Puts fixed answers in the place of a model's, by batch and row; holds what it was asked."""
    asked = []

    def answer(self, prompts, params=None):
        tokenizer, kinds = self.bundle.tokenizer, np.asarray(prompts.truth.kind)
        asked.append(len(kinds))
        if len(asked) == asked_until[0]:
            raise KeyboardInterrupt
        ids = np.zeros((len(kinds), 1, 40), np.int32)
        used = np.zeros(ids.shape, bool)
        for row, kind in enumerate(kinds):
            x = 0.1 + 0.1 * (int(np.asarray(prompts.tokens.ids)[row].sum()) % 5)
            text = f"[[[{x:.2f}, 0.10], [0.90, 0.20], [0.40, 0.95]]]."
            if kind == Kind.BOX:
                text = f"[{x:.2f}, 0.10, 0.90, 0.80]."
            told = tokenizer.encode("prose" if x > 0.45 else text)
            ids[row, 0, : len(told)], used[row, 0, : len(told)] = told, True
        none = np.zeros((len(kinds), 1), np.int32)
        return Rollout(ids, used, np.zeros(ids.shape)), Judgement({}, {}, none)

    asked_until = [0]
    monkeypatch.setattr(Predictor, "answer", answer)
    return asked, asked_until


@pytest.fixture
def run(capsys):
    def call(*words):
        status = main.main(["evaluate", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()[-1] if err else ""

    return call


def lines(folder, name="answers.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("name", list(protocols.PROTOCOLS))
def test_a_protocol_writes_its_files_the_same_twice(run, given, model, tmp_path, name):
    words = ("--checkpoint", given, "--protocol", name, "--name", "tiny", *ASKED)
    assert run(*words, "--gallery", 0, "--out", tmp_path / "two")[0] == 0
    status, printed, _ = run(*words, "--gallery", 1, "--out", tmp_path / "one")
    assert status == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == set(program.FILES)
    for file in ("answers.jsonl", "table.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert json.loads(printed) == summary
    rows = lines(tmp_path / "one")
    assert (summary["questions"], summary["images"]) == (len(rows), 2)
    assert {row["fault"] for row in rows} > {"format"}
    protocol = protocols.PROTOCOLS[name]
    assert {row["kind"] for row in rows} == {kind.name.lower() for _, kind in protocol.asks}
    assert set(protocol.metrics) <= summary.keys()
    table = (tmp_path / "one" / "table.md").read_text()
    assert "| tiny | scenes |" in table
    reported = name in ("res", "rec", "text4seg")
    beside = "SimpleSeg-Kimi-VL | 91.3 | 92.1 | 87.1 | 82.6 | 88.3 | 79.3 | 84.6 | 86.3 | 86.5 |"
    assert (beside in table) == reported
    page = (tmp_path / "one" / "gallery.html").read_text()
    assert "<h3>Best</h3>" in page
    assert "Failed: cannot be read" in page
    assert "http" not in page.replace('http-equiv="', "")
    assert page.count("<figure>") >= 4
    assert "No images." in (tmp_path / "two" / "gallery.html").read_text()


def test_answers_are_judged_again_without_a_model(run, given, model, tmp_path):
    asked, _ = model
    first = tmp_path / "first"
    assert run("--checkpoint", given, "--protocol", "res", "--out", first, *SHOWN)[0] == 0
    count = len(asked)
    file = ("--answers", first / "answers.jsonl")
    status, printed, _ = run("--protocol", "res", *file, "--out", tmp_path / "again", *SCENES)
    assert (status, len(asked)) == (0, count)
    assert lines(first) == lines(tmp_path / "again")
    ours = json.loads(printed)
    status, printed, _ = run(
        "--protocol", "text4seg", *file, "--beside", first, "--out", tmp_path / "table", *SCENES
    )
    theirs = json.loads(printed)
    assert theirs["questions"] == ours["questions"]
    assert theirs["ciou"]["mean"] == pytest.approx(ours["ciou"]["mean"])
    assert theirs["rec_from_mask"] != ours["rec_from_mask"] or theirs["giou"] != ours["giou"]


def test_an_interrupted_protocol_goes_on_with_what_it_knows(run, given, model, tmp_path):
    asked, until = model
    words = ("--checkpoint", given, "--protocol", "res", *SHOWN, "--out")
    assert run(*words, tmp_path / "whole")[0] == 0
    whole = len(asked)
    assert whole == 3
    until[0] = whole + 2
    status, printed, line = run(*words, tmp_path / "cut")
    assert (status, printed, line) == (130, "", "seg-jax evaluate: interrupted")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["answers.partial.jsonl"]
    known = tmp_path / "cut" / "answers.partial.jsonl"
    assert len(lines(tmp_path / "cut", known.name)) == 8  # One batch on eight devices.
    with known.open("a") as file:
        file.write('{"key": "sce')  # As if killed within a line.
    until[0] = 0
    asked.clear()
    assert run(*words, tmp_path / "cut", "--answers", known)[0] == 0
    assert len(asked) == whole - 1
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_tables_hold_other_evaluations(run, given, model, tmp_path):
    words = ("--checkpoint", given, "--protocol", "res", "--name", "tiny | x", *SHOWN)
    assert run(*words, "--out", tmp_path / "a", "--set-name", "refcoco-val")[0] == 0
    more = ("--set-name", "refcocog-test", "--beside", tmp_path / "a")
    assert run(*words, "--out", tmp_path / "b", *more)[0] == 0
    table = (tmp_path / "b" / "table.md").read_text()
    ours = json.loads((tmp_path / "a" / "summary.json").read_text())
    cell = f"{100 * ours['ciou']['mean']:.1f}"
    row = f"| **tiny \\| x**, res | {cell} |  |  |  |  |  |  | {cell} |  |"
    assert row in table


def test_a_grammar_allows_for_nothing_where_that_is_asked_about(run, given, model, monkeypatch):
    made, real = [], Referring.grammar

    def spy(*args, nothing=None):
        made.append(nothing)
        return real(*args, nothing=nothing)

    monkeypatch.setattr(Referring, "grammar", spy)
    for name in ("gres", "res"):
        assert run("--checkpoint", given, "--grammar", "--protocol", name, *ASKED)[0] == 0
    assert made == [True, None]


@pytest.mark.slow
def test_with_the_grammar_an_answer_may_be_that_there_is_nothing(run, given, tmp_path, monkeypatch):
    small_run.on_one_device(monkeypatch)  # Held to the grammar on eight: test_evaluation.
    held = ("--checkpoint", given, "--grammar", "--batch", 24)
    words = ("--scenes", 6, "--source.style.absent", 3, "--protocol", "gres")
    status, printed, _ = run(*held, *words, "--out", tmp_path / "gres")
    assert status == 0
    summary, rows = json.loads(printed), lines(tmp_path / "gres")
    assert {row["verdict"] for row in rows} == {"OK"}
    assert summary["no_target"] == 36  # In two wordings each.
    said = [row["says_nothing"] for row in rows if not row["truth_px"]]
    assert summary["n_acc_said"]["mean"] == np.mean(said)
    # Without a protocol, too: then scenes are told what is not in them as far as it is asked about.
    status, printed, _ = run(*held, "--mixture.absent", 3, "--scenes", 24)
    summary = json.loads(printed)
    assert (status, summary["verdicts"]["OK"]) == (0, 24)
    assert {"n_acc_said", "t_acc_said"} < summary.keys()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--protocol", "red", "--answers", "FILE"), "or None, got 'red'"),
        (("--answers", "FILE"), "--answers: expected --protocol beside it"),
        (("--checkpoint", "x", "--answers", "FILE"), "--answers: expected --protocol beside it"),
        (("--checkpoint", "x", "--out", "FILE"), "--out: expected --protocol beside it"),
        (("--protocol", "res", "--answers", "FILE", "--form", 7), "expected a form from 0 to 6"),
        (("--protocol", "res", "--answers", "FILE", "--gallery", -1), "a gallery >= 0"),
        (
            ("--protocol", "res", "--answers", "FILE", "--beside", "DIR", "--out", "OUT"),
            "summary.json: expected a file, got none; do: give what was --out beside --protocol",
        ),
        (("--protocol", "res", "--answers", "none"), "got no file"),
        # What nothing would read.
        (
            ("--protocol", "res", "--mixture.text-box", 1),
            "--mixture: expected no --protocol beside it",
        ),
        (("--form", 1), "--form: expected --protocol beside it, got none; do: name a protocol"),
        (("--protocol", "res", "--gallery", 2), "--gallery: expected --out beside it, got none"),
        (("--protocol", "res", "--beside", "DIR"), "--beside: expected --out beside it, got none"),
        (("--data", "DIR", "--protocol", "res"), "--scenes: expected no --data beside it, got "),
        (("--split", "train"), "--split: expected --data beside it, got none; do: give data sets"),
        (
            ("--world", "easy", "--source.world.height", 32),
            "--source: expected no --world beside it",
        ),
        (("--source.seed", 3), "source.seed: expected --seed in its place, got 3; do: give --seed"),
        (("--source.count", 3), "source.count: expected --scenes in its place, got 3"),
        (
            ("--protocol", "res", "--answers", "FILE", "--batch", 4),
            "--batch: expected --checkpoint beside it, got --answers alone; do: leave it out",
        ),
        (("--protocol", "res", "--answers", "EMPTY", "--out", "FILE"), "file exists"),
        (("--protocol", "res", "--answers", "FILE"), "line 2: expected a field 'key', got none"),
        (("--protocol", "res", "--answers", "TWICE"), "line 2: expected one answer"),
        (("--protocol", "res", "--answers", "EMPTY"), "expected an answer to every question"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, words, wanted):
    good = {"key": "k", "which": 0, "given": "text", "kind": "mask", "phrase": "a", "text": "[]"}
    (tmp_path / "FILE").write_text(json.dumps(good) + "\n{}\n")
    (tmp_path / "TWICE").write_text(
        json.dumps(good) + "\n" + json.dumps(good | {"text": "x"}) + "\n"
    )
    (tmp_path / "EMPTY").write_text("")
    (tmp_path / "DIR").mkdir()
    words = [tmp_path / word if str(word).isupper() else word for word in words]
    status, printed, line = run(*SCENES, *words)
    assert (printed, status in (1, 2)) == ("", True)
    assert wanted in line, line
    assert line.startswith("seg-jax evaluate: ")


def test_a_question_too_long_for_the_rows_counts_as_unanswered():
    bundle = small_run.bundle()
    source = small_run.sft_config().source
    (first, *_) = protocols.questions(
        protocols.PROTOCOLS["res"], source, task=Referring(digits=2), indices=[0]
    )
    words = "the red star " * 100
    long = protocols.dataclasses.replace(first, phrase=words, text=words)

    def ask(prompts):
        shape = (len(prompts.tokens.ids), 1, 1)
        ids = np.full(shape, bundle.tokenizer.encode("[")[0], np.int32)
        return Rollout(ids, np.ones(shape, bool), np.zeros(shape))

    model = Model(ask, bundle.encoder, bundle.task, batch=2)
    told = [(text, tokens) for _, text, tokens in model([first, long, first, first])]
    assert told == [("[", 1), ("", 0), ("[", 1), ("[", 1)]
    assert model.too_long == 1


def test_the_same_question_twice_has_one_answer():
    bundle, calls = small_run.bundle(), []
    source = small_run.sft_config().source
    first, other = (
        next(
            protocols.questions(
                protocols.PROTOCOLS["res"], source, task=Referring(digits=2), indices=[index]
            )
        )
        for index in (0, 1)
    )

    def ask(prompts):  # Another answer at each call, as rounding may give.
        calls.append(bundle.tokenizer.encode("[]"[len(calls) % 2])[0])
        shape = (len(prompts.tokens.ids), 1, 1)
        ids = np.full(shape, calls[-1], np.int32)
        return Rollout(ids, np.ones(shape, bool), np.zeros(shape))

    model = Model(ask, bundle.encoder, bundle.task, batch=1)
    asked = [first, first, other, other, first]
    assert [text for _, text, _ in model(asked)] == ["[", "[", "[", "[", "["]
    assert len(calls) == 5


def test_an_evaluation_of_an_earlier_version_stands_beside_a_new_one(run, given, model, tmp_path):
    words = ("--checkpoint", given, "--protocol", "gres", *SHOWN)
    assert run(*words, "--name", "old", "--out", tmp_path / "old")[0] == 0
    file = tmp_path / "old" / "summary.json"
    summary = json.loads(file.read_text())
    kept = {name: value for name, value in summary.items() if name not in scoring.LATER}
    file.write_text(json.dumps(kept))
    words = (*words, "--beside", tmp_path / "old", "--name", "new", "--out")
    assert run(*words, tmp_path / "new")[0] == 0
    table = (tmp_path / "new" / "table.md").read_text()
    assert "| old | scenes |" in table
    assert "| - | - | - |" in table
    file.write_text(json.dumps({name: value for name, value in kept.items() if name != "t_acc"}))
    line = run(*words, tmp_path / "another")[2]
    assert "summary.json, t_acc: expected" in line
