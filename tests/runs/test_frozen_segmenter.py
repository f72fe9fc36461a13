"""Answers judged by the masks that a frozen model draws of them, in the steps of reinforcement."""

import json
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
import tiny_sam2

from seg_jax.cli import main
from seg_jax.data import sources
from seg_jax.grammar import clicks
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter, segmenter
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import config, meta_names
from seg_jax.records import Rollout
from seg_jax.runs import reinforcement, run_folder, stage, start
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring
from seg_jax.training import hlo, steps

FRAME = tiny_sam2.SIDE
ASKS = Prompted(frame=FRAME, boxes=2, points=4, clicks=4)
GSPO = """
import dataclasses
import small_run
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import loop
def config():
    base = small_run.gspo_config()
    layout = dataclasses.replace(
        base.layout, max_prompt=1000, max_question=900, max_answer=80
    )
    return dataclasses.replace(
        base,
        model=None,
        task=Prompted(stage="prerl", frame=96, points=4, clicks=4),
        layout=layout,
        feed=dataclasses.replace(base.feed, batch=4),
        panel_every=1,
        probe=1,
        sampling=dataclasses.replace(base.sampling, answers=2, max_tokens=80, grammar=True),
        loop=loop.Loop(steps=2, log_every=1),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "sam2"
    tiny_sam2.theirs().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(tiny_sam2.CONFIG.to_preprocessor()))
    return path


def rollout_of(tokenizer, texts) -> Rollout:
    """Returns texts [B G] as sampled answers."""
    ids = [[[*tokenizer.encode(text), tokenizer.end_id] for text in row] for row in texts]
    length = max(len(one) for row in ids for one in row)
    rows = np.zeros((len(ids), len(ids[0]), length), np.int32)
    used = np.zeros(rows.shape, bool)
    for b, row in enumerate(ids):
        for g, one in enumerate(row):
            rows[b, g, : len(one)], used[b, g, : len(one)] = one, True
    return Rollout(rows, used, np.zeros(rows.shape, np.float32))


@pytest.mark.slow
def test_scores_are_of_the_masks_that_the_model_draws_alone(folder, tmp_path):
    blank = start.blank_model(small_run.sft_config(), tmp_path / "tokenizer")
    scenes, rng = sources.Scenes(seed=3, count=4), np.random.default_rng(0)
    examples = [ASKS.example(scenes[n], rng) for n in range(2)]
    square = clicks.write([(0.1, 0.2, 0.7, 0.8)], [(0.4, 0.5)], [1], frame=FRAME, thought="so")
    texts = [[example.answer, square, "nothing"] for example in examples]
    truth = [ASKS.truth(example, canvas=(32, 32)) for example in examples]
    frozen = frozen_segmenter.load(ASKS, folder, on=small_run.alone())
    score = steps.scorer(
        steps.Actor(blank.graph, blank.tokenizer),
        ASKS,
        weights=ASKS.reward_weights,
        segment=frozen.segment,
    )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *truth)
    rollout = rollout_of(blank.tokenizer, texts)
    worth = jax.device_get(score(rollout, stacked, *frozen.argument))
    alone = segmenter.load(folder)
    for b, row in enumerate(texts):
        bits = (stacked.words[b][:, None] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
        true = bits.reshape(FRAME, FRAME) > 0
        for g, text in enumerate(row[:2]):
            read = clicks.read(text, frame=FRAME)
            drawn = np.zeros((FRAME, FRAME), bool)
            for box in read.boxes_unit:
                low, high = box.reshape(2, 2)
                within = ((read.points_unit >= low) & (read.points_unit <= high)).all(1)
                asked = segmenter.prompt(
                    box_px=box * FRAME,
                    clicks_px=read.points_unit[within] * FRAME,
                    inside=read.labels[within] == 1,
                )
                drawn |= alone.draw(np.asarray(truth[b].view), [asked])[0].mask
            want = (drawn & true).sum() / (drawn | true).sum()
            np.testing.assert_allclose(worth.scores["iou"][b, g], want, atol=2e-3)
            assert worth.scores["format"][b, g] == 1
            total = 0.7 * want + 0.3 * worth.scores["structure"][b, g] + 1
            np.testing.assert_allclose(worth.reward[b, g], total, atol=2e-3)
        assert worth.reward[b, 2] == 0
    # The weights are an argument: others give other masks, by the same program.
    other = jax.tree.map(lambda leaf: -leaf, frozen.params)
    again = jax.device_get(score(rollout, stacked, other))
    assert np.abs(again.scores["iou"][:, :2] - worth.scores["iou"][:, :2]).max() > 0.01
    shapes = frozen_segmenter.shapes(ASKS, folder, on=small_run.alone())
    for one, real in zip(
        jax.tree.leaves(shapes.params), jax.tree.leaves(frozen.params), strict=True
    ):
        assert (one.shape, one.dtype) == (real.shape, real.dtype)
        assert one.sharding == sharding.replicated_sharding(small_run.alone())


@pytest.mark.slow
def test_reinforce_takes_a_segmenter_and_learns_of_its_masks(folder, tmp_path, monkeypatch, capsys):
    small_run.on_one_device(monkeypatch)
    (tmp_path / "gspo.py").write_text(GSPO)
    bundles.save(small_run.bundle(), tmp_path / "start")
    words = ["reinforce", str(tmp_path / "gspo.py"), "--checkpoint", str(tmp_path / "start")]
    words += ["--out", str(tmp_path / "run")]
    assert main.main([*words, "--segmenter", str(folder)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["scores/format"] == 1
        assert 0 < line["scores/iou"] < 1
        total = 0.7 * line["scores/iou"] + 0.3 * line["scores/structure"] + 1
        np.testing.assert_allclose(line["reward"], total, rtol=1e-5)
    capsys.readouterr()
    assert main.main([*words[:5], str(tmp_path / "other")]) != 0
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "segmenter: expected the folder of a model that draws for the task 'prompted'" in told


def test_a_published_segmenter_is_compiled_for_by_its_name(tmp_path, monkeypatch, capsys):
    """Shapes are those of a folder that has the published sizes and no weights."""
    monkeypatch.chdir(tmp_path)
    name = Path("facebook/sam2.1-hiera-tiny")
    known = frozen_segmenter.shapes(ASKS, name, on=small_run.alone())
    hub = config.Config(backbone=meta_names.TINY).to_hf()
    (tmp_path / "sam2-t").mkdir()
    (tmp_path / "sam2-t" / "config.json").write_text(json.dumps(hub))
    folder = frozen_segmenter.shapes(ASKS, tmp_path / "sam2-t", on=small_run.alone())
    assert jax.tree.structure(known.params) == jax.tree.structure(folder.params)
    for one, other in zip(*map(jax.tree.leaves, (known.params, folder.params)), strict=True):
        assert (one.shape, one.dtype, one.sharding) == (other.shape, other.dtype, other.sharding)
    assert 31e6 < sum(leaf.size for leaf in jax.tree.leaves(known.params)) < 32e6
    work = [
        frozen_segmenter.work(ASKS, one, images=2, answers=3)["segmenter"]
        for one in (name, tmp_path / "sam2-t")
    ]
    assert work[0] == work[1]
    assert 2 * 0.29e12 < work[0] < 2 * 0.33e12
    # No run can begin with a name: it says so before anything is read.
    (tmp_path / "gspo.py").write_text(GSPO)
    bundles.save(small_run.bundle(), tmp_path / "start")
    words = ["reinforce", str(tmp_path / "gspo.py"), "--checkpoint", str(tmp_path / "start")]
    monkeypatch.setattr(start, "from_checkpoint", None)
    assert main.main([*words, "--segmenter", str(name), "--out", str(tmp_path / "run")]) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "segmenter: expected the folder of a model with its weights" in told
    assert "do: seg-jax convert facebook/sam2.1-hiera-tiny DIR" in told
    # A folder of that name is a folder as any other.
    name.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"segmenter: .*config\.json"):
        frozen_segmenter.check(ASKS, name)


def test_a_step_with_a_segmenter_is_compiled_from_a_name_or_from_sizes(
    tmp_path, monkeypatch, capsys
):
    """A user without one file of a model sees what a step takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "config.json").write_text(json.dumps(tiny_sam2.CONFIG.to_hf()))
    own = "model=None,", "model=small_run.sft_config().model,"
    (tmp_path / "gspo.py").write_text(GSPO.replace(*own))
    words = ["compile", str(tmp_path / "gspo.py"), "--topology", "cpu:8"]
    words += ["--feed.batch", "8", "--sampling.max-tokens", "80"]
    for folder, step in (("sizes", "update"), ("sizes", "sample")):
        out = tmp_path / f"{step}.json"
        more = ["--segmenter", folder, "--only", step, "--json", str(out)]
        assert main.main([*words, *more]) == 0
        (told,) = json.loads(out.read_text())["steps"]
        assert told["verdict"] == "compiles"
        if step == "update":
            assert told["operations"]["segmenter"] > 0
        else:  # Its weights lie on the devices meanwhile.
            on = small_run.alone()
            weights = hlo.device_bytes(frozen_segmenter.shapes(ASKS, Path(folder), on=on).params)
            assert told["beside_bytes"] > weights
    capsys.readouterr()
    assert main.main(words) == 1
    assert "do: give --segmenter DIR" in capsys.readouterr().err


def test_a_task_and_a_segmenter_go_together_or_are_refused(folder, tmp_path):
    frozen_segmenter.check(ASKS, folder)
    assert frozen_segmenter.load(Referring(), None, on=small_run.alone()).argument == ()
    for task, given, told in (
        (
            ASKS,
            None,
            "segmenter: expected the folder of a model that draws for the task 'prompted'",
        ),
        (Referring(), folder, "segmenter: expected none for the task 'referring'"),
        (ASKS, tmp_path / "none", "segmenter: .*none"),
    ):
        with pytest.raises(ValueError, match=told):
            frozen_segmenter.check(task, given)


def test_a_run_never_replaces_the_folder_of_its_segmenter(tmp_path):
    """--anew would have removed a segmenter that was taught below the run's own folder."""
    models = [tmp_path / "run" / name for name in ("start", "taught")]
    run = reinforcement.Config(checkpoint=models[0], segmenter=models[1])
    hints = typing.get_type_hints(type(run))
    paths = {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}
    known = {"out", "checkpoint", "segmenter", "data"}  # Those of data are the source's.
    assert paths == known, "expected every folder of a run to be known"
    assert stage.models_read(run) == {"checkpoint": models[0], "segmenter": models[1]}
    for one in models:
        one.mkdir(parents=True)
    taught = {"segmenter": models[1]}
    with (
        pytest.raises(ValueError, match=r"got --anew, which would remove .*/taught; do: "),
        run_folder.hold(tmp_path / "run", {}, resume=False, anew=True, models=taught),
    ):
        pass
