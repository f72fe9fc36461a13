"""The wheel and the sdist: what they hold, and that they work where only they are installed.

Two environments get what pip installs for seg-jax without extras, from the package index, and hold
nothing else. A third one, for the programs, borrows the libraries of the extra `train` from the
environment of the tests: to install them again would take a minute. That these are the versions
that the wheel needs is checked.
"""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = {"jax", "jaxlib", "jaxtyping", "ml-dtypes", "numpy", "opt-einsum", "scipy", "wadler-lindig"}
"""What comes with seg-jax without extras: the three that it names, and what these need."""
REMOVED = (
    "asynchat asyncore cgi cgitb crypt distutils imghdr imp mailcap nntplib pipes smtpd sndhdr "
    "spwd telnetlib uu xdrlib"
)
"""What the standard library of Python 3.11 has, and that of 3.12 or 3.13 no longer."""


class Built(NamedTuple):
    """The two files that one build of this repository gives."""

    wheel: Path
    sdist: Path


def output(words: list, *, folder: Path, **environment: str) -> str:
    """Returns the standard output of a command that knows nothing of this repository."""
    outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        env=outer | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
    return done.stdout


def pip_install(words: list, *, folder: Path, python: Path | None = None) -> None:
    """Installs into the environment of a Python, or where the words say."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip += [] if python is None else ["--python", python]
    output([*pip, "install", "--quiet", "--no-compile", *words], folder=folder)


def make_environment(folder: Path, words: list) -> Path:
    """Makes a virtual environment, installs into it, returns its Python."""
    output([sys.executable, "-m", "venv", "--without-pip", folder], folder=folder.parent)
    pip_install(words, folder=folder, python=folder / "bin/python")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this repository."""
    folder = tmp_path_factory.mktemp("built")
    builder = folder / "builder"
    pip_install(["--target", builder, *PROJECT["build-system"]["requires"]], folder=folder)
    build = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    output(build, folder=ROOT, PYTHONPATH=str(builder))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel=wheel, sdist=sdist)


def tracked(*places: str) -> set[str]:
    """Returns the files of the repository in some places."""
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the repository is known in a clone only")
    names = output(["git", "ls-files", "--", *places], folder=ROOT).splitlines()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_configurations(built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    assert tracked("seg_jax") - names == set()
    assert {f"seg_jax/{name}" for name in tracked("configs")} - names == set()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"seg_jax"}
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|(^|/)\.", name)]


@pytest.mark.slow
def test_the_sdist_holds_what_a_clone_holds(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    places = "seg_jax configs launch tests .github README.md LICENSE pyproject.toml"
    assert tracked(*places.split()) - names == set()
    assert not [name for name in names if re.match(r"runs/|dist/|\.venv|\.hypothesis", name)]


def kernel_example() -> str:
    """Returns the example of README.md for the kernels."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (example,) = [block for block in blocks if "raster.fill" in block]
    return example


@pytest.mark.slow
@pytest.mark.parametrize("form", Built._fields)
def test_without_extras_the_kernels_work(form, built, tmp_path):
    python = make_environment(tmp_path / "clean", [getattr(built, form)])
    code = "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"
    names = output([python, "-c", code], folder=tmp_path).split()
    assert {re.sub(r"[-_.]+", "-", name.lower()) for name in names} == CORE | {"seg-jax"}
    (tmp_path / "example.py").write_text(kernel_example())
    printed = output([python, "example.py"], folder=tmp_path)
    first, second = printed.splitlines()
    iou, area = map(float, first.split())
    assert area == 40 * 40
    common = np.array([36, 40, 39, 38, 37, 36]) ** 2  # Squares of 40, moved by 4, 0, 1, 2, 3, 4.
    numbers = [iou, *map(float, second.strip("[]").split())]
    assert numbers == pytest.approx(common / (2 * 40 * 40 - common), abs=1e-6)
    program = tmp_path / "clean/bin/seg-jax"
    assert "predict" in output([program, "--help"], folder=tmp_path)
    done = subprocess.run([program, "predict", "--help"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "seg-jax[train]" in done.stderr


def lent_environment(folder: Path, wheel: Path) -> Path:
    """Makes an environment of the wheel and of the libraries that the tests use themselves."""
    python = make_environment(folder, ["--no-deps", wheel])
    (library,) = folder.glob("lib/python*/site-packages")
    (library / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    place = output([python, "-c", "import seg_jax; print(seg_jax.__file__)"], folder=folder)
    assert Path(place.strip()).is_relative_to(library), "expected the wheel, not the repository"
    (metadata,) = library.glob("seg_jax-*.dist-info")
    for line in importlib.metadata.Distribution.at(metadata).requires or []:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": "train"}):
            assert importlib.metadata.version(need.name) in need.specifier, line
    return python


@pytest.mark.slow
def test_with_train_installed_programs_answer(built, tmp_path):
    lent_environment(tmp_path / "lent", built.wheel)
    image = Image.new("RGB", (384, 384), "white")
    circle = 40, 60, 200, 220
    ImageDraw.Draw(image).ellipse(circle, fill="red")
    ImageDraw.Draw(image).rectangle((240, 230, 350, 340), fill="blue")
    image.resize((96, 96), Image.Resampling.LANCZOS).save(tmp_path / "scene.png")
    words = ["predict", "--image", "scene.png", "--text", "the red circle", "--out", "answers"]
    answer = json.loads(output([tmp_path / "lent/bin/seg-jax", *words], folder=tmp_path))
    drawn, true = Image.new("1", (384, 384)), Image.new("1", (384, 384))
    for ring in answer["polygons_unit"]:
        ImageDraw.Draw(drawn).polygon([(384 * x, 384 * y) for x, y in ring], fill=1)
    ImageDraw.Draw(true).ellipse(circle, fill=1)
    both = np.array(drawn) & np.array(true)
    assert both.sum() / (np.array(drawn) | np.array(true)).sum() > 0.7
    assert Path(tmp_path, answer["overlay"]).is_file()
    words = ["evaluate", "--world", "tiny", "--scenes", "4", "--json", "numbers.json"]
    output([tmp_path / "lent/bin/seg-jax", *words], folder=tmp_path)
    assert json.loads((tmp_path / "numbers.json").read_text())


def test_the_metadata_name_the_pythons_that_the_syntax_suits():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert named == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
    for path in sorted((ROOT / "seg_jax").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(), path, feature_version=(3, 11))))
        names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        names += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        assert not {name.partition(".")[0] for name in names} & set(REMOVED.split()), path


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_a_later_python_compiles_all_without_a_warning(version):
    python = shutil.which(f"python{version}")
    # One that is found may be a shim of nothing.
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"no python{version} is at hand")
    code = (
        "import pathlib, sys\n"
        "for path in pathlib.Path(sys.argv[1]).rglob('*.py'):\n"
        "    compile(path.read_text(), str(path), 'exec')\n"
    )
    for folder in ("seg_jax", "configs", "tests"):
        output([python, "-W", "error", "-c", code, ROOT / folder], folder=ROOT)
