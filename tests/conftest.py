"""Sets the stage of all tests: eight virtual CPU devices, quick compilation, no network.

Nothing of seg_jax is imported here: its annotations are checked only in modules imported later.
"""

import os
import tempfile

# Both are read when jax first touches a device. Another platform can be asked for from outside.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Every device blocks threads of one pool while it waits for the others in a collective: with as
# many threads as devices two collectives in flight can wait for each other forever.
os.environ.setdefault("PJRT_NPROC", "64")
# Most programs of tests run once, on little: to compile them as users do would take most of the
# time. Where a compiler's effort may change results, `fully_compiled` says so.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one process of the run has compiled the others find here: workers, and what tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="seg-jax-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# A test that wants a file from a hub must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import jax
import pytest

# Compilation makes the first example slow; the same examples everywhere make failures repeatable.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="module")
def fully_compiled():
    """Programs of a file are compiled as users do, with all optimizations."""
    quickly = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quickly)
