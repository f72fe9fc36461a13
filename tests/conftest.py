"""Sets the stage of all tests: eight virtual CPU devices, no network, steady examples.

Nothing of seg_jax is imported here: its annotations are checked only in modules imported later.
"""

import os

# Both are read when jax first touches a device. Another platform can be asked for from outside.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Every device blocks threads of one pool while it waits for the others in a collective: with as
# many threads as devices two collectives in flight can wait for each other forever.
os.environ.setdefault("PJRT_NPROC", "64")
# A test that wants a file from a hub must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import jax
import pytest

# Compilation makes the first example slow; the same examples everywhere make failures repeatable.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


def _quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


quick_compilation = pytest.fixture(_quickly, name="quick_compilation")
"""Programs of a test are compiled with few optimizations: they run once."""
quickly_compiled = pytest.fixture(_quickly, name="quickly_compiled", scope="module")
"""The same for all tests of a file."""
