"""Holds runs to passing over what rows cannot hold, counted and named: none ends by it."""

import dataclasses
import json
from typing import Literal

import jax
import numpy as np
import published_formats as formats
import pytest
import small_run
from batches import assert_same, take
from built_data import build

from seg_jax.data import (
    fitting,
    packed_batches,
    passing,
    pipeline,
    record_schema,
    sources,
)
from seg_jax.data.build import dataset
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built, Mixed, Scenes
from seg_jax.evaluation.referring import protocols
from seg_jax.evaluation.referring.answers import Model
from seg_jax.tasks.task import Unfit

Rows = Literal["sft", "prompts"]
BOTH: tuple[Rows, ...] = ("sft", "prompts")
POLYGON = [[1.0, 0.0, 30.0, 0.0, 30.0, 3.0, 1.0, 3.0]]
STRIP = "expected an aspect ratio of at most N"


def own_data(root, shapes):
    """Builds data of one's own of pictures of some heights and widths."""
    lines = []
    for number, (height, width) in enumerate(shapes):
        formats.image(root / f"{number}.png", number, height=height, width=width, form="PNG")
        phrases = [{"text": "it", "objects": [0]}]
        objects = [{"segmentation": POLYGON, "name": "cup"}]
        lines.append({"image": f"{number}.png", "objects": objects, "phrases": phrases})
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    build(dataset.Plan(name="folder", source=root, out=root / "out", records=3))
    return Built(folders=(root / "out",))


@pytest.fixture(scope="module")
def mixed_shapes(tmp_path_factory):
    """Eight pictures, two of them strips that no layout takes."""
    shapes = [(32, 32)] * 3 + [(3, 900)] + [(32, 32)] * 3 + [(900, 3)]
    return own_data(tmp_path_factory.mktemp("strips"), shapes)


@pytest.fixture(scope="module")
def encoder():
    made = small_run.bundle().encoder
    return dataclasses.replace(made, layout=dataclasses.replace(made.layout, canvas=(928, 928)))


def feed(source, encoder, *, rows: Rows = "sft", held=None, **changes):
    return pipeline.batches(
        source,
        small_run.task(rows),
        encoder,
        feed=pipeline.Feed(**({"batch": 4, "seed": 1} | changes)),
        rows=rows,
        local_rows=held,
    )


@pytest.mark.parametrize("rows", BOTH)
def test_strips_are_left_out_before_a_run_begins(mixed_shapes, encoder, rows):
    """ratio-1: a picture of 900 x 3 ended finetune after three steps, evaluate at once."""
    source, met = fitting.fitting_source(mixed_shapes, encoder, rows=rows)
    assert len(source) == 6
    assert [source[index].image.shape for index in range(6)] == [(32, 32, 3)] * 6
    assert met.counts == {f"passed over: {STRIP}": 2}
    strips = met.examples[f"passed over: {STRIP}"]
    assert [one.split(": ")[0] for one in strips] == ["train/3.png (3.png)", "train/7.png (7.png)"]
    batches = feed(source, encoder, rows=rows)
    take(batches, 6)
    assert batches.findings.counts == {}


def test_a_source_that_fits_stays_as_it_is(mixed_shapes, encoder, tmp_path):
    good = own_data(tmp_path, [(32, 32)] * 3)
    assert fitting.fitting_source(good, encoder, rows="sft") == (good, Findings())
    scenes = Scenes(count=3)
    assert fitting.fitting_source(scenes, encoder, rows="sft")[0] is scenes
    both = Mixed(parts=(good, mixed_shapes), weights=(1.0, 2.0))
    source, met = fitting.fitting_source(both, encoder, rows="sft")
    assert isinstance(source, Mixed)
    assert [len(part) for part in source.parts] == [3, 6]
    assert sum(met.counts.values()) == 2


def test_an_image_larger_than_the_canvas_is_known_by_its_size(encoder, tmp_path):
    data = own_data(tmp_path, [(32, 32), (32, 40)])
    layout = dataclasses.replace(encoder.layout, canvas=(32, 36))
    tight = dataclasses.replace(encoder, layout=layout)
    source, met = fitting.fitting_source(data, tight, rows="prompts")
    assert len(source) == 1
    (examples,) = met.examples.values()
    told = "train/1.png (1.png): mask: expected an image of at most 32 x 36 pixels, got 32 x 40"
    assert examples == [told]
    assert fitting.fitting_source(data, tight, rows="sft") == (data, Findings())


def test_sets_without_sizes_are_looked_through(encoder, tmp_path):
    """Those of older builds and of TFDS: their strips ended up in rows' places while training."""
    data = own_data(tmp_path, [(32, 32), (3, 900), (32, 32), (32, 32)])
    known = fitting.fitting_source(data, encoder, rows="sft")
    for name in (record_schema.REPORT, record_schema.SIZES):
        (tmp_path / "out" / name).unlink()
    found = fitting.fitting_source(Built(folders=data.folders), encoder, rows="sft")
    assert isinstance(found[0], fitting.Chosen)
    assert (found[0].numbers, found[1]) == (known[0].numbers, known[1])
    last = max((tmp_path / "out").glob("*.array_record-*"))
    last.write_bytes(b"x" * 70_000)
    kept, met = fitting.fitting_source(Built(folders=data.folders), encoder, rows="sft")
    assert (len(kept), sum(met.counts.values())) == (2, 2)


@pytest.mark.parametrize(
    ("layout", "pack", "told"),
    [
        ({"max_patches": 4}, None, "expected at most 4 patches, got 16 "),
        ({"max_prompt": 30, "max_question": 26}, None, "expected at most 4 tokens before"),
        ({"max_prompt": 6, "max_question": 1}, None, "expected at most 6 tokens in the prompt"),
        ({}, dataclasses.replace(small_run.PACK, tokens=8), "expected at most 8 tokens and"),
        ({}, dataclasses.replace(small_run.PACK, patches=8), "tokens and 8 patches in a row"),
    ],
)
def test_other_limits_of_rows_are_known_by_sizes(encoder, tmp_path, layout, pack, told):
    data = own_data(tmp_path, [(32, 32)] * 2)
    tight = dataclasses.replace(encoder, layout=dataclasses.replace(encoder.layout, **layout))
    with pytest.raises(ValueError, match="got none of 2 in train; do: see to this: ") as error:
        fitting.fitting_source(data, tight, rows="sft", pack=pack)
    assert told in str(error.value)


@pytest.mark.parametrize("rows", BOTH)
def test_a_row_that_turns_up_is_passed_over_whoever_reads(mixed_shapes, encoder, rows):
    """ratio-1: nothing was left out before; the batches are the same for any processes."""
    whole = feed(mixed_shapes, encoder, rows=rows)
    wanted = take(whole, 6)
    strips = whole.findings.counts[f"passed over: {STRIP}"]
    assert strips >= 6
    (examples,) = whole.findings.examples.values()
    assert {one.split(": ")[0] for one in examples} == {
        "out/train/3.png",
        "out/train/7.png",
    }
    pair = [feed(mixed_shapes, encoder, rows=rows, held=held) for held in ([0, 1], [2, 3])]
    parts = [take(one, 6) for one in pair]
    for step, batch in enumerate(wanted):
        assert_same(batch, jax.tree.map(lambda *x: np.concatenate(x), *(p[step] for p in parts)))
    assert sum(sum(one.findings.counts.values()) for one in pair) == strips
    again = feed(mixed_shapes, encoder, rows=rows, threads=0)
    again.set_state({"batches": 4})
    assert_same(take(again, 2), wanted[4:])


@pytest.mark.parametrize("pack", [None, small_run.PACK])
def test_a_run_that_goes_on_counts_on(mixed_shapes, encoder, pack):
    """What a run had passed over before it went on was forgotten."""
    whole = feed(mixed_shapes, encoder, pack=pack)
    take(whole, 6)
    first = feed(mixed_shapes, encoder, pack=pack)
    take(first, 3)
    again = feed(mixed_shapes, encoder, pack=pack)
    again.set_state(json.loads(json.dumps(first.get_state())))
    assert again.findings == first.findings
    take(again, 3)
    assert again.findings.as_json() == whole.findings.as_json()
    assert again.findings.counts != first.findings.counts
    again.set_state(again.get_state())
    assert again.findings.as_json() == whole.findings.as_json(), "nothing counts twice"


def test_what_processes_pass_over_is_counted_once(mixed_shapes, encoder):
    """And what is missing from the source is the same for all of them."""
    met = Findings()
    met.add("left out", "a.png")
    tallies = [passing.Tally(met), passing.Tally(met)]
    for tally, count in zip(tallies, (2, 3), strict=True):
        tally.drawn.add("passed over", "b.png", count=count)
    drawn = [tally.drawn.as_json() for tally in tallies]
    position = tallies[0].position(drawn)
    for tally in tallies:
        assert tally.everywhere(drawn).counts == {"left out": 1, "passed over": 5}
        tally.go_on_from(position)
    drawn = [tally.drawn.as_json() for tally in tallies]
    assert tallies[1].everywhere(drawn).counts == {"left out": 1, "passed over": 5}
    with pytest.raises(ValueError, match="passed over"):
        tallies[0].go_on_from({"passed over": 5})


def test_packed_rows_pass_over_alike(mixed_shapes, encoder):
    batches = feed(mixed_shapes, encoder, pack=small_run.PACK)
    assert isinstance(batches, packed_batches.PackedBatches)
    wanted = take(batches, 3)
    assert batches.findings.counts[f"passed over: {STRIP}"] >= 2
    assert_same(take(feed(mixed_shapes, encoder, pack=small_run.PACK, threads=0), 3), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [None, small_run.PACK])
def test_worker_processes_tell_what_they_pass_over(mixed_shapes, encoder, pack):
    alone = feed(mixed_shapes, encoder, pack=pack)
    wanted = take(alone, 4)
    many = feed(mixed_shapes, encoder, pack=pack, workers=2)
    assert_same(take(many, 4), wanted)
    assert many.findings == alone.findings
    assert many.findings.counts


def test_a_run_of_nothing_but_unfit_samples_ends_with_the_reason(tmp_path, encoder):
    strips = own_data(tmp_path, [(3, 900)] * 2)
    with pytest.raises(Unfit, match=r"out/train/\d.png: .*aspect ratio of at most 200"):
        next(feed(strips, encoder))
    with pytest.raises(ValueError, match="got none of 2 in train; do: see to this: .*aspect"):
        fitting.fitting_source(strips, encoder, rows="sft")


def test_a_damaged_record_costs_a_run_nothing_else(tmp_path, encoder):
    """Both a file that is gone, known before the run, and a bit that is not."""
    data = own_data(tmp_path, [(32, 32)] * 9)
    first, second, _ = sorted((tmp_path / "out").glob("*.array_record-*"))
    second.unlink()
    spoiled = bytearray(first.read_bytes())
    spoiled[200] ^= 4
    first.write_bytes(spoiled)
    source, met = fitting.fitting_source(data, encoder, rows="sft")
    assert len(source) == 6
    assert met.counts == {"record passed over, as its file is missing or not whole": 3}
    batches = feed(source, encoder)
    take(batches, 5)
    (examples,) = batches.findings.examples.values()
    assert examples[0].startswith(f"{first}, record ")
    assert "Corrupted" in examples[0]


def test_questions_in_order_pass_over_and_count(mixed_shapes, encoder):
    met, task = Findings(), small_run.task("prompts")
    drawn = list(pipeline.batches_in_order(mixed_shapes, task, encoder, batch=4, findings=met))
    assert [len(examples) for examples, _ in drawn] == [4, 2]
    assert met.counts == {f"passed over: {STRIP}": 2}
    with pytest.raises(Unfit, match="aspect ratio"):
        list(pipeline.batches_in_order(mixed_shapes, task, encoder, batch=4))


def test_a_protocol_answers_by_nothing_what_no_row_holds(mixed_shapes, encoder):
    """The question counts, as a wrong answer, and why is told: numbers stay comparable."""

    def refuse(prompts):
        raise AssertionError("only strips are asked about")

    task = small_run.task("prompts")
    asked = protocols.questions(protocols.PROTOCOLS["res"], mixed_shapes, task=task, indices=[3, 7])
    model = Model(refuse, encoder, task, batch=2)
    assert [text for _, text, _ in model(asked)] == ["", ""]
    assert model.too_long == 2
    assert model.findings().counts == {f"answered by nothing: {STRIP}": 2}


def test_a_protocol_passes_over_damaged_records(tmp_path):
    data = own_data(tmp_path, [(32, 32)] * 4)
    sorted((tmp_path / "out").glob("*.array_record-*"))[0].unlink()
    met = Findings()
    rules, task = protocols.PROTOCOLS["res"], small_run.task("prompts")
    asked = list(protocols.questions(rules, data, task=task, findings=met))
    assert [question.index for question in asked] == [3]
    assert sum(met.counts.values()) == 3
    assert sources.corpus(data) == ["it"]


def test_what_was_passed_over_always_fits_its_text():
    met = Findings()
    for number in range(40):
        met.add(f"reason {number}", "x" * 400)
    told, back = passing._as_array(met), Findings()
    assert told.shape == ()
    passing.add_told([told, passing._as_array(Findings())], back)
    assert sum(back.counts.values()) == 40
