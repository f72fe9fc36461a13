"""Rows read back: images to the bit, IoU as pycocotools has it, planted mistakes stand first."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import small_run
from batches import assert_same, take
from PIL import Image
from pycocotools import mask as coco

from seg_jax.data import encode, packing, pipeline, read_back, sources
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.geometry import grid
from seg_jax.grammar import outline
from seg_jax.records import Kind, Verdict
from seg_jax.report import row_exhibits
from seg_jax.report.row_exhibits import Looks
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Mixture, outlines

PACK = packing.Pack(tokens=330, patches=100, ahead=4)
"""Rows of two images at least."""
FEEDS = {
    "sft": pipeline.Feed(batch=4, questions=3, threads=1),
    "sft, packed questions": pipeline.Feed(
        batch=4, questions=4, packed_rows=2, packed_tokens=60, threads=1
    ),
    "sft, packed images": pipeline.Feed(batch=4, questions=2, pack=PACK, threads=1),
    "prompts": pipeline.Feed(batch=4, threads=1),
}
SCENES = sources.Scenes(world=small_run.TINY.config().source.world, seed=5, count=200)
OUTLINES = dataclasses.replace(small_run.TINY.TASK, mixture=Mixture())


def encoder(**changes):
    made = small_run.bundle().encoder
    layout = dataclasses.replace(made.layout, max_prompt=92, max_patches=64, **changes)
    return Encoder(made.tokenizer, layout)


def rows(name, *, task=small_run.TINY.TASK, **changes):
    """Returns endless rows of a route with what they were made of."""
    kind = name.partition(",")[0]
    task = small_run.gspo_config().task if kind == "prompts" else task
    made = encoder(**changes)
    found = pipeline.rows_in_order(
        SCENES, task, made, feed=FEEDS[name], rows=kind, met=Findings(), answer_tokens=None
    )
    return made, task, found


def looks_at(name, count, *, shown=1000, **changes):
    made, task, found = rows(name, **changes)
    looks = Looks(task, made, shown=shown)
    for one in itertools.islice(found, count):
        looks.add(one)
    found.close()
    return looks


@pytest.mark.parametrize("name", FEEDS)
def test_rows_are_those_of_a_run(name):
    made, task, found = rows(name)
    kind = name.partition(",")[0]
    run = take(pipeline.batches(SCENES, task, made, feed=FEEDS[name], rows=kind), 2)
    if FEEDS[name].pack:
        wanted = [jax.tree.map(lambda leaf: leaf[0], one) for one in run]
    else:
        wanted = [jax.tree.map(lambda leaf, i=i: leaf[i], run[0]) for i in range(4)]
    for row, one in zip(found, wanted, strict=False):
        assert_same(row.row, one)


@pytest.mark.parametrize("name", FEEDS)
def test_conversations_are_read_back_whole(name):
    made, _, found = rows(name)
    for one in itertools.islice(found, 6):
        told = read_back.conversations(made, one.row)
        every = [example for some in one.examples for example in some]
        assert len(told) == len(every) or FEEDS[name].packed_rows
        for read in told:
            match = [e for e in one.examples[read.image] if e.question == read.question]
            answers = {None if name == "prompts" else example.answer for example in match}
            assert read.answer in answers
            if read.answer is not None:
                assert read.answer_tokens == len(made.tokenizer.encode(read.answer)) + 1
            assert read.visual_tokens == 16


@pytest.mark.parametrize("name", FEEDS)
def test_images_are_put_together_again_to_the_bit(name):
    looks = looks_at(name, 8, max_pixels=56 * 56)
    assert {one.picture_error for one in looks.all} == {0.0}
    made, _, found = rows(name, max_pixels=56 * 56)
    row = next(found)
    for number, sample in enumerate(row.samples):
        wanted = Image.fromarray(sample.image).resize((56, 56), Image.Resampling.BICUBIC)
        got = made.image_from_patches(row.row.images, number)
        np.testing.assert_array_equal(got, np.asarray(wanted))
    told = looks.met.counts["image made smaller"]
    assert told == looks.images == len({one.key for one in looks.all})


def test_images_in_frames_are_put_together_again():
    for pad in (True, False):
        made = encoder(native=encode.Native(limit=64, pad=pad), merge=2)
        image = np.random.default_rng(0).integers(0, 255, (45, 53, 3)).astype(np.uint8)
        patches, (height, width) = made.image_patches(image)
        whole = grid.patch_positions(height, width, 2)
        cut = patches.reshape(-1, 3, 8, 8)
        back = np.zeros((height, width, 3, 8, 8), np.uint8)
        back[whole[:, 0], whole[:, 1]] = cut
        back = back.transpose(0, 3, 1, 4, 2).reshape(height * 8, width * 8, 3)
        assert row_exhibits._picture_error(back, image, made.layout) == 0.0
        assert row_exhibits._picture_error(back[:, ::-1], image, made.layout) > 1.0
        # What lies on a pixel of the image lies on the same one in its frame.
        ring = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 40.0]]) / [53, 45]
        (moved,) = row_exhibits._in_frame([ring], (45, 53), made.layout)
        size = np.array([width * 8, height * 8])
        cut_px = [0, 0] if pad else [round((53 - size[0]) / 2), round((45 - size[1]) / 2)]
        np.testing.assert_allclose(moved * size, ring * [53, 45] - cut_px, atol=1e-9)


def test_iou_is_that_of_pycocotools():
    looks = looks_at("sft", 30, task=OUTLINES)
    made, _, found = rows("sft", task=OUTLINES)
    wanted = []
    for one in itertools.islice(found, 30):
        for read in read_back.conversations(made, one.row):
            (example, *_) = [
                example
                for example in one.examples[0]
                if (example.question, example.answer) == (read.question, read.answer)
            ]
            height, width = example.mask.shape
            rings = outline.read(read.answer, Kind.MASK).rings
            runs = coco.frPyObjects(
                [np.ravel(ring * [width, height]).tolist() for ring in rings], height, width
            )
            true = coco.encode(np.asfortranarray(example.mask.astype(np.uint8)))
            wanted.append(coco.iou([coco.merge(runs)], [true], [0])[0, 0])
    np.testing.assert_allclose([one.agreement for one in looks.all], wanted, atol=1e-12)
    assert max(wanted) > 0.9
    said = looks.met.counts["answer simplified or rounded: not the annotation to the pixel"]
    assert said == sum(iou < 1 for iou in wanted)


def test_the_worst_stand_first_and_are_kept():
    looks, few = looks_at("sft", 20), looks_at("sft", 20, shown=5)
    ranked = [one.rank for one in looks.ranked()]
    assert ranked == sorted(ranked)
    every = [one.question for one in looks.exhibits()]
    assert every == [one.question for one in looks.ranked()]
    assert [one.question for one in few.exhibits()] == every[:5]
    assert few.all == looks.all


def swapped(text, kind):
    """Returns an answer whose x and y have changed places."""
    rings = [ring[:, ::-1] for ring in outline.read(text, kind).rings]
    return f"{outline.write_mask(rings, digits=2)}."


@pytest.mark.parametrize("name", FEEDS)
def test_swapped_coordinates_stand_first(name, monkeypatch):
    if name == "prompts":
        pytest.skip("prompts have no answers; the next test is about their truth")
    real, met = outlines.outline_text, []

    def once_swapped(mask, kind, style, *, rng=None):
        text = real(mask, kind, style, rng=rng)
        if len(met) == 7:
            text = swapped(text, kind).removesuffix(".")
        met.append(text)
        return text

    monkeypatch.setattr(outlines, "outline_text", once_swapped)
    looks = looks_at(name, 10, task=OUTLINES)
    first, second, *_ = looks.ranked()
    assert met[7] in first.answer
    assert first.agreement < 0.6 < second.agreement


def test_a_swapped_truth_of_a_prompt_stands_first(monkeypatch):
    made, task, found = rows("prompts")
    looks, given = Looks(task, made, shown=2), [*itertools.islice(found, 10)]
    words = np.zeros_like(given[4].row.truth.words)
    size = given[4].row.truth.size
    mask = given[4].examples[0][0].mask
    bits = np.zeros(words.shape[0] * 32 * words.shape[1], bool).reshape(-1, words.shape[1])
    bits[: mask.shape[1], : mask.shape[0]] = mask.T
    places = np.arange(32, dtype=np.uint32)[:, None]
    words |= np.sum(bits.reshape(-1, 32, bits.shape[1]).astype(np.uint32) << places, axis=1).astype(
        np.uint32
    )
    truth = given[4].row.truth._replace(words=words, size=size[::-1])
    given[4] = given[4]._replace(row=given[4].row._replace(truth=truth))
    for one in given:
        looks.add(one)
    first, second, *_ = looks.ranked()
    assert first.key == given[4].samples[0].key
    assert first.agreement < 0.6 < second.agreement


@pytest.mark.parametrize("how", ["nearest", "turned", "upside down"])
@pytest.mark.parametrize("name", FEEDS)
def test_an_image_resized_wrongly_stands_first(name, how, monkeypatch):
    real, met = encode._resize, []

    def once_wrong(image, height, width):
        met.append(image)
        if len(met) != 6:
            return real(image, height, width)
        if how == "nearest":
            picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            return np.asarray(picture)
        wrong = real(image, height, width)
        return wrong.swapaxes(0, 1) if how == "turned" else wrong[::-1]

    monkeypatch.setattr(encode, "_resize", once_wrong)
    looks = looks_at(name, 9, max_pixels=56 * 56)
    first, *rest = looks.ranked()
    assert first.picture_error > 0
    wrong = {one.key for one in looks.all if one.picture_error}
    assert wrong == {first.key}
    (key,) = wrong
    index = int(key.rpartition("-")[2])
    np.testing.assert_array_equal(SCENES[index].image, met[5])
    note = looks.exhibits()[0].note
    assert f"image differs by {first.picture_error} levels" in note
    assert rest[-1].picture_error == 0


def test_answers_that_cannot_be_read_stand_before_poor_ones(monkeypatch):
    real = small_run.TINY.TASK.region_example.__func__
    met = []

    def once_cut(self, *given, **named):
        example = real(self, *given, **named)
        met.append(example)
        cut = {"answer": example.answer[: len(example.answer) // 2]} if len(met) == 4 else {}
        return dataclasses.replace(example, **cut)

    monkeypatch.setattr(type(OUTLINES), "region_example", once_cut)
    looks = looks_at("sft", 6, task=OUTLINES)
    first, second, *_ = looks.ranked()
    assert first.verdict != Verdict.OK
    assert second.verdict == Verdict.OK


def test_names_have_no_verdict_and_stand_last():
    task = dataclasses.replace(small_run.TINY.TASK, mixture=Mixture(point_name=1.0))
    looks = looks_at("sft", 10, task=task)
    names = [one for one in looks.ranked() if one.verdict is None]
    assert names
    assert names == looks.ranked()[-len(names) :]
    assert all(one.agreement is None for one in names)
    assert None in [one.as_json()["verdict"] for one in looks.all]


def test_what_has_no_room_is_counted():
    looks = looks_at("sft, packed questions", 40)
    _, _, found = rows("sft, packed questions")
    asked = sum(len(one.examples[0]) for one in itertools.islice(found, 40))
    told = looks.met.counts["question left out: its row has no room for it"]
    assert told == asked - len(looks.all) > 0


def test_what_an_outline_lacks_is_counted():
    mask = np.zeros((40, 60), bool)
    mask[5:35, 5:25] = mask[5:35, 30:50] = True
    mask[10:20, 10:20] = False
    mask[37, 2] = True
    style = outlines.OutlineStyle()
    assert outlines.losses(mask, style) == (
        "rings are left out that are smaller than task.min_area",
    )
    few = dataclasses.replace(style, max_rings=2, holes=False, min_area=0.0)
    assert outlines.losses(mask, few) == (
        "holes are filled: task.holes is off",
        "rings are left out beyond task.max_rings",
    )
    y, x = np.mgrid[:60, :60]
    disk = (y - 30) ** 2 + (x - 30) ** 2 < 400
    coarse = dataclasses.replace(style, max_points=5)
    assert outlines.losses(disk, coarse) == (
        "the outline is coarser than task.epsilon, to fit task.max_points",
    )
    assert outlines.losses(disk, dataclasses.replace(style, epsilon=0.02)) == ()
    assert outlines.losses(mask, dataclasses.replace(style, tracing="released")) == ()


def test_clicks_agree_as_far_as_they_lie_right():
    mask = np.zeros((96, 96), bool)
    mask[20:60, 30:70] = True
    sample = dataclasses.replace(
        SCENES[0], image=np.zeros((96, 96, 3), np.uint8), masks=mask[None], phrases=(("it",),)
    )
    sample = dataclasses.replace(sample, names=("it",), categories=("it",))
    task = Prompted(frame=96)
    example = task.example(sample, np.random.default_rng(0))
    assert task.agreement(example, example.answer) == 1.0
    truth = task.truth(example, canvas=(96, 96))
    assert task.agreement(example, example.answer, truth=truth) == 1.0
    wrong = truth._replace(words=np.roll(truth.words, 20, axis=1))
    assert task.agreement(example, example.answer, truth=wrong) < 1.0
    beside = "<think> a </think> <bbox>[30,20,50,60]</bbox>, <points>[[40,30], [5,5]]</points>, "
    assert task.agreement(example, f"{beside}<labels>[1, 0]</labels>") == pytest.approx(0.5)
    assert task.agreement(example, f"{beside}<labels>[1, 1]</labels>") == pytest.approx(0.5)
    inside = beside.replace("30,20,50,60", "30,20,70,60")
    assert task.agreement(example, f"{inside}<labels>[1, 0]</labels>") == 1.0
    assert task.agreement(example, f"{inside}<labels>[0, 0]</labels>") == 0.5


def test_a_row_that_is_packed_keeps_its_items_apart():
    made, _, found = rows("sft, packed images")
    one = next(found)
    assert len(one.samples) > 1
    numbers = [read.image for read in read_back.conversations(made, one.row)]
    assert numbers == [number for number in range(len(one.samples)) for _ in range(2)]
