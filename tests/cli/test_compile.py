"""Compiles runs ahead of time: small ones whole, those of full size as far as their lowering."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest
import small_run

from seg_jax.cli import arguments, compile, main
from seg_jax.data.priority import Priority
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import chips
from seg_jax.models.vlm import kimi_vl
from seg_jax.runs import compilation, start, step_times
from seg_jax.training import hlo, policy, topology
from seg_jax.training import steps as jitted_steps

ROOT = Path(__file__).resolve().parents[2]
FULL = sorted(
    path.stem
    for path in (ROOT / "configs" / "simpleseg").glob("*.py")
    if not path.stem.startswith(("tiny", "nano", "quickstart", "several", "study"))
)

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() < 8, reason="needs eight CPU devices"
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs"
)


@pytest.fixture(autouse=True, scope="module")
def one_tokenizer(tmp_path_factory):
    """Plans of one source share its tokenizer; to train it takes as long as to lower a step."""
    train = start.make_tokenizer

    @functools.cache
    def trained(source, task):
        return train(source, task, tmp_path_factory.mktemp("tokenizer"))

    small_run.bundle()  # Its tokenizer lies in its own folder, for whoever comes later.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "make_tokenizer", lambda source, task, _: trained(source, task))
        yield


def write(folder, text):
    """Returns a configuration file."""
    path = folder / "config.py"
    path.write_text(f"import dataclasses, small_run\ndef config():\n    return {text}\n")
    return str(path)


def run_of(name):
    """Returns a configuration's run over eight devices: its steps divide there too."""
    run = arguments.load(ROOT / f"configs/simpleseg/{name}.py", object)
    return dataclasses.replace(run, mesh=jitted_steps.Mesh())


def lowered(run, names=None):
    """Returns the lowered steps of a run by name."""
    plan = run.plan(jax.devices()[:8])
    done = {}
    with jax.set_mesh(plan.mesh):
        for name, make in plan.steps().items():
            if names is None or name in names:
                step = make()
                done[name] = step, step.function.lower(*step.arguments)
    return plan, done


def made(run, step, name):
    """Returns what became of a step of a run, compiled for a topology."""
    target = topology.from_name(name)
    plan = run.plan(target.devices)
    return compilation.compile_step(plan.steps()[step](), plan, target, hbm=None), target


def fails(capsys, *words):
    """Returns the one line of a command that goes wrong."""
    assert main.main(["compile", *words]) in (1, 2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_a_small_run_is_compiled_and_judged(tmp_path, capsys):
    path, out = write(tmp_path, "small_run.sft_config()"), tmp_path / "made" / "out.json"
    # One program for both: the second time the cache of compiled programs has it.
    words = [path, "--topology", "cpu:8", "--only", "sft", "--feed.batch", "16"]
    assert main.main(["compile", *words, "--json", str(out)]) == 0
    assert "donated, reused, GiB" in capsys.readouterr().err
    told = json.loads(out.read_text())
    (step,) = told["steps"]
    assert (told["devices"], told["mesh"]) == (
        8,
        {"data": 1, "fsdp": 8, "tensor": 1} | told["mesh"],
    )
    memory = step["memory"]
    assert step["verdict"] == "compiles"  # Nobody knows this machine's memory per device.
    assert memory["donated"] <= memory["aliased"] <= memory["arguments"]
    assert step["text"]["collectives"]["all-gather"]["times"] > 10
    assert step["operations"]["optimizer"] > 0
    assert told["parameters"] == sum(x.size for x in jax.tree.leaves(small_run.bundle().params))

    # The run's own options are laid over, and too little memory is a verdict with advice.
    assert main.main(["compile", *words, "--hbm", "1e-5"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "DOES NOT FIT" in text
    assert "sft does not fit; try more chips or a larger mesh.fsdp x mesh.tensor" in text
    assert "--compute.remat full" in text
    assert "--objective.accumulate 2" in text
    assert "a smaller feed.batch, down to 8" in text


def test_a_compiler_without_room_gives_a_verdict(monkeypatch):
    def refuse(lowered, shapes, options):
        raise hlo.TooLarge(17 * topology.GIB, 15 * topology.GIB, "Used 17G of 15G hbm")

    monkeypatch.setattr(hlo, "compile", refuse)
    plan = small_run.sft_config().plan(jax.devices()[:8])
    target = topology.Topology("v5e:2x4", jax.devices()[:8], chips.CHIPS["v5e"])
    result = compilation.compile_step(plan.steps()["sft"](), plan, target, hbm=None)
    assert result.fits is False
    assert result.memory is None
    assert (result.needed_bytes, result.available_bytes) == (17 * 2**30, 15 * 2**30)
    assert result.advice
    compile._show([result], plan, target)


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    path = write(tmp_path, "small_run.sft_config()")
    assert "expected a configuration file CONFIG.py of finetune" in fails(capsys)
    assert "topology: expected cpu:8, v5e:16x16" in fails(capsys, path, "--topology", "v9:2")
    assert "mesh: expected sizes that multiply to 8" in fails(capsys, path, "--mesh.tensor", "3")
    assert "did you mean '--feed.batch'" in fails(capsys, path, "--feed.batches", "3")
    assert "only: expected steps among sft, evaluate" in fails(capsys, path, "--only", "update")
    assert "hbm: expected GiB > 0" in fails(capsys, path, "--hbm", "-1")
    bare = "dataclasses.replace(small_run.gspo_config(), model=None)"
    line = fails(capsys, write(tmp_path, bare))
    assert "expected a checkpoint or a model in the configuration" in line
    line = fails(capsys, write(tmp_path, "3"))
    assert "expected a configuration of finetune or reinforce" in line


def test_shapes_are_those_that_the_run_would_feed():
    plan = small_run.sft_config().plan(jax.devices()[:8])
    real = small_run.batch("sft")
    for shape, leaf in zip(jax.tree.leaves(plan.rows("sft")), jax.tree.leaves(real), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
    fresh = small_run.fresh(small_run.sft_config(), plan.mesh)
    for shape, leaf in zip(jax.tree.leaves(plan.state), jax.tree.leaves(fresh), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_sampling_has_the_moments_beside_it():
    run = dataclasses.replace(small_run.gspo_config(), model=small_run.sft_config().model)
    plan = run.plan(jax.devices()[:8])
    steps = plan.steps()
    weights = hlo.device_bytes(plan.state.params)
    beside = hlo.device_bytes(steps["sample"]().beside)
    assert weights < beside < 2.1 * weights  # Two moments of AdamW for each weight.


def reinforcing(**changes):
    """Returns the small run of reinforcement with options."""
    return dataclasses.replace(
        small_run.gspo_config(), model=small_run.sft_config().model, **changes
    )


@pytest.mark.slow
def test_options_of_reinforcement_are_in_the_steps_that_are_lowered():
    plain = reinforcing().plan(jax.devices()[:8])
    assert "gather" not in plain.steps()
    chosen = policy.Policy(minibatches=2, drop_equal=True, ranked=True, truth="smoothed", kl=1e-3)
    plan, done = lowered(reinforcing(policy=chosen, rounds=2), ("sample", "gather", "update"))
    shape = small_run.BATCH, small_run.gspo_config().sampling.max_tokens
    update, _ = done["update"]
    assert update.arguments[1].answer.ids.shape == shape
    work = update.work, plain.update().work
    assert work[0]["truth"] > 0
    assert work[0]["text"] > work[1]["text"]
    assert "truth" not in work[1]
    after, told = done["update"][1].out_info
    assert jax.tree.structure(after) == jax.tree.structure(plan.state)
    assert {"truth/reward", "reference_kl"} < set(told)
    gathered, told = done["gather"][1].out_info
    before, prompts, rollout = done["gather"][0].arguments
    for one, other in zip(*map(jax.tree.leaves, (gathered, before)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert gathered.prompts.tokens.ids.shape == prompts.tokens.ids.shape
    assert gathered.rollout.ids.shape == rollout.ids.shape
    assert told.solved.shape == (small_run.BATCH,)
    assert len(done["sample"][0].arguments) == 4


@pytest.mark.slow
def test_what_gathers_groups_is_compiled_and_judged():
    past = Priority(by="learnability")
    result, target = made(reinforcing(priority=past), "gather", "cpu:8")
    assert result.operations == {}
    plan = reinforcing(priority=past).plan(target.devices)
    compile._show([result], plan, target)
    assert compile._record(result, target)["verdict"] == "compiles"


def test_a_random_model_of_another_family_speaks_with_the_tokenizer():
    small = dataclasses.replace(small_run.sft_config().layout, patch=14, merge=2)
    run = dataclasses.replace(run_of("kimi_vl_a3b_sft"), layout=small)
    plan = run.plan(jax.devices()[:8])
    assert isinstance(plan.config, kimi_vl.Config)
    assert plan.config.image_token_id == plan.bundle.tokenizer.image_id


@pytest.mark.parametrize("name", FULL)
def test_a_run_of_full_size_lowers_its_training_step(name):
    plan, done = lowered(run_of(name), names=("sft", "update"))
    ((step, program_),) = done.values()
    text = program_.as_text()
    config = plan.config
    vocab, scored = config.text.vocab_size, plan.run.layout.max_answer
    assert f"{scored}x{vocab}x" not in text  # never the scores of all tokens
    assert "bf16" in text
    assert sum(step.work.values()) > 6 * 0.8e9 * plan.run.feed.batch * scored
    assert hlo.device_bytes(plan.state) > 8 * 3e9 / 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen25_vl_3b_sft", "kimi_vl_a3b_gspo"])
def test_a_run_of_full_size_lowers_its_decoding(name):
    _, done = lowered(run_of(name), names=("sample", "evaluate"))
    for _, program_ in done.values():
        assert "stablehlo.while" in program_.as_text()


def test_full_size_runs_are_the_papers():
    run = run_of("qwen25_vl_7b_sft")
    assert run.loop.steps * run.feed.batch == 800_000
    rate = run.optimizer.schedule.rate(run.optimizer.lr, run.loop.steps, run.loop.steps)
    assert float(rate) == pytest.approx(2e-6)
    assert run_of("qwen25_vl_7b_gspo").loop.steps == 1562


@pytest.fixture
def little_effort():
    """Lets the compiler for TPUs take a quarter less time for programs that nobody runs."""
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", 0.0)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("little_effort")
@pytest.mark.parametrize("step", ["sft", "sample", "update"])
def test_a_small_run_compiles_for_a_tpu(step):
    """To evaluate is to sample and to judge, which an update does too."""
    kind = "splash" if step == "sft" else "xla"
    changes = {
        "compute": Compute(dtype="bfloat16", remat="full", attention=kind),
        "loss_chunk": 8,
        "offload": step == "update",
    }
    run = small_run.sft_config(**changes)
    if step in ("sample", "update"):
        run = dataclasses.replace(small_run.gspo_config(**changes), model=run.model)
    result, target = made(run, step, "v5e:2x2")
    assert result.fits is True
    assert result.text.collectives
    memory = result.memory
    if step in ("sft", "update"):
        # Tiles are padded: what is written over is at least what was offered.
        assert memory.donated <= memory.aliased < 3 * memory.donated + 2**20
    if step == "sft":
        names = " ".join(result.text.kernels)
        assert all(f"splash_mha_{name}" in names for name in ("fwd", "dq", "dkv")), names
    if step == "update":
        # Moments have left the chip.
        here = dataclasses.replace(run, offload=False).plan(target.devices).state
        moments = hlo.device_bytes(here.moments)
        assert memory.host > 0.99 * moments
        assert memory.donated == pytest.approx(hlo.device_bytes(here) - moments, rel=0.01)
    tokens = small_run.gspo_config().sampling.max_tokens
    least = 2 if step == "sft" else tokens - 1
    assert max(loop.trips or 0 for loop in result.text.loops) >= least
    assert all(seconds > 0 for seconds in step_times.least_seconds(result, target).values())


@needs_libtpu
@pytest.mark.pods
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FULL)
def test_a_run_of_full_size_fits_the_pod_that_it_is_meant_for(name):
    words = (ROOT / f"configs/simpleseg/{name}.py").read_text()
    kind, shape = re.search(r"Meant for (v\w+)-\d+\s\(([\dx]+)\)", words).groups()
    run = arguments.load(ROOT / f"configs/simpleseg/{name}.py", object)
    target = topology.from_name(f"{kind}:{shape}")
    plan = run.plan(target.devices)
    for make in plan.steps().values():
        result = compilation.compile_step(make(), plan, target, hbm=None)
        assert result.fits is True, (result.step, result.complaint, result.advice)


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13)),
    reason="needs JAX's plugin for CUDA, the compiler for GPUs",
)
@pytest.mark.slow
@pytest.mark.parametrize("step", ["sft", "evaluate", "sample", "update"])
def test_a_small_run_compiles_for_gpus(step):
    changes = {"compute": Compute(dtype="bfloat16", remat="full"), "loss_chunk": 8}
    run = small_run.sft_config(**changes)
    if step in ("sample", "update"):
        run = dataclasses.replace(small_run.gspo_config(**changes), model=run.model)
    result, target = made(run, step, "h100:8")
    assert result.fits is True
    assert result.text.collectives
    assert result.available_bytes == pytest.approx(78.1 * 2**30)
    assert all(seconds > 0 for seconds in step_times.least_seconds(result, target).values())
