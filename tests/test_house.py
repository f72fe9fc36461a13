"""Holds the house rules that no tool holds: the street, the tree, imports, devices, sentences."""

import ast
import functools
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg_jax"
FOLDERS = ("seg_jax", "configs", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EXTRAS = ["train", "data", "parquet", "serve", "cvat", "beam", "wandb", "benchmark", "torch"]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def modules(package: str = "seg_jax") -> list[str]:
    """Returns the names of all modules of a package, itself included."""
    folder = ROOT.joinpath(*package.split("."))
    found = pkgutil.walk_packages([str(folder)], f"{package}.")
    return [package, *(m.name for m in found if not m.name.endswith("__main__"))]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_street_has_these_houses_only():
    made = {"build", "dist", "runs"}
    shown = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - made
    shown = {name for name in shown if not name.endswith(".egg-info")}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "seg_jax", "configs", "launch", "tests"}
    assert shown - wanted == set()
    assert wanted - shown <= {"configs"}  # A folder without a file is not in a clone.


def test_files_of_tests_have_names_of_their_own():
    """Two of one name cannot be collected in one run, though each can alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_opens_with_one_sentence_and_fits_a_sitting(path):
    source = path.read_text()
    sentence = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    assert source.startswith('"""'), "expected a docstring in the first line"
    assert sentence.endswith("."), f"expected a sentence, got {sentence!r}"
    assert not re.search(r"[.!?] [A-Z]", sentence), f"expected one sentence, got {sentence!r}"
    assert len(source.splitlines()) < 600, "expected under 600 lines, do: cut it in two"


def test_nine_in_ten_functions_fit_a_screen():
    lengths = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]  # The docstring is not counted: it should be long enough.
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                spare = first.end_lineno - first.lineno + 1 if told else 0
                length = node.end_lineno - node.lineno + 1 - spare
                lengths[f"{relative(path)}:{node.lineno} {node.name}"] = length
    long = {name: length for name, length in lengths.items() if length > 40}
    assert len(long) <= len(lengths) / 10, long


def imports(path: Path) -> set[str]:
    """Returns the top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"seg_jax"}


@functools.cache
def givers() -> dict[str, list[str]]:
    """Returns the packages that give each top-level name; whoever asks reads all metadata."""
    return dict(importlib.metadata.packages_distributions())


def declared(*extras: str) -> set[str]:
    """Returns the normalised names of the packages that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = list(project["dependencies"])
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    return {normal(re.match(r"[\w.-]+", line).group()) for line in asked}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_what_the_package_imports_is_declared(path):
    asked = declared(*EXTRAS)
    for name in imports(path):
        given = {normal(giver) for giver in givers().get(name, [name])}
        assert given & asked, f"expected {name} in pyproject.toml, do: add it to an extra"


def test_nothing_touches_a_device_at_import():
    # No platform of this name exists: whoever asks for a device fails.
    code = "\n".join(f"import {name}" for name in modules())
    done = run(code, JAX_PLATFORMS="none_such")
    assert done.returncode == 0, done.stderr[-3000:]
    check = run("import jax; jax.devices()", JAX_PLATFORMS="none_such")
    assert check.returncode != 0, "the trick of this test works no more"


def test_the_core_needs_jax_and_numpy_only():
    names = [*modules("seg_jax.geometry"), *modules("seg_jax.kernels"), "seg_jax.records"]
    strangers = "flax optax orbax grain transformers tokenizers cv2 PIL shapely torch tyro rich"
    code = "; ".join(["import sys", *(f"import {name}" for name in names)])
    done = run(f"{code}; print(*(set('{strangers}'.split()) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_a_configuration_loads(path):
    from seg_jax.cli import arguments

    config = arguments.load(path, object)
    kind = f"{type(config).__module__}.{type(config).__name__}"
    assert kind == "seg_jax.cli.study.Study" or re.fullmatch(r"seg_jax\.runs\.\w+\.Config", kind)


def tree(readme: str) -> dict[str, set[str]]:
    """Returns the folders of README's tree with the names it gives in each.

    The tree is the fenced block with a line that begins with `seg_jax/`. Its lines begin with a
    name, indented or behind box-drawing lines; names that follow in the same line lie in that
    folder, or beside that file.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    block = next((b for b in blocks if re.search(r"^\W*seg_jax/", b, re.MULTILINE)), "")
    found: dict[str, set[str]] = {}
    above: list[tuple[int, str]] = [(-1, "")]
    for line in block.splitlines():
        names = list(re.finditer(r"[\w.-]+/(?=\s|$)|[\w-]+\.(?:py|sh|toml|md)\b|LICENSE", line))
        if not names or re.search(r"\w", line[: names[0].start()]):
            continue
        column, name = names[0].start(), names[0].group()
        while above[-1][0] >= column:
            above.pop()
        parent = above[-1][1]
        found.setdefault(parent, set()).add(name)
        if name.endswith("/"):
            parent += name
            above.append((column, parent))
            found.setdefault(parent, set())
        found[parent] |= {other.group() for other in names[1:]}
    return found


def test_the_tree_of_a_readme_is_read():
    text = "```\nREADME.md  what\nseg_jax/\n  cli/   main.py (shell) run.py\n  records.py\n```\n"
    assert tree(text) == {
        "": {"README.md", "seg_jax/"},
        "seg_jax/": {"cli/", "records.py"},
        "seg_jax/cli/": {"main.py", "run.py"},
    }
    drawn = "```text\nseg_jax/\n├── cli/\n│   └── main.py  shell\n└── records.py\n```\n"
    assert tree(drawn)["seg_jax/cli/"] == {"main.py"}


def test_the_tree_in_the_readme_is_true():
    named = tree((PACKAGE / "README.md").read_text())
    for folder, names in named.items():
        missing = {name for name in names if not (ROOT / folder / name).exists()}
        assert not missing, f"seg_jax/README.md names {missing} in {folder}, none there"
    rooms = {f"{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py")}
    assert rooms - named["seg_jax/"] == set(), "expected every room in README's tree"
    for folder, names in named.items():
        if folder.startswith("seg_jax/") and any(name.endswith(".py") for name in names):
            there = {p.name for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("__")}
            assert there - names == set(), f"expected every file of {folder} in README's tree"
