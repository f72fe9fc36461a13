"""Questions about many pictures: every answer once, and the same bytes however often interrupted.

The model is a stand-in that writes an outline by what it is asked; all else is real.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scripted_answers import Scripted

from seg_jax import locks
from seg_jax.data import question_lists
from seg_jax.data.exports import coco_json
from seg_jax.data.findings import Findings
from seg_jax.data.question_lists import Question
from seg_jax.records import Kind
from seg_jax.runs import prediction_jobs, predictions
from seg_jax.tasks.referring import draw

FORMATS = (
    "coco_results",
    "coco",
    "folder",
    "yolo",
    "labelme",
    "voc",
    "svg",
    "masks",
    "overlays",
    "gallery",
)
KINDS = ("point", "box", "mask")


@pytest.fixture
def web(tmp_path):
    """Returns a folder of pictures of several kinds, two of them bad."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a/0.png", "a/0.jpg", "b/0.png", "b/1.png", "2.png", "3.png")):
        path = tmp_path / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (30 + number, 40 - number)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    (tmp_path / "web/b/0bad.png").write_bytes(b"no picture")
    return tmp_path / "web"


TEXTS = ("the red star", "both rings", "nothing at all")


def job(web, out, **changes):
    """Returns the job of three questions about every picture, and one that is missing."""
    paths = [*sorted(one for one in web.rglob("*") if one.is_file()), web / "gone.png"]
    asked = question_lists.of_images(paths, TEXTS, answer=None)
    told = {"out": out, "batch": 2, "formats": FORMATS, "identity": {"model": "x"}, "kinds": KINDS}
    return prediction_jobs.plan(asked, **(told | changes))


def tree(out):
    """Returns the bytes of every file of a folder."""
    found = {one.relative_to(out).as_posix(): one for one in out.rglob("*") if one.is_file()}
    return {name: one.read_bytes() for name, one in found.items() if one.name != locks.NAME}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_question_is_answered_once_and_bad_pictures_cost_themselves(web, tmp_path):
    asker = Scripted()
    summary = predictions.run(job(web, tmp_path / "out"), lambda: asker, anew=False)
    assert (summary["questions"], summary["answered"], summary["failed"]) == (24, 18, 6)
    assert (summary["pictures"], summary["pictures_answered"], summary["masks"]) == (8, 6, 12)
    assert {reason: one["count"] for reason, one in summary["findings"].items()} == {
        "picture left out: image is missing": 1,
        "picture left out: file is no image that is read": 1,
        "answer without a mask: formats of masks leave it out": 6,
    }
    assert {*asker.batches} == {2}
    told = lines(tmp_path / "out/answers.jsonl")
    assert {(one["image"], one["label"]) for one in told} == {
        (path.as_posix(), text)
        for path in web.rglob("*")
        if path.is_file() and "bad" not in path.name
        for text in TEXTS
    }
    failed = lines(tmp_path / "out/failed.jsonl")
    assert sorted(one["number"] for one in told + failed) == [*range(24)]
    assert {one["score"] for one in told} == {0.5}
    assert {one["fault"].partition(": expected")[0] for one in failed} == {
        repr((web / "b/0bad.png").as_posix()),
        repr((web / "gone.png").as_posix()),
    }
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary


def test_masks_of_coco_are_those_that_evaluate_counts(web, tmp_path):
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    sheet = COCO(tmp_path / "out" / coco_json.ANNOTATIONS)
    results = sheet.loadRes(str(tmp_path / "out" / coco_json.RESULTS))
    told = {one["number"]: one for one in lines(tmp_path / "out/answers.jsonl")}
    names = {one["name"]: one["id"] for one in sheet.loadCats(sheet.getCatIds())}
    assert [*names] == [*TEXTS]
    seen = 0
    for each in (sheet, results):
        for image in each.loadImgs(each.getImgIds()):
            for note in each.loadAnns(each.getAnnIds(imgIds=[image["id"]])):
                ((line),) = [
                    one
                    for one in told.values()
                    if one["image"] == image["file_name"]
                    and names[one["label"]] == note["category_id"]
                ]
                size = image["height"], image["width"]
                want = draw(line["text"], Kind.MASK, size).mask
                np.testing.assert_array_equal(each.annToMask(note), want)
                seen += 1
    assert seen == 24


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        pytest.param(1, 10, marks=pytest.mark.slow),
        (6, 5),
        pytest.param(10, 2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(web, tmp_path, broken, left):
    """Of ten batches five, three and two are of a shard."""
    predictions.run(job(web, tmp_path / "whole"), Scripted, anew=False)
    first, second = Scripted(), Scripted()

    def stop():
        raise KeyboardInterrupt

    first.events[broken] = stop
    with pytest.raises(KeyboardInterrupt):
        predictions.run(job(web, tmp_path / "out"), lambda: first, anew=False)
    assert not (tmp_path / "out/answers.jsonl").exists()
    predictions.run(job(web, tmp_path / "out"), lambda: second, anew=False)
    assert len(second.batches) == left
    one, other = tree(tmp_path / "whole"), tree(tmp_path / "out")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_nothing_is_asked_twice_and_formats_are_added_without_a_model(web, tmp_path):
    predictions.run(job(web, tmp_path / "out", formats=()), Scripted, anew=False)
    assert {*tree(tmp_path / "out")} >= {"answers.jsonl", "failed.jsonl", "summary.json"}

    def load():
        raise AssertionError("a model was loaded")

    predictions.run(job(web, tmp_path / "out"), load, anew=False)
    predictions.run(job(web, tmp_path / "whole"), Scripted, anew=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    (tmp_path / "out/overlays/2.png").unlink()
    predictions.run(job(web, tmp_path / "out"), load, anew=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("findings", [None, [], {"a": 1}, {"a": {"count": -1, "examples": []}}])
def test_a_damaged_note_of_an_export_is_passed_over(web, tmp_path, findings):
    """Only its digest was looked at: what it had been told ended the run."""
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    whole = tree(tmp_path / "out")
    for path in (tmp_path / "out/.exported").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"findings": findings}))
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
def test_what_has_changed_is_answered_anew_and_what_is_gone_is_gone(web, tmp_path):
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    (web / "2.png").unlink()
    Image.new("RGB", (50, 20)).save(web / "b/0bad.png")
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    predictions.run(job(web, tmp_path / "whole"), Scripted, anew=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    damaged = tmp_path / "out" / predictions.DONE / "000001.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_another_model_needs_anew_and_foreign_files_stay(web, tmp_path):
    predictions.run(job(web, tmp_path / "out"), Scripted, anew=False)
    other = job(web, tmp_path / "out", identity={"model": "y"}, formats=())
    with pytest.raises(ValueError, match=r"expected the build of model='x', as before, got "):
        predictions.run(other, Scripted, anew=False)
    (tmp_path / "out/mine.txt").write_text("mine")
    predictions.run(other, Scripted, anew=True)
    assert not (tmp_path / "out/coco_results.json").exists()
    assert not any(name.startswith("yolo/") for name in tree(tmp_path / "out"))
    assert (tmp_path / "out/mine.txt").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    with pytest.raises(ValueError, match="expected a new folder or an unfinished build, got other"):
        predictions.run(job(web, tmp_path / "theirs"), Scripted, anew=False)


def test_where_nothing_can_be_answered_that_is_an_error(tmp_path):
    asked = question_lists.of_images([tmp_path / "gone.png"], ["x"], answer=None)
    told = {"out": tmp_path / "out", "batch": 2, "formats": (), "identity": {}, "kinds": KINDS}
    with pytest.raises(ValueError, match="expected an answer at least, got none to 1 questions, 1"):
        predictions.run(prediction_jobs.plan(asked, **told), Scripted, anew=False)


def test_numbers_for_coco_are_those_of_the_questions(web, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [
        {"image": "web/2.png", "image_id": 42, "category_id": 9, "name": "star", "id": "q1"}
        | {"questions": [{"text": "the red star"}, {"point": [0.5, 0.5], "answer": "mask"}]},
        {"image": "web/3.png", "image_id": 7, "category_id": 9, "box": [0.1, 0.1, 0.5, 0.6]},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = question_lists.read(path, met := Findings())
    assert met.counts == {}
    told = {"out": tmp_path / "out", "batch": 4, "formats": ("coco_results", "coco")}
    planned = prediction_jobs.plan(asked, **told, identity={}, kinds=KINDS)
    predictions.run(planned, Scripted, anew=False)
    results = json.loads((tmp_path / "out" / coco_json.RESULTS).read_text())
    assert [(one["image_id"], one["category_id"]) for one in results] == [(42, 9), (42, 9), (7, 9)]
    sheet = json.loads((tmp_path / "out" / coco_json.ANNOTATIONS).read_text())
    assert sheet["categories"] == [{"id": 9, "name": "star"}]
    assert [one["id"] for one in lines(tmp_path / "out/answers.jsonl")[:2]] == ["q1", "q1"]


@pytest.mark.parametrize(
    ("rows", "say"),
    [
        ([{"image_id": 1}, {}], "questions: expected one image_id for each picture"),
        ([{"image_id": 1}, {"image_id": 1}], "questions: expected one image_id for each picture"),
        ([{"category_id": 1}, {"text": "b"}], "questions: expected category_id in all of them"),
        ([{"answer": "circle"}, {}], "answer: expected one of point, box, mask, got 'circle' for"),
    ],
)
def test_questions_that_do_not_fit_together_are_refused(tmp_path, rows, say):
    told = [{"text": "a", **row} for row in rows]
    asked = [
        Question(
            key=f"{place}.png",
            path=tmp_path / f"{place}.png",
            clue=row.pop("text"),
            **row,
        )
        for place, row in enumerate(told)
    ]
    if "category_id" in rows[0]:  # The second label would have the number of the first.
        asked = asked[::-1]
        asked[0], asked[1] = dataclasses.replace(asked[0], clue="b"), asked[1]
    with pytest.raises(ValueError, match=say):
        prediction_jobs.plan(asked, out=tmp_path, batch=1, formats=(), identity={}, kinds=KINDS)


def test_a_bad_line_of_questions_costs_itself(tmp_path):
    path = tmp_path / "questions.jsonl"
    good = {"image": "a.png", "text": "x"}
    bad = [
        '{"image": "a.png"',
        '{"text": "x"}',
        '{"image": "a.png", "txt": "x"}',
        '{"image": "a.png", "text": "x", "point": [0.1, 0.2]}',
        '{"image": "a.png", "text": "x", "questions": [{"text": "y"}]}',
        '{"image": "a.png", "questions": []}',
        '{"image": "a.png"}',
        '{"image": "a.png", "text": " "}',
        '{"image": "a.png", "point": [1.5, 0.2]}',
        '{"image": "a.png", "box": [0.5, 0.2, 0.1, 0.9]}',
        '{"image": "a.png", "text": "\\u0001"}',
        '{"image": "a.png", "questions": [{"text": 3}, {"text": "kept"}]}',
    ]
    path.write_text("\ufeff" + "\r\n".join([json.dumps(good), *bad, ""]))
    found = question_lists.read(path, met := Findings())
    assert [one.clue for one in found] == ["x", "kept"]
    assert sum(met.counts.values()) == len(bad)
    assert all("; do: " in line for line in met.lines())
    assert len(question_lists.read(path, Findings(), whole=True)) == len(found) + 2
    path.write_text("\n".join(bad[:1]))
    with pytest.raises(ValueError, match="expected questions, a JSON object a line, got none: 1 x"):
        question_lists.read(path, Findings())


ASKING = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {runs!r}]
import test_predictions
from scripted_answers import Scripted
from seg_jax.runs import predictions
predictions.run(test_predictions.job(Path({web!r}), Path({out!r})), Scripted, anew=False)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(web, tmp_path):
    """SIGKILL while questions are answered, and while files are written: nothing is left behind."""
    predictions.run(job(web, tmp_path / "whole"), Scripted, anew=False)
    out, here = tmp_path / "out", Path(__file__).parent
    told = {"tests": str(here.parent), "runs": str(here), "web": str(web), "out": str(out)}
    command = [sys.executable, "-c", ASKING.format(**told)]
    events = [(predictions.DONE, 1), (predictions.DONE, 3), ("yolo/labels", 1), ("overlays", 3)]
    killed = 0
    for folder, count in events:
        process = subprocess.Popen(command, cwd=Path.cwd())
        while process.poll() is None:
            if sum(one.is_file() for one in (out / folder).rglob("*")) >= count:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        killed += process.wait() == -signal.SIGKILL
        assert not (out / "summary.json").exists()
    assert killed == len(events)
    assert subprocess.run(command, check=False).returncode == 0
    one, other = tree(tmp_path / "whole"), tree(out)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
