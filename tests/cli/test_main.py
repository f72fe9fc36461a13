"""Drives the shell of the programs: finding one, its options, its files, its errors."""

import dataclasses
import errno
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

import seg_jax
from seg_jax.cli import main as shell
from seg_jax.training import loop


@dataclasses.dataclass(frozen=True)
class Muon:
    """The optimizer of matrices."""

    lr: float = 1e-3
    """Step size."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """The optimizer of the rest."""

    lr: float = 3e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Pretends to fine-tune."""

    optimizer: Muon | Adam = Muon()
    weight_decay: float = 0.1
    """How strongly weights shrink."""
    out: Path = Path("runs")
    point: tuple[float, float] | None = None

    def __post_init__(self):
        if self.weight_decay < 0:
            raise ValueError(f"expected a weight decay of 0 or more, got {self.weight_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needy:
    """Pretends to predict."""

    image: Path


class Fake(types.ModuleType):
    """A program that keeps its configuration, then does what the test says."""

    def __init__(self, kind=Config):
        super().__init__("seg_jax.cli.fake")
        self.Config = kind
        self.seen = []
        self.act = lambda: None

    def main(self, config):
        self.seen.append(config)
        # The errors of a fake are the package's own errors.
        return eval("act()", {"act": self.act, "__name__": "seg_jax.cli.fake"})


def put(monkeypatch, name, kind) -> Fake:
    """Puts a fake in a program's place."""
    fake = Fake(kind)
    room, _, module = f"seg_jax.cli.{name}".rpartition(".")
    monkeypatch.setitem(sys.modules, f"{room}.{module}", fake)
    monkeypatch.setattr(importlib.import_module(room), module, fake, raising=False)
    return fake


@pytest.fixture
def finetune(monkeypatch):
    monkeypatch.delenv("SEG_JAX_TRACEBACK", raising=False)
    return put(monkeypatch, "finetune", Config)


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """Returns a function that writes a configuration file, which sees the classes above."""
    monkeypatch.setitem(sys.modules, "fake_finetune", sys.modules[__name__])

    def write(text, name="tiny.py"):
        path = tmp_path / name
        path.write_text("from fake_finetune import *\n" + text)
        return str(path)

    return write


def fails(capsys, *arguments) -> tuple[int, str]:
    """Returns the status and the one line of a command that goes wrong."""
    status = shell.main(arguments)
    out, line = capsys.readouterr()
    assert out == ""
    assert line.endswith("\n")
    assert line.count("\n") == 1, f"expected one line, got {line}"
    return status, line[:-1]


# Finding a program.


def test_help_names_every_program_without_jax():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "seg_jax", "--help"],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - start < 3  # 0.03 s alone; the machine may be busy.
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in shell.PROGRAMS)
    for heavy in ("jax", "numpy", "tyro", "flax"):
        assert f" {heavy}\n" not in done.stderr


def test_help_is_what_an_empty_command_line_shows(capsys):
    assert shell.main([]) == 0
    assert "examples:" in capsys.readouterr().out


def test_every_program_can_be_loaded(monkeypatch):
    for name in shell.PROGRAMS:
        module = "benchmarks.harness" if name == "benchmark" else name
        fake = put(monkeypatch, module, Config)
        assert shell._load(name) is fake


def test_version(capsys):
    assert shell.main(["--version"]) == 0
    assert capsys.readouterr().out == f"seg-jax {seg_jax.__version__}\n"


def test_an_unknown_program_is_answered_with_the_nearest(capsys):
    status, line = fails(capsys, "finetun", "--steps", "3")
    assert status == 2
    assert line.startswith("seg-jax: command line: expected one of quickstart, ")
    assert line.endswith("got 'finetun'; do: correct it, did you mean 'finetune'?")
    assert fails(capsys, "xyzzy")[1].endswith("do: seg-jax --help")


# Options.


def test_a_program_runs_with_its_defaults(finetune):
    assert shell.main(["finetune"]) == 0
    assert finetune.seen == [Config()]


def test_dotted_options_override(finetune):
    command = "finetune --optimizer.lr 2e-3 --weight_decay=0.2 --point 0.5 -1 --out a/b"
    assert shell.main(command.split()) == 0
    wanted = Config(optimizer=Muon(2e-3), weight_decay=0.2, point=(0.5, -1.0), out=Path("a/b"))
    assert finetune.seen == [wanted]


def test_help_of_a_program(finetune, capsys):
    with pytest.raises(SystemExit) as exit_:
        shell.main(["finetune", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "usage: seg-jax finetune" in out
    assert "--optimizer.lr" in out
    assert "How strongly weights shrink." in out
    assert finetune.seen == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--optimizr.lr 3", "got '--optimizr.lr'; do: correct it, did you mean '--optimizer.lr'?"),
        ("--xyzzyx", "got '--xyzzyx'; do: choose one that --help lists"),
        ("--weight-decay much", "--weight-decay: expected a number, got 'much'"),
        ("--weight-decay", "--weight-decay: expected a value, got none"),
        ("--weight-decay -1", "expected a weight decay of 0 or more, got -1.0"),
        ("--point 1", "--point"),
        ("--out x stray", "got 'stray'"),
        ("stray=3", "expected a configuration file CONFIG.py, got 'stray=3'; do: ls configs"),
    ],
)
def test_a_wrong_option_is_one_line(finetune, capsys, options, words):
    status, line = fails(capsys, "finetune", *options.split())
    assert status == 2
    assert line.startswith("seg-jax finetune: ")
    assert words in line
    assert finetune.seen == []


def test_a_required_option_that_is_missing_is_named(monkeypatch, capsys):
    put(monkeypatch, "predict", Needy)
    status, line = fails(capsys, "predict")
    assert status == 2
    assert line == (
        "seg-jax predict: --image: expected a value, got none; do: seg-jax predict --help"
    )
    # A misspelt one is told as such.
    assert "did you mean '--image'?" in fails(capsys, "predict", "--imgae", "x.png")[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--optimizer.lr", "x"], "--optimizer.lr: expected a number, got 'x'; do: "),
        (["--optimizer.lr"], "--optimizer.lr: expected a value, got none; do: "),
        (["--weight-decay", "-1"], "expected a weight decay of 0 or more, got -1.0"),
    ],
)
@pytest.mark.parametrize("boxes", [True, False])
def test_a_wrong_value_is_told_without_the_frames_of_the_parser(
    finetune, capsys, monkeypatch, options, line, boxes
):
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes, raising=False)
    told = line + "seg-jax finetune --help" * line.endswith("do: ")
    assert fails(capsys, "finetune", *options) == (2, f"seg-jax finetune: {told}")


@pytest.mark.parametrize(
    ("program", "options", "told"),
    [
        (
            "finetune",
            "--loop.steps abc",
            "--loop.steps: expected a whole number or None, got 'abc'",
        ),
        ("finetune", "--loop.minutes x", "--loop.minutes: expected a number, got 'x'"),
        ("finetune", "--loss-chunk x", "--loss-chunk: expected a whole number or None, got 'x'"),
        (
            "finetune",
            "--compute.dtype float64",
            "--compute.dtype: expected bfloat16 or float32, got 'float64'",
        ),
        ("finetune", "--loop.steps", "--loop.steps: expected a value, got none"),
        ("finetune", "--data-weights x", "--data-weights: expected values of its kind, got 'x'"),
        ("predict", "--image x --point 1", "--point: expected 2 numbers or None, got '1'"),
        ("convert", "a", "DEST: expected a value, got none"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_the_house_form(capsys, program, options, told):
    status, line = fails(capsys, program, *options.split())
    assert (status, line) == (2, f"seg-jax {program}: {told}; do: seg-jax {program} --help")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("coco", "coco_instances"), ("ShareGPT", "conversations"), ("labelm", "labelme"), ("q", None)],
)
def test_what_a_format_is_called_elsewhere_is_answered_by_its_name_here(capsys, name, meant):
    status, line = fails(capsys, "build", name, "--source", "x", "--out", "y")
    assert status == 2
    assert line.startswith("seg-jax build: NAME: expected camo, ")
    assert f"got '{name}'" in line
    advice = f"correct it, did you mean {meant!r}?" if meant else "seg-jax build --help"
    assert line.endswith(f"; do: {advice}")
    assert line.count("; do: ") == 1


# Configuration files.


def test_options_lie_over_a_configuration_file(finetune, config_file):
    path = config_file("def config():\n    return Config(optimizer=Adam(0.5), weight_decay=0.7)\n")
    assert shell.main(["finetune", path, "--weight-decay", "0.6"]) == 0
    assert shell.main(["finetune", path, "--optimizer.lr", "0.4"]) == 0
    assert finetune.seen == [
        Config(optimizer=Adam(0.5), weight_decay=0.6),
        Config(optimizer=Adam(0.4), weight_decay=0.7),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def config(:\n", "line 2: SyntaxError: "),
        ("def config():\n    return Confg()\n", "line 3: NameError: name 'Confg' is not defined"),
        ("def config():\n    return Config(steps=3)\n", "line 3: TypeError: "),
        ("import no_such_thing\n", "line 2: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("CONFIG = Config()\n", "expected a function config(), got none; do: define it"),
        ("def config():\n    return 3\n", "to return test_main.Config, got builtins.int"),
    ],
)
def test_a_broken_configuration_file_is_one_line(finetune, config_file, capsys, text, words):
    path = config_file(text)
    status, line = fails(capsys, "finetune", path)
    assert status == 2
    assert line.startswith(f"seg-jax finetune: {path}")
    assert words in line


def test_a_missing_configuration_file_is_answered_with_the_nearest(finetune, config_file, capsys):
    path = config_file("", name="tiny_sft.py")
    status, line = fails(capsys, "finetune", path.replace("tiny_sft", "tiny_stf"))
    assert status == 2
    assert line.endswith(f"did you mean {path}?")
    assert "expected a configuration file" in fails(capsys, "finetune", str(Path(path).parent))[1]


def test_a_configuration_file_after_an_option_is_told(finetune, config_file, capsys):
    path = config_file("def config():\n    return Config()\n")
    _, line = fails(capsys, "finetune", "--weight-decay", "1", path)
    assert "expected the configuration file before the options" in line


# Errors.


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("expected three channels,\n got one"), 1, "expected three channels, got one"),
        (
            FileNotFoundError(2, "No such file or directory", "a.png"),
            1,
            "such file or directory: a",
        ),
        (PermissionError(13, "Permission denied", "b"), 1, "permission denied: b"),
        (OSError("cannot identify image file 'x'"), 1, "cannot identify image file 'x'"),
        (OSError(errno.ENOSPC, "No space left on device", "c"), 1, "disk full while writing c: "),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "disk full: free some space"),
        (RuntimeError("OUT_OF_RANGE: write: No space left on device"), 1, "disk full: free"),
        (MemoryError("Unable to allocate 58.2 TiB"), 1, "out of memory (Unable to allocate 58"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes."),
            1,
            "allocating 5 bytes.); do: lower the batch",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (loop.Stopped(signal.SIGTERM, "step 3 is saved"), 143, "interrupted: step 3 is saved"),
        (KeyboardInterrupt("resume with seg-jax x"), 130, "interrupted: resume with seg-jax x"),
        (ModuleNotFoundError("", name="flax"), 1, "pip install 'seg-jax[train]'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_expected_error_is_one_line(finetune, capsys, error, status, words):
    finetune.act = raising(error)
    got, line = fails(capsys, "finetune")
    assert got == status
    assert line.startswith("seg-jax finetune: ")
    assert words in line


def test_an_unexpected_error_is_a_traceback(finetune, capsys):
    finetune.act = raising(ZeroDivisionError("half"))
    assert shell.main(["finetune"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_foreign_value_error_says_how_to_see_more(finetune, capsys):
    finetune.act = lambda: int("three")
    assert "SEG_JAX_TRACEBACK=1" in fails(capsys, "finetune")[1]


def test_the_environment_asks_for_a_traceback(finetune, capsys, monkeypatch):
    monkeypatch.setenv("SEG_JAX_TRACEBACK", "1")
    finetune.act = raising(ValueError("expected one, got two"))
    assert shell.main(["finetune"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_interrupt_is_lost_in_a_callback(finetune, capsys):
    def act():
        def callback(*_):
            gc.callbacks.remove(callback)
            signal.raise_signal(signal.SIGINT)

        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(20)

    finetune.act = act
    begin, hook = time.monotonic(), sys.unraisablehook
    # A script that runs in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert fails(capsys, "finetune") == (130, "seg-jax finetune: interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 10
    assert sys.unraisablehook is hook


def test_a_status_of_a_program_is_passed_on(finetune):
    finetune.act = lambda: 3
    assert shell.main(["finetune"]) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_told():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "seg_jax", "--help"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"seg-jax: disk full")
    assert b"Traceback" not in done.stderr


def test_a_reader_who_leaves_is_no_error():
    code = "import sys; from seg_jax.cli.main import main; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("compiler", "made", "wanted"),
    [
        (True, [], "cpu"),
        (True, ["nvidiactl"], "cuda,cpu"),
        (True, ["accel0"], None),
        (True, ["vfio/0"], None),
        (False, [], None),
    ],
)
def test_tpus_are_not_looked_for_where_only_their_compiler_is(
    monkeypatch, tmp_path, compiler, made, wanted
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if compiler else None)
    monkeypatch.setattr(os, "environ", {})
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shell._choose_platforms(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == wanted
    monkeypatch.setattr(os, "environ", {"JAX_PLATFORMS": "tpu"})
    shell._choose_platforms(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "tpu"
