"""Checkpoints: what is saved is what was there, whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.models.parallel import sharding
from seg_jax.training import state
from seg_jax.training.checkpoints import Checkpoints


def numbers():
    return iter(grain.MapDataset.range(1000).seed(3).shuffle().repeat().to_iter_dataset())


def first(step=0, width=64):
    kernel = jnp.arange(width * 8, dtype=jnp.float32).reshape(width, 8) + step
    params = {"q": {"kernel": kernel}}
    moments = {"momentum": {"q": {"kernel": -kernel}}}
    return state.State(jnp.int32(step), jnp.int32(50), params, moments)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "state")
    yield made
    made.close()


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_position_and_record_come_back(checkpoints):
    iterator = numbers()
    assert checkpoints.latest() is None
    for _ in range(7):
        next(iterator)
    checkpoints.save(first(5), iterator, {"seconds": 1.5})
    checkpoints.wait()
    wanted = [int(next(iterator)) for _ in range(5)]
    other = numbers()
    restored, record = checkpoints.restore(first(), other)
    assert isinstance(restored, state.State)
    assert_same(restored, first(5))
    assert record == {"seconds": 1.5}
    assert [int(next(other)) for _ in range(5)] == wanted


def test_a_donated_state_is_saved_as_it_was(checkpoints):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    current, iterator = first(1, width=100_000), numbers()
    checkpoints.save(current, iterator, {})
    for _ in range(5):
        next(iterator)
        current = step(current)
    other = numbers()
    checkpoints.wait()
    restored, _ = checkpoints.restore(first(0, width=100_000), other)
    assert_same(restored, first(1, width=100_000))
    assert int(next(other)) == int(next(numbers()))


def test_only_the_last_are_kept_and_a_step_is_saved_once(checkpoints, tmp_path):
    for step in (1, 2, 3, 3):
        checkpoints.save(first(step), numbers(), {})
    checkpoints.wait()
    assert checkpoints.latest() == 3
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["2", "3"]


def test_the_best_is_kept_beside_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path / "state", keep=1, keep_best=2)
    for step, score in enumerate((0.1, 0.7, 0.9, 0.3, 0.2), 1):
        checkpoints.save(first(step), numbers(), {}, score=score)
    checkpoints.wait()
    assert checkpoints.best() == 3
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["2", "3", "5"]


def damage(folder, how):
    """Damages a checkpoint as a lost write or a lost file would."""
    if how == "truncated":
        for path in folder.rglob("*"):
            if path.is_file() and "state" in path.parts and path.stat().st_size > 200:
                os.truncate(path, path.stat().st_size // 2)
    elif how == "no position":
        shutil.rmtree(folder / "data")
    else:
        shutil.rmtree(folder / "state")


@pytest.mark.parametrize("how", ["truncated", "no position", "no state"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, how):
    folder, iterator, warned = tmp_path / "state", numbers(), []
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        next(iterator)
        checkpoints.save(first(step), iterator, {"seconds": float(step)})
    checkpoints.close()
    damage(folder / "2", how)
    checkpoints = Checkpoints(folder)
    other = numbers()
    restored, record = checkpoints.restore(first(), other, warn=warned.append)
    assert_same(restored, first(1))
    assert record == {"seconds": 1.0}
    assert int(next(other)) == int(list(zip(range(2), numbers(), strict=False))[1][1])
    (line,) = warned
    assert line.startswith(f"{folder / '2'}: damaged (")
    assert line.endswith("moved to damaged-2, going on from step 1")
    # The step is saved again, and what was damaged can be looked at.
    checkpoints.save(first(2), numbers(), {})
    checkpoints.close()
    assert Checkpoints(folder).latest() == 2
    assert (folder / "damaged-2").is_dir()


def test_where_nothing_is_whole_nothing_is_moved(tmp_path):
    folder = tmp_path / "state"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(first(step), numbers(), {})
    checkpoints.wait()
    with pytest.raises(ValueError, match="state/2: expected a whole checkpoint.*none before it"):
        checkpoints.restore(first(width=32), numbers())
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (ValueError("INTERNAL: Error writing x: No space left on device"), errno.ENOSPC),
        (ValueError("RESOURCE_EXHAUSTED: quota"), errno.ENOSPC),
        (ValueError("PERMISSION_DENIED: Failed to open x [OS error 13: Permission denied]"), 13),
        (RuntimeError("x: Read-only file system"), errno.EROFS),
    ],
)
def test_a_failing_disk_is_one_error_and_the_one_before_stays(tmp_path, monkeypatch, error, number):
    folder = tmp_path / "state"
    checkpoints = Checkpoints(folder)
    checkpoints.save(first(1), numbers(), {})
    checkpoints.wait()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as got:
        checkpoints.save(first(2), numbers(), {})
    assert (got.value.errno, got.value.filename) == (number, str(folder))
    checkpoints.close()
    assert_same(Checkpoints(folder).restore(first(), numbers())[0], first(1))


def test_other_errors_are_not_told_as_of_the_disk(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(first(1), numbers(), {})


def run(code, folder):
    """Returns how a program ends that is given a folder of checkpoints."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])},
        capture_output=True,
        text=True,
        timeout=300,
    )


FORBIDDEN = """
import os, sys
from pathlib import Path
import test_checkpoints
from seg_jax.training.checkpoints import Checkpoints

folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder)
checkpoints.save(test_checkpoints.first(1), test_checkpoints.numbers(), {})
checkpoints.wait()
folder.chmod(0o555)
if os.getuid() == 0:
    os.chown(folder, 0, 0)
    os.setuid(65534)
try:
    checkpoints.save(test_checkpoints.first(2), test_checkpoints.numbers(), {})
    checkpoints.wait()
except OSError as error:
    print(error.strerror, error.filename)
    os._exit(7)
"""


def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    folder = tmp_path / "state"
    done = run(FORBIDDEN, folder)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith(f"Permission denied {folder}")
    folder.chmod(0o755)
    assert_same(Checkpoints(folder).restore(first(), numbers())[0], first(1))


def test_a_state_is_restored_onto_another_mesh(checkpoints):
    one = sharding.mesh(devices=jax.devices()[:1])
    current = jax.device_put(first(4), sharding.shardings(first(), one))
    checkpoints.save(current, numbers(), {})
    checkpoints.wait()
    places = sharding.shardings(first(), sharding.mesh({"fsdp": 4, "tensor": 2}))
    restored, _ = checkpoints.restore(jax.device_put(first(), places), numbers())
    assert_same(restored, first(4))
    kernel = restored.params["q"]["kernel"]
    assert kernel.sharding == places.params["q"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 4)


def test_nothing_to_resume_is_told(checkpoints):
    with pytest.raises(ValueError, match="expected a checkpoint to resume, got none"):
        checkpoints.restore(first(), numbers())


KILLED = """
import os, sys
from pathlib import Path
import test_checkpoints
from orbax.checkpoint._src.path import async_path
from seg_jax.training.checkpoints import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(test_checkpoints.first(1), test_checkpoints.numbers(), {})
checkpoints.wait()
async def die(*_):
    os._exit(9)
async_path.rename = die
checkpoints.save(test_checkpoints.first(2), test_checkpoints.numbers(), {})
checkpoints.wait()
"""


def test_a_killed_save_leaves_the_one_before(tmp_path):
    folder = tmp_path / "state"
    done = run(KILLED, folder)
    assert done.returncode == 9, done.stderr
    left = sorted(path.name for path in folder.iterdir())
    assert left[0] == "1"
    assert len(left) == 2  # The torn one is there, under another name.
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 1
    assert_same(checkpoints.restore(first(), numbers())[0], first(1))
    checkpoints.save(first(2), numbers(), {})
    checkpoints.close()
    assert Checkpoints(folder).latest() == 2
