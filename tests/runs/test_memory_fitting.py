"""Options are found with which a run fits, what costs least first; each fit has been compiled."""

import dataclasses
from pathlib import Path

import jax
import pytest
import small_run

from seg_jax.cli import main
from seg_jax.runs import compilation, experiments, memory_fitting
from seg_jax.training import hlo, topology
from seg_jax.training.topology import GIB

HERE = topology.Topology("cpu:1", jax.devices()[:1], None)


@pytest.fixture(scope="module")
def run():
    return small_run.sft_config().completed()


def made(run, step="sft"):
    """Returns what becomes of a step of a run as it is."""
    plan = run.plan(HERE.devices)
    return compilation.compile_step(plan.steps()[step](), plan, HERE, hbm=None)


def needed(run):
    """Returns the GiB that fine-tuning needs of a device as it is."""
    return made(run).needed_bytes / GIB


def barely(run, step="sft"):
    """Returns GiB that hold what lies there between steps, and nothing more."""
    return 1.001 * made(run, step).memory.arguments / GIB


def test_what_fits_is_left_as_it_is(run):
    found = memory_fitting.fit(run, HERE, only=("sft",), hbm=10.0)
    assert (found.run, found.options, found.words) == (run, {}, "")
    assert found.fits
    assert found.compilations == 1


@pytest.mark.slow
def test_a_run_that_needs_too_much_is_made_to_fit_and_learns_the_same(run):
    least = memory_fitting.fit(run, HERE, only=("sft",), hbm=barely(run))
    assert not least.fits
    assert set(least.options) == {
        "loss_chunk",
        "objective.accumulate",
        "compute.remat",
        "offload",
    }
    whole, smallest = needed(run), least.results[0].needed_bytes / GIB
    wanted = smallest + 0.5 * (whole - smallest)
    told = []
    found = memory_fitting.fit(run, HERE, only=("sft",), hbm=wanted, tell=told.append)
    assert found.fits
    assert len(told) == found.compilations > 1
    assert needed(found.run) <= wanted < whole
    assert found.run.feed.batch == run.feed.batch
    assert found.run.compute.dtype == run.compute.dtype
    assert found.words.startswith("--loss-chunk 256")
    assert "offload" not in found.options  # It was not needed.


def test_memory_that_nobody_knows_cannot_be_fitted(run):
    with pytest.raises(ValueError, match="fit: expected devices whose memory is known, got cpu:1"):
        memory_fitting.fit(run, HERE)


@pytest.mark.slow
def test_what_changes_the_training_comes_only_when_asked_for(run):
    """Where weights and moments alone are too much, no smaller pieces are tried."""
    full = {"only": ("sft",), "hbm": 1e-9}
    assert memory_fitting.fit(run, HERE, **full).options == {"offload": True}
    least = memory_fitting.fit(run, HERE, **full, tried="all")
    assert not least.fits
    assert least.options == {
        "compute.dtype": "bfloat16",
        "adapter.rank": memory_fitting.RANK,
        "compute.param_dtype": "bfloat16",
        "offload": True,  # The last that there is.
    }


def test_pieces_of_a_batch_are_cut_to_what_there_is_room_for(run):
    memory = hlo.Memory(
        arguments=20 * GIB, outputs=0, aliased=0, temporary=80 * GIB, code=0, donated=0
    )
    result = compilation.Result(
        "sft", False, needed_bytes=100 * GIB, available_bytes=50 * GIB, operations={}, memory=memory
    )
    many = dataclasses.replace(run, feed=dataclasses.replace(run.feed, batch=24))
    # 49 of 50 GiB are aimed at, of which 20 are no temporaries: 80 / 29 is nearly 3.
    assert memory_fitting._number_of_pieces(many, "objective.accumulate", result, least=1) == 3
    assert memory_fitting._number_of_pieces(many, "objective.accumulate", result, least=12) == 2
    assert memory_fitting._number_of_pieces(many, "objective.accumulate", result, least=13) is None
    full = dataclasses.replace(result, needed_bytes=140 * GIB)
    assert memory_fitting._number_of_pieces(many, "objective.accumulate", full, least=4) == 6
    unknown = dataclasses.replace(result, memory=None)
    assert memory_fitting._number_of_pieces(many, "objective.accumulate", unknown, least=1) == 2


@pytest.mark.slow
def test_reinforcement_cuts_the_learning_and_keeps_whole_weights_out_of_sampling():
    run = dataclasses.replace(small_run.gspo_config().completed(), loss_chunk=8)
    least = memory_fitting.fit(run, HERE, only=("sample", "update"), hbm=barely(run, "update"))
    assert [result.fits for result in least.results] == [False, False]
    assert least.options == {
        "compute.decode_gib": 0.0,
        "policy.accumulate": 4,
        "compute.remat": "full",
        "offload": True,
    }
    assert least.run.policy.minibatches * least.run.policy.accumulate == small_run.BATCH


def test_smaller_images_take_their_tokens_from_the_prompt():
    run = experiments.load("simpleseg/qwen25_vl_7b_sft.py").config()
    run = dataclasses.replace(run, feed=dataclasses.replace(run.feed, batch=1, pack=None))
    (change,) = memory_fitting._smaller_rows(run, 1)
    layout = memory_fitting._replaced(run, "layout.max_prompt", change["layout.max_prompt"]).layout
    tokens = run.layout.max_patches // run.layout.merge**2
    assert run.layout.max_prompt - layout.max_prompt == tokens // 2
    assert change["layout.max_pixels"] == change["layout.max_patches"] * run.layout.patch**2


@pytest.fixture
def words(tmp_path):
    """Returns the command line of a run that is to fit; its folder is the last word."""
    config = tmp_path / "config.py"
    config.write_text("import small_run\n\n\ndef config():\n    return small_run.sft_config()\n")
    return ["finetune", str(config), "--fit", "--loop.steps", "1", "--out", str(tmp_path / "out")]


def test_a_run_that_cannot_fit_is_told_before_anything_starts(monkeypatch, words, capsys):
    small = topology.Topology("cpu", jax.devices(), None, limit=1000.0)
    monkeypatch.setattr(topology, "here", lambda: small)
    assert main.main(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "seg-jax finetune: fit: expected steps that a device's 9.31e-07 GiB hold"
    )
    assert "even with --offload; do: " in line
    assert "more chips" in line
    assert not Path(words[-1]).exists()


def test_what_is_trained_is_what_fits(monkeypatch, words, capsys):
    def fit(run, target, *, only, tell):
        assert target.limit > 0
        result = compilation.Result(*only, True, 0, 0, {})
        found = dataclasses.replace(run, loss_chunk=256)
        return memory_fitting.Fit(
            found, found.plan(target.devices), {"loss_chunk": 256}, [result], 2
        )

    monkeypatch.setattr(memory_fitting, "fit", fit)
    assert main.main(words) == 0
    assert "fit: --loss-chunk 256, for 8 x cpu" in capsys.readouterr().err
    assert '"loss_chunk": 256' in (Path(words[-1]) / "config.json").read_text()
