"""COCO's files as tools lay them out are read as COCO's own folders, bit for bit."""

import json
import shutil

import label_folders as labels
import pytest

from seg_jax.data.build import dataset, readers
from seg_jax.data.formats import coco_layouts

HASH = "0a1b2c3d-"


@pytest.fixture
def given(tmp_path):
    """Returns a folder of COCO, and its records by the names of their images."""
    folder = tmp_path / "given"
    labels.coco(folder, labels.pictures(parts=2))
    return folder, by_name(labels.records("coco_instances", folder)[0])


def by_name(records):
    """Returns records by split and the name that an image had, however a tool names it."""
    found = {}
    for (split, name), one in records.items():
        found[split, name.replace("\\", "/").rpartition("/")[2].removeprefix(HASH)] = one
    assert len(found) == len(records)
    return found


def sheet(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def write(path, told):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))


def renamed(told, name):
    """Returns a file of COCO whose images have other names."""
    images = [one | {"file_name": name(one["file_name"])} for one in told["images"]]
    return told | {"images": images}


def roboflow(folder, out):
    for split, place in (("train", "train"), ("val", "valid")):
        shutil.copytree(folder / split, out / place)
        write(out / place / "_annotations.coco.json", sheet(folder, split))


def label_studio(name):
    """Returns what lays out an export of Label Studio, whose images have such names."""

    def lay_out(folder, out):
        for split in ("train", "val"):
            told = renamed(sheet(folder, split), name)
            write(out / split / "result.json", told)
            shutil.copytree(folder / split, out / split / "images")
            for path in (out / split / "images").iterdir():
                path.rename(path.with_name(HASH + path.name))

    return lay_out


def without_pictures(folder, out):
    """The export has JSON alone; pictures lie under the names that they had."""
    label_studio(lambda name: f"/data/upload/3/{HASH}{name}")(folder, out)
    for split in ("train", "val"):
        shutil.rmtree(out / split / "images")
        shutil.copytree(folder / split, out / split / "images")


def one_file_a_split(folder, out):
    for split in ("train", "val"):
        shutil.copytree(folder / split, out / "images" / split)
        write(out / f"{split}_coco.json", sheet(folder, split))


def one_folder_of_images(folder, out):
    for split in ("train", "val"):
        shutil.copytree(folder / split, out / "images", dirs_exist_ok=True)
        write(out / "annotations" / f"instances_{split}.json", sheet(folder, split))


LAYOUTS = {
    "Roboflow": roboflow,
    "Label Studio": label_studio(lambda name: f"images/{HASH}{name}"),
    "Label Studio on Windows": label_studio(lambda name: f"images\\{HASH}{name}"),
    "Label Studio's own paths": label_studio(
        lambda name: f"../../root/label-studio/media/upload/3/{HASH}{name}"
    ),
    "Label Studio without pictures": without_pictures,
    "a file a split": one_file_a_split,
    "images in one folder": one_folder_of_images,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_tools_lay_out_is_read_as_cocos_own(given, tmp_path, name):
    folder, wanted = given
    LAYOUTS[name](folder, tmp_path / "out")
    found, met = labels.records("coco_instances", tmp_path / "out")
    assert met.counts == {}
    labels.assert_same(by_name(found), wanted)


def test_an_export_of_one_split_may_lie_at_the_top(given, tmp_path):
    folder, wanted = given
    shutil.copytree(folder / "train", tmp_path / "out")
    write(tmp_path / "out" / "_annotations.coco.json", sheet(folder, "train"))
    found, _ = labels.records("coco_instances", tmp_path / "out")
    labels.assert_same(by_name(found), {key: wanted[key] for key in wanted if key[0] == "train"})


def test_the_folder_of_images_may_be_named(given, tmp_path):
    folder, _ = given
    roboflow(folder, tmp_path / "out")
    (tmp_path / "out" / "train").rename(tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere" / "_annotations.coco.json", tmp_path / "out")
    plan = dataset.Plan(
        name="coco_instances",
        source=tmp_path / "out",
        out=tmp_path / "built",
        images=tmp_path / "elsewhere",
        splits=("train",),
    )
    images = readers.read(plan).images
    assert [one.image.parent for one in images] == [tmp_path / "elsewhere"] * 2


def test_other_files_beside_are_passed_over(given, tmp_path):
    folder, _ = given
    out = tmp_path / "out"
    one_file_a_split(folder, out)
    told = sheet(folder, "train")
    write(out / "captions_train.json", told)
    write(out / "a_results.json", told)
    write(out / "notes.json", {"images": []})
    write(out / "a" / "b" / "deep.json", told)
    names = [one.path.name for one in coco_layouts.sheets(out, "instances")]
    assert names == ["train_coco.json", "val_coco.json"]


def test_a_name_with_a_question_mark_stands_as_it_is(given):
    folder, _ = given
    name = "what?d=0.png"
    (folder / "train" / "0.png").rename(folder / "train" / name)
    told = renamed(sheet(folder, "train"), lambda one: name if one == "0.png" else one)
    write(folder / "annotations" / "instances_train.json", told)
    found, met = labels.records("coco_instances", folder)
    assert met.counts == {}
    assert ("train", name) in found


def test_boxes_alone_are_outlines_where_that_is_said(tmp_path):
    labels.coco(tmp_path, labels.pictures(boxes=True))
    wanted, _ = labels.records("coco_instances", tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        told = json.loads(path.read_text())
        for note in told["annotations"]:
            if note["segmentation"] == labels.BOX.rings:
                note["bbox"], note["segmentation"] = [8.0, 10.0, 16.0, 20.0], []
        write(path, told)
    found, met = labels.records("coco_instances", tmp_path, boxes=True)
    assert met.counts == {}
    labels.assert_same(found, wanted)
    found, met = labels.records("coco_instances", tmp_path)
    assert met.counts == {"annotation left out: a box is no outline": 3}
    assert "give --boxes" in met.lines()[0]
