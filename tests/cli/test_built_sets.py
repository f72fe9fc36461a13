"""From published files to numbers: `seg-jax build`, then `seg-jax evaluate` of fixed answers."""

import json
import pickle
import shutil

import numpy as np
import published_formats as formats
import pytest
import small_run
from pycocotools import mask as coco

from seg_jax.cli import main
from seg_jax.inference import bundle as bundles

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a folder with data/NAME built by the command, and the files each is made of."""
    root = tmp_path_factory.mktemp("sets")
    told = {name: formats.refer(root, name, images=2) for name in ("refcoco_unc", "grefcoco_unc")}
    _, refs = told["refcoco_unc"]
    long = next(r for r in refs if r["split"] == "val" and len(r["sentences"]) == 3)["sentences"]
    long[2]["sent"] = long[0]["sent"]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    told["reasonseg"] = formats.reasonseg(root / "reasonseg")
    told["coco_instances"] = formats.instances(root / "coco", "val2017")
    for name in told:
        source = root / {"coco_instances": "coco", "reasonseg": "reasonseg"}.get(name, "")
        words = ["build", name, "--source", source, "--out", root / "data" / name, "--workers", 1]
        assert main.main([str(word) for word in words]) == 0
    return root, told


@pytest.fixture
def run(capsys):
    def call(*words):
        status = main.main(["evaluate", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    return call


def outlined(rng, segmentation):
    """Returns an answer near a polygon of an annotation, and its pixels by pycocotools."""
    points = np.array(segmentation[0]).reshape(-1, 2) + rng.normal(0, rng.choice([0.5, 3, 9]), 2)
    told = np.clip(np.round(points / [WIDTH, HEIGHT], 3), 0, 1)
    text = "[[" + ", ".join(f"[{x:.3f}, {y:.3f}]" for x, y in told) + "]]."
    rles = coco.frPyObjects([(told * [WIDTH, HEIGHT]).ravel().tolist()], HEIGHT, WIDTH)
    return text, coco.decode(rles)[..., 0].astype(bool)


def asked(name, data, refs, split, answer):
    """Returns answers to all expressions of a split, and (answered, true) masks.

    Objects, or sets of them, are numbered in the order of the references of their image.
    """
    notes = {note["id"]: note["segmentation"] for note in data["annotations"]}
    files = {image["id"]: image["file_name"] for image in data["images"]}
    lines, masks, seen = [], [], {}
    for ref in sorted(refs, key=lambda ref: ref["ref_id"]):
        if ref["split"] != split:
            continue
        ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        places = seen.setdefault(ref["image_id"], {})
        which = places.setdefault(tuple(sorted(ids)), len(places))
        truth = np.zeros((HEIGHT, WIDTH), bool)
        for number in ids:
            truth |= number != -1 and formats.true_mask(notes[number])
        for one in ref["sentences"]:
            text, mask = answer(notes.get(ids[0]))
            line = {"key": f"{name}/{split}/{files[ref['image_id']]}", "which": which}
            line |= {"given": "text", "kind": "mask", "phrase": one["sent"], "text": text}
            lines.append(line)
            masks.append((mask, truth))
    return lines, masks


def written(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def box_iou(one, other):
    """Returns the IoU of the boxes around two masks, by pycocotools."""
    boxes = [coco.toBbox(coco.encode(np.asfortranarray(m.astype(np.uint8)))) for m in (one, other)]
    return coco.iou(boxes[0][None], boxes[1][None], [0]).item()


def means(printed):
    summary = json.loads(printed)
    return {k: v["mean"] for k, v in summary.items() if isinstance(v, dict) and "mean" in v}


def test_refcoco_is_scored_as_pycocotools_does(made, run, tmp_path):
    root, told = made
    data, refs = told["refcoco_unc"]

    def answer(note):
        return outlined(np.random.default_rng(int(note[0][0] * 100)), note)

    # The same words twice about one object: both count, as in every evaluation of RefCOCO.
    lines, masks = asked("refcoco_unc", data, refs, "val", answer)
    assert len({(line["key"], line["which"], line["phrase"]) for line in lines}) == len(lines) - 1
    file = written(tmp_path / "answers.jsonl", lines)
    words = ("--protocol", "res", "--answers", file, "--data", root / "data" / "refcoco_unc")
    status, printed, _ = run(*words, "--out", tmp_path / "out")
    assert status == 0
    shared = np.array([(a & b).sum() for a, b in masks])
    union = np.array([(a | b).sum() for a, b in masks])
    iou = shared / union
    wanted = {"ciou": shared.sum() / union.sum(), "giou": iou.mean()}
    wanted |= {f"p_at_0.{n}": (iou > n / 10).mean() for n in range(5, 10)}
    wanted["rec_from_mask"] = np.mean([box_iou(a, b) > 0.5 for a, b in masks])
    assert 0.1 < wanted["p_at_0.7"] < wanted["giou"] < 0.95
    found = means(printed)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert json.loads(printed)["questions"] == len(lines) == 8
    # In the paper's column, without being told which.
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| **{file}**, res | {100 * wanted['ciou']:.1f} |" in table


def test_grefcoco_counts_who_says_that_there_is_nothing(made, run, tmp_path):
    root, told = made
    data, refs = told["grefcoco_unc"]
    rng, some = np.random.default_rng(4), data["annotations"][0]["segmentation"]
    nothing = "[].", np.zeros((HEIGHT, WIDTH), bool)
    # The first of all is denied; of those without a target the first is denied, too.
    met = {True: 0, False: 0}

    def answer(note):
        met[note is None] += 1
        return nothing if met[note is None] == 1 else outlined(rng, note or some)

    lines, masks = asked("grefcoco_unc", data, refs, "testA", answer)
    file = written(tmp_path / "answers.jsonl", lines)
    words = ("--protocol", "gres", "--answers", file, "--split", "testA")
    status, printed, _ = run(*words, "--data", root / "data" / "grefcoco_unc")
    assert status == 0
    shared = np.array([(a & b).sum() for a, b in masks])
    union = np.array([(a | b).sum() for a, b in masks])
    iou = [s / u if u else 1.0 for s, u in zip(shared, union, strict=True)]
    targets = sum(bool(truth.any()) for _, truth in masks)
    assert len(masks) - targets == 2
    wanted = {"giou": np.mean(iou), "ciou": shared.sum() / union.sum()}
    wanted |= {"n_acc": 0.5, "n_acc_said": 0.5, "t_acc": (targets - 1) / targets}
    found = means(printed)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert json.loads(printed)["split"] == "grefcoco_unc-testA"


def test_regions_of_reasonseg_that_are_ignored_do_not_count(made, run, tmp_path):
    root, told = made
    whole = "[[[0.05, 0.05], [0.70, 0.05], [0.70, 0.70], [0.05, 0.70]]]."
    lines = [
        {"key": f"reasonseg/{key}", "which": 0, "given": "text", "kind": "mask", "phrase": phrase}
        | {"text": whole}
        for key, note in told["reasonseg"].items()
        for phrase in note["text"]
    ]
    file = written(tmp_path / "answers.jsonl", lines)
    words = ("--protocol", "reasonseg", "--answers", file, "--out", tmp_path / "out")
    assert run(*words, "--data", root / "data" / "reasonseg", "--split", "test")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").open()]
    assert len({row["answer_px"] for row in rows}) == 1
    plain, marked = (next(r for r in rows if r["key"].endswith(f"_{n}")) for n in (0, 1))
    # The target of both is the same but for the triangle of 10 x 10 that OpenCV paints over it.
    hidden = plain["truth_px"] - marked["truth_px"]
    assert 50 <= hidden <= 70
    assert plain["intersection"] - marked["intersection"] == hidden
    assert plain["union"] - marked["union"] == hidden


def test_points_are_told_of_each_object_of_coco(made, run, tmp_path):
    root, told = made
    objects = [one for one in told["coco_instances"]["annotations"] if not one["iscrowd"]]
    answers = written(tmp_path / "answers.jsonl", [])
    words = ("--answers", answers, "--data", root / "data" / "coco_instances")
    lines = [
        {"key": f"coco_instances/val2017/{image:012d}.jpg", "which": place, "given": "point"}
        | {"kind": "mask", "phrase": "", "text": "[]."}
        for image in (1, 2, 3)
        for place in range(3)
    ]
    written(answers, lines)
    words = (*words, "--split", "val2017", "--protocol", "point_mask", "--out", tmp_path / "out")
    assert run(*words)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").open()]
    areas = [int(formats.true_mask(one["segmentation"]).sum()) for one in objects]
    assert [row["truth_px"] for row in rows] == areas


def test_a_set_of_damaged_records_alone_says_so(made, run, tmp_path):
    root, _ = made
    data = shutil.copytree(root / "data" / "refcoco_unc", tmp_path / "refcoco_unc")
    for path in data.glob("*-val.array_record-*"):
        path.write_bytes(b"text" * (path.stat().st_size // 4))
    words = ("--answers", written(tmp_path / "answers.jsonl", []), "--data", data)
    status, _, err = run("--protocol", "res", *words)
    assert status == 1
    assert "got none, for all was passed over: " in err
    assert str(next(data.glob("*-val.array_record-*")).name) in err.split("got none")[1]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--protocol", "gres", "--data", "refcoco_unc"), "expected expressions without a target"),
        (("--protocol", "res", "--data", "refcoco_unc", "--split", "v"), "expected one of the spl"),
        (("--protocol", "res", "--data", "nothing"), "expected a data set with dataset_info.json"),
        (("--data", "refcoco_unc", "--world", "easy"), "expected data or a world, got both"),
    ],
)
def test_what_a_protocol_lacks_is_one_line(made, run, words, wanted):
    root, _ = made
    at = {name: root / "data" / name for name in ("refcoco_unc", "nothing")}
    # The checkpoint is none: what is wrong with the data is told before weights are read.
    status, printed, errors = run("--checkpoint", root, *(at.get(word, word) for word in words))
    assert (printed, status in (1, 2)) == ("", True)
    assert wanted in errors
    assert errors.startswith("seg-jax evaluate: ")


@pytest.mark.slow
def test_a_model_is_asked_about_data_sets(made, run, tmp_path):
    root, _ = made
    bundles.save(small_run.bundle(), tmp_path / "checkpoint")
    words = ("--checkpoint", tmp_path / "checkpoint", "--batch", 8, "--data")
    status, printed, _ = run(*words, root / "data" / "refcoco_unc", root / "data" / "grefcoco_unc")
    assert status == 0
    summary = json.loads(printed)
    assert summary["set"] == "refcoco-val + grefcoco_unc-val"
    assert sum(summary["verdicts"].values()) == 4
    status, printed, errors = run(*words, root / "data" / "reasonseg")
    assert (status, printed) == (1, "")
    assert "tokens in the prompt, got" in errors
    assert "or name a --protocol" in errors
