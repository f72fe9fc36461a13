"""Conversations with boxes, points and polygons: what numbers mean is found and told."""

import io
import json
import re

import label_folders as labels
import numpy as np
import published_formats as formats
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from seg_jax.cli import main
from seg_jax.data.formats import conventions, conversations, huggingface, text_regions
from seg_jax.data.formats.conventions import Numbers, Written
from seg_jax.data.formats.conversations import Rules
from seg_jax.data.formats.text_regions import Told
from seg_jax.geometry import grid


def talk(question, answer, image="a.png", **more):
    """Returns a conversation as LLaVA writes it."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": image, "conversations": turns} | more


def folder(root, *some, images=(("a.png", 48, 64),), name="train.json"):
    """Writes conversations and their images."""
    for image, height, width in images:
        formats.image(root / image, 0, height=height, width=width, form="PNG")
    if name.endswith(".jsonl"):
        (root / name).write_text("".join(f"{json.dumps(one)}\n" for one in some))
    else:
        (root / name).write_text(json.dumps(some))
    return root


def read(root, *some, rules=None, **more):
    return conversations.read(folder(root, *some, **more), rules=rules or Rules(boxes=True))


RING = [[10, 10], [40, 12], [38, 30], [12, 28]]


def scaled(meaning, ring=RING, height=48, width=64):
    """Returns a ring of pixels as one of another meaning, numbers as people write them."""
    if meaning == "pixels":
        return ring
    limits = {"unit": (1, 1), "thousand": (1000, 1000), "percent": (100, 100)}.get(meaning)
    if meaning == "resized":
        limits = grid.smart_resize(
            height, width, patch=28, merge=1, min_pixels=3136, max_pixels=10**7
        )
        limits = limits[::-1]
    return [[x / width * limits[0], y / height * limits[1]] for x, y in ring]


@pytest.mark.parametrize("meaning", ["pixels", "resized", "unit", "thousand", "percent"])
def test_outlines_are_those_of_coco(tmp_path, meaning):
    """Bit for bit, in every meaning that the user says, of several parts and labels."""
    some = labels.pictures(parts=2)
    labels.coco(tmp_path / "coco", some)
    for picture in some:
        labels.draw(tmp_path / "talk", picture, "")
    lines = {"train": [], "val": []}
    for picture in some:
        answer = []
        for thing in picture.things:
            rings = [
                scaled(meaning, labels.pairs(ring), picture.height, picture.width)
                for ring in thing.rings
            ]
            answer.append({"polygon": rings, "label": thing.label})
        one = talk("Outline everything", json.dumps(answer), picture.name)
        lines[picture.split].append(one)
    for split, few in lines.items():
        folder(tmp_path / "talk", *few, images=(), name=f"{split}.jsonl")
    found, met = labels.records(
        "conversations", tmp_path / "talk", numbers=Numbers(meaning=meaning)
    )
    assert met.counts == {}
    labels.assert_same(found, labels.records("coco_instances", tmp_path / "coco")[0])


ANSWERS = {
    "fenced JSON": (
        '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]\n```',
        "bbox_2d",
        "cup",
    ),
    "one object": ('{"bbox": [1, 2, 30, 40], "ref": "cup"}', "bbox", "cup"),
    "Python's quotes": ("[{'bbox_2d': [1, 2, 30, 40], 'label': 'cup'}]", "bbox_2d", "cup"),
    "a sentence": ("It is at [1, 2, 30, 40], I think.", "a bare list", ""),
    "corners": ("[[1, 2], [30, 40]]", "a bare list", ""),
    "a thought": ("<think>[9, 9]?</think><answer>[1, 2, 30, 40]</answer>", "a bare list", ""),
    "Qwen-VL": ("<ref>cup</ref><box>(1,2),(30,40)</box>", "<box>", "cup"),
    "InternVL": ("<ref>cup</ref><box>[[1, 2, 30, 40]]</box>", "<box>", "cup"),
    "Qwen2-VL": (
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>",
        "<box>",
        "cup",
    ),
    "Gemini 3.6": ('{"boxes": [{"box_2d": [1, 2, 30, 40], "label": "cup"}]}', "box_2d", "cup"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_boxes_are_found_as_models_write_them(name):
    answer, form, label = ANSWERS[name]
    assert text_regions.find(answer, where="here") == [
        Told(form, "box", ((1.0, 2.0, 30.0, 40.0),), label)
    ]


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("[0.1, 0.2]", ["point"]),
        ('{"point_2d": [1, 2], "label": "a"}', ["point"]),
        (
            "[[[0.1, 0.2], [0.3, 0.2], [0.3, 0.4]], [[0.5, 0.5], [0.6, 0.5], [0.6, 0.7]]]",
            ["polygon"],
        ),
        ("[[1, 2, 3, 2, 3, 4]]", ["polygon"]),
        ("[[1, 2], [3, 2], [3, 4]]", ["polygon"]),
        ("[1, 2, 3, 2, 3, 4]", ["polygon"]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", ["box", "box"]),
        ("[1, 2, 3, 4] and [5, 6, 7, 8]", ["box", "box"]),
        ("<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", ["box", "box"]),
        ('{"segmentation": [[1, 2, 3, 2, 3, 4]], "bbox": [1, 2, 3, 4]}', ["polygon"]),
        ("[]", []),
        ("```json\n[]\n```", []),
    ],
)
def test_points_and_polygons_are_found(answer, kinds):
    assert [one.kind for one in text_regions.find(answer, where="here")] == kinds


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[1, 2, 3]", "its answer has brackets, and no region in them"),
        ("[1, 2, 3, 2, 3, 4, 5]", "its answer has brackets, and no region in them"),
        ('["a"]', "its answer has brackets, and no region in them"),
        ("[[1, 2], [3, [4]]]", "its answer has brackets, and no region in them"),
        ("[true, 1]", "its answer has brackets, and no region in them"),
        ("[1e999, 1]", "its answer has brackets, and no region in them"),
        ('{"a": 1}', "its answer has brackets, and no region in them"),
        ("[1, 2", "its answer is no JSON"),
        ("{'a': [1, 2]", "its answer is no JSON"),
        ("<box>(1,2)</box>", "its answer has brackets, and no region in them"),
        ("[" * 300, "its answer is no JSON"),
    ],
)
def test_a_bad_answer_costs_itself(tmp_path, answer, reason):
    found = read(tmp_path, talk("The cup?", answer), talk("The cup?", "[0.1, 0.2, 0.4, 0.5]"))
    assert [len(image.objects) for image in found.images] == [1]
    assert found.findings.counts[f"answer left out: {reason}"] == 1
    (example,) = found.findings.examples[f"answer left out: {reason}"]
    assert "train.json, [0], answer 0" in example


def boxes(count, reach, size, *, whole=True):
    """Returns boxes that reach from border to border of what they are in, with sizes of images."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        ends = np.sort(rng.uniform(0.02, 0.98, (2, 2)), axis=0)
        ends = [[0.01, 0.01], [0.99, 0.99]] if number == 0 else ends
        numbers = (np.array(ends) * reach).ravel()
        told = tuple(float(n) for n in (np.rint(numbers) if whole else numbers))
        found.append(Written(Told("bbox_2d", "box", (told,)), size, f"line {number}"))
    return found


@pytest.mark.parametrize(
    ("reach", "size", "meaning", "why"),
    [
        ((1, 1), (480, 640), "unit", "between 0 and 1"),
        ((640, 480), (480, 640), "pixels", "20 regions reach 99% of width and height"),
        ((1000, 1000), (480, 640), "thousand", "would lie beyond their images otherwise"),
        ((1000, 1000), (3000, 4000), "thousand", "20 regions reach 99% of width and height"),
        ((4000, 3000), (3000, 4000), "pixels", "would lie beyond 1000 otherwise"),
        ((1372, 1036), (700, 936), "resized", "lie beyond their images, but not resized"),
    ],
)
def test_what_numbers_mean_is_found_out(reach, size, meaning, why):
    numbers = Numbers(least_pixels=1_400_000) if meaning == "resized" else Numbers()
    some = boxes(20, reach, size, whole=meaning != "unit")
    taken = conventions.decide("bbox_2d", some, numbers)
    assert (taken.meaning, taken.order) == (meaning, "xy")
    assert why in taken.why


@pytest.mark.parametrize(
    ("some", "reason"),
    [
        (boxes(3, (300, 300), (480, 640)), "its numbers fit several conventions"),
        (boxes(20, (300, 300), (480, 640)), "its numbers fit several conventions"),
        (boxes(20, (1000, 1000), (1000, 1000)), "its numbers fit several conventions"),
        (boxes(20, (9000, 9000), (480, 640)), "its numbers fit no convention"),
    ],
)
def test_numbers_that_nobody_can_tell_are_refused_with_an_example(some, reason):
    with pytest.raises(
        ValueError, match=r"line 0: expected .* as .* in an image of .*; do: say"
    ) as caught:
        conventions.decide("bbox_2d", some, Numbers())
    assert caught.value.reason == reason
    assert conventions.decide("bbox_2d", some, Numbers(meaning="unit")).why == ""


def test_a_few_numbers_beyond_their_images_cost_themselves():
    some = boxes(99, (640, 480), (480, 640))
    wrong = Written(Told("bbox_2d", "box", ((10.0, 10.0, 700.0, 20.0),)), (480, 640), "line 99")
    taken = conventions.decide("bbox_2d", [*some, wrong], Numbers())
    assert taken.meaning == "pixels"
    with pytest.raises(ValueError, match="line 99: expected pixels of the image, 640x480, got 10"):
        conventions.rings_unit(wrong, taken, Numbers())


def test_a_guess_is_told_and_what_the_user_says_is_not(tmp_path):
    one = talk("The cup?", '[{"bbox_2d": [10, 10, 62, 46], "label": "cup"}]')
    wide = [one | {"id": str(n)} for n in range(8)]
    found = read(tmp_path, *wide)
    (line,) = found.findings.lines()
    assert line.startswith(
        "8 x numbers of bbox_2d are taken for pixels of the image, x first, first "
    )
    assert "train.json, [0], answer 0: 8 regions reach 96%" in line
    assert line.endswith(
        "; do: say so by --numbers.meaning pixels, or what else they are by it and --numbers.order"
    )
    said = Rules(boxes=True, numbers=Numbers(meaning="pixels"))
    assert read(tmp_path, one, rules=said).findings.counts == {}


def test_numbers_that_fit_nothing_are_told_with_an_example(tmp_path):
    found = read(tmp_path, talk("The cup?", "[10, 10, 5000, 30]"))
    assert found.images == []
    told = found.findings.lines()[0]
    assert "its numbers fit no convention, first " in told
    assert (
        "10, 10, 5000, 30 in an image of 64x48; do: say what they are by --numbers.meaning" in told
    )


def test_gemini_writes_y_first(tmp_path):
    """box_2d by custom; a polygon beside it in the order in which it lies in its box."""
    answer = {"box_2d": [100, 300, 500, 900], "label": "cup"}
    found = read(tmp_path, talk("All cups", json.dumps([answer])))
    (one,) = found.images[0].objects
    assert one.outline.rings[0] == (0.3, 0.1, 0.9, 0.1, 0.9, 0.5, 0.3, 0.5)
    for ring, points in (
        ([[100, 300], [500, 300], [500, 900]], (0.3, 0.1, 0.3, 0.5, 0.9, 0.5)),
        ([[300, 100], [900, 100], [900, 500]], (0.3, 0.1, 0.9, 0.1, 0.9, 0.5)),
    ):
        found = read(tmp_path, talk("All cups", json.dumps([answer | {"polygon": ring}])))
        (one,) = found.images[0].objects
        assert one.outline.rings == (points,)
        assert "1 of 1 polygons lie in their box_2d so" not in found.findings.lines()[0]


def test_labels_are_expressions_and_questions_where_there_are_none(tmp_path):
    rules = Rules(boxes=True, questions=("Where is {}?", "Locate {} in the image."))
    found = read(
        tmp_path,
        talk("Where is the red cup?", '[{"bbox": [0.1, 0.2, 0.4, 0.5], "label": "cup"}]'),
        talk(
            "Find all",
            '[{"bbox": [0.5, 0.2, 0.9, 0.5], "label": "cup"}, '
            '{"bbox": [0.1, 0.2, 0.4, 0.5], "label": "cup"}]',
        ),
        talk("Show <ref>the left  one</ref> here", "[0.1, 0.2, 0.4, 0.5]"),
        talk("What is it that warms?", "[0.1, 0.2, 0.4, 0.5] [0.5, 0.2, 0.9, 0.5]"),
        talk("Locate the fork in the image.", "[]"),
        rules=rules,
    )
    (image,) = found.images
    assert [one.name for one in image.objects] == ["cup", "cup", "", ""]
    assert [(one.text, one.objects, one.sentence) for one in image.expressions] == [
        ("the red cup", (0,), False),
        ("cup", (1, 0), False),
        ("the left one", (2,), False),
        ("What is it that warms?", (2, 3), True),
        ("the fork", (), False),
    ]
    assert found.findings.counts["question taken whole, as an expression of what is answered"] == 1


def test_boxes_are_no_outlines_unless_that_is_said(tmp_path):
    found = read(tmp_path, talk("The cup?", "[0.1, 0.2, 0.4, 0.5] [0.1, 0.2]"), rules=Rules())
    assert found.images == []
    assert found.findings.counts["region left out: a box is no outline"] == 1
    assert found.findings.counts["region left out: a point is no outline"] == 1


def test_a_point_is_the_pixel_that_it_lies_in(tmp_path):
    folder(tmp_path, talk("The cup?", "[0.505, 0.999]"))
    found, _ = labels.records("conversations", tmp_path, boxes=True)
    (((_, mask),), _) = labels.things(found["train", "a.png"])
    assert np.argwhere(mask).tolist() == [[47, 32]]


MESSAGES = {
    "roles": [
        {"role": "user", "content": "The cup?"},
        {"role": "assistant", "content": "[0.1, 0.2, 0.4, 0.5]"},
    ],
    "pieces": [
        {"role": "system", "content": "Be brief"},
        {
            "role": "user",
            "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "The cup?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "[0.1, 0.2, 0.4, 0.5]"}]},
    ],
}


@pytest.mark.parametrize(
    "one",
    [
        {"images": ["a.png"], "messages": MESSAGES["roles"]},
        {"image": {"path": "a.png"}, "messages": MESSAGES["roles"]},
        {"messages": MESSAGES["pieces"]},
        {
            "image": "a.png",
            "problem": "The cup?",
            "solution": "<answer>[0.1, 0.2, 0.4, 0.5]</answer>",
        },
        {
            "images": ["/somewhere/else/a.png"],
            "query": "<image>The cup?",
            "response": "[0.1, 0.2, 0.4, 0.5]",
        },
    ],
)
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_conversations_are_read_as_they_are_written(tmp_path, one, name):
    found = read(tmp_path, one, name=name)
    assert [[e.text for e in image.expressions] for image in found.images] == [["The cup?"]]


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        ([], "it is no object"),
        ({}, "it has no conversations and no messages"),
        ({"image": "a.png", "messages": []}, "it has no question with an answer"),
        (
            {"image": "a.png", "messages": [{"role": "assistant", "content": "a"}]},
            "it has no question",
        ),
        ({"messages": MESSAGES["roles"]}, "it has no image"),
        ({"images": ["a.png", "b.png"], "messages": MESSAGES["roles"]}, "it has several images"),
        (
            {"image": "data:image/png;base64,AA", "messages": MESSAGES["roles"]},
            "its image has no path",
        ),
        ({"image": 5, "messages": MESSAGES["roles"]}, "its image has no path"),
        ({"image": "\0", "messages": MESSAGES["roles"]}, "expected str without the character 0"),
    ],
)
def test_a_bad_conversation_costs_itself(tmp_path, one, reason):
    found = read(tmp_path, one, talk("The cup?", "[0.1, 0.2, 0.4, 0.5]"))
    assert len(found.images) == 1
    assert any(
        told.startswith(f"conversation left out: {reason}") for told in found.findings.counts
    )


def test_boxes_beside_the_text_stand_for_their_marks(tmp_path):
    """ms-swift's objects."""
    one = talk("Find <ref-object>", "<bbox>", objects={"ref": ["cup"], "bbox": [[10, 10, 40, 30]]})
    found = read(tmp_path, one, rules=Rules(boxes=True, numbers=Numbers(meaning="pixels")))
    assert [(e.text, e.objects) for e in found.images[0].expressions] == [("cup", (0,))]
    ring = found.images[0].objects[0].outline.in_pixels(48, 64).rings[0]
    assert ring == (10, 10, 40, 10, 40, 30, 10, 30)


def test_answers_without_places_are_told(tmp_path):
    found = read(tmp_path, talk("What is it?", "A cup."), talk("The cup?", "[0.1, 0.2, 0.4, 0.5]"))
    assert found.findings.counts["answer left out: it tells of no place"] == 1


def test_what_has_no_conversations_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected SPLIT\.json or SPLIT\.jsonl with conversations"
    ):
        conversations.read(tmp_path, rules=Rules())
    (tmp_path / "train.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="got JSON of another format"):
        conversations.read(tmp_path, rules=Rules())


@pytest.mark.parametrize("form", ["Where?", "{} or {}", ""])
def test_a_form_of_questions_has_one_place(tmp_path, form):
    with pytest.raises(ValueError, match=re.escape("expected a form with {} once")):
        read(tmp_path, talk("The cup?", "[]"), rules=Rules(questions=(form,)))


def test_numbers_of_a_processor_are_checked():
    with pytest.raises(ValueError, match="expected factor >= 1"):
        Numbers(factor=0)


def parquet(path, *talks, image="image", several=False, column="messages"):
    """Writes a table as data sets of the hub have them."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": "a.png"}
    rows = [{image: [picture] if several else picture, column: talk} for talk in talks]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("default/test/0000.parquet", "test"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_tables_of_the_hub_are_read(tmp_path, place, split, several):
    image = "images" if several else "image"
    talks = MESSAGES["roles"], MESSAGES["roles"][:1]
    parquet(tmp_path / place, *talks, image=image, several=several)
    found, met = labels.records("huggingface", tmp_path, boxes=True)
    (record,) = found.values()
    assert (record.split, record.height, record.width) == (split, 48, 64)
    (((_, mask),), texts) = labels.things(record)
    assert texts == {"The cup?": (0,)}
    np.testing.assert_array_equal(
        mask, formats.true_mask([[6.4, 9.6, 25.6, 9.6, 25.6, 24, 6.4, 24]])
    )
    assert met.counts["conversation left out: it has no question with an answer"] == 1


def test_tables_without_conversations_are_refused(tmp_path):
    parquet(tmp_path / "train.parquet", 5, column="label")
    with pytest.raises(
        ValueError, match="expected columns image and messages, .* got image, label"
    ):
        huggingface.read(tmp_path, rules=Rules())
    with pytest.raises(ValueError, match="expected Parquet or Arrow files"):
        huggingface.read(tmp_path / "none", rules=Rules())


def test_boxes_in_texts_are_corners_until_it_is_said(tmp_path):
    talks = talk("The cup?", "[8, 10, 16, 20]")
    for said, box in {"auto": (8, 10, 16, 20), "sizes": (8, 10, 24, 30)}.items():
        numbers = Numbers(meaning="pixels", boxes=said)
        (image,) = read(tmp_path, talks, rules=Rules(numbers=numbers, boxes=True)).images
        x0, y0, x1, y1 = (one / side for one, side in zip(box, (64, 48, 64, 48), strict=True))
        (ring,) = image.objects[0].outline.rings
        np.testing.assert_allclose(ring, (x0, y0, x1, y0, x1, y1, x0, y1))


@pytest.mark.parametrize(("shrunk", "doubted"), [(1, False), (2, True)])
def test_pixels_that_end_far_from_the_borders_are_doubted(shrunk, doubted):
    """As those of a large photo are that somebody's processor had made smaller."""
    rng = np.random.default_rng(0)
    some = []
    for _ in range(40):
        x, y = rng.uniform(0, 0.8, 2) * (4000 / shrunk, 3000 / shrunk)
        box = (x, y, x + 700 / shrunk, y + 500 / shrunk)
        some.append(Written(Told("bbox_2d", "box", (box,)), (3000, 4000), "a"))
    taken = conventions.decide("bbox_2d", some, Numbers())
    assert taken.meaning == "pixels"
    assert ("--numbers.most-pixels" in taken.why) == doubted


def test_a_conversation_about_several_images_is_told_wherever_the_set_is_used(tmp_path, capsys):
    """A reference and a query, as a path list and as pieces of a turn; both are left out."""
    pieces = [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}]
    pieces.append({"type": "text", "text": "The same cup in the second?"})
    turns = [{"role": "user", "content": pieces}, {"role": "assistant", "content": "[0, 0, 1, 1]"}]
    pair = {"images": ["a.png", "b.png"], "messages": MESSAGES["roles"]}
    read(tmp_path, pair, {"messages": turns}, talk("The cup?", "[0.1, 0.2, 0.4, 0.5]"))
    out, page = tmp_path / "out", tmp_path / "page"
    words = ["build", "conversations", "--boxes", "--source", tmp_path, "--out", out]
    assert main.main([str(word) for word in [*words, "--workers", 1]]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 x conversation left out: it has several images" in said
    assert "do: leave one image in each conversation" in said
    assert main.main(["preview", str(out), "--out", str(page)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "it has several images" in said
    assert "it has several images" in (page / "preview.html").read_text()
