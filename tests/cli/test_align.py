"""A CLIP is taught on drawn cases: the program from end to end."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run
import tiny_clip

from seg_jax.cli import main
from seg_jax.inference import matcher
from seg_jax.runs import alignment
from seg_jax.scenes import contrasts
from seg_jax.scenes.contrasts import Subset
from seg_jax.scenes.things import Colour, Kind
from seg_jax.training.loop import Loop

TEXT = dataclasses.replace(tiny_clip.TEXT, vocab_size=700, max_position_embeddings=16)
SMALL = alignment.Config(
    model=dataclasses.replace(tiny_clip.CONFIG, text=TEXT),
    cases=contrasts.Config(
        side=32,
        kinds=(Kind.CIRCLE, Kind.CROSS),
        colours=(Colour.RED, Colour.BLUE),
        subsets=(Subset.EXISTENCE, Subset.RELATIVE_SPATIAL),
    ),
    feed=alignment.Feed(batch=6),
    loop=Loop(steps=4, log_every=1),
    held_out=2,
)
RUN = """\
import test_align


def config():
    return test_align.SMALL
"""


def test_a_run_leaves_a_model_that_goes_on(tmp_path, capsys, monkeypatch):
    small_run.on_one_device(monkeypatch)
    path, out = tmp_path / "run.py", tmp_path / "out"
    path.write_text(RUN)
    words = ["align", str(path), "--out", str(out)]
    assert main.main(words) == 0
    assert capsys.readouterr().out == f"{out / 'checkpoint'}\n"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["image_to_text"] > line["clip"] > 0 for line in steps)
    told = json.loads((out / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(told[when]["cases"]["subsets"]) == {"existence", "relative_spatial"}
        assert 0 <= told[when]["names"]["mean"] <= 1
    model = matcher.load(out / "checkpoint")
    vectors = model.texts(["a red circle", "a blue cross"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    assert main.main(words) == 1
    assert "--resume" in capsys.readouterr().err
    again = ["align", str(path), "--out", str(tmp_path / "more"), "--loop.steps", "1"]
    assert main.main([*again, "--checkpoint", str(out / "checkpoint")]) == 0
    more = json.loads((tmp_path / "more" / "summary.json").read_text())
    assert more["before"]["names"] == told["after"]["names"]
    assert more["before"]["cases"]["subsets"] == told["after"]["cases"]["subsets"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    out = tmp_path_factory.mktemp("words")
    found, _ = alignment.tokenizer(dataclasses.replace(SMALL, out=out))
    return found


def test_batches_hold_whole_cases_and_go_on_where_they_stood(words):
    cases = alignment.Cases(SMALL, words)
    first = next(cases)
    assert first.pixels.shape == (6, 32, 32, 3)
    assert first.case.tolist() == [0, 0, 1, 1, 1, 1]
    assert [first.anchor[first.case == case].sum() for case in (0, 1)] == [1, 1]
    ends = (first.ids == words.eos_id).argmax(1)
    assert (first.ids[:, 0] == words.bos_id).all()
    assert (ends > 2).all()
    again = alignment.Cases(SMALL, words)
    again.set_state(json.loads(json.dumps(cases.get_state())))
    for one, other in zip(next(cases), next(again), strict=True):
        np.testing.assert_array_equal(one, other)
    single = dataclasses.replace(SMALL, feed=alignment.Feed(batch=5, whole=False))
    pairs = next(alignment.Cases(single, words))
    assert pairs.case.tolist() == [0, 1, 2, 3, 4]
    assert pairs.anchor.all()


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a multiple of the 6 pairs of one case of each"):
        dataclasses.replace(SMALL, feed=alignment.Feed(batch=8))
    with pytest.raises(ValueError, match="expected the sizes of a CLIP or a checkpoint"):
        dataclasses.replace(SMALL, model=None).completed()
    few = dataclasses.replace(SMALL, model=tiny_clip.CONFIG, out=tmp_path)
    with pytest.raises(ValueError, match=r"model\.text\.vocab_size: expected at least"):
        alignment.tokenizer(few)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight CPU devices")
def test_compile_knows_its_steps(tmp_path, capsys):
    path, out = tmp_path / "run.py", tmp_path / "out.json"
    path.write_text(RUN)
    words = ["compile", str(path), "--topology", "cpu:8", "--feed.batch", "24"]
    assert main.main([*words, "--mesh.data", "4", "--mesh.fsdp", "2", "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert [step["step"] for step in told["steps"]] == ["align", "images", "texts"]
    align_, images, texts = told["steps"]
    assert align_["memory"]["donated"] > 0 == images["memory"]["donated"]
    both = images["operations"]["vision"] + texts["operations"]["text"]
    done = align_["operations"]
    assert done["vision"] + done["text"] == pytest.approx(both)
    assert done["backward"] == pytest.approx(2 * (both + done["head"]))
    assert main.main([*words, "--held-out", "3"]) == 1
    assert "held_out: expected options that a step depends on" in capsys.readouterr().err
