"""Every option of compile and of benchmark step acts, those of their run too, or is refused.

No step is lowered or compiled: what would be is noted, with the shapes of its arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from pathlib import Path

import fingerprints
import jax
import pytest
import run_stand_ins
import small_run

from seg_jax import files
from seg_jax.cli import compile as program
from seg_jax.cli.benchmarks import harness, step, torch_peer
from seg_jax.data.packing import Pack
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Built
from seg_jax.inference import bundle as bundles
from seg_jax.models import flops
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import abstract, console, run_folder, supervised
from seg_jax.training import hlo, optimizers, policy, state, steps, topology

OWN = ("topology", "only", "hbm", "json")
GIB = topology.GIB


@pytest.fixture
def note(monkeypatch, tmp_path):
    """Returns what notes what is lowered, and for what."""
    note = fingerprints.Notes(monkeypatch, tmp_path, after=lambda status: note("status", status))
    run_stand_ins.put(monkeypatch, note)
    _stand_for_the_compiler(monkeypatch, note)
    return note


def _stand_for_the_compiler(patch, note):
    """Stands for the compiler, of programs that need two and a half GiB."""
    devices = jax.devices()[:1]

    def from_name(name):
        note("topology", name)
        chip = topology.CHIPS["v5e"] if name == "1:2" else None
        return topology.Topology(name, devices, chip)

    def compiled(lowered, arguments, options=None):
        note("compile", type(lowered).__name__)
        return run_stand_ins.Compiled()

    class Predictor:
        def __init__(self, bundle, *, frozen):
            note("predictor", bundle.task, bundle.layout)
            self.judged_answer = run_stand_ins.Jitted(note)

    patch.setattr(abstract, "Predictor", Predictor)
    patch.setattr(topology, "from_name", from_name)
    patch.setattr(hlo, "compile", compiled)
    patch.setattr(hlo, "memory", lambda *_: hlo.Memory(5 * GIB // 2, 0, 0, 0, 0, 0))
    patch.setattr(hlo, "read_text", lambda text: None)
    patch.setattr(hlo, "device_bytes", lambda tree: 0)
    patch.setattr(jax, "set_mesh", lambda mesh: contextlib.nullcontext())
    patch.setattr(run_folder, "versions", dict)


def _stand_for_results(patch, note):
    """Notes the verdicts and where numbers go, but no echo of options."""

    def show(results, plan, target):
        for one in results:
            note("result", one.step, one.fits, one.available_bytes, one.operations, one.advice)

    patch.setattr(program, "_show", show)
    patch.setattr(program, "_count", lambda plan: 0)
    patch.setattr(program, "_record", lambda result, target: {})
    patch.setattr(files, "write_json", lambda path, value: note("write", path))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the folder of a model that was trained here."""
    folder = tmp_path_factory.mktemp("given") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


CHANGES = {
    "all steps": {},
    "one step": {"only": ("sft",)},
    "a memory": {"hbm": 2.0},
    "a file": {"json": Path("a.json")},
}


@pytest.mark.parametrize("mode", CHANGES)
def test_every_option_of_compile(mode, note, monkeypatch):
    _stand_for_results(monkeypatch, note)
    base = dataclasses.replace(program.Config.of_run(small_run.sft_config()), **CHANGES[mode])
    fingerprints.walk(note.of, program, base, parts=OWN)


GSPO = small_run.gspo_config(model=small_run.sft_config().model)
RUNS = {
    "finetune": (small_run.sft_config(), ("",)),
    "AdamW": (small_run.sft_config(optimizer=optimizers.AdamW()), ("optimizer",)),
    "packed rows": (small_run.sft_config(feed=Feed(batch=2, pack=Pack())), ("feed",)),
    "data sets": (small_run.sft_config(source=Built(folders=(Path("one"),))), ("source",)),
    "data sets by name": (small_run.sft_config(data=(Path("one"),)), ("data", "split")),
    "reinforce": (GSPO, ("",)),
    "refilled rows": (dataclasses.replace(GSPO, sampling=steps.Sampling(rows=8)), ("sampling",)),
    "a reference": (dataclasses.replace(GSPO, policy=policy.Policy(kl=0.1)), ("policy",)),
    "a true answer": (
        dataclasses.replace(GSPO, policy=policy.Policy(truth="judged")),
        ("policy", "rounds", "priority"),
    ),
    "groups that differ": (
        dataclasses.replace(GSPO, policy=policy.Policy(drop_equal=True)),
        ("rounds", "priority"),
    ),
    "a smaller sampler": (dataclasses.replace(GSPO, compute=Compute(decode_gib=0.0)), ("compute",)),
}
"""Runs, and which of their options are walked over."""


@pytest.mark.parametrize("name", RUNS)
def test_every_option_of_a_run_that_is_compiled(name, note, monkeypatch):
    _stand_for_results(monkeypatch, note)
    run, parts = RUNS[name]
    base = program.Config.of_run(run.completed())
    fingerprints.walk(note.of, program, base, parts=[f"run.{part}" for part in parts])


@pytest.mark.parametrize("run", [small_run.sft_config(), small_run.gspo_config()])
def test_every_option_of_a_checkpoint_that_is_compiled(run, note, monkeypatch, checkpoint):
    _stand_for_results(monkeypatch, note)
    bare = dataclasses.replace(run, checkpoint=checkpoint, model=None, layout=None)
    base = program.Config.of_run(bare.completed())
    parts = ("run.checkpoint", "run.task", "run.layout", "run.model", "run.seed", "run.loop")
    fingerprints.walk(note.of, program, base, parts=parts)


def test_an_option_of_compile_that_nothing_reads_is_found(note, monkeypatch):
    _stand_for_results(monkeypatch, note)
    base = program.Config.of_run(small_run.sft_config())

    def dropping(name, value):
        def main(config):
            return program.main(dataclasses.replace(config, **{name: value}))

        return types.SimpleNamespace(main=main)

    with pytest.raises(AssertionError, match="hbm: read and dropped"):
        fingerprints.walk(note.of, dropping("hbm", None), base, parts=("hbm",))
    with pytest.raises(AssertionError, match=r"run\.loss_chunk: read and dropped"):
        fingerprints.walk(note.of, dropping("run", base.run), base, parts=("run.loss_chunk",))


def test_an_option_of_a_run_that_no_step_depends_on_is_refused(note):
    """Were it not, it would be read and dropped."""
    base = program.Config.of_run(small_run.sft_config())
    for name in base.run.unlowered():
        assert not name.startswith("source")
    later = dataclasses.replace(base.run, out=Path("elsewhere"))
    with pytest.raises(ValueError, match="out: expected options that a step depends on"):
        program.main(dataclasses.replace(base, run=later))
    with pytest.raises(ValueError, match="out: expected options that a step depends on"):
        step.main(dataclasses.replace(step.Config.of_run(base.run), run=later))


@pytest.fixture
def measured(note, monkeypatch):
    """Returns a function (program, config) -> what benchmark step measures; nothing is timed."""
    real = supervised.Plan

    def product_per_second(rounds, dtype):
        note("product", rounds, dtype)
        return 1.0

    class Pool(contextlib.nullcontext):
        def submit(self, function, run, rounds):
            note("peer", function.__name__, rounds)
            return types.SimpleNamespace(result=lambda: {"seconds": 1.0})

    def drawn(self):
        note("normal", sorted(str(leaf.dtype) for leaf in jax.tree.leaves(self.params)))
        learned, frozen = self.learning.split(self.params)
        begun = state.fresh(learned, optimizers.build(self.run.optimizer), horizon=1)
        return begun, frozen

    def show(results):
        ours = results["ours"]
        note("result", len(ours["all_seconds"]), ours["operations"], "transformers" in results)

    patch = monkeypatch.setattr
    patch(real, "random_state", drawn)
    patch(harness, "product_per_second", product_per_second)
    patch(harness, "machine", dict)
    patch(step, "ProcessPoolExecutor", lambda *_, **__: Pool(Pool()))
    patch(step, "_show", show)
    patch(jax, "block_until_ready", lambda values: values)
    patch(console, "say", lambda text: note("say", text))
    patch(run_folder, "tell_json", lambda results, path: note("numbers", path))
    assert torch_peer.reason_without_step(small_run.sft_config()) == ""
    return note.of


MEASURED = {
    "a step": {"run": small_run.sft_config()},
    "no peer": {"run": small_run.sft_config(), "peer": False},
    "packed rows": {"run": small_run.sft_config(feed=Feed(batch=2, pack=Pack()))},
    "AdamW": {"run": small_run.sft_config(optimizer=optimizers.AdamW())},
}


@pytest.mark.parametrize("mode", MEASURED)
def test_every_option_of_step(mode, measured):
    changes = dict(MEASURED[mode])
    base = step.Config.of_run(changes.pop("run").completed())
    walked = {"packed rows": ("rounds", "peer", "json", "run.feed"), "AdamW": ("run.optimizer",)}
    parts = walked.get(mode, ("",))
    fingerprints.walk(measured, step, dataclasses.replace(base, **changes), parts=parts)


def test_an_option_of_step_that_nothing_reads_is_found(measured):
    base = step.Config.of_run(small_run.sft_config())

    def dropping(config):
        return step.main(dataclasses.replace(config, rounds=base.rounds))

    with pytest.raises(AssertionError, match="rounds: read and dropped"):
        fingerprints.walk(measured, types.SimpleNamespace(main=dropping), base, parts=("rounds",))


def test_the_numbers_of_a_step_hold_its_work():
    """The operations that are noted are counted, not echoed."""
    plan = small_run.sft_config().plan(jax.devices()[:1])
    assert sum(plan.sft().work[name] for name in flops.NEEDED if name in plan.sft().work) > 1e6
