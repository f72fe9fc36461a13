"""House rules on names, signatures, lengths and the letters of axes."""

import ast
import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from seg_jax import records

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [PACKAGE, ROOT / "configs", ROOT / "tests"]
ALL_FILES = sorted(path for room in ROOMS for path in room.rglob("*.py"))

BARE_WORDS = """
again agreed apart asked at back before behind beside broken built carried checked chosen claimed
collated compiled counted cut decoded divided drawn fed far filled found framed fused gathered given
grouped held joined kept laid left listed made marked mapped masked measured merged met mine moved
named near needed of on over padded paired parsed picked placed prepared processed put replicated
resized resolved restored rounded said scaled seen sent served settled shared shortened shown sized
spared spoken summed taught together told traced trained under united whole widened within written
"""
"""Participles and prepositions that do not say what a function returns or does."""

# Rooms that are yet to be cleaned; remove them one by one.


class Function(NamedTuple):
    """A function of a module or a method of one of its classes."""

    path: Path
    name: str
    """Qualified by the class."""
    node: ast.FunctionDef
    is_bound: bool
    """Whether its first argument is bound: self or the class."""

    @property
    def key(self) -> str:
        return f"{relative(self.path)}:{self.name}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """Returns the room of a file of the package; of other files their top folder."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == PACKAGE.name else parts[0]


def functions(path: Path) -> Iterator[Function]:
    """Yields the functions and methods of a file, without those inside of functions."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield Function(path, node.name, node, is_bound=False)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    static = any(ast.unparse(d) == "staticmethod" for d in method.decorator_list)
                    name = f"{node.name}.{method.name}"
                    yield Function(path, name, method, is_bound=not static)


def is_public(function: Function) -> bool:
    parts = function.name.split(".")
    return not any(part.startswith("_") for part in parts if not part.startswith("__"))


def positional(function: Function) -> list[str]:
    arguments = function.node.args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args)][function.is_bound :]


def test_public_functions_take_at_most_three_positional_arguments():
    every = [f for path in FILES for f in functions(path) if is_public(f)]
    assert {f.key for f in every if len(positional(f)) > 3} == set(), "make the rest keyword-only"


def test_functions_are_not_named_by_a_bare_participle_or_preposition():
    every = [f for path in FILES for f in functions(path)]
    bare = {f.key for f in every if f.node.name.strip("_") in BARE_WORDS.split()}
    assert bare == set(), "say what is returned or done"


def test_no_function_is_longer_than_sixty_lines():
    """Nine in ten stay under forty (`test_house`); loops and drivers may have sixty."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                spare = docstring.count("\n") + 1 if docstring else 0
                length = node.end_lineno - node.lineno + 1 - spare
                assert length <= 60, f"{relative(path)}:{node.lineno} {node.name}"


WRAPPED = {
    # `load` says them as the reason why the file is not read, and what to do.
    "seg_jax/safe_pickle.py",
    # `Archive` says them as what is wrong with a file.
    "seg_jax/models/io/torch_archive.py",
    # `_opened` says it as the reason why an image is damaged.
    "seg_jax/data/image_files.py:_CountedReads.read",
    # `decode` says them as the reason why the bytes are no Example.
    "seg_jax/data/tf_example.py:_integers",
    "seg_jax/data/tf_example.py:_fields",
    "seg_jax/data/tf_example.py:_read_varint",
    # `response` says them as the reason why there is no answer.
    "seg_jax/annotation/http_exchange.py",
    # They are told as what a template failed of, by the process that asked for its text.
    "seg_jax/grammar/tokenizer/template_worker.py",
    # `_exchange` and its callers say them as the end of a process.
    "seg_jax/grammar/tokenizer/template_sandbox.py:_Worker._exchange",
    "seg_jax/grammar/tokenizer/template_sandbox.py:_Worker._receive",
    # `Tokenizer` says them as what is wrong with tokenizer.json.
    "seg_jax/grammar/tokenizer/growth.py",
    "seg_jax/grammar/tokenizer/patterns.py",
}
"""Files, and functions of files, whose short errors come out inside of another one's message."""

WRAPPED_KINDS = {"Failed", "_Retry", "BrokenImage"}
"""Errors whose text is a reason: reports list it beside the image that was left out for it."""

WHOLE = re.compile(r".+?: expected .+ got .+; do: .+", re.DOTALL)
PASSED_ON = re.compile(r"(\w+|\{\}): \{\}(; do: .+)?|\{\}; or .+")
"""A place before another error's message, or advice behind it."""


class Message(NamedTuple):
    """The text of an error that a file raises."""

    place: str
    """File and function."""
    kind: str
    """Name of the exception."""
    line: int
    text: str
    """With {} for values."""

    @property
    def is_wrapped(self) -> bool:
        return bool({self.place, self.place.partition(":")[0]} & WRAPPED) or (
            self.kind in WRAPPED_KINDS
        )


def messages(path: Path) -> Iterator[Message]:
    """Yields the errors that a file raises with a message written there."""
    file = relative(path)
    owners = {
        (node.lineno, node.col_offset): function.key
        for function in functions(path)
        for node in ast.walk(function.node)
        if isinstance(node, ast.Raise)
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = node.exc.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            if isinstance(text, ast.JoinedStr | ast.Constant):
                values = (p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
                place = owners.get((node.lineno, node.col_offset), file)
                kind = ast.unparse(node.exc.func).rpartition(".")[2]
                yield Message(place, kind, node.lineno, "".join(map(str, values)))


def test_errors_say_where_what_was_expected_what_came_and_what_to_do():
    every = [message for path in FILES for message in messages(path)]
    for one in every:
        if not one.is_wrapped:
            good = WHOLE.fullmatch(one.text) or PASSED_ON.fullmatch(one.text)
            assert good, f"{one.place}:{one.line} {one.text!r}"
    places = {one.place for one in every} | {one.place.partition(":")[0] for one in every}
    assert WRAPPED - places == set(), "nothing is raised there"
    assert {one.kind for one in every} >= WRAPPED_KINDS


def test_docstrings_of_attributes_are_not_fragments():
    """Not "Of the scenes." but "Seed of the scenes."; they are the help of options too."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    good = not re.match(r"(Of|By) ", text)
                    assert good, f"{relative(path)}:{node.lineno} {text.splitlines()[0]}"


def starred_displays(source: str) -> list[int]:
    """Returns the lines with `*(a, b)` or `*[a, b]`, which says no more than the items do."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Starred)]
    return [n.lineno for n in nodes if isinstance(n.value, ast.Tuple | ast.List)]


def test_lists_are_written_plainly():
    assert starred_displays("f(*[1, 2])\n[*(1, 2), *x]\n{*()}") == [1, 2, 3]
    golfed = {relative(path) for path in ALL_FILES if starred_displays(path.read_text())}
    assert golfed == set(), "write the items without *( )"


def names_in_use() -> collections.Counter[str]:
    """Returns how often the package and its configurations mention each name, definitions aside."""
    names = collections.Counter()
    for path in (*FILES, *(ROOT / "configs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    names[name.rpartition(".")[2]] += 1
                case ast.Constant(
                    value=str(text)
                ):  # The programs that Python code in strings runs.
                    names.update(re.findall(r"(?<=\.)\w+(?=\()", text))
    return names


def library_surface(path: Path) -> set[str]:
    """Returns what the README of a file's room offers users beside what our programs call."""
    readme = path.with_name("README.md")
    text = readme.read_text() if readme.exists() else ""
    paragraph = re.search(r"\*\*Library surface\*\*(.*?)\n(?:\n|\*\*)", text, re.DOTALL)
    found = re.findall(r"`(\w+)\.(\w+)`", paragraph.group(1)) if paragraph else []
    return {name for module, name in found if module == path.stem}


def test_what_no_program_uses_is_library_surface_with_a_test():
    used = names_in_use()
    tests = " ".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for path in FILES:
        body = ast.parse(path.read_text()).body
        public = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        unused = {n for n in public if not n.startswith("_") and not used[n]}
        offered = library_surface(path)
        assert unused <= offered, (
            f"{relative(path)}: remove {unused - offered} or name it in README"
        )
        assert all(re.search(rf"\.{name}\b", tests) for name in offered), f"test all of {offered}"


TYPES = re.compile(r"(Bool|Float|Int|UInt|Shaped|Num|Real|Inexact)\d*$")


def shapes(path: Path) -> set[str]:
    """Returns the shapes of a file's array types, as jaxtyping has them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and TYPES.match(ast.unparse(node.value).split(".")[-1]):
            match node.slice:
                case ast.Tuple(elts=[_, ast.Constant(value=str(shape))]):
                    found.add(shape)
    return found


def letters(shape: str) -> set[str]:
    return set(re.findall(r"(?<![\w{])[A-Z](?![\w}])", shape))


def table() -> set[str]:
    """Returns the letters in the table of axes in `records`."""
    cells = re.findall(r"\| `([A-Z ]+)`", records.__doc__ or "")
    return {letter for cell in cells for letter in cell.split()}


def declared_here(path: Path) -> set[str]:
    """Returns the letters that a file's docstring gives a meaning of its own."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = re.search(r"^Axes here: (.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([A-Z])`", paragraph.group(1))) if paragraph else set()


USUAL = {
    "P": r"R P\b|^P( 2)*$|^\*n P\b",
    "R": r"\bR P\b",
    "S": r"^(B )?S( C| 2| D)?$",
    "G": r"\bB (kv )?G\b",
    "C": r"\b[Ss] C$",
}
"""Where letters stand that other files use for something else: anywhere else they are declared."""


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_letters_of_axes_are_those_of_the_table(path):
    here, used = declared_here(path), set()
    for shape in shapes(path):
        used |= letters(shape)
        for letter in letters(shape) - here:
            assert letter in table(), f"{shape}: add {letter} to `Axes here:` or to records.py"
            pattern = USUAL.get(letter, "")
            assert re.search(pattern, shape.strip()), f"{shape}: declare {letter} in `Axes here:`"
    assert here <= used, "expected a use of each letter that the docstring declares"


def test_the_table_of_axes_has_no_letter_that_nothing_uses():
    used = {letter for path in FILES for shape in shapes(path) for letter in letters(shape)}
    assert len(table()) > 12
    assert table() - used == set()
