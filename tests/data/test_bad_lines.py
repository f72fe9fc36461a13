"""Lines of folders, and annotations of ReasonSeg and the refer family, of which parts are wrong.

Names of tests and their docstrings give the cases that they stand for.
"""

import json
import math
import pickle

import annotation_texts as texts
import published_formats as formats
import pytest

from seg_jax.data.formats import coco, folder, reasonseg, refer
from seg_jax.data.formats.annotations import BadAnnotation
from seg_jax.geometry import runlengths


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings_of_windows_are_read(tmp_path, encoding):
    """A mark of the byte order, as editors and PowerShell write it."""
    (tmp_path / "instances_val.json").write_bytes(json.dumps(texts.coco_data()).encode(encoding))
    read = coco.read_instances(tmp_path / "instances_val.json", images=tmp_path, split="val")
    assert len(read.images) == 2
    text = "\r\n".join(
        json.dumps(texts.line([texts.RING], image=f"é{n}.jpg"), ensure_ascii=False) for n in "ab"
    )
    (tmp_path / "train.jsonl").write_bytes(text.encode(encoding))
    lines = folder.read(tmp_path)
    assert [image.key for image in lines.images] == ["train/éa.jpg", "train/éb.jpg"]
    assert lines.findings.counts == {}
    formats.reasonseg(tmp_path, images=1)
    path = tmp_path / "train" / "train_0.json"
    note = json.loads(path.read_bytes())
    path.write_bytes(json.dumps(note, ensure_ascii=False).encode(encoding))
    found = reasonseg.read(tmp_path)
    assert (len(found.images), found.findings.counts) == (3, {})
    assert [one.text for one in found.images[0].expressions] == note["text"]


def test_lines_that_end_as_on_old_macs_are_read(tmp_path):
    every = (json.dumps(texts.line([texts.RING], image=name)) for name in ("a.jpg", "b.jpg"))
    (tmp_path / "train.jsonl").write_bytes("\r".join(every).encode())
    read = folder.read(tmp_path)
    assert [image.key for image in read.images] == ["train/a.jpg", "train/b.jpg"]
    assert read.findings.counts == {}


LINES = {
    "a name twice": ('{"image": "c.jpg", "image": "d.jpg"}', "expected object"),
    "no json": ("{nothing", "expected JSON"),
    "deep": (texts.nested(200_000), "expected object"),
    "not utf-8": ('{"image": "\udcff"}', "expected JSON"),
    "a number": ("5", "expected object"),
    "no image": ({"objects": [], "phrases": []}, "expected a field 'image'"),
    "no objects": ({"image": "c.jpg", "phrases": []}, "expected a field 'objects'"),
    "null objects": (texts.line(image="c.jpg", objects=None), "expected list at objects"),
    "an image of nothing": (texts.line(image=""), "expected str of length >= 1 at image"),
    "key of another kind": (texts.line(image="c.jpg", key=5), "expected str | null at key"),
    "upright of text": (texts.line(image="c.jpg", upright="no"), "expected "),
    "key of another image": (
        texts.line(image="c.jpg", key="a.jpg"),
        "another line of its key has another",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_costs_itself(tmp_path, name):
    """top-1."""
    bad, reason = LINES[name]
    text = "\n".join(
        one if isinstance(one, str) else json.dumps(one)
        for one in (texts.line([texts.RING]), bad, "", texts.line([texts.RING], image="b.jpg"))
    )
    (tmp_path / "train.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    read = folder.read(tmp_path)
    assert [image.key for image in read.images] == ["train/a.jpg", "train/b.jpg"]
    ((told, count),) = read.findings.counts.items()
    assert (count, told.startswith(f"line left out: {reason}")) == (1, True)
    assert read.findings.examples[told][0].startswith(f"{tmp_path}/train.jsonl, line 2")


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        [texts.RING],
        5,
        None,
        {"segmentation": texts.RING},
        {"segmentation": [texts.RING], "name": 5},
        {"segmentation": [texts.RING], "crowd": "false"},
    ],
)
def test_a_bad_object_costs_itself_and_what_means_it(tmp_path, bad):
    """top-1: texts, lists and numbers for objects; "false" is not taken for true."""
    good = {"segmentation": [texts.RING]}
    phrases = [
        {"text": f"thing {which}", "objects": which} for which in ([0], [1], [2], [0, 1], [])
    ]
    read = texts.read_folder(
        tmp_path, {"image": "a.jpg", "objects": [good, bad, good], "phrases": phrases}
    )
    (image,) = read.images
    told = [(one.text, one.objects) for one in image.expressions]
    assert told == [("thing [0]", (0,)), ("thing [2]", (1,)), ("thing []", ())]
    counts = read.findings.counts
    assert counts.pop("phrase left out: it means an object that was left out") == 2
    assert [reason.partition(":")[0] for reason in counts] == ["object left out"]


@pytest.mark.parametrize(
    "bad",
    [
        5,
        {"text": "a"},
        {"objects": [0]},
        {"text": None, "objects": [0]},
        {"text": "a", "objects": 0},
        {"text": "a", "objects": [1]},
        {"text": "a", "objects": [-1]},
        {"text": "a", "objects": ["0"]},
        {"text": "a", "objects": [True]},
        {"text": "a", "objects": [2**70]},
        {"text": "a\ud800", "objects": [0]},
        {"text": "a" * 100_001, "objects": [0]},
    ],
)
def test_a_bad_phrase_costs_itself(tmp_path, bad):
    phrases = [bad, {"text": "b", "objects": [0, 0]}]
    read = texts.read_folder(tmp_path, texts.line([texts.RING], phrases=phrases))
    assert [(one.text, one.objects) for one in read.images[0].expressions] == [("b", (0,))]
    ((told, count),) = read.findings.counts.items()
    assert (count, told.partition(":")[0]) == (1, "phrase left out")
    assert "line 1, phrases[0]" in read.findings.examples[told][0]


def test_a_null_name_is_none(tmp_path):
    """null-1."""
    objects = [{"segmentation": [texts.RING], "name": name} for name in (None, " the  cup ", "")]
    read = texts.read_folder(tmp_path, texts.line(objects=objects))
    assert [one.name for one in read.images[0].objects] == ["", "the cup", ""]


def test_lines_of_one_image_are_joined(tmp_path):
    """line-1: a line a phrase; an object that stands in several lines is one object."""
    other = [[1, 1, 9, 1, 9, 9]]
    first, again = texts.line([texts.RING]), texts.line([texts.RING], other)
    again["phrases"] = [
        {"text": "the other", "objects": [1]},
        {"text": "the same", "objects": [0]},
        {"text": "both", "objects": [1, 0]},
    ]
    read = texts.read_folder(tmp_path, first, texts.line([texts.RING], image="b.jpg"), again)
    assert [image.key for image in read.images] == ["train/a.jpg", "train/b.jpg"]
    image = read.images[0]
    assert [one.id for one in image.objects] == [0, 2]  # Places among all that was told.
    assert [(one.id, one.text, one.objects) for one in image.expressions] == [
        (0, "thing 0", (0,)),
        (1, "the other", (1,)),
        (2, "the same", (0,)),
        (3, "both", (1, 0)),
    ]
    assert read.findings.counts == {}


def test_lines_with_keys_of_their_own_stay_apart(tmp_path):
    read = texts.read_folder(
        tmp_path, texts.line([texts.RING], key="one"), texts.line([texts.RING], key="two")
    )
    assert [image.key for image in read.images] == ["train/one", "train/two"]
    assert {image.image for image in read.images} == {tmp_path / "a.jpg"}


def test_upright_is_what_the_line_says(tmp_path):
    """exif-1: a line may say yes, no or nothing, and lines of one image must agree."""
    said = [texts.line([texts.RING], image=f"{n}.jpg", upright=n) for n in (True, False, None)]
    read = texts.read_folder(tmp_path, *said, texts.line([texts.RING], image="True.jpg"))
    assert [image.upright for image in read.images] == [True, False, None]
    assert {*read.findings.counts} == {"line left out: another line of its key has another upright"}


@pytest.mark.parametrize("text", ['[{"image": "a.jpg"}]', '{\n "image": "a.jpg"\n}'])
def test_json_over_several_lines_is_told(tmp_path, text):
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match="expected a JSON object a line, got one JSON value over"):
        folder.read(tmp_path)


def reason_seg(root, **changes):
    formats.reasonseg(root, images=1)
    path = root / "train" / "train_0.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    return reasonseg.read(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": None}, "expected str | list at text"),
        ({"text": [5]}, "expected str at text[]"),
        ({"shapes": [5]}, "expected object at shapes[]"),
        ({"shapes": [{"label": None, "points": []}]}, "expected str at shapes[].label"),
        ({"shapes": [{"label": "target", "points": []}]}, "expected list of length >= 1 at points"),
        (
            {"shapes": [{"label": "target", "points": [[1]]}]},
            "expected list of length 2 at points[]",
        ),
        ({"shapes": [{"label": "target", "points": [[1, None]]}]}, "expected float at points[][]"),
        (
            {"shapes": [{"label": "target", "points": [[0.1, 0.2]] * 3}]},
            "coordinates are fractions",
        ),
        (
            {"shapes": [{"label": "target", "points": [[1, 2]]}] * 1001},
            "expected list of length <=",
        ),
        ({"is_sentence": "no"}, "expected "),
    ],
)
def test_a_bad_annotation_of_reasonseg_costs_itself(tmp_path, changes, reason):
    read = reason_seg(tmp_path, **changes)
    assert [image.split for image in read.images] == ["val", "test"]
    ((told, count),) = read.findings.counts.items()
    assert (count, told.startswith(f"annotation left out: {reason}")) == (1, True)
    assert read.findings.examples[told][0].startswith(f"{tmp_path}/train/train_0.json")


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([[n % 64, (-1) ** n * 1e7] for n in range(3000)], "a shape is too far from its image"),
        ([[0, 0], [1e7, 0], [0, 40]], "a shape is too far from its image"),
        ([[n % 64, (-1) ** n * 3e4] for n in range(3000)], "its shapes are too intricate"),
        ([[n % 64, n * 7919 % 48] for n in range(100_000)], "its shapes are too intricate"),
    ],
)
def test_shapes_that_cannot_be_painted_in_time_cost_their_objects(tmp_path, points, reason):
    read = reason_seg(tmp_path, shapes=[{"label": "target", "points": points}])
    (outline,) = (one.outline for one in read.images[0].objects)
    with pytest.raises(BadAnnotation) as error:
        outline.rle(48, 64)
    assert error.value.reason == reason


def test_a_shape_of_many_points_or_beyond_its_image_is_painted(tmp_path):
    turns = [n * math.tau / 20_000 for n in range(20_000)]
    ring = [[30 + 20 * math.cos(turn), 20 + 15 * math.sin(turn)] for turn in turns]
    for points in (ring, [[-9000, -9000], [9000, -9000], [9000, 9000], [-9000, 9000]]):
        read = reason_seg(tmp_path, shapes=[{"label": "target", "points": points}])
        assert runlengths.area(read.images[0].objects[0].outline.rle(48, 64)) > 900


def references(root, change, *, name="refcoco_unc"):
    """Reads an edition whose references were changed."""
    _, refs = formats.refer(root, name, images=1)
    refs = change(refs) or refs
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return len(refs), refer.read(root, name, root)


def test_a_line_that_is_no_json_is_told_by_its_own_number(tmp_path):
    read = texts.read_folder(tmp_path, texts.line([texts.RING]), '{"image" 5}')
    assert read.findings.examples == {
        "line left out: expected JSON": [
            f"{tmp_path}/train.jsonl, line 2: expected JSON, got Expecting ':' delimiter at "
            "character 10"
        ]
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda refs: refs.append(5), "expected object"),
        (lambda refs: refs[0].update(image_id="x"), "expected int at image_id"),
        (
            lambda refs: refs[0].update(split="../x"),
            "expected str of letters, digits and _ at split",
        ),
        (lambda refs: refs[0].update(ann_id=None), "expected int | list at ann_id"),
        (lambda refs: refs[0].update(ref_id=2**70), "expected int <="),
        (
            lambda refs: refs.append({**refs.pop(0), "sentences": None}),
            "expected list at sentences",
        ),
        (
            lambda refs: refs[0].update(sentences=refs[0]["sentences"] * 1001),
            "expected list of length <= 1000 at sentences",
        ),
        (lambda refs: refs[0].update(sentences=[]), "it has no sentences"),
        (lambda refs: refs[0].update(no_target=True), "it means something and nothing"),
        (lambda refs: refs[0].update(ann_id=999_999), "its objects are not listed"),
        (lambda refs: refs[0].update(ann_id=refs[2]["ann_id"]), "its objects are of another image"),
        (lambda refs: refs[0].update(image_id=888_888), "its image is not listed"),
    ],
)
def test_a_bad_reference_costs_itself(tmp_path, change, reason):
    """top-1, and an object of another image: its mask would be somewhere in this one."""
    count, read = references(tmp_path, change)
    told = {one.ref for image in read.images for one in image.expressions}
    assert len(told) == count - 1
    ((text, times),) = read.findings.counts.items()
    assert (times, text.startswith(f"reference left out: {reason}")) == (1, True)


def test_a_bad_sentence_costs_itself(tmp_path):
    def change(refs):
        refs[0]["sentences"] += [5, {"sent_id": 1}, {"sent_id": 1, "sent": None}]

    count, read = references(tmp_path, change)
    assert len({one.ref for image in read.images for one in image.expressions}) == count
    assert read.findings.counts == {
        "expression left out: expected object": 1,
        "expression left out: expected a field 'sent'": 1,
        "expression left out: expected str at sent": 1,
    }


def test_ids_of_references_and_sentences_listed_twice_are_told(tmp_path):
    def change(refs):
        refs[1]["ref_id"] = refs[0]["ref_id"]
        refs[0]["sentences"] += refs[0]["sentences"][:1]

    _, read = references(tmp_path, change)
    assert read.findings.counts == {
        "ref_id listed twice: both are kept": 1,
        "sent_id listed twice in an image: both are kept": 1,
    }


def test_more_sentences_than_bytes_are_refused(tmp_path):
    """top-1: the memory of a pickle repeats one list for three bytes."""

    def change(refs):
        return [refs[0] | {"sentences": refs[0]["sentences"] * 300}] * 500

    with pytest.raises(ValueError, match="sentences in all, got more; do"):
        references(tmp_path, change)


def test_one_id_of_two_annotations_is_not_taken(tmp_path):
    """Last one wins no more: of two outlines of one id nobody knows which is meant."""
    data, _ = formats.refer(tmp_path, "refcoco_unc", images=1)
    first = data["annotations"][0]
    path = tmp_path / "refcoco" / "instances.json"
    path.write_text(json.dumps(data | {"annotations": [*data["annotations"], first]}))
    assert refer.read(tmp_path, "refcoco_unc", tmp_path).findings.counts == {}
    data["annotations"].append(first | {"segmentation": [texts.RING]})
    path.write_text(json.dumps(data))
    read = refer.read(tmp_path, "refcoco_unc", tmp_path)
    assert read.findings.counts == {
        "annotation id of different annotations: none is taken": 1,
        "reference left out: its objects are not listed": 1,
    }


def test_a_bad_reference_of_another_edition_is_told_by_the_filter_of_leaks(tmp_path):
    _, refs = formats.refer(tmp_path, "refcoco_unc", images=1)
    refs[2]["image_id"] = None
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([*refs, "x"], 2))
    found = refer.held_out_images(tmp_path, "coco", None)
    assert sum(found.findings.counts.values()) == 2
    assert {*found.images} == {ref["image_id"] for ref in refs if ref["split"] != "train"} - {None}


def test_a_pickle_of_few_bytes_with_countless_sentences_ends(tmp_path, monkeypatch):
    """top-1: one list at many places of the memory, as in the laughs by the billion."""
    monkeypatch.setattr(refer, "MOST_SENTENCES", 10_000)

    def change(refs):
        many = refs[0]["sentences"] * 300
        return [ref | {"sentences": many} for ref in refs for _ in range(100)]

    with pytest.raises(ValueError, match="expected at most 10000 sentences in all, got more; do"):
        references(tmp_path, change)
