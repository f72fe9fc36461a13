"""Sets the stage of all tests: eight virtual CPU devices, quick compilation, no network.

Nothing of seg_jax is imported here: its annotations are checked only in modules imported later.
"""

import functools
import gc
import inspect
import os
import re
import tempfile

import compilation
import jaxtyping

# These are read when jax first touches a device. Another platform can be asked for from outside.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = compilation.flags(devices=8)
# Every device blocks threads of one pool while it waits for the others in a collective: with as
# many threads as devices two collectives in flight can wait for each other forever.
os.environ.setdefault("PJRT_NPROC", "64")
# Programs of tests run once, on little: to compile them as users do would take most of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Threads of PyTorch wait for each other longer than they compute: its models are as small here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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


def _checked(fn=None, *, typechecker, checked=jaxtyping.jaxtyped):
    """Checks public signatures as jaxtyping does, and leaves out all others.

    Functions within functions would be made ready for it at every call of the outer one: in a test
    that reads or traces models that took longer than all else.
    """
    if fn is None:
        return functools.partial(_checked, typechecker=typechecker)
    if inspect.isfunction(fn):
        private = re.match("_[^_]", fn.__name__) or "<locals>" in fn.__qualname__
        if private or not fn.__annotations__:
            return fn
    return checked(fn, typechecker=typechecker)


jaxtyping.jaxtyped = _checked
# Tracing makes millions of objects; to look through them as often as usual takes a tenth of all
# time.
gc.set_threshold(*compilation.COLLECTED)
# Compilation makes the first example slow; the same examples everywhere make failures repeatable.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")

# A worker that begins one of these at the end keeps the others waiting; two files whose tests wait
# for processes would leave cores idle side by side.
_LONGEST = [
    "test_fuzz",
    "test_processes",
    "test_meshes",
    "test_constraint",
    "test_raster",
    "test_kills",
    "test_packaging",
    "test_kimi",
    "test_fill",
    "test_muon",
    "test_steps",
    "test_benchmark",
    "test_programs",
    "test_compile",
    "test_folders",
    "test_convert",
    "test_routes",
    "test_launch",
]


def pytest_collection_modifyitems(items):
    """Begins with the files that take longest."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_sessionfinish():
    """Leaves what is left to the end of the process: pytest would look through all, five times."""
    gc.freeze()
