"""The command `seg-jax`: finds the program, hands it its configuration, says what went wrong."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn, Protocol, cast

import seg_jax
from seg_jax import escapes
from seg_jax.cli import arguments as command_line
from seg_jax.cli import host_memory

# This file imports neither jax nor a program before it is needed: `seg-jax --help` stays quick.

PROGRAMS = {
    "quickstart": "learn to outline in minutes: SFT, GSPO beyond its teacher, a report",
    "clickstart": "RL alone in minutes: clicks, by the masks that a small SAM 2 draws of them",
    "finetune": "supervised fine-tuning (SFT) of a configuration",
    "reinforce": "reinforcement learning (GSPO) from a checkpoint",
    "study": "train variants of one setting and compare them on the same unseen scenes",
    "evaluate": "score a checkpoint on held-out scenes or data sets that were built",
    "predict": "outline an object of one image",
    "serve": "answer by HTTP: a page to click and edit in, and the APIs of other tools",
    "segment": "draw the mask of a box or of clicks in one image, by a SAM 2",
    "teach": "teach a SAM 2 the masks of drawn scenes, asked for by boxes and clicks",
    "align": "teach a CLIP which text fits which drawn image when one attribute differs",
    "match": "say which text fits which image, by a CLIP: one image, or all cases of SPEC",
    "convert": "bring a model of the hub into a folder, or back",
    "build": "make a public data set, or your own, ready for training",
    "preview": "show a data set as a page: images, outlines, what was left out and why",
    "annotate": "make a data set of images without annotation, by models of others",
    "compile": "compile a configuration for TPUs or GPUs that are not here, and see if it fits",
    "benchmark": "measure a part against its peers: benchmark raster, decode, ..",
}

_HELP = """\
usage: seg-jax PROGRAM [CONFIG.py] [--option value ...]

{description}

programs:
{programs}

examples:
  seg-jax quickstart
  seg-jax clickstart
  seg-jax finetune configs/simpleseg/tiny_sft.py --optimizer.lr 1e-3
  seg-jax reinforce configs/simpleseg/tiny_gspo.py --checkpoint runs/tiny_sft/checkpoint
  seg-jax study configs/simpleseg/study_points.py
  seg-jax evaluate --checkpoint runs/quickstart/checkpoint --world quickstart --scenes 512
  seg-jax evaluate --checkpoint runs/quickstart/checkpoint --protocol res --out runs/res
  seg-jax predict --checkpoint runs/quickstart/checkpoint --image FILE --text "the red star"
  seg-jax serve --checkpoint runs/quickstart/checkpoint --port 8000
  seg-jax segment --segmenter models/sam2-l --image FILE --box 0.1 0.2 0.6 0.9 --out masks
  seg-jax teach configs/seg_r1/toy_sam2.py --out runs/toy_sam2
  seg-jax align configs/spec/tiny.py --out runs/spec_tiny
  seg-jax match --checkpoint runs/spec_tiny/checkpoint --count 600
  seg-jax convert Qwen/Qwen2.5-VL-7B-Instruct models/qwen-7b --dtype bfloat16
  seg-jax build refcoco_unc --source refer_seg --out data/refcoco_unc
  seg-jax preview data/refcoco_unc --split val
  seg-jax annotate --images web --labels names.txt --detector DIR --segmenter DIR --out data/web
  seg-jax compile configs/simpleseg/qwen25_vl_7b_sft.py --topology v5e:16x16
  seg-jax benchmark raster --json raster.json

`seg-jax PROGRAM --help` lists the options of a program, `seg-jax --version` tells the version.
An error is one line; with SEG_JAX_TRACEBACK=1 in the environment it is the whole traceback.
"""

_EXTRAS = {"apache_beam": "beam", **dict.fromkeys(("starlette", "uvicorn"), "serve")}
"""Extras of packages that not all programs need."""

_WITHOUT_STEPS = ("build", "convert", "preview", "compile")
"""Programs that run no steps whose temporaries come again."""

_BENCHMARK_HELP = """\
usage: seg-jax benchmark PART [--option value ...]

{description}

parts:
{parts}

`seg-jax benchmark PART --help` lists the options of a part.
"""


class _Program(Protocol):
    """What every module of a program offers."""

    Config: type

    def main(self, config: object, /) -> int | None: ...


def command() -> NoReturn:
    """Runs the program that the command line of the process asks for, and ends the process."""
    status = main()
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        from multiprocessing import active_children, util

        # What was being compiled goes on in a thread. An orderly end would take the devices from
        # under it and crash; of it we need what concerns worker processes.
        for worker in active_children():
            worker.terminate()
        util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program that a command line asks for.

    Args:
      arguments: the command line after `seg-jax`; that of the process if left out.

    Returns:
      The exit status: 0 for success, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C,
      143 after SIGTERM. A run that was stopped by one of these is saved and goes on with --resume.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    try:
        with _no_interrupt_lost():
            status = _run(name, arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # The reader of our output left, as `| head` does: nothing to say.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        line, status = _verdict(error)
        if line is None or os.environ.get("SEG_JAX_TRACEBACK") == "1":
            sys.stderr.write(escapes.lines(traceback.format_exc()))
        else:
            print(escapes.brief(f"{_command(name)}: {line}"), file=sys.stderr)
        if processes := sys.modules.get("seg_jax.training.processes"):
            processes.leave(status)
    return status


@contextlib.contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Repeats a Ctrl-C that came within a callback, out of which Python lets no error.

    JAX has one at every collection of garbage: while modules are imported every second Ctrl-C ended
    there, with a traceback and no effect.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            again = threading.main_thread().ident, signal.SIGINT
            threading.Timer(0.05, signal.pthread_kill, again).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(name: str, arguments: Sequence[str]) -> int:
    """Runs one program, or answers a question about all of them."""
    if name in ("-h", "--help", "help"):
        programs = "\n".join(f"  {program:<12}{line}" for program, line in PROGRAMS.items())
        print(_HELP.format(description=seg_jax.__doc__, programs=programs), end="")
        return 0
    if name == "--version":
        print(f"seg-jax {seg_jax.__version__}")
        return 0
    if name == "benchmark":
        return _benchmark(arguments)
    if name not in PROGRAMS:
        raise _unknown(name, PROGRAMS, "seg-jax --help")
    return _start(name, arguments)


def _start(name: str, arguments: Sequence[str]) -> int:
    """Runs a program with the configuration that its arguments ask for."""
    _choose_platforms(Path("/dev"))
    if name not in _WITHOUT_STEPS:
        host_memory.keep_freed()
    program = cast(_Program, _load(name))
    config = command_line.read(program.Config, arguments, program=f"seg-jax {name}")
    return program.main(config) or 0


def _choose_platforms(devices: Path) -> None:
    """Spares a machine without TPUs or GPUs JAX's search for them where a compiler is installed.

    The compiler is good for `seg-jax compile`; as a device it complains in many lines.
    """
    compilers = "libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin"
    if "JAX_PLATFORMS" in os.environ or not any(map(importlib.util.find_spec, compilers)):
        return
    if not host_memory.has_tpu(devices):
        gpu = host_memory.has_nvidia_gpu(devices)
        os.environ["JAX_PLATFORMS"] = "cuda,cpu" if gpu else "cpu"


def _benchmark(arguments: Sequence[str]) -> int:
    """Runs the benchmark that is named first, or lists them."""
    benchmark = _load("benchmark")
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        parts = "\n".join(f"  {part:<12}{line}" for part, line in benchmark.PARTS.items())
        print(_BENCHMARK_HELP.format(description=benchmark.__doc__, parts=parts), end="")
        return 0
    if name not in benchmark.PARTS:
        raise _unknown(name, benchmark.PARTS, "seg-jax benchmark --help")
    return _start(f"benchmark {name}", arguments[1:])


def _unknown(name: str, known: Mapping[str, str], help_command: str) -> command_line.UsageError:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"correct it, did you mean {nearest[0]!r}?" if nearest else help_command
    return command_line.UsageError(
        f"command line: expected one of {', '.join(known)}, got {name!r}; do: {guess}"
    )


def _load(name: str) -> ModuleType:
    """Returns the module of a program, imported only now."""
    match name:
        case "quickstart":
            from seg_jax.cli import quickstart as program
        case "clickstart":
            from seg_jax.cli import clickstart as program
        case "study":
            from seg_jax.cli import study as program
        case "finetune":
            from seg_jax.cli import finetune as program
        case "reinforce":
            from seg_jax.cli import reinforce as program
        case "evaluate":
            from seg_jax.cli import evaluate as program
        case "predict":
            from seg_jax.cli import predict as program
        case "serve":
            from seg_jax.cli import serve as program
        case "segment":
            from seg_jax.cli import segment as program
        case "teach":
            from seg_jax.cli import teach as program
        case "align":
            from seg_jax.cli import align as program
        case "match":
            from seg_jax.cli import match as program
        case "convert":
            from seg_jax.cli import convert as program
        case "build":
            from seg_jax.cli import build as program
        case "preview":
            from seg_jax.cli import preview as program
        case "annotate":
            from seg_jax.cli import annotate as program
        case "compile":
            from seg_jax.cli import compile as program
        case "benchmark":
            from seg_jax.cli.benchmarks import harness as program
        case _ if name.startswith("benchmark "):
            return _load_benchmark(name)
        case _:
            raise _not_imported(name)
    return program


def _load_benchmark(name: str) -> ModuleType:
    """Returns the module of a benchmark, imported only now."""
    match name:
        case "benchmark raster":
            from seg_jax.cli.benchmarks import raster as program
        case "benchmark boundary":
            from seg_jax.cli.benchmarks import boundary as program
        case "benchmark saliency":
            from seg_jax.cli.benchmarks import saliency as program
        case "benchmark reward":
            from seg_jax.cli.benchmarks import reward as program
        case "benchmark masks":
            from seg_jax.cli.benchmarks import masks as program
        case "benchmark reader":
            from seg_jax.cli.benchmarks import reader as program
        case "benchmark segmenter":
            from seg_jax.cli.benchmarks import segmenter as program
        case "benchmark data":
            from seg_jax.cli.benchmarks import data as program
        case "benchmark decode":
            from seg_jax.cli.benchmarks import decode as program
        case "benchmark rollout":
            from seg_jax.cli.benchmarks import rollout as program
        case "benchmark policy":
            from seg_jax.cli.benchmarks import policy as program
        case "benchmark serve":
            from seg_jax.cli.benchmarks import serve as program
        case "benchmark step":
            from seg_jax.cli.benchmarks import step as program
        case _:
            raise _not_imported(name)
    return program


def _not_imported(name: str) -> AssertionError:
    return AssertionError(
        f"{name}: expected a program that _load imports, got only its name in PROGRAMS; do: add a "
        "case for it"
    )


def _command(name: str) -> str:
    return f"seg-jax {name}" if name in PROGRAMS else "seg-jax"


def _verdict(error: BaseException) -> tuple[str | None, int]:
    """Returns a line on an error, or None where only its traceback can tell, and the status."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return f"interrupted: {text}" if text else "interrupted", 128 + number
    if _is_disk_full(error):
        file = getattr(error, "filename", None)
        place = f" while writing {file}" if file else ""
        return f"disk full{place}: free some space, then run the same command again", 1
    if _is_memory_full(error):
        advice = "do: lower the batch or the model's size, or spread it over devices (--mesh.fsdp)"
        return f"out of memory ({text[:200]}); {advice}", 1
    if isinstance(error, ModuleNotFoundError) and _is_foreign(error.name):
        extra = _EXTRAS.get(str(error.name), "train")
        return f"expected the package {error.name!r}, do: pip install 'seg-jax[{extra}]'", 1
    if isinstance(error, OSError):
        if error.strerror and error.filename:
            text = f"{error.strerror.lower()}: {os.fspath(error.filename)}"
        return text or type(error).__name__, 1
    if isinstance(error, ValueError):
        hint = "" if _is_ours(error) else " (SEG_JAX_TRACEBACK=1 in the environment shows where)"
        return f"{text}{hint}", 2 if isinstance(error, command_line.UsageError) else 1
    return None, 1


def _is_disk_full(error: BaseException) -> bool:
    """Returns whether an error says so, also in the words of a library that wraps it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and os.strerror(errno.ENOSPC) in str(error)


def _is_memory_full(error: BaseException) -> bool:
    """Returns whether the host or a device has too little of it; also as numpy and XLA tell."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        and "RESOURCE_EXHAUSTED" in str(error)
    )


def _is_foreign(module: str | None) -> bool:
    return bool(module) and not str(module).startswith("seg_jax")


def _is_ours(error: BaseException) -> bool:
    """Returns whether the package itself raised an error, in its own words."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("seg_jax")
