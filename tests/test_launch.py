"""The scripts of launch/: clean to shellcheck, true in dry runs, real where SLURM is installed."""

import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import many_processes
import pytest

from seg_jax.cli import arguments, serve

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
CLOUD = {"PROJECT": "p", "ZONE": "z"}


def launch(script, *arguments, **changes):
    """Runs a script with an environment that has nothing to install."""
    given = os.environ | {"SEG_JAX_PREPARED": "1", "HOME": "/home/of"} | changes
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "SLURM_SUBMIT_DIR"):
        if name not in changes:
            given.pop(name, None)
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=given,
        capture_output=True,
        text=True,
        timeout=600,
    )


def commands(script, *arguments, **changes):
    """Returns the commands that a dry run prints."""
    done = launch(script, "--dry-run", *arguments, **changes)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(["shellcheck", "-x", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_without_errors_of_syntax(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_host_keeps_what_it_compiles():
    (command,) = commands("run.sh", "finetune", "a b.py", "--out", "x")
    assert command[0] == "env"
    assert "JAX_COMPILATION_CACHE_DIR=/home/of/.cache/seg-jax/compiled" in command
    assert command[-6:] == ["exec", "seg-jax", "finetune", "a b.py", "--out", "x"]
    (command,) = commands("run.sh", "finetune", JAX_COMPILATION_CACHE_DIR="/mine")
    assert "JAX_COMPILATION_CACHE_DIR=/mine" in command


FLAGS = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from seg_jax.training import topology
on = Mesh(topology.from_name("v5e:2x2").devices, ("x",))
rows = NamedSharding(on, PartitionSpec("x"))
shape = jax.ShapeDtypeStruct((512, 512), "float32", sharding=rows)
jax.jit(lambda a: a @ a.T).lower(shape).compile()
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", " --xla_tpu_no_such_flag=true"])
def test_the_compiler_for_tpus_knows_the_flags(more):
    pytest.importorskip("libtpu")
    flags = re.findall(r"--xla_(?:tpu|enable)_\w+=true", (LAUNCH / "run.sh").read_text())
    assert len(flags) > 4
    done = subprocess.run(
        [sys.executable, "-c", FLAGS],
        env=many_processes.environment(1, LIBTPU_INIT_ARGS=" ".join(flags) + more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == (not more), done.stderr[-2000:]


@pytest.mark.parametrize("more", ["", " --xla_gpu_no_such_flag=true"])
def test_the_compiler_for_gpus_knows_the_flags(more):
    flags = re.findall(r"--xla_gpu_\w+=true", (LAUNCH / "run.sh").read_text())
    assert flags
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=many_processes.environment(1, XLA_FLAGS=" ".join(flags) + more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == (not more), done.stderr[-2000:]


def test_local_processes_share_one_place():
    found = commands("local_processes.sh", "3", "finetune", "a b.py", PORT="23456", DEVICES="2")
    assert len(found) == 3
    for index, command in enumerate(found):
        end = command.index("finetune")
        assert command[end:] == [
            "finetune",
            "a b.py",
            "--processes.coordinator",
            "localhost:23456",
            "--processes.count",
            "3",
            "--processes.index",
            str(index),
        ]
    if not Path("/dev/nvidiactl").exists():
        flag = "--xla_force_host_platform_device_count=2"
        assert f"XLA_FLAGS={flag}" in found[0]
        found = commands("local_processes.sh", "1", "finetune", DEVICES="2", XLA_FLAGS="--a --b=c")
        assert f"XLA_FLAGS=--a --b=c {flag}" in found[0]


def test_slurm_starts_every_task_and_goes_on():
    (command,) = commands("slurm.sbatch", "finetune", "a b.py")
    wanted = ["srun", "--kill-on-bad-exit=1", "bash", "launch/run.sh", "finetune", "a b.py"]
    assert command == [*wanted, "--resume"]


def test_a_tpu_pod_is_asked_for_filled_and_started():
    found = commands(
        "tpu_vm.sh",
        "pod",
        "v5litepod-256",
        "us-west4-a",
        "finetune",
        "a b.py",
        SPOT="1",
        SHARE="10.0.0.2:/share",
    )
    create, archive, copy, start = found
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--accelerator-type", "v5litepod-256", "us-west4-a", "--spot"} <= set(create)
    assert archive[3] == "archive"
    assert copy[3:5] == ["tpu-vm", "scp"]
    assert {"--worker", "all"} <= set(copy) & set(start)
    inner = start[start.index("--command") + 1]
    assert "mount -t nfs 10.0.0.2:/share runs" in inner
    assert "export JAX_COMPILATION_CACHE_DIR=~/runs/.compiled && bash" in inner
    wanted = ["seg-jax/launch/run.sh", "finetune", "a b.py", "--out", "runs/pod", "--resume"]
    assert shlex.split(inner)[-6:] == wanted


def test_xpk_is_asked_for_a_workload():
    (command,) = commands("xpk.sh", "c", "sft", "v5litepod-16", "finetune", "a b.py", **CLOUD)
    assert command[:3] == ["xpk", "workload", "create"]
    named = dict(zip(command[3::2], command[4::2], strict=True))
    assert named["--cluster"] == "c"
    assert named["--workload"] == "sft"
    assert named["--num-slices"] == "1"
    wanted = ["bash", "launch/run.sh", "finetune", "a b.py", "--resume"]
    assert shlex.split(named["--command"]) == wanted
    given = CLOUD | {"COMPILED": "/runs/a b"}
    (command,) = commands("xpk.sh", "c", "sft", "v5litepod-16", "finetune", "a b.py", **given)
    told = shlex.split(command[command.index("--command") + 1])
    assert told == ["JAX_COMPILATION_CACHE_DIR=/runs/a b", *wanted]


def test_a_jobset_is_filled_in():
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    head = "\n".join(line[2:] for line in text.splitlines() if line.startswith("#"))
    given = dict(re.findall(r'(\b[A-Z]+)=("[^"]*"|\S+)', head))
    given = {name: value.strip('"') for name, value in given.items()}
    made = yaml.safe_load(string.Template(text).substitute(given))
    (slices,) = made["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (variable,) = container["env"]
    mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    assert Path(variable["value"]).parent in mounts
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["args"][0].endswith(
        "finetune configs/simpleseg/qwen25_vl_7b_sft.py --out /runs/sft --resume"
    )
    # Chips of all hosts of a slice are those of its topology.
    side, other = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert int(side) * int(other) == 64 * 4


@pytest.mark.parametrize(
    "wrong",
    [("run.sh",), ("local_processes.sh", "0", "finetune"), ("local_processes.sh", "2"),
     ("slurm.sbatch",), ("tpu_vm.sh", "pod"), ("tpu_vm.sh", "a b", "t", "z", "finetune"),
     ("xpk.sh", "c"), ("xpk.sh", "c", "n", "t", "finetune")],
)  # fmt: skip
def test_a_wrong_call_is_told_in_a_line(wrong):
    script, *arguments = wrong
    done = launch(script, "--dry-run", *arguments)
    assert done.returncode == 1
    assert re.match(r"launch: expected .*\n$", done.stderr), done.stderr


@pytest.fixture
def few_steps(tmp_path):
    """Returns the arguments of three steps of the small model, and where they end."""
    config = Path(__file__).parent / "training" / "few_steps_sft.py"
    return ["finetune", str(config), "--out", str(tmp_path / "out")], tmp_path / "out"


def steps(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_local_processes_run_to_the_end(few_steps):
    arguments, out = few_steps
    done = launch(
        "local_processes.sh", "2", *arguments, **many_processes.environment(1), DEVICES="2"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps(out) == [1, 2, 3]
    assert (out / "checkpoint" / "model.safetensors").exists()


def slurm_runs():
    if shutil.which("sinfo") is None:
        return False
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.slow
@pytest.mark.skipif(
    not slurm_runs(), reason="SLURM is not installed or does not run (slurm.sbatch)"
)
def test_slurm_runs_two_tasks_to_the_end(few_steps, tmp_path):
    arguments, out = few_steps
    given = many_processes.environment(2) | {"SEG_JAX_PREPARED": "1"}
    done = subprocess.run(
        [
            "sbatch",
            "--wait",
            "--ntasks",
            "2",
            "--output",
            str(tmp_path / "log"),
            "launch/slurm.sbatch",
            *arguments,
        ],
        env=given,
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, done.stderr + log[-3000:]
    assert steps(out) == [1, 2, 3]
    # Two tasks were one run: each greets the other.
    assert "Rank 1 is connected to" in log
    weights = out / "checkpoint" / "model.safetensors"
    assert weights.stat().st_size > 0


def test_the_server_keeps_what_it_compiles():
    (command,) = commands("serve.sh", "--port", "8001")
    assert command == ["exec", "seg-jax", "serve", "--port", "8001"]


def test_the_recipe_of_a_container_copies_what_is_there_and_starts_the_server():
    """No container is built here: what a build would need, and the command that it would run."""
    text = (LAUNCH / "Dockerfile").read_text()
    root, said = LAUNCH.parent, [line.split(None, 1) for line in text.splitlines() if line]
    copied = {word for name, rest in said if name == "COPY" for word in rest.split()[:-1]}
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert all((root / word).exists() for word in copied)
    # What the build of a wheel reads.
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    assert copied == wanted | {"pyproject.toml", project["project"]["readme"]}
    (extra,) = re.findall(r"pip install --no-cache-dir '\.\[(\w+)\]'", text)
    assert extra in project["project"]["optional-dependencies"]
    (python,) = re.findall(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: 3.{python}" in project["project"]["classifiers"]
    (start,) = [json.loads(rest) for name, rest in said if name == "ENTRYPOINT"]
    assert start[:2] == ["seg-jax", "serve"]
    config = arguments.read(serve.Config, start[2:], program="serve")
    assert config.host == "0.0.0.0"
    assert f"EXPOSE {config.port}\n" in text
    assert serve.TOKEN in text
