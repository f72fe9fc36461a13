"""Runs the benchmarks on a few small shapes, and refuses what they cannot measure."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from seg_jax.cli import main as shell
from seg_jax.cli.benchmarks import harness, policy, polygon_cases, raster, raster_peers, torch_peer
from seg_jax.cli.benchmarks.polygon_cases import Case
from seg_jax.cli.benchmarks.raster import Config
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.runs import experiments

TINY = ["--kinds", "blob", "--points", "16", "--sizes", "64", "--batches", "4", "--rounds", "1"]


def test_help_lists_the_parts(capsys):
    for arguments in (["benchmark"], ["benchmark", "--help"]):
        assert shell.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in harness.PARTS)


def test_every_part_can_be_loaded():
    for name in harness.PARTS:
        assert shell._load(f"benchmark {name}").Config()


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["rastr"], "did you mean 'raster'?"),
        (["raster", "--colour", "red"], "'--colour'"),
        (["raster", "--kinds", "cube"], "expected kinds among blob, star, thin, got ['cube']"),
        (["raster", "--points", "2"], "expected points of 4 to 4096, got (2,)"),
        (["raster", "--sizes", "5000"], "expected sizes of 16 to 4096"),
        (["raster", "--rounds", "0"], "expected rounds >= 1"),
        (["raster", "--full", "--kinds", "blob"], "expected no --kinds beside --full"),
        (["raster", "--full", "--sizes", "64"], "expected no --sizes beside --full"),
        (["boundary", "--size", "8"], "expected a size of 16 to 4096"),
        (["saliency", "--batch", "0"], "expected a size of 16 to 4096, batch"),
        (["reward", "--answers", "0"], "expected prompts, answers, columns and rounds >= 1"),
        (["decode", "--rows", "12"], "expected rows of a multiple of 8 and 2 to 1024 tokens"),
        (["decode", "--rounds", "0"], "expected rounds >= 1"),
        (["rollout", "--long-share", "1"], "expected 0 < long-share < 1"),
        (["rollout", "--tokens", "5"], "expected tokens >= 20, got 5"),
        (["data", "--rows", "0"], "expected rows >= 1, got 0"),
        (["data", "--pack.ahead", "0"], "feed.pack: expected whole numbers >= 1"),
        (["policy", "--answers", "1"], "expected answers >= 2, got 1"),
        (["policy", "--lr", "0"], "expected a seed >= 0 and lr > 0"),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments, say):
    assert shell.main(["benchmark", *arguments]) == 2
    line = capsys.readouterr().err
    assert say in line
    assert line.count("\n") == 1


@pytest.mark.slow
def test_raster_measures_and_writes_its_numbers(tmp_path, capfd):
    cores = os.sched_getaffinity(0)
    path = tmp_path / "deep" / "raster.json"
    assert shell.main(["benchmark", "raster", *TINY, "--json", str(path)]) == 0
    assert os.sched_getaffinity(0) == cores
    found = json.loads(path.read_text())
    assert found["missing"] == []
    [case] = found["cases"]
    assert (case["kind"], case["points"], case["height"], case["batch"]) == ("blob", 16, 64, 4)
    assert set(case["ratio"]) == set(raster_peers.PEERS)
    assert all(taken > 0 for taken in case["microseconds"].values())
    assert case["agreement"]["pycocotools"] == {
        "pairs": 4,
        "equal": 4,
        "largest_gap": pytest.approx(0, abs=1e-6),
        "differing_bits": 0,
    }
    assert {g["points"] for g in found["growth"]} == {16, 64, 256}
    assert found["roofline"]["floor_microseconds"] > 0
    assert found["reader"]["tokens"] > 16 * 10
    assert found["clicks"]["ok"] == 1.0
    assert found["clicks"]["read_microseconds"] > 0
    assert "differ from pycocotools" in capfd.readouterr().err


def test_runs_take_turns_and_medians_count():
    order, now = [], map(float, range(1000))

    def run(name):
        return lambda: order.append(name)

    clock = lambda: next(now)  # noqa: E731
    assert harness.by_turns({"a": run("a"), "b": run("b")}, 3, clock) == {"a": 1, "b": 1}
    assert "".join(order) == "ab" * 4


def test_the_child_has_one_core():
    assert len(harness.on_one_core(os.sched_getaffinity, 0)) == 1


def test_a_missing_peer_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    assert raster_peers.find_module("shapely") is None
    assert raster_peers.find_module("cv2+numpy").__name__ == "cv2"


@pytest.mark.parametrize("kind", ["blob", "star", "thin"])
def test_shapes_lie_on_the_canvas_and_answers_near_them(kind):
    true, answers = polygon_cases.draw(Case(kind, 32, 100, 200, 20), seed=1)
    for rings in (true, answers):
        assert rings.shape == (20, 32, 2)
        assert rings.dtype == np.float32
        assert (rings >= 0).all()
        assert (rings <= [200, 100]).all()
    assert 0 < np.abs(true - answers).mean() < 10
    again = polygon_cases.draw(Case(kind, 32, 100, 200, 20), seed=1)
    np.testing.assert_array_equal(again[0], true)


def test_the_default_adds_sizes_and_batches_and_full_takes_all():
    usual, full = raster.cases(Config()), raster.cases(Config(full=True))
    assert {c.height for c in usual} == {256, 512, 1024}
    assert {c.batch for c in usual} == {64, 256, 4096}
    assert len(full) == 3 * 3 * 3 * 4
    assert len(raster.cases(Config(points=(32,), kinds=("star",)))) == 1


@pytest.mark.slow
def test_measures_of_maps_agree_with_their_peer(tmp_path, capfd):
    path = tmp_path / "saliency.json"
    words = ["--size", "96", "--batch", "3", "--rounds", "1", "--json", str(path)]
    assert shell.main(["benchmark", "saliency", *words]) == 0
    masks, maps = json.loads(path.read_text())["measures"]
    assert masks["largest_gap"] < 1e-5 > 1e-9 > maps["largest_gap"]
    assert masks["ratio"] > 0 < maps["ratio"]
    assert "S, E, IoU, MAE of masks" in capfd.readouterr().err


@pytest.mark.slow
def test_a_segmenter_agrees_with_its_peer(tmp_path, capfd):
    path = tmp_path / "segmenter.json"
    words = ["--side", "256", "--prompts", "3", "--rounds", "1", "--json", str(path)]
    assert shell.main(["benchmark", "segmenter", *words]) == 0
    told = json.loads(path.read_text())
    assert [row["step"] for row in told["steps"]] == ["encode", "prompts"]
    assert all(row["largest_gap"] < 1e-3 and row["ratio"] > 0 for row in told["steps"])
    assert "SAM 2.1 tiny at 256, 3 prompts" in capfd.readouterr().err


@pytest.mark.slow
def test_boundary_scores_agree_with_their_peer(tmp_path, capfd):
    path = tmp_path / "boundary.json"
    words = ["--size", "96", "--batch", "3", "--rounds", "1", "--json", str(path)]
    assert shell.main(["benchmark", "boundary", *words]) == 0
    found = json.loads(path.read_text())
    assert [row["score"] for row in found["scores"]] == ["boundary IoU", "boundary F"]
    assert all(row["largest_gap"] < 1e-6 and row["ratio"] > 0 for row in found["scores"])
    assert "boundary IoU" in capfd.readouterr().err


@pytest.fixture
def stacked(monkeypatch):
    """Compiles one layer where the tiny setting's programs have each unrolled."""
    tiny = experiments.load("simpleseg/tiny_sft.py")
    monkeypatch.setattr(tiny, "COMPUTE", Compute())


def run_part(part, tmp_path, *words):
    path = tmp_path / f"{part}.json"
    assert shell.main(["benchmark", part, *words, "--rounds", "1", "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_reward_scores_true_answers(tmp_path, capfd):
    found = run_part("reward", tmp_path, "--prompts", "2", "--answers", "3")
    assert found["seconds"] > 0
    assert found["microseconds_an_answer"] == pytest.approx(1e6 * found["seconds"] / 6)
    assert 10 < found["mean_tokens"] < 512
    assert 0.85 < found["mean_iou"] <= 1
    assert "The reward of 2 x 3 answers" in capfd.readouterr().err


@pytest.mark.slow
def test_decode_asks_both_samplers_the_same(stacked, tmp_path, capfd):
    found = run_part("decode", tmp_path, "--rows", "8", "--tokens", "12")
    alone, group = found["cases"]
    assert (alone["prompts"], alone["answers"]) == (8, 1)
    assert (group["prompts"], group["answers"]) == (1, 8)
    assert alone["equal_tokens"] == 1.0
    assert set(alone["tokens_per_second"]) == {"ours", "transformers"}
    assert all(case["ratio"] > 0 and 0 < case["prefill_share"] < 1 for case in found["cases"])
    assert "equal greedy tokens: 100.00%" in capfd.readouterr().err


@pytest.mark.slow
def test_rollout_counts_what_is_shared_and_what_is_useful(stacked, tmp_path, capfd):
    words = ["--prompts", "8", "--answers", "8", "--tokens", "40", "--rows", "2"]
    found = run_part("rollout", tmp_path, *words)
    # Sharing saves all but one in eight of the work on prompts; first draws are each answer's own.
    assert 7 < found["prompt_work"]["ratio"] <= 8
    refill = found["refill"]
    assert refill["useful_tokens"] == 4 * 64 + 36 * refill["long"]
    assert refill["computed_tokens"]["together"] == 64 * 40
    assert refill["useful_share"]["refilled"] > 0.8 > 0.3 > refill["useful_share"]["together"]
    assert refill["equal_tokens"] == 1.0
    assert found["grammar"]["held_step_seconds"] > 0
    assert "of a step" in capfd.readouterr().err


@pytest.mark.slow
def test_policy_takes_the_same_step_as_trl(stacked, tmp_path, capfd, monkeypatch):
    pytest.importorskip("trl")
    one = sharding.mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(harness, "mesh", lambda rows: one)
    words = ["--prompts", "2", "--answers", "4", "--tokens", "28"]
    found = run_part("policy", tmp_path, *words)
    ours, theirs = found["median"]["ours"], found["median"]["trl"]
    assert len(found["steps"]["ours"]) == len(found["steps"]["trl"]) == 3
    assert all(side["seconds"] > 0 for side in (ours, theirs))
    # The same questions and weights; the draws are each one's own.
    assert abs(ours["reward"] - theirs["reward"]) < 0.5
    assert min(ours["reward"], theirs["reward"]) > 0.2
    assert abs(ours["tokens"] - theirs["tokens"]) < 8
    assert "times as long" in capfd.readouterr().err


def test_a_missing_package_of_pytorch_is_said_in_a_line(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert torch_peer.missing("json", "trl") == ["trl"]
    assert "not installed: trl; do: pip install 'seg-jax[torch]'" in capfd.readouterr().err


def test_the_reward_for_trl_is_iou_and_format():
    asked = torch_peer.questions(2, 0)
    reward = policy._reward(asked)
    answers = [example.answer for example in asked.examples]
    texts = [[{"content": text}] for text in (*answers, "no idea", answers[0])]
    first, second, nothing, other = reward(texts, [0, 1, 0, 1])
    assert 0.8 < first <= 1.1
    assert 0.8 < second <= 1.1
    assert nothing == 0.0
    assert other < first


@pytest.mark.slow
def test_data_feeds_both_sides_the_same_images(tmp_path, capfd):
    words = ["--images", "24", "--rows", "2", "--workers", "0", "--batch", "8"]
    found = run_part("data", tmp_path, *words)
    assert found["missing"] == []
    assert all(speed > 0 for speed in found["samples_per_second"].values())
    assert found["ratio"] > 0
    useful = found["useful"]
    assert useful["packed"]["tokens"] > 0.85 > useful["a_row_each"]["tokens"] + 0.2
    assert useful["packed"]["images_a_row"] > 2
    assert all(spent > 0 for side in found["milliseconds"].values() for spent in side.values())
    assert "times as fast as the DataLoader" in capfd.readouterr().err
