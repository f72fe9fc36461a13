"""Protocols of camouflaged and salient objects: from published layouts to numbers and tables."""

import json
from pathlib import Path

import numpy as np
import published_formats as formats
import pytest
from PIL import Image

from seg_jax.cli import main as shell
from seg_jax.data import sources
from seg_jax.data.findings import Findings
from seg_jax.evaluation.foreground import maps, measures, tables
from seg_jax.records import Sample


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with built data sets, and maps of each that are true but for noise."""
    root = tmp_path_factory.mktemp("foreground")
    for name in ("cod10k", "camo"):
        formats.masks(root / f"raw-{name}", name, images=3)
        words = ["--source", root / f"raw-{name}", "--out", root / name, "--workers", "1"]
        assert shell.main(["build", name, *map(str, words)]) == 0
    rng = np.random.default_rng(0)
    for name in ("cod10k", "camo"):
        (root / "maps" / name).mkdir(parents=True)
        for sample in samples(root, name):
            grey = np.where(sample.masks[0], 200, 20) + rng.integers(0, 50, sample.masks[0].shape)
            stem = sample.key.rpartition("/")[2].removesuffix(".jpg")
            Image.fromarray(grey.astype(np.uint8)).save(root / "maps" / name / f"{stem}.png")
    return root


def samples(root, *names):
    source = sources.Built(folders=tuple(root / name for name in names), split="test")
    return [source[number] for number in range(len(source))]


@pytest.fixture
def run(capfd, root):
    """Returns what runs evaluate on the test splits: its status, numbers and what it said."""

    def run(*words, data=("cod10k", "camo"), protocol="cod"):
        capfd.readouterr()
        given = [
            "--data",
            *(name if isinstance(name, Path) else root / name for name in data),
            "--split",
            "test",
            *words,
        ]
        status = shell.main(["evaluate", "--protocol", protocol, *map(str, given)])
        out, err = capfd.readouterr()
        return status, json.loads(out) if status == 0 else {}, err

    return run


def maps_of(root, name):
    """Returns the maps of a data set with the true masks."""
    for sample in samples(root, name):
        stem = sample.key.rpartition("/")[2].removesuffix(".jpg")
        yield np.asarray(Image.open(root / "maps" / name / f"{stem}.png")), sample.masks[0]


def test_maps_of_several_data_sets_are_judged(root, run, tmp_path):
    status, found, said = run("--maps", root / "maps", "--out", tmp_path / "out", "--name", "noise")
    assert (status, found["images"], found["passed_over"]) == (0, 6, {})
    assert "Camouflaged objects (COD):" in said
    for name in ("cod10k", "camo"):
        every = [measures.measure(*pair) for pair in maps_of(root, name)]
        want = {
            "structure": np.mean([one.structure for one in every]),
            "weighted_f": np.mean([one.weighted_f for one in every]),
            "absolute_error": np.mean([one.absolute_error for one in every]),
            "f_max": np.mean([one.f_curve for one in every], 0).max(),
            "f_mean": np.mean([one.f_curve for one in every]),
            "e_max": np.mean([one.e_curve for one in every], 0).max(),
            "e_mean": np.mean([one.e_curve for one in every]),
            "e_adaptive": np.mean([one.e_adaptive for one in every]),
            "f_adaptive": np.mean([one.f_adaptive for one in every]),
            "iou": 1.0,
            "reward": 1.0,
        }
        got = found["sets"][name]
        assert {key: got[key]["mean"] for key in want} == pytest.approx(want, abs=1e-12)
        for key in want:
            assert got[key]["low"] - 1e-12 <= got[key]["mean"] <= got[key]["high"] + 1e-12
    assert found["sets"]["cod10k"]["groups"]["aquatic"]["images"] == 3
    assert found["sets"]["camo"]["groups"] == {}
    lines = (tmp_path / "out/rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"].partition("/")[0] for line in lines] == 3 * ["cod10k"] + 3 * [
        "camo"
    ]
    table = (tmp_path / "out/table.md").read_text()
    assert "| Seg-R1-7B | .873 | .820 | .926 | .031 |" in table
    structure = found["sets"]["camo"]["structure"]["mean"]
    assert f"| **noise** | {structure:.3f} ".replace("| 0.", "| .") in table
    again = run("--maps", root / "maps", "--out", tmp_path / "two", "--beside", tmp_path / "out")
    assert again[0] == 0
    assert (tmp_path / "two/table.md").read_text().count("**noise**") == 2


def test_missing_damaged_strange_and_small_maps_are_told(root, run, tmp_path):
    one, two, three = samples(root, "camo")
    stems = [sample.key.rpartition("/")[2].removesuffix(".jpg") for sample in (one, two, three)]
    folder = tmp_path / "maps"
    folder.mkdir()
    half = Image.fromarray(255 * one.masks[0].astype(np.uint8)).resize((32, 24))
    half.save(folder / f"{stems[0]}.png")
    (folder / f"{stems[1]}.png").write_bytes(b"no image")
    half.save(folder / "other.png")
    status, found, said = run("--maps", folder, data=("camo",))
    assert status == 0
    assert {reason: told["count"] for reason, told in found["passed_over"].items()} == {
        "map of another size than its image: scaled": 1,
        "file is no image that is read: counted as one without foreground": 1,
        "no map: counted as one without foreground": 1,
        "map of no image of the data is left out": 1,
    }
    assert "no map: counted as one without foreground" in said
    nothing = [
        measures.measure(np.zeros_like(s.masks[0], np.uint8), s.masks[0]) for s in (two, three)
    ]
    least = sum(one.structure for one in nothing) / 3
    assert least < found["sets"]["camo"]["structure"]["mean"] < least + 1 / 3


def test_maps_that_are_alike_or_dull_are_told(root, run, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    one, *others = samples(root, "camo")
    stem = one.key.rpartition("/")[2].removesuffix(".jpg")
    Image.fromarray(255 * one.masks[0].astype(np.uint8)).save(folder / f"{stem}.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / f"{stem}.jpg")
    for sample in others:
        name = sample.key.rpartition("/")[2].removesuffix(".jpg")
        Image.fromarray(sample.masks[0].astype(np.uint8)).save(folder / f"{name}.png")
    status, found, _ = run("--maps", folder, data=("camo",))
    assert status == 0
    assert {reason: told["count"] for reason, told in found["passed_over"].items()} == {
        "map left out: another one has its name": 1,
        "map has greys of 0 and 1 alone, of 255": 2,
    }
    assert found["sets"]["camo"]["iou"]["mean"] == pytest.approx(1 / 3)  # The PNG counts.


def test_a_map_of_two_images_is_told(tmp_path):
    Image.fromarray(np.full((4, 5), 255, np.uint8)).save(tmp_path / "a.png")
    image = np.zeros((4, 5, 3), np.uint8)
    same = [
        Sample(key=f"set/{name}", image=image, masks=np.ones((1, 4, 5), bool), phrases=((),))
        for name in ("train/x/a.jpg", "train/y/a.jpg")
    ]
    met = Findings()
    mapped = maps.MapFolder(tmp_path, ["set"]).answers(same, met)
    assert [grey.min() for _, grey in mapped] == [255, 255]
    assert met.counts == {"map taken for several images, whose names are alike": 1}


def test_data_sets_may_be_told_by_where_one_is(root, run, monkeypatch):
    monkeypatch.chdir(root / "camo")
    for words in ((".",), ("../cod10k", "."), ("../camo/../cod10k", "../camo/.")):
        status, found, said = run("--maps", root / "maps", data=map(Path, words))
        assert status == 0, said
        assert list(found["sets"]) == ["cod10k", "camo"][-len(words) :]
    monkeypatch.chdir(root / "maps" / "camo")
    assert sources.set_name(Path("..")) == "maps"
    assert sources.set_name(Path()) == "camo"


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_numbers_beside_are_finite(root, run, tmp_path, number):
    assert run("--maps", root / "maps", "--out", tmp_path / "one")[0] == 0
    path = tmp_path / "one/summary.json"
    summary = json.loads(path.read_text())
    summary["sets"]["camo"]["iou"]["low"] = "here"
    path.write_text(json.dumps(summary).replace('"here"', number))
    status, _, said = run("--maps", root / "maps", "--out", tmp_path, "--beside", tmp_path / "one")
    assert status == 1
    assert "camo, iou, low: expected" in said.replace("\n", " ")


def test_released_counts_the_free_share_in_the_reward(root, run, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for one in samples(root, "camo"):
        stem = one.key.rpartition("/")[2].removesuffix(".jpg")
        Image.fromarray(255 * one.masks[0].astype(np.uint8)).save(folder / f"{stem}.png")
    found = run("--maps", folder, "--released", data=("camo",))[1]
    shares = [one.masks[0].mean() for one in samples(root, "camo")]
    assert found["sets"]["camo"]["reward"]["mean"] == pytest.approx(1 - 0.3 * np.mean(shares))
    assert found["released"] is True


def test_answers_in_outlines_are_judged_too(root, run, tmp_path):
    lines = []
    for sample in samples(root, "camo"):
        rows, columns = np.nonzero(sample.masks[0])
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        ring = [[x / 64, y / 48] for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        lines.append(
            {
                "key": sample.key,
                "which": 0,
                "given": "text",
                "kind": "mask",
                "phrase": "all camouflaged objects",
                "text": json.dumps([[[round(float(n), 4) for n in point] for point in ring]]),
            }
        )
    lines[-1]["text"] = "I do not know."
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, found, _ = run("--answers", path, data=("camo",))
    assert status == 0
    assert 0.6 < found["sets"]["camo"]["iou"]["mean"] <= 2 / 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "nowhere"], "nowhere: expected a folder of maps, got no folder; do: "),
        (["--maps", "{root}/maps/camo"], "expected a folder cod10k in it, as there are 2 data"),
        (["--maps", "{root}/maps", "--form", "2"], "--form: expected no --maps beside it"),
        (["--maps", "{root}/maps", "--gallery", "2"], "--gallery: expected"),
        (["--maps", "{root}/maps", "--samples", "2"], "--samples: expected no --protocol"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(root, run, words, message):
    status, _, said = run(*(word.format(root=root) for word in words))
    assert status != 0
    assert message in said


def test_a_folder_without_any_map_of_the_data_is_refused(root, run):
    status, _, said = run("--maps", root / "maps/cod10k", data=("camo",))
    assert status != 0
    assert "expected maps named as the images, got none of 3; do: " in said


def test_maps_belong_to_protocols_of_foreground(root, run):
    status, _, said = run("--maps", root / "maps", protocol="res")
    assert status != 0
    assert "--maps: expected --protocol cod or sod beside it, got res" in said


def test_published_rows_are_whole():
    for name in ("cod10k", "camo", "dut_omron", "duts", "hku_is", "ecssd"):
        rows = tables.published(name)
        assert len(rows) == 5
        assert rows[-1][0] == "FOCUS"
        assert all(cell == "-" or 0 < float(cell) < 1 for row in rows for cell in row[1:])
    assert tables.known_set("DUT-OMRON") == "dut_omron"
    assert tables.known_set("duts_te") == "duts"
    assert tables.known_set("mine") == ""
