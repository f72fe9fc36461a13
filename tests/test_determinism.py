"""Equal inputs give equal bytes: no order of a set reaches what is written (key-1)."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import published_formats as formats

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg_jax"
ORDERLESS = {"sorted", "len", "any", "all", "min", "max", "sum", "set", "frozenset", "Counter"}
"""Functions whose result does not depend on the order of what they are given."""
SETS = {"set", "frozenset"}
METHODS = {"union", "intersection", "difference", "symmetric_difference"}


class Sweep(ast.NodeVisitor):
    """Finds where the order of a set is used: loops, lists, texts, arguments."""

    def __init__(self):
        self.names: list[dict[str, bool]] = [{}]
        self.found: list[int] = []
        self.excused: set[int] = set()

    def is_set(self, node: ast.AST | None) -> bool:
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id=name)) if name in SETS:
                return True
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in METHODS:
                return self.is_set(value)
            case ast.BinOp(left=left, op=ast.Sub() | ast.BitAnd() | ast.BitXor(), right=right):
                return self.is_set(left) or self.is_view(left) or self.is_view(right)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return any(self.is_set(one) or self.is_view(one) for one in (left, right))
            case ast.IfExp(body=body, orelse=other):
                return self.is_set(body) or self.is_set(other)
            case ast.NamedExpr(value=value):
                return self.is_set(value)
            case ast.Name(id=name):
                return next((scope[name] for scope in reversed(self.names) if name in scope), False)
        return False

    def is_view(self, node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Attribute(attr="keys" | "items"), args=[]):
                return True
        return False

    def use(self, node: ast.AST) -> None:
        if self.is_set(node) and id(node) not in self.excused:
            self.found.append(node.lineno)

    def visit_FunctionDef(self, node):
        self.names.append({})
        for argument in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs):
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            self.names[-1][argument.arg] = kind.startswith(("set[", "frozenset["))
        self.generic_visit(node)
        self.names.pop()

    visit_Lambda = ast.NodeVisitor.generic_visit

    def assign(self, target: ast.AST, value: ast.AST | None) -> None:
        if isinstance(target, ast.Name):
            self.names[-1][target.id] = self.is_set(value)

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            self.assign(target, node.value)

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        self.assign(node.target, node.value)

    def visit_NamedExpr(self, node):
        self.generic_visit(node)
        self.assign(node.target, node.value)

    def visit_For(self, node):
        self.use(node.iter)
        self.generic_visit(node)

    def visit_Call(self, node):
        name = ast.unparse(node.func)
        orderless = name.rpartition(".")[2] in ORDERLESS | METHODS
        for argument in node.args:
            if orderless and isinstance(argument, ast.GeneratorExp | ast.ListComp):
                self.excused |= {id(part.iter) for part in argument.generators}
            taken = ("list", "tuple", "enumerate", "zip", "map", "filter", "iter", "next", "chain")
            if name in taken or name.endswith((".join", ".fromkeys", ".extend", ".array")):
                self.use(argument)
        self.generic_visit(node)

    def visit_SetComp(self, node):
        self.excused |= {id(part.iter) for part in node.generators}
        self.generic_visit(node)

    def visit_comprehension(self, node):
        self.use(node.iter)
        self.generic_visit(node)

    def visit_Set(self, node):
        for element in node.elts:
            if isinstance(element, ast.Starred):
                self.excused.add(id(element.value))
        self.generic_visit(node)

    def visit_Starred(self, node):
        self.use(node.value)
        self.generic_visit(node)


def orders_of_sets(source: str) -> list[int]:
    """Returns the lines of Python code in which the order of a set is used."""
    sweep = Sweep()
    sweep.visit(ast.parse(source))
    return sorted(set(sweep.found))


def test_the_sweep_finds_orders_and_no_more():
    bad = """\
for x in {1, 2}: pass
y = [f(x) for x in set(a) - set(b)]
z = ", ".join(a.keys() & b)
w = list({*a})
def g(s: set[int]): return [*s]
t = {x for x in a}
u = {k: 1 for k in t}
"""
    assert orders_of_sets(bad) == [1, 2, 3, 4, 5, 7]
    good = """\
y = sorted(set(a)); n = len({1}); any(x for x in {1, 2}); z = x in {1}
s = {x for x in set(a)}; t = {*s, *set(a)}; v = sorted(x for x in s)
for x in a.keys(): pass
for x in dict(a) | {"b": 1}: pass
"""
    assert orders_of_sets(good) == []


WITHOUT_EFFECT = {"locks.py": {"for file in _held:"}}
"""Files with the source of loops whose order nothing can see: files are closed in any."""


def test_no_order_of_a_set_is_used():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text().splitlines()
        name = path.relative_to(PACKAGE).as_posix()
        seen = {lines[line - 1].strip() for line in orders_of_sets("\n".join(lines))}
        if seen - WITHOUT_EFFECT.get(name, set()):
            found[name] = seen - WITHOUT_EFFECT.get(name, set())
    assert found == {}, "do: sort it, or use dict.fromkeys"


SCRIPT = """
import json, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/models"]
import tiny_folders
from seg_jax.cli import main

root = Path(sys.argv[2])
for kind in tiny_folders.KINDS:
    folder = tiny_folders.make(kind, root / "hub" / kind)
    out = str(root / "converted" / kind)
    assert main.main(["convert", str(folder), out, "--dtype", "bfloat16"]) == 0
    tokenizer = tiny_folders.tokens.Tokenizer.load(folder)
    print(json.dumps(tiny_folders._config(kind, tokenizer).to_hf()))
for name, words in {"own": ["folder"], "refer": ["refcoco_unc"]}.items():
    words = ["build", *words, "--source", name, "--out", str(root / name), "--workers", "1"]
    assert main.main([*words, "--json", str(root / f"{name}.json")]) == 0
"""


def made_with(seed, tmp_path):
    """Returns the digests of all files that programs make, and what they print."""
    out = tmp_path / str(seed) / "same"
    out.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), "same"],
        env={**os.environ, "PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=_sources(out.parent),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {"printed": done.stdout}
    for path in sorted(out.rglob("*")):
        if ".parts" in path.parts:  # They know when each image was written.
            continue
        if path.is_file():
            data = path.read_bytes()
            if path.parent == out and path.suffix == ".json":  # With seconds and versions beside.
                report = json.loads(data)
                data = json.dumps({**report, "seconds": 0}).encode()
            found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def _sources(folder):
    formats.folder(folder / "own")
    formats.refer(folder / "refer", "refcoco_unc")
    return folder


def test_programs_make_equal_bytes_whatever_the_order_of_sets(tmp_path):
    """key-1: `config.json` of two equal runs differed in the order of its keys."""
    one, other = (made_with(seed, tmp_path) for seed in (1, 2))
    assert {name for name in one if one[name] != other.get(name)} == set()
    assert one.keys() == other.keys()
    names = " ".join(one)
    for wanted in ("converted/kimi_vl/config.json", "own/build.json", "refer.json", "safetensors"):
        assert wanted in names
