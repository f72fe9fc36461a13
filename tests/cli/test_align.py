"""A CLIP is taught on drawn cases: the program from end to end; every option acts or is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types

import fingerprints
import jax
import numpy as np
import pytest
import run_stand_ins
import small_run
import tiny_clip
from flax import nnx

from seg_jax.cli import align, main
from seg_jax.inference import matcher
from seg_jax.models.io import model_folder, weights
from seg_jax.runs import alignment, console, matching, stage
from seg_jax.scenes import contrasts
from seg_jax.scenes.contrasts import Subset
from seg_jax.scenes.things import Colour, Kind
from seg_jax.training import contrastive, optimizers, state
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


@pytest.fixture
def prints(monkeypatch, tmp_path, words):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    patch = monkeypatch.setattr
    end = state.State(np.zeros((), int), np.zeros((), int), {}, ())

    class Nothing(nnx.Module):
        """A model without weights."""

    def blank(sizes, compute):
        note("sizes", sizes, compute)
        return Nothing()

    def run_stage(run, body, start, *, batches, place, mesh):
        note("stage", run.loop, run.offload, place.folder, place.stage)
        start.weights()
        return stage.Trained(end, 1.0)

    def load(folder, *, compute, on):
        note("load", folder, compute)
        return Nothing()

    @contextlib.contextmanager
    def hold(run, *, reads):
        note("hold", run.out, run.resume, run.anew, reads)
        run.out.mkdir(parents=True)
        yield

    def tried(run, model, words):
        note("tried", run.held_out)
        interval = {"mean": 0.0, "low": 0.0, "high": 0.0}
        return {"names": interval, "cases": {"mean": 0.0, "chance": 0.0}}

    def draw_weights(plan):
        note("random", plan.run.seed)
        return nnx.state(Nothing())

    run_stand_ins.put_mesh(monkeypatch, note)
    patch(weights, "blank", blank)
    patch(weights, "load", load)
    patch(stage, "run_stage", run_stage)
    patch(stage, "hold_folder", hold)
    patch(stage, "open_log", lambda folder: run_stand_ins.Log())
    patch(contrastive, "step", lambda graph, *options: note("step", options))
    patch(alignment, "tokenizer", lambda run: (words, run.checkpoint))
    patch(alignment, "Cases", lambda run, words: note("cases", run.cases, run.feed))
    patch(alignment, "tried", tried)
    patch(alignment.Plan, "draw_weights", draw_weights)
    patch(model_folder, "save", lambda model, folder, source: note("save", folder, source))
    patch(matching, "show", lambda told: None)
    patch(console, "say", lambda text: None)
    patch(console, "tell", lambda path: note("tell", path))
    return note.of


def test_every_option_of_align(prints):
    fingerprints.walk(prints, align, SMALL)
    muon = dataclasses.replace(SMALL, optimizer=optimizers.Muon())
    fingerprints.walk(prints, align, muon, parts=("optimizer",))


def test_an_option_of_align_that_nothing_reads_is_found(prints):
    def dropping(config):
        align.main(dataclasses.replace(config, objective=SMALL.objective))

    with pytest.raises(AssertionError, match=r"objective\.hard: read and dropped"):
        fingerprints.walk(prints, types.SimpleNamespace(main=dropping), SMALL, parts=("objective",))
