"""The READMEs tell the truth: links, files, commands and options exist, no file is left out."""

import dataclasses
import functools
import re
import shlex
import types
import typing
from pathlib import Path

import durations
import pytest

from seg_jax.cli import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg_jax"
ROOMS = sorted({path.parent for path in PACKAGE.rglob("*.py")})
TEXTS = [ROOT / "README.md", ROOT / ".github/CONTRIBUTING.md"]
TEXTS += sorted(
    p for f in ("seg_jax", "configs", "launch", "tests") for p in (ROOT / f).rglob("*.md")
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_readmes_are_short():
    lengths = {relative(path): path.read_text().count("\n") for path in TEXTS}
    assert lengths["README.md"] <= 130
    rooms = {relative(room / "README.md") for room in ROOMS if room != PACKAGE}
    assert rooms - set(lengths) == set(), "expected a README.md in every room"
    assert {name: lengths[name] for name in rooms if lengths[name] > 40} == {}


@functools.cache
def anchors(path: Path) -> set[str]:
    """Returns what links to the headings of a text end with, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        assert there.exists(), f"{target}: expected a file or folder, found none"
        assert not anchor or anchor in anchors(there), f"{target}: expected such a heading"


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_files_that_are_named_exist(path):
    """A name stands for a file beside the text, of the repository, of the package or a test."""
    for code in re.findall(r"`([^`\n]+)`", path.read_text()):
        if not re.fullmatch(r"[\w./-]+\.(py|sh|sbatch|yaml|toml|safetensors|png|svg)", code):
            continue
        if code.startswith(("runs/", "data/")) or code in ("model.safetensors",):
            continue  # What programs make.
        places = (path.parent, ROOT, PACKAGE, ROOT / "configs/simpleseg", ROOT / "tests")
        assert any((place / code).exists() for place in places), f"{code}: no such file"


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_modules_and_their_parts_that_are_named_exist(path):
    for name in re.findall(r"`(seg_jax(?:\.(?!json)\w+)+)`", path.read_text()):
        parts = name.split(".")
        depth = next(n for n in range(len(parts), 0, -1) if is_module(ROOT.joinpath(*parts[:n])))
        place = ROOT.joinpath(*parts[:depth])
        assert depth >= len(parts) - 2, f"{name}: no such module"
        source = place if place.is_dir() else place.with_suffix(".py")
        text = (source / "__init__.py" if source.is_dir() else source).read_text()
        assert all(re.search(rf"\b{part}\b", text) for part in parts[depth:]), f"{name}: not there"


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


FOLDERS = [*ROOMS, ROOT / "launch", ROOT / "configs", ROOT / "configs/simpleseg"]


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f != PACKAGE], ids=relative)
def test_every_file_of_a_folder_is_named_in_its_readme(folder):
    text = (folder / "README.md").read_text()
    if folder.name == "simpleseg":
        text += (ROOT / "configs/README.md").read_text()
    files = {p.name for p in folder.iterdir() if p.suffix in (".py", ".sh", ".sbatch", ".yaml")}
    missing = {name for name in files if not name.startswith("__") and name not in text}
    assert not missing, f"expected {missing} in {relative(folder)}/README.md"
    rooms = {p.parent.name for p in folder.glob("*/__init__.py")}
    assert {name for name in rooms if f"{name}/README.md" not in text} == set()


def options_of(kind: type) -> set[str]:
    """Returns the dotted options of a configuration, those of every member of a union."""
    found = set()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = field.name.replace("_", "-")
        found |= {f"--{name}", f"--no-{name}"}
        for member in members(hints[field.name]):
            if dataclasses.is_dataclass(member):
                found |= {f"--{name}.{inner.lstrip('-')}" for inner in options_of(member)}
    return found


def members(hint: object) -> tuple:
    """Returns the classes that a type hint may mean."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(m for part in typing.get_args(hint) for m in members(part))
    return (hint,)


@functools.cache
def options(program: str) -> set[str]:
    """Returns the options of a program, `benchmark raster` for example."""
    return options_of(main._load(program).Config) | {"--help"}


def commands(text: str) -> list[str]:
    """Returns the command lines in a text: of fenced blocks of bash, and in backquotes."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+ [^`]+)`", rest)]
    return [line.strip() for line in lines if line.strip()]


def programs(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns the program that a command starts, and the words after it; None if not ours."""
    if words[0] in ("bash", "sbatch"):
        while words and words[0] not in main.PROGRAMS:
            words = words[1:]
        return (words[0], words[1:]) if words else None
    if words[0] != "seg-jax" or len(words) < 2 or words[1] in ("PROGRAM", "--help", "--version"):
        return None
    if words[1] == "benchmark" and words[2:]:
        return (f"benchmark {words[2]}", words[3:]) if words[2] != "PART" else None
    return words[1], words[2:]


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_commands_name_programs_options_and_files_that_exist(path):
    for line in commands(path.read_text()):
        words = shlex.split(line) if line.count("'") % 2 == 0 else line.split()
        for word in words:
            if re.match(r"(configs|launch|tests|seg_jax)/[\w/.-]*$", word):
                assert (ROOT / word).exists(), f"{line!r}: {word} is not there"
        if started := programs(words):
            program, rest = started
            known = options(program)
            if program == "compile":  # It takes those of the run, too.
                known = known | options("finetune") | options("reinforce")
            asked = {w.partition("=")[0].replace("_", "-") for w in rest if w.startswith("--")}
            assert asked <= known, f"{line!r}: {program} has no option {asked - known}"


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_options_that_are_named_alone_exist(path):
    every = set().union(*(options(name) for name in main.PROGRAMS if name != "benchmark"))
    foreign = {"--dry-run", "--quick", "--junit-xml", "--version", "--durations"}
    for option in re.findall(r"`(--[a-z][\w.-]*?)(?:[ =][^`]*|\.\*)?`", path.read_text()):
        if option in foreign or option in every:
            continue
        group = [name for name in every if name.startswith(f"{option}.")]
        assert group, f"{option}: no program has it"


def test_a_wrong_option_or_program_would_be_seen():
    assert "--optimizer.lr" in options("finetune")
    assert "--optimizer.none" not in options("finetune")
    assert commands("text `seg-jax finetune A --b\n1` and\n```bash\nbash x y  # why\n```\n") == [
        "bash x y",
        "seg-jax finetune A --b 1",
    ]
    assert programs(shlex.split("bash launch/run.sh finetune CONFIG --a")) == (
        "finetune",
        ["CONFIG", "--a"],
    )
    assert programs(["seg-jax", "benchmark", "raster", "--json"]) == (
        "benchmark raster",
        ["--json"],
    )


def test_seconds_are_summed_by_folder():
    text = (
        '<testsuites><testsuite><testcase classname="tests.cli.test_main" time="1.5"/>'
        '<testcase classname="tests.cli.test_main" time="2"/>'
        '<testcase classname="tests.test_house" time="4"/></testsuite></testsuites>'
    )
    assert list(durations.seconds_by_folder(text).items()) == [
        ("tests", (1, 4.0)),
        ("cli", (2, 3.5)),
    ]


def test_texts_name_no_place_of_a_machine():
    for path in TEXTS:
        found = re.findall(r"(?<![\w.~-])/(?:home|root|tmp|work|Users|mnt)/\S*", path.read_text())
        assert not found, f"{relative(path)}: {found}"
