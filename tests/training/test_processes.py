"""Processes of one run: where they stand, what they agree on, how they end when one is lost."""

import json
import signal
import time
from pathlib import Path

import jax
import lives
import numpy as np
import pytest
import safetensors.numpy
from lives import Group

from seg_jax.training import processes
from seg_jax.training.cluster import Place, Processes, find_place

CHOSEN = ("rounds/kept", "rounds/reward", "priority/taken", "priority/solved", "truth/reward")
"""What is logged of prompts that were chosen."""
SLOW = [(0, "kill"), (0, "hang")]
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[007-010,012],login",
    "SLURM_NTASKS": "10",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x5)",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


@pytest.mark.parametrize(
    ("wanted", "given", "found"),
    [
        ({}, {}, None),
        ({"alone": True}, SLURM, None),
        ({}, SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({}, SLURM, Place("gpu007:61444", 10, 3, [1])),
        ({}, SLURM | {"SLURM_RESTART_COUNT": "1"}, Place("gpu007:61451", 10, 3, [1])),
        # Each task sees its own GPU only, or has all GPUs of its node.
        ({}, SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, Place("gpu007:61444", 10, 3, None)),
        ({}, SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, Place("gpu007:61444", 10, 3, [1])),
        ({}, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x10)", "SLURM_LOCALID": "0"},
         Place("gpu007:61444", 10, 3, None)),
        ({"coordinator": "a:1"}, SLURM | {"SLURM_STEP_NODELIST": "n1"}, Place("a:1", 10, 3, [1])),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "n1,n2"}, Place("n1:61444", 10, 3, [1])),
        ({}, MPI, Place("10.96.0.1:62624", 4, 2, [0])),
        ({"coordinator": "a:1", "count": 2, "index": 1}, {}, Place("a:1", 2, 1)),
    ],
)  # fmt: skip
def test_a_process_finds_its_place(wanted, given, found):
    assert find_place(Processes(**wanted), given) == found


def test_a_place_that_is_known_in_part_is_told():
    for wanted, given in [
        ({"coordinator": "a:1"}, {}),
        ({"count": 2}, {}),
        ({}, {name: MPI[name] for name in MPI if "uri" not in name}),
    ]:
        with pytest.raises(ValueError, match="expected coordinator, count and index, got"):
            find_place(Processes(**wanted), given)


@pytest.mark.parametrize(
    "wrong",
    [{"index": 2, "count": 2}, {"index": -1}, {"count": 0}, {"coordinator": "host"},
     {"timeout_seconds": 0.0}],
)  # fmt: skip
def test_a_wrong_place_is_refused(wrong):
    with pytest.raises(ValueError, match="processes.*expected .*, got"):
        Processes(**wrong)


def test_alone_a_process_decides_by_itself():
    with processes.join(Processes(alone=True)):
        assert processes.is_first()
        assert processes.broadcast_from_first({"a": 1}) == {"a": 1}
        assert processes.gather_from_all("x") == ["x"]
        assert processes.agree_on_stop(15, due=True) == (15, True)
        assert processes.run_first_then_others(lambda: 3) == processes.run_on_first(lambda: 3) == 3
        processes.leave(1)
        assert processes._has_tpu() is False or jax.default_backend() == "tpu"


def toy(count, folder, *more):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    arguments, cache = ["--out", str(folder / "out"), *more], folder.parent / "cache"
    told = folder / f"told{count}"
    return Group(count, lives.toy, arguments, told, devices=4 // count, cache=cache)


def read(folder):
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    timed = ("seconds", "data_wait")
    told = [{k: v for k, v in one.items() if not k.startswith(timed)} for one in records]
    return told, np.load(folder / "out" / "end.npy")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "alone"
    group = toy(1, folder)
    assert group.wait() == [0], group.told(0)
    return folder


def assert_as(alone, folder):
    """Asserts the same steps on the same rows in the same order, up to round-off."""
    (wanted, weights), (told, others) = read(alone), read(folder)
    for one, other in zip(told, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name.startswith("row"):
                assert one[name] == other[name]
            elif name != "stage":
                np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    np.testing.assert_allclose(others, weights, rtol=1e-6, atol=1e-7)


def test_two_processes_are_as_one(alone):
    folder = alone.parent / "two"
    group = toy(2, folder)
    assert group.wait() == [0, 0], group.told(0) + group.told(1)
    assert_as(alone, folder)
    assert len(list((folder / "out").glob("tensorboard/*"))) == 1


@pytest.mark.parametrize(
    ("lost", "how"),
    [(1, "kill"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_the_others_end_in_time_with_one_line(alone, lost, how):
    folder, bound = alone.parent / f"{how}{lost}", 3.0
    fail = ["--fail", f"{lost}:3:hang"] if how == "hang" else []
    timeout = ["--processes.timeout-seconds", str(bound)]
    group = toy(2, folder, "--seconds", "0.2", "--loop.steps", "500", *timeout, *fail)
    group.await_file(folder / "out" / f"at-3-{lost}")
    begin = time.monotonic()
    if how == "kill":
        group.lives[lost].kill()
    assert group.lives[1 - lost].wait(60) == processes.LOST, group.told(1 - lost)
    # Silence is noticed at the next beat; a busy machine may be late.
    assert time.monotonic() - begin < 3 * bound + 5
    assert group.told(1 - lost) == (
        f"seg-jax: process {lost} of 2 was not heard of for 3 s and counts as lost; process "
        f"{1 - lost} of 2 ends too: start all again with --resume"
    )
    group.lives[lost].kill()


@pytest.mark.slow
def test_an_error_of_one_is_told_by_all(alone):
    folder = alone.parent / "raise"
    group = toy(2, folder, "--fail", "1:3:raise")
    # Uncaught errors of a script end it while JAX waits for the others, which end by the watch.
    assert group.lives[0].wait(60) == processes.LOST
    assert group.told(0) == (
        "seg-jax: process 1 of 2 has failed: the disk of this one is full; process 0 of 2 ends "
        "too: start all again with --resume"
    )
    group.lives[1].kill()


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step_and_another_number_goes_on(alone):
    folder = alone.parent / "signal"
    group = toy(2, folder, "--seconds", "0.1")
    group.await_file(folder / "out" / "at-4-1")
    group.lives[1].send(signal.SIGTERM)
    assert 0 not in group.wait(120)
    saved = max(int(path.name) for path in (folder / "out" / "state").glob("[0-9]*"))
    assert 4 <= saved < 12
    for index in range(2):
        assert f"toy stopped after step {saved}, which is saved" in group.told(index)
    group = toy(4, folder)
    assert group.wait() == [0] * 4, group.told(0)
    assert_as(alone, folder)


def parameters(folder):
    return safetensors.numpy.load_file(folder / "checkpoint" / "model.safetensors")


def few_steps(folder, program, count, *more):
    """Runs three steps on four devices in so many processes; returns the numbers and weights."""
    out = folder / f"{program}{count}"
    config = str(Path(__file__).parent / f"few_steps_{program}.py")
    arguments = ["finetune" if program == "packed" else "reinforce", config, "--out", str(out)]
    told = folder / f"told{count}"
    group = Group(count, lives.seg_jax, [*arguments, *more], told, devices=4 // count)
    assert group.wait(900) == [0] * count, group.told(0)[-2000:]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], parameters(out)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("program", ["packed", "gspo", "chosen"])
def test_three_steps_do_not_depend_on_the_number_of_processes(start, tmp_path, program):
    """Lanes of packed rows are put together; plain rows are those of GSPO.

    Chosen prompts hang on what all processes have answered before.
    """
    more = ["--checkpoint", str(start)]
    if program == "packed":
        validate = {"samples": 6, "every": 3, "batch": 4, "score": "distance", "kept": "last"}
        more += [word for name, x in validate.items() for word in (f"--validate.{name}", str(x))]
    wanted, weights = few_steps(tmp_path, program, 1, *more)
    validated = [r for r in wanted if "validation/distance" in r]
    assert [r["step"] for r in validated] == ([0, 3] if program == "packed" else [])
    assert len(wanted) == 3 + len(validated)
    assert all(record["grad_norm"] > 1e-3 for record in wanted if record not in validated)
    told, others = few_steps(tmp_path, program, 2, *more)
    for record, one in zip(told, wanted, strict=True):
        assert record.get("rounds") == one.get("rounds")
        names = ("loss", "grad_norm", "reward", "length/mean", "answer_tokens")
        for name in (*names, "validation/distance", *CHOSEN):
            if name in one:
                np.testing.assert_allclose(record[name], one[name], rtol=1e-4, atol=1e-6)
    assert others.keys() == weights.keys()
    for name, weight in weights.items():
        bound = 1e-6 + 1e-4 * np.abs(weight).max()
        np.testing.assert_allclose(others[name], weight, rtol=0, atol=bound, err_msg=name)
