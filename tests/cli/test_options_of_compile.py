"""Every option of compile beside those of its run acts, or is refused.

Those of the run are the run's own, as `test_every_option` walks over them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import types
from pathlib import Path

import fingerprints
import jax
import pytest
import small_run

from seg_jax import files
from seg_jax.cli import compile as program
from seg_jax.runs import abstract, run_folder
from seg_jax.training import hlo, topology

OWN = ("topology", "only", "hbm", "json")
GIB = topology.GIB


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what is compiled, for what, and its verdict."""
    log = [fingerprints.Fingerprint()]

    def note(name, *values):
        log[0].note(name, *values)

    _stand_ins(monkeypatch, note)

    def fingerprint(program, config):
        log[0] = fingerprints.Fingerprint()
        monkeypatch.chdir(tempfile.mkdtemp(dir=tmp_path))
        note("status", program.main(config))
        return tuple(log[0].parts)

    return fingerprint


def _stand_ins(patch, note):
    """Stands for the compiler, of programs that need two and a half GiB."""
    given, mesh, devices = small_run.bundle(), small_run.alone(), jax.devices()[:1]

    def from_name(name):
        note("topology", name)
        chip = topology.CHIPS["v5e"] if name == "1:2" else None
        return topology.Topology(name, devices, chip)

    def plan(run, devices):
        note("plan", run.checkpoint, len(devices))
        return abstract.Plan(run, given, mesh)

    def steps(plan):
        def step(name):
            note("step", name)
            function = types.SimpleNamespace(lower=lambda *_: name)
            return abstract.Step(name, function, (), {})

        return {name: lambda name=name: step(name) for name in ("sft", "evaluate", "val")}

    def compiled(lowered, arguments, options):
        note("compile", lowered)
        return types.SimpleNamespace(as_text=str)

    def show(results, plan, target):
        for one in results:
            note("result", one.step, one.fits, one.available_bytes)

    patch.setattr(topology, "from_name", from_name)
    patch.setattr(abstract, "plan", plan)
    patch.setattr(abstract, "steps", steps)
    patch.setattr(abstract.Plan, "state", None)
    patch.setattr(hlo, "compile", compiled)
    patch.setattr(hlo, "memory", lambda *_: hlo.Memory(5 * GIB // 2, 0, 0, 0, 0, 0))
    patch.setattr(hlo, "read_text", lambda text: None)
    patch.setattr(hlo, "device_bytes", lambda tree: 0)
    patch.setattr(jax, "set_mesh", lambda mesh: contextlib.nullcontext())
    patch.setattr(program, "_show", show)
    patch.setattr(program, "_count", lambda plan: 0)
    patch.setattr(program, "_record", lambda result, target: {})
    patch.setattr(files, "write_json", lambda path, value: note("write", path))
    patch.setattr(run_folder, "versions", dict)


RUNS = {
    "finetune": small_run.sft_config(),
    "finetune from a checkpoint": small_run.sft_config(checkpoint=Path("checkpoint")),
    "reinforce from a checkpoint": small_run.gspo_config(checkpoint=Path("checkpoint")),
}
CHANGES = {
    "all steps": {},
    "one step": {"only": ("sft",)},
    "a memory": {"hbm": 2.0},
    "a file": {"json": Path("a.json")},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("mode", CHANGES)
def test_every_option_of_compile(run, mode, prints):
    base = dataclasses.replace(program.Config.around(RUNS[run]), **CHANGES[mode])
    fingerprints.walk(prints, program, base, parts=OWN)


def test_an_option_of_compile_that_nothing_reads_is_found(prints):
    base = program.Config.around(RUNS["finetune"])

    def dropping(config):
        return program.main(dataclasses.replace(config, hbm=None))

    with pytest.raises(AssertionError, match="hbm: read and dropped"):
        fingerprints.walk(prints, types.SimpleNamespace(main=dropping), base, parts=("hbm",))
