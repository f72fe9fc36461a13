"""Models of boxes and clicks at work: predict and evaluate with a SAM 2 that draws their masks."""

import dataclasses
import json
import shutil

import numpy as np
import published_formats as formats
import pytest
import small_clicks
import small_run
from PIL import Image

from seg_jax.cli import evaluate
from seg_jax.cli import main as shell
from seg_jax.data import image_files, sources
from seg_jax.evaluation.referring import protocols
from seg_jax.geometry import bitmask, contour
from seg_jax.grammar import clicks
from seg_jax.inference import bundle as bundles
from seg_jax.inference import segmenter
from seg_jax.records import Kind
from seg_jax.tasks.prompted import Prompted

FRAME = small_clicks.FRAME


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with a SAM 2, a model of boxes and clicks, and a data set of masks."""
    root = tmp_path_factory.mktemp("clicks")
    small_clicks.save_segmenter(root / "sam2")
    small_clicks.save_model(root / "model")
    formats.masks(root / "raw", "camo", images=3)
    words = ["--source", root / "raw", "--out", root / "camo", "--workers", "1"]
    assert shell.main(["build", "camo", *map(str, words)]) == 0
    return root


@pytest.fixture
def run(capfd, root, monkeypatch):
    """Returns what runs a program: its numbers, or the one line that it refuses with."""
    small_run.on_one_device(monkeypatch)

    def run(*words):
        capfd.readouterr()
        status = shell.main([str(word).format(root=root) for word in words])
        out, err = capfd.readouterr()
        if status:
            (line,) = err.strip().splitlines()
            return line
        return json.loads(out)

    return run


def box_of(mask):
    """Returns the answer that boxes a mask and clicks in the middle of the box."""
    box = contour.box_px(mask) / np.tile(mask.shape[::-1], 2)
    middle = (box[:2] + box[2:]) / 2
    return clicks.write(box[None], middle[None], [1], frame=FRAME, thought="it is there")


def write_answers(path, told):
    """Writes answers to questions."""
    lines = []
    for question, text in told:
        lines.append(
            {
                "key": question.sample.key,
                "which": question.which,
                "given": "text",
                "kind": "mask",
                "phrase": question.phrase,
                "text": text,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def drawn(root, image, text, *, every=False):
    """Returns what the SAM 2 draws of an answer, one prompt for its only box."""
    read, size = clicks.read(text, frame=FRAME), np.array(image.shape[1::-1])
    ((low, high),) = read.boxes_unit.reshape(1, 2, 2)
    within = ((read.points_unit >= low) & (read.points_unit <= high)).all(1) | every
    asked = segmenter.prompt(
        box_px=read.boxes_unit[0] * np.tile(size, 2),
        clicks_px=read.points_unit[within] * size,
        labels=read.labels[within],
    )
    return segmenter.load(root / "sam2").draw(image, [asked])[0].mask


@pytest.mark.parametrize("protocol", ["res", "reasonseg"])
def test_answers_to_expressions_are_judged_by_what_is_drawn(protocol, root, run, tmp_path):
    config = evaluate.Config(protocol=protocol, scenes=3, answers=tmp_path, segmenter=tmp_path)
    rules, source = protocols.PROTOCOLS[protocol], evaluate.held_out(config)
    asked = list(protocols.questions(rules, source, task=Prompted(frame=FRAME)))
    assert {one.text.startswith(" Identify and segment ") for one in asked} == {
        protocol == "reasonseg"
    }
    told = [(one, box_of(one.truth)) for one in asked]
    told[0] = told[0][0], "I cannot see it."
    write_answers(tmp_path / "answers.jsonl", told)
    words = ["evaluate", "--protocol", protocol, "--scenes", 3, "--frame", FRAME]
    words += ["--segmenter", "{root}/sam2", "--answers", tmp_path / "answers.jsonl"]
    found = run(*words, "--out", tmp_path / "out")
    masks = [drawn(root, one.sample.image, text) for one, text in told[1:]]
    shared = [0, *((a & one.truth).sum() for a, (one, _) in zip(masks, told[1:], strict=True))]
    union = [told[0][0].truth.sum()]
    union += [(a | one.truth).sum() for a, (one, _) in zip(masks, told[1:], strict=True)]
    assert found["ciou"]["mean"] == pytest.approx(sum(shared) / sum(union), abs=1e-3)
    assert found["giou"]["mean"] == pytest.approx(
        np.mean(np.array(shared) / np.array(union)), abs=1e-3
    )
    assert 0 < found["giou"]["mean"] < 1
    assert found["verdicts"]["EMPTY"] == 1
    assert "I cannot see it." in (tmp_path / "out/gallery.html").read_text()
    table = (tmp_path / "out/table.md").read_text()
    assert ("| Seg-R1-7B | 58.6 | 41.2 |" in table) == (protocol == "reasonseg")
    # The same answers, written by that evaluation.
    words[-1] = tmp_path / "out/answers.jsonl"
    assert run(*words)["ciou"] == found["ciou"]


@pytest.mark.parametrize("released", [False, True])
def test_answers_about_foregrounds_count_as_the_maps_that_are_drawn(released, root, run, tmp_path):
    source = sources.Built(folders=(root / "camo",), split="test")
    (tmp_path / "maps").mkdir()
    told = []
    for sample in (source[n] for n in range(3)):
        text, image = box_of(sample.masks[0]), sample.image
        told.append((protocols.Question(sample, 0, 0, "text", Kind.MASK, "", "", ""), text))
        if released:  # In the frame, blue first; the mask is scaled to the image.
            size = image.shape[1::-1]
            view = Image.fromarray(image).resize((FRAME, FRAME), Image.Resampling.BILINEAR)
            mask = drawn(root, np.ascontiguousarray(np.asarray(view)[..., ::-1]), text)
            grey = Image.fromarray(255 * mask.astype(np.uint8))
            grey = grey.resize(size, Image.Resampling.BILINEAR)
        else:
            grey = Image.fromarray(255 * drawn(root, image, text).astype(np.uint8))
        stem = sample.key.rpartition("/")[2].removesuffix(".jpg")
        grey.save(tmp_path / "maps" / f"{stem}.png")
    write_answers(tmp_path / "answers.jsonl", told)
    words = ["evaluate", "--protocol", "cod", "--data", "{root}/camo", "--split", "test"]
    words += ["--released"] if released else []
    clicked = ["--answers", tmp_path / "answers.jsonl", "--segmenter", "{root}/sam2"]
    clicked += ["--frame", FRAME, "--out", tmp_path / "out", "--name", "ours"]
    found = run(*words, *clicked)
    want = run(*words, "--maps", tmp_path / "maps")
    assert found["sets"] == want["sets"]
    assert found["sets"]["camo"]["iou"]["mean"] > 0
    table = (tmp_path / "out/table.md").read_text()
    assert "| Seg-R1-7B | .826 | .788 | .881 | .073 |" in table
    assert "| **ours** |" in table
    lines = [json.loads(x) for x in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [text for _, text in told]


@pytest.mark.slow
def test_predict_draws_the_mask_and_shows_the_thought(root, run, tmp_path):
    image = sources.Scenes(seed=3, count=1)[0].image
    image_files.write(tmp_path / "scene.png", image)
    words = ["predict", "--checkpoint", "{root}/model", "--image", tmp_path / "scene.png"]
    found = run(*words, "--grammar", "--segmenter", "{root}/sam2", "--out", tmp_path / "out")
    assert "each primary object" in found["question"]
    assert found["thought"] is not None
    assert f"<think>{found['thought']}" in found["text"].replace("<think> ", "<think>")
    rle = {"size": found["rle"]["size"], "counts": found["rle"]["counts"].encode()}
    mask = bitmask.from_rle(rle)
    assert mask.shape == image.shape[:2]
    assert mask.sum() == found["area_px"]
    np.testing.assert_array_equal(np.asarray(Image.open(found["mask"]))[..., 0] > 0, mask)
    assert Image.open(found["overlay"]).size[0] >= image.shape[1]
    alone = run(*words, "--grammar", "--text", "the red star")
    assert "the red star" in alone["question"]
    assert "rle" not in alone


@pytest.mark.slow
def test_a_model_is_asked_about_scenes_and_about_foregrounds(root, run, tmp_path):
    model = ["--checkpoint", "{root}/model", "--segmenter", "{root}/sam2", "--grammar"]
    found = run("evaluate", *model, "--scenes", 4, "--samples", 2)
    assert found["questions"] == 4
    assert found["format"]["mean"] == 1
    assert 0 < found["ciou"]["mean"] < 1
    assert 0 < found["sampled"]["scores"]["iou"]["best"]["mean"] < 1
    data = ["--data", "{root}/camo", "--split", "test"]
    assert run("evaluate", *model, *data)["questions"] == 3
    other = run("evaluate", *model, "--scenes", 4, "--released")
    assert other["ciou"] != found["ciou"]  # Blue first.
    words = ["evaluate", *model, "--protocol", "cod", *data]
    maps = run(*words, "--out", tmp_path / "out")
    assert maps["sets"]["camo"]["images"] == 3
    path = tmp_path / "out/answers.jsonl"
    alone = ["--segmenter", "{root}/sam2", "--answers", path, "--frame", FRAME]
    again = run("evaluate", *alone, *words[6:])
    assert again["sets"] == maps["sets"]


MODEL, SAM = ("--checkpoint", "{root}/model"), ("--segmenter", "{root}/sam2")
REFUSED = {
    "no segmenter": (
        ("evaluate", *MODEL),
        "segmenter: expected the folder of a model that draws for the task 'prompted'",
    ),
    "no segmenter for cod": (
        ("evaluate", *MODEL, "--protocol", "cod", "--data", "{root}/camo", "--split", "test"),
        "segmenter: expected the folder of a model that draws for the task 'prompted'",
    ),
    "no segmenter for res": (
        ("evaluate", *MODEL, "--protocol", "res"),
        "segmenter: expected the folder of a model that draws for the task 'prompted'",
    ),
    "a model that answers in its place": (
        ("evaluate", *MODEL, "--segmenter", "{root}/model"),
        "segmenter: model_type: expected a model that draws masks of points and boxes, got 'qwen",
    ),
    "an outline's model": (
        ("evaluate", *SAM),
        "segmenter: expected none for the task 'referring'",
    ),
    "another protocol": (
        ("evaluate", *MODEL, *SAM, "--protocol", "gres"),
        "--segmenter: expected one of the protocols res, reasonseg, cod, sod beside it",
    ),
    "a protocol of outlines": (
        ("evaluate", *MODEL, "--protocol", "rec"),
        "protocol rec: expected a model of the task 'referring', got one of 'prompted'",
    ),
    "a frame of its own": (
        ("evaluate", *MODEL, *SAM, "--frame", "768"),
        "--frame: expected a model of Hugging Face's and --segmenter beside it, got 768",
    ),
    "a frame without a segmenter": (
        ("evaluate", *MODEL, "--frame", "768"),
        "--frame: expected --segmenter beside it, got none",
    ),
    "the release without a segmenter": (
        ("evaluate", *MODEL, "--released"),
        "--released: expected --segmenter or --protocol cod or sod beside it, got none",
    ),
    "maps and a segmenter": (
        ("evaluate", "--protocol", "cod", "--data", "{root}/camo", "--maps", "{root}", *SAM),
        "--segmenter: expected no --maps beside it",
    ),
    "a form": (
        ("evaluate", *MODEL, *SAM, "--protocol", "res", "--form", "2"),
        "--form: expected no --segmenter beside it",
    ),
    "a mixture": (
        ("evaluate", *MODEL, *SAM, "--mixture.text-box", "2"),
        "mixture: expected none for the task 'prompted'",
    ),
    "predict, no words": (
        ("predict", "--image", "{root}/scene.png"),
        "predict: expected exactly one of --text, --point and --box, got 0",
    ),
    "predict, a point": (
        ("predict", *MODEL, "--image", "{root}/scene.png", "--point", "0.5", "0.5"),
        "prompted: expected an expression, got [0.5, 0.5]",
    ),
    "predict, a kind": (
        ("predict", *MODEL, "--image", "{root}/scene.png", "--answer", "mask"),
        "answer: expected one of clicks, got 'mask'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(case, root, run):
    image_files.write(root / "scene.png", np.zeros((32, 32, 3), np.uint8))
    words, told = REFUSED[case]
    line = run(*words)
    assert isinstance(line, str)
    assert told in line
    assert "; do: " in line


def test_weights_of_other_sizes_than_the_config_says_are_refused(root, run, tmp_path):
    image_files.write(tmp_path / "scene.png", np.zeros((32, 32, 3), np.uint8))
    shutil.copytree(root / "sam2", tmp_path / "sam2")
    config = json.loads((tmp_path / "sam2/config.json").read_text())
    config["mask_decoder_config"]["mlp_dim"] *= 2
    (tmp_path / "sam2/config.json").write_text(json.dumps(config))
    (tmp_path / "sam2/checksums.json").unlink(missing_ok=True)
    words = ["predict", *MODEL, "--image", tmp_path / "scene.png"]
    line = run(*words, "--segmenter", tmp_path / "sam2")
    assert isinstance(line, str)
    assert "expected" in line
    assert "; do: " in line


def test_a_folder_that_says_nothing_of_its_task_is_asked_as_the_release(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "hub")
    (tmp_path / "hub" / bundles.MANIFEST).unlink()
    config = evaluate.Config(
        checkpoint=tmp_path / "hub",
        segmenter=root / "sam2",
        protocol="cod",
        data=(root / "camo",),
        released=True,
    )
    task = evaluate.protocol_task(config)
    assert isinstance(task, Prompted)
    assert (task.frame, task.square, task.released) == (768, True, True)
    reasoning = dataclasses.replace(config, protocol="reasonseg")
    assert vars(evaluate.protocol_task(reasoning))["frame"] == 1024
    layout = reasoning._layout(task, small_clicks.bundle().layout)
    assert layout.max_question == 640
    assert reasoning._visual_tokens(evaluate.protocol_task(reasoning)) == 37 * 37
