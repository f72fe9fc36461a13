"""Boxes and clicks as a task: questions, true answers, readers, scores by masks, refusals."""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from PIL import Image
from scipy import ndimage

from seg_jax.data import encode, sources
from seg_jax.geometry import bitmask, host_raster
from seg_jax.grammar import clicks
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Clicks, Sample, Trace, Verdict
from seg_jax.runs import evaluation, start
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks import table, task
from seg_jax.tasks.prompted import Mixture, Prompted, clicker, pointing, questions, scores
from seg_jax.training import steps

FRAME = 96
SCENES = sources.Scenes(seed=3, count=24)
STAGES = ("prerl", "rl", "sft")


@functools.cache
def blank():
    """Returns the tiny model without weights."""
    with tempfile.TemporaryDirectory() as folder:
        return start.blank_model(small_run.sft_config(), Path(folder) / "tokenizer")


def drawn(stage: Any = "rl", count=12, **options):
    """Returns the task of a stage with examples of drawn scenes."""
    asks = Prompted(stage=stage, frame=FRAME, **options)
    rng = np.random.default_rng(0)
    return asks, [(SCENES[n], asks.example(SCENES[n], rng)) for n in range(count)]


def at(mask, points_unit):
    """Returns what a mask holds at points."""
    columns, rows = np.floor(points_unit * (mask.shape[1], mask.shape[0])).astype(int).T
    return mask[rows, columns]


@pytest.mark.parametrize("seed", range(12))
def test_clicks_lie_on_the_mask_and_beside_it_within_its_box(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(60, 90)), 5) > 0.02
    other = np.roll(mask, 7, 1)
    for clicks_rng in (None, rng):
        found = clicker.trace(mask, clicks=7, rng=clicks_rng, meant=mask | other)
        rows, columns = np.nonzero(mask)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        np.testing.assert_allclose(found.box_unit * [90, 60, 90, 60], box)
        np.testing.assert_array_equal(at(mask, found.points_unit), found.labels == 1)
        assert not at(other, found.points_unit[found.labels == 0]).any()
        assert len(found.labels) == 7
        assert (found.labels == 0).sum() == 2
        assert len({tuple(point) for point in found.points_unit}) == 7
        low, high = found.box_unit.reshape(2, 2)
        assert ((found.points_unit > low) & (found.points_unit < high)).all()


def test_the_first_click_is_the_deepest_and_the_next_lies_in_another_part():
    mask = np.zeros((40, 80), bool)
    mask[5:36, 5:36] = mask[10:31, 50:71] = True
    found = clicker.trace(mask, clicks=3)
    np.testing.assert_allclose(
        found.points_unit * (80, 40), [(20.5, 20.5), (60.5, 20.5), (43, 5.5)], atol=8
    )
    assert at(mask, found.points_unit).tolist() == [True, True, False]
    one = np.zeros((3, 3), bool)
    one[1, 1] = True
    single = clicker.trace(one, clicks=5)
    np.testing.assert_allclose(single.points_unit, [[0.5, 0.5]])
    for wrong in ({"mask": np.zeros((4, 4), bool), "clicks": 1}, {"mask": one, "clicks": 0}):
        with pytest.raises(ValueError, match="clicker.trace: expected a mask with pixels"):
            clicker.trace(**wrong)


@pytest.mark.parametrize("stage", STAGES)
def test_true_answers_are_read_and_mark_what_is_meant(stage):
    asks, examples = drawn(stage)
    several = 0
    for sample, example in examples:
        read = asks.predict(example, example.answer)
        assert read.verdict == Verdict.OK
        assert (read.thought is None) == (stage == "prerl")
        objects = [mask for mask in sample.masks if mask.any()]
        if stage == "prerl":
            assert not len(read.boxes_unit)
            meant = max(objects, key=np.sum)
        else:
            meant = np.any(objects, 0)
            assert len(read.boxes_unit) == len(objects)
            several += len(objects) > 1
        np.testing.assert_array_equal(example.mask, meant)
        assert 0 < read.labels.sum() <= len(read.labels) <= asks.clicks
        # Whole numbers of the frame may move a click of a thin object off it by half of one.
        near = ndimage.binary_dilation(meant)
        assert at(near, read.points_unit[read.labels == 1]).all()
    assert several > 0 or stage == "prerl"


def test_more_objects_than_boxes_are_marked_by_one_box():
    asks = Prompted(frame=FRAME, boxes=1)
    sample = next(s for s in map(SCENES.__getitem__, range(24)) if len(s.masks) > 1)
    read = asks.predict(example := asks.example(sample, np.random.default_rng(0)), "")
    assert read.verdict == Verdict.EMPTY
    read = asks.predict(example, example.answer)
    (box,), mask = read.boxes_unit, sample.masks.any(0)
    rows, columns = np.nonzero(mask)
    box_px = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(box * np.tile(mask.shape[::-1], 2), box_px, atol=1)


def test_wordings_are_those_of_the_stage():
    rng = np.random.default_rng(0)
    for stage in STAGES:
        example = Prompted(stage=stage).example(SCENES[0], rng)
        assert example.system == questions.SYSTEMS[stage]
        assert "exact format" in example.question
    assert questions.SYSTEMS["prerl"] is None
    assert "moderate number" in str(questions.SYSTEMS["rl"])
    assert "foreground" not in str(questions.SYSTEMS["sft"])
    assert "moderate" not in questions.SYSTEM_OF_USERS
    assert "foreground" in questions.SYSTEM_OF_USERS
    asks, examples = drawn("rl", mixture=Mixture(whole=0.0, text=1.0))
    for sample, example in examples:
        phrase = example.question.removeprefix("Identify and segment ")
        which = next(n for n, some in enumerate(sample.phrases) if phrase in some)
        np.testing.assert_array_equal(example.mask, sample.masks[which])
        assert phrase in example.answer
    asked = asks.ask(SCENES[0].image, "the red cup")
    assert (asked.question, asked.system) == (
        "Identify and segment the red cup",
        questions.SYSTEM_OF_USERS,
    )
    assert asks.ask(SCENES[0].image, " ").question == questions.OBJECTS
    assert Prompted(stage="prerl").ask(SCENES[0].image, "").question == questions.CLICKS


@pytest.mark.parametrize("stage", STAGES)
def test_brief_questions_are_short_alone_and_the_same_for_users(stage):
    asks, drawn_examples = drawn(stage, count=4, brief=True, mixture=Mixture(whole=0.5, text=0.5))
    for sample, example in drawn_examples:
        assert example.system is None
        assert len(example.question) < 80
        phrases = [phrase for every in sample.phrases for phrase in every]
        meant = [phrase for phrase in phrases if phrase in example.question]
        expression = max(meant, key=len, default="")
        assert asks.ask(sample.image, expression).question == example.question
    said = asks.ask(SCENES[0].image, "the cup")
    assert "the cup" in said.question
    assert said.system is None
    assert not any("conversation" in text for text in asks.sentences(["the cup"]))
    with pytest.raises(ValueError, match="stage 'prerl'"):
        Prompted(stage="prerl", mixture=Mixture(text=1.0))
    with pytest.raises(ValueError, match=r"mixture\.trace"):
        Prompted(stage="prerl", brief=True, mixture=Mixture(trace=1.0))


def test_the_system_turn_stands_in_prompts_and_in_rows_of_fine_tuning():
    tokenizer = blank().tokenizer
    layout = encode.Layout(
        patch=8,
        merge=1,
        max_pixels=1024,
        max_patches=16,
        max_prompt=4000,
        max_question=2000,
        min_pixels=64,
        max_answer=2000,
    )
    encoder = encode.Encoder(tokenizer, layout)
    asks = Prompted(stage="sft", frame=FRAME)
    example = asks.example(SCENES[0], np.random.default_rng(0))
    prompt = encoder.prompt_row(asks, example)
    row = encoder.batch_row([example])
    for tokens in (prompt.tokens, row.tokens):
        text = tokenizer.decode(np.asarray(tokens.ids)[np.asarray(tokens.segments) > 0].tolist())
        assert str(example.system)[:60] in text
    learnt = np.asarray(row.targets)[np.asarray(row.weights) > 0]
    assert tokenizer.decode(learnt.tolist()).startswith("<think>")


TRACE = Trace(
    "Where is it?",
    "I see it.",
    "<bbox>[1,2,30,40]</bbox>, <points>[[9,9]]</points>, <labels>[1]</labels>",
)


def with_traces(*traces):
    image = np.zeros((20, 30, 3), np.uint8)
    return Sample("one", image, np.zeros((0, 20, 30), bool), (), traces=traces)


def test_written_conversations_are_taught_as_they_are_and_judged_by_nothing():
    asks, rng = Prompted(stage="sft", mixture=Mixture(trace=1.0)), np.random.default_rng(0)
    example = asks.example(with_traces(TRACE), rng)
    assert example.question == "Where is it?"
    assert example.answer == f"<think> I see it. </think> {TRACE.answer}"
    tagged = TRACE._replace(thought="<think>I see it.</think>")
    assert asks.example(with_traces(tagged), rng).answer.count("<think>") == 1
    with pytest.raises(task.Unfit, match="expected a written answer of boxes or clicks, got"):
        asks.example(with_traces(TRACE._replace(answer="on the left")), rng)
    with pytest.raises(ValueError, match="expected a question whose answer is judged"):
        asks.truth(example, canvas=(32, 32))
    judged = asks.without_unjudged()
    with pytest.raises(task.Unfit, match="got 0 masks, 0 with phrases, 1 conversations; do: leave"):
        judged.example(with_traces(TRACE), rng)
    assert set(asks.needs.values()) == {"place", "trace"}


def test_the_device_reads_what_the_host_predicts():
    tokenizer = blank().tokenizer
    asks, examples = drawn("rl", count=4)
    texts = [example.answer for _, example in examples]
    texts += [texts[0][:-20], texts[1].replace("]]", "]"), "", "nothing here"]
    ids = [tokenizer.encode(text) for text in texts]
    width = max(map(len, ids))
    rows = np.array([[*row, *[0] * (width - len(row))] for row in ids], np.int32)
    used = np.array([[n < len(row) for n in range(width)] for row in ids])
    answer, verdict = jax.jit(asks.reader(tokenizer.pieces))(rows, used, None)
    for n, text in enumerate(texts):
        read = asks.predict(examples[0][1], text)
        assert Verdict(int(verdict[n])) == read.verdict
        np.testing.assert_allclose(
            answer.boxes_unit[n][answer.boxed[n]], read.boxes_unit, atol=1e-6
        )
        np.testing.assert_allclose(
            answer.points_unit[n][answer.used[n]], read.points_unit, atol=1e-6
        )
        assert bool(answer.thought[n]) == (read.thought is not None)


def some_clicks(count, *, boxed=True, used=True, thought=True):
    return Clicks(
        jnp.zeros((count, 2, 4)),
        jnp.full((count, 2), boxed),
        jnp.zeros((count, 3, 2)),
        jnp.ones((count, 3), jnp.int32),
        jnp.full((count, 3), used),
        jnp.full(count, thought),
    )


@functools.cache
def judge(asks):
    return jax.jit(
        lambda answer, verdict, truth, masks: asks.judge(answer, verdict, truth, masks=masks)
    )


def judged(masks, truths, *, verdict=Verdict.OK, stage: Any = "rl", released=False, **parts: Any):
    asks = Prompted(stage=stage, frame=FRAME, released=released)
    pack = [packed_masks.pack(mask, (FRAME, FRAME)) for mask in masks]
    truth = scores.Truth(
        jnp.array([packed_masks.pack(mask, (FRAME, FRAME)) for mask in truths]),
        jnp.zeros((len(truths), FRAME, FRAME, 3), jnp.uint8),
    )
    verdicts = jnp.full(len(masks), int(verdict))
    return judge(asks)(some_clicks(len(masks), **parts), verdicts, truth, jnp.array(pack))


def blobs(seed, count=5):
    rng = np.random.default_rng(seed)
    return [ndimage.gaussian_filter(rng.normal(size=(FRAME,) * 2), 9) > 0.01 for _ in range(count)]


def test_scores_are_those_of_the_masks():
    masks, truths = blobs(0), blobs(1)
    found = judged(masks, truths)
    iou = [(a & b).sum() / (a | b).sum() for a, b in zip(masks, truths, strict=True)]
    np.testing.assert_allclose(found.scores["iou"], iou, atol=1e-6)
    wrong = [(a ^ b).mean() for a, b in zip(masks, truths, strict=True)]
    np.testing.assert_allclose(found.measures["error"], wrong, atol=1e-6)
    assert (np.asarray(found.scores["structure"]) < 0.9).all()
    same = judged(truths, truths)
    for name in ("iou", "structure", "format"):
        np.testing.assert_allclose(same.scores[name], 1.0, atol=1e-6)
    # The release scores the area that is left free in the place of S.
    odd = judged(masks, truths, released=True)
    np.testing.assert_allclose(
        odd.scores["structure"], [1 - mask.mean() for mask in masks], atol=1e-6
    )
    np.testing.assert_allclose(odd.scores["iou"], iou, atol=1e-6)


def test_what_is_missing_costs_what_it_costs_in_the_release():
    masks = blobs(2)
    cases: list[tuple[dict[str, Any], str, int, int]] = [
        ({"boxed": False}, "rl", 0, 0),
        ({"used": False}, "rl", 0, 0),
        ({"thought": False}, "rl", 1, 0),
        ({"boxed": False, "thought": False}, "prerl", 1, 1),
        ({"used": False}, "prerl", 0, 0),
        ({"verdict": Verdict.MALFORMED}, "rl", 1, 0),
        ({"verdict": Verdict.MALFORMED, "released": True}, "rl", 1, 1),
    ]
    for parts, stage, mask_counts, form in cases:
        found = judged(masks, masks, stage=stage, **parts)
        assert float(found.scores["iou"][0]) == mask_counts, parts
        assert (float(found.scores["structure"][0]) > 0) == mask_counts, parts
        assert float(found.scores["format"][0]) == form, parts
        assert int(found.measures["union"][0]) > 0


def test_without_a_model_that_draws_nothing_is_told_of_masks():
    asks, ((_, example), *_) = drawn(count=1)
    truth = jax.tree.map(lambda leaf: leaf[None], asks.truth(example, canvas=(32, 32)))
    found = asks.judge(some_clicks(1), jnp.zeros(1, jnp.int32), truth)
    assert np.isnan(found.scores["iou"]).all()
    assert float(found.scores["format"][0]) == 1
    outcome = task.Outcome(
        examples=[example],
        texts=[example.answer],
        scores=jax.tree.map(np.asarray, dict(found.scores)),
        measures={},
        verdicts=np.zeros(1, int),
    )
    assert [metric.name for metric in asks.metrics(outcome)] == ["format"]
    with pytest.raises(ValueError, match="segment: expected a model that draws for the task"):
        steps.scorer(
            steps.Actor(blank().graph, blank().tokenizer), asks, weights=asks.reward_weights
        )
    with pytest.raises(ValueError, match="segmenter: expected the folder of a model that draws"):
        evaluation.answer_greedily(
            Predictor(small_run.bundle()), [SCENES[0]], title="", task=asks, batch=1
        )


def test_the_truth_is_the_mask_stretched_to_the_frame():
    asks, examples = drawn(count=3)
    for _, example in examples:
        truth = asks.truth(example, canvas=(32, 32))
        mask = packed_masks.unpack(np.asarray(truth.words), (FRAME, FRAME))
        assert example.mask is not None
        whole = np.repeat(np.repeat(example.mask, 3, 0), 3, 1)
        back = np.repeat(np.repeat(mask, 2, 0), 2, 1)
        assert (whole & back).sum() / (whole | back).sum() > 0.9
        assert truth.view.shape == (FRAME, FRAME, 3)
        assert len(asks.truth_rings(truth)) >= 1
    blank = asks.truth(asks.ask(examples[0][1].image, "it"), canvas=(32, 32))
    assert not blank.words.any()


@pytest.mark.parametrize("stage", ["prerl", "rl"])
def test_the_grammar_takes_true_answers_and_no_others(stage):
    tokenizer = blank().tokenizer
    asks, examples = drawn(stage, count=3)
    held = asks.grammar(tokenizer.pieces, [tokenizer.end_id])

    def fits(text):
        state = int(held.start[0])
        for token in [*tokenizer.encode(text), tokenizer.end_id]:
            if not state:
                return False
            kind = int(held.classes[token])
            if not kind or held.need[state, kind] == np.iinfo(np.int16).max:
                return False
            state = int(held.following[state, kind])
        return True

    for _, example in examples:
        assert fits(example.answer)
        assert not fits(example.answer[:-3])
        assert not fits(example.answer.replace("[1", "[7", 1) + "x")
    with pytest.raises(ValueError, match="grammar: expected answers with boxes or clicks"):
        asks.grammar(tokenizer.pieces, [tokenizer.end_id], nothing=True)


def test_it_is_stored_and_read_back_and_its_options_are_checked():
    for asks in (Prompted(), Prompted(stage="sft", frame=1024, mixture=Mixture(trace=2.0))):
        assert table.from_json(json.loads(json.dumps(table.as_json(asks)))) == asks
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"frame": 750}, r"task\.frame: expected a multiple of 32, got 750; do: take 736"),
        ({"frame": 8224}, "frame: expected a side of 2 to 8192"),
        ({"boxes": 0}, r"task\.boxes: expected at least 1, got 0"),
        ({"clicks": 17}, r"task\.clicks: expected at most the 16 clicks"),
        ({"mixture": Mixture(trace=1.0)}, r"task\.mixture\.trace: expected 0 in stage 'rl'"),
        ({"stage": "prerl", "mixture": Mixture(text=1.0)}, r"mixture\.text: expected 0 in stage"),
    )
    for wrong, told in refused:
        with pytest.raises(ValueError, match=told):
            Prompted(**wrong)
    for shares in ({"whole": 0.0}, {"whole": -1.0, "text": 3.0}):
        with pytest.raises(
            ValueError, match=r"task\.mixture: expected shares >= 0 with a positive"
        ):
            Mixture(**shares)
    with pytest.raises(ValueError, match="prompted: expected an expression, got"):
        Prompted().ask(SCENES[0].image, np.zeros(2))
    with pytest.raises(ValueError, match="prompted: expected no expression for stage 'prerl'"):
        Prompted(stage="prerl").ask(SCENES[0].image, "the cup")


def test_predictions_are_plain_values_in_pixels():
    asks, ((_, example), *_) = drawn(count=1)
    text = clicks.write([(0.0, 0.0, 0.5, 1.0)], [(0.25, 0.5)], [1], frame=FRAME, thought="so")
    found = asks.predict(example, text)
    height, width = example.image.shape[:2]
    told = json.loads(json.dumps(found.as_json()))
    assert told["boxes_px"] == [[0, 0, width / 2, height]]
    assert told["points_px"] == [[width / 4, height / 2]]
    assert (told["labels"], told["thought"], told["verdict"]) == ([1], "so", "OK")
    assert [len(ring) for ring in found.rings_unit] == [4, 1]
    assert "rle" not in told
    assert found.mask is None


def inside_of_corners(seen):
    """Returns a stand-in that draws what lies within corners, and disks around other clicks."""

    def draw(image, prompts):
        height, width = image.shape[:2]
        mask = np.zeros((height, width), bool)
        seen.append((image, prompts))
        y, x = (np.indices((height, width)) + 0.5) / [[[height]], [[width]]]
        for one in prompts:
            if one.box_unit is None:
                for px, py in one.points_unit[one.labels == 1]:
                    mask |= (x - px) ** 2 + (y - py) ** 2 < 0.04
            else:
                x0, y0, x1, y1 = one.box_unit
                mask |= (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        return mask

    return draw


TWO = (
    "<think> two of them </think> <bbox>[0,0,48,48]</bbox>, <bbox>[48,48,96,72]</bbox>, "
    "<points>[[12,12],[48,48],[90,90]]</points>, <labels>[1,0,1]</labels>"
)


def test_a_mask_is_the_union_over_boxes_each_with_the_clicks_within():
    asks, ((_, example), *_) = drawn(count=1)
    seen: list = []
    found = asks.predict(example, TWO, draw=inside_of_corners(seen))
    (image, prompts), (height, width) = seen[0], example.image.shape[:2]
    assert image is example.whole_image
    np.testing.assert_allclose(prompts[0].box_unit, [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(prompts[0].points_unit, [[0.125, 0.125], [0.5, 0.5]])
    np.testing.assert_allclose(prompts[1].points_unit, [[0.5, 0.5]])
    assert [one.labels.tolist() for one in prompts] == [[1, 0], [0]]
    want = np.zeros((height, width), bool)
    want[: height // 2, : width // 2] = want[height // 2 : height * 3 // 4, width // 2 :] = True
    np.testing.assert_array_equal(found.mask, want)
    told = json.loads(json.dumps(found.as_json()))
    assert (told["thought"], told["area_px"]) == ("two of them", int(want.sum()))
    assert told["box_px"] == [0, 0, width, height * 3 // 4]
    rle = {"size": told["rle"]["size"], "counts": told["rle"]["counts"].encode()}
    np.testing.assert_array_equal(bitmask.from_rle(rle), want)
    filled = host_raster.fill(
        [np.array(ring) for ring in told["polygons_unit"]], height=height, width=width, rule="coco"
    )
    np.testing.assert_array_equal(filled, want)
    # Boxes frame the mask: they are lines, dots are clicks.
    lengths = [len(ring) for ring in found.rings_unit]
    assert (lengths.count(2), lengths.count(1)) == (8, 3)
    alone = asks.predict(
        example, "<points>[[48,48]]</points><labels>[1]</labels>", draw=inside_of_corners(seen)
    )
    assert [one.box_unit for one in seen[1][1]] == [None]
    assert alone.mask is not None
    assert alone.mask.any()
    nothing = asks.predict(example, "I see none.", draw=inside_of_corners(seen))
    assert len(seen) == 2  # Nobody is asked to draw nothing.
    assert nothing.mask is not None
    assert not nothing.mask.any()
    assert nothing.as_json()["box_px"] is None


def test_the_release_draws_in_the_frame_blue_first_and_scales_the_mask():
    sample = SCENES[0]
    asks = Prompted(frame=FRAME, released=True)
    assert (asks.channels, Prompted().channels) == ("bgr", "rgb")
    example = asks.ask(sample.image, "it")
    seen: list = []
    text = TWO.replace("[1,0,1]", "[1,3,2]")
    found = asks.predict(example, text, draw=inside_of_corners(seen))
    (view, prompts) = seen[0]
    assert view.shape == (FRAME, FRAME, 3)
    blue = Image.fromarray(sample.image).resize((FRAME, FRAME), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view[..., ::-1], np.asarray(blue))
    # Labels of corners stay what they are.
    assert [one.labels.tolist() for one in prompts] == [[1, 3], [3]]
    square = np.zeros((FRAME, FRAME), np.uint8)
    square[:48, :48] = square[48:72, 48:] = 255
    size = sample.image.shape[1::-1]
    want = np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found.grey, want)
    assert found.size == sample.image.shape[:2]
    # A comma that lacks loses boxes too.
    lost = asks.predict(example, TWO.replace("12,12", "012,12"), draw=inside_of_corners(seen))
    assert lost.mask is not None
    assert not lost.mask.any()


def test_the_release_evaluates_on_bicubic_images_through_jpeg_and_trains_on_bilinear_ones():
    sample = SCENES[0]
    asks = Prompted(frame=FRAME, released=True)
    cubic = Image.fromarray(sample.image).resize((FRAME, FRAME))  # Pillow's default.
    file = io.BytesIO()
    cubic.save(file, format="JPEG")  # Its default is 75.
    evaluated = np.asarray(Image.open(file))
    np.testing.assert_array_equal(asks.ask(sample.image, "it").image, evaluated)
    linear = Image.fromarray(sample.image).resize((FRAME, FRAME), Image.Resampling.BILINEAR)
    for task_ in (asks, Prompted(frame=FRAME, square=True)):
        example = task_.example(sample, np.random.default_rng(0))
        np.testing.assert_array_equal(example.image, np.asarray(linear))
        np.testing.assert_array_equal(example.whole_image, sample.image)
    assert Prompted(frame=FRAME).ask(sample.image, "it").image is sample.image
    # What a model draws on is the image itself, whatever is shown with the question.
    truth = asks.truth(asks.ask(sample.image, "it"), canvas=(32, 32))
    np.testing.assert_array_equal(truth.view, np.asarray(linear))


def test_the_release_takes_the_first_box_of_reasonseg_with_all_clicks():
    asks, seen = Prompted(frame=FRAME, released=True), []
    example = asks.ask(SCENES[0].image, "it")
    draw = inside_of_corners(seen)
    for text in (TWO, TWO.replace("48,48]</bbox>", "48,48]", 1)):
        asks.predict(example, text, draw=draw, together=True)
        (asked,) = seen[-1][1]
        np.testing.assert_allclose(asked.box_unit, [0, 0, 0.5, 0.5])
        assert len(asked.points_unit) == 3
    asks.predict(example, TWO.replace("[1,0,1]", "[1,0]"), draw=draw, together=True)
    (asked,) = seen[-1][1]
    assert not len(asked.points_unit)
    count = len(seen)
    # A list that Python cannot read loses the box too; without a box clicks count alone.
    for broken in (TWO.replace("[[12,", "[[012,"), "nothing"):
        found = asks.predict(example, broken, draw=draw, together=True)
        assert found.mask is not None
        assert not found.mask.any()
    assert len(seen) == count
    clicks_alone = "<points>[[12,12]]</points> <labels>[1]</labels>"
    asks.predict(example, clicks_alone, draw=draw, together=True)
    assert seen[-1][1][0].box_unit is None
    # It stays linear in what a model may write.
    pointing.only_first_box("<bbox>[" * 100_000 + " " * 100_000)
