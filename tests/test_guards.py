"""Every place that opens, parses, decodes, runs or connects something from outside has its guard.

`seg_jax/GUARDS.md` lists them. A call that is found here and stands in a function that the list
does not name fails, and so does a name in the list whose call is gone.
"""

import ast
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg_jax"
GUARDS = PACKAGE / "GUARDS.md"

BUILTINS = {"open", "eval", "exec", "compile", "__import__", "input", "breakpoint"}
"""Functions of Python itself."""

METHODS = """
open read_text read_bytes from_pretrained from_file from_str from_string from_buffer restore
exec_module load_module connect connect_ex bind urlopen extractall unpack_archive
"""
"""Methods of whatever object, unless of one of the package's own modules or classes."""

FUNCTIONS = """
json.load json.loads json.JSONDecoder msgspec.json.decode* msgspec.msgpack.decode* msgspec.yaml.*
msgspec.toml.* tomllib.* yaml.* configparser.* csv.reader csv.DictReader
pickle.* marshal.* shelve.* dill.* cloudpickle.* joblib.* copyreg.*
numpy.load numpy.memmap numpy.fromfile numpy.genfromtxt numpy.loadtxt numpy.fromregex
numpy.lib.format.*
PIL.Image.open PIL.ImageFile.* PIL.ImageFont.truetype PIL.ImageSequence.* cv2.imread cv2.imdecode
cv2.imreadmulti cv2.VideoCapture cv2.FileStorage imageio.* tifffile.* skimage.io.*
matplotlib.pyplot.imread matplotlib.image.imread
subprocess.run subprocess.Popen subprocess.call subprocess.check_* subprocess.get*
os.system os.popen os.open os.fdopen os.exec* os.spawn* os.posix_spawn* os.fork* os.mkfifo pty.*
io.open io.open_code codecs.open fileinput.* mmap.*
socket.socket socket.create_* socket.socketpair socket.fromfd ssl.* select.* selectors.*
http.client.HTTPConnection http.client.HTTPSConnection http.server.* socketserver.* xmlrpc.*
urllib.request.urlopen urllib.request.build_opener urllib.request.urlretrieve
urllib.request.OpenerDirector ftplib.* smtplib.* telnetlib.* requests.* httpx.* aiohttp.* urllib3.*
tarfile.* zipfile.* gzip.* bz2.* lzma.* zlib.decompress* shutil.unpack_archive
importlib.import_module importlib.reload importlib.util.spec_from_file_location
importlib.util.module_from_spec importlib.machinery.* runpy.* imp.* code.Interactive*
jinja2.*Environment jinja2.Template jinja2.sandbox.*Environment jinja2.*Loader
ctypes.* cffi.* xml.* lxml.* html5lib.* bs4.*
safetensors.safe_open safetensors.*.load* safetensors.deserialize tokenizers.Tokenizer.from_*
tokenizers.models.*.from_file tokenizers.models.*.read_file transformers.*.from_pretrained
transformers.pipeline huggingface_hub.* torch.load torch.hub.* torch.jit.load
orbax.checkpoint.*.restore array_record.*DataSource array_record.*Reader tensorflow.* pandas.read_*
pyarrow.* jax.export.deserialize jax.experimental.serialize_executable.*
"""
"""Functions by their whole names; `*` stands for anything."""


def origins(tree: ast.Module) -> dict[str, str]:
    """Returns the whole name of each name that a file imports, and of what it defines itself."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = f"seg_jax.{node.name}"
    return found


def whole_name(node: ast.expr, known: dict[str, str]) -> str:
    """Returns the whole name of an expression as `np.load`, with "?" for what is no import."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    first = known.get(node.id, "?") if isinstance(node, ast.Name) else "?"
    return ".".join([first, *reversed(parts)])


def is_door(node: ast.AST, known: dict[str, str]) -> bool:
    """Returns whether a node is, or hands on, a function that lets something in."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name in BUILTINS and name not in known:
            return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = whole_name(node.func, known)
        if node.func.attr in METHODS.split() and not name.startswith("seg_jax."):
            return True
    if isinstance(node, ast.Attribute | ast.Name):
        name = whole_name(node, known)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in FUNCTIONS.split())
    return False


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the parts of a node that run; annotations of types do not."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            values = value if isinstance(value, list) else [value]
            yield from (one for one in values if isinstance(one, ast.AST))


def places(source: str) -> Iterator[tuple[str, bool]]:
    """Yields the functions of a file, nested ones by `outer.inner`, and whether each has a door.

    What stands outside of functions is the place "module".
    """
    tree = ast.parse(source)
    known = origins(tree)

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, bool]]:
        has = False
        for child in executed(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = child.name if name == "module" else f"{name}.{child.name}"
                yield from visit(child, inner)
            elif not isinstance(child, ast.Import | ast.ImportFrom):
                has |= is_door(child, known)
                for _, below in visit(child, name):
                    has |= below
        yield name, has

    found: dict[str, bool] = {}
    for name, has in visit(tree, "module"):
        found[name] = found.get(name, False) or has
    yield from found.items()


def doors(source: str) -> set[str]:
    return {name for name, has in places(source) if has}


def listed() -> dict[str, list[tuple[set[str], list[str]]]]:
    """Returns the rows of each table of the list, by the heading above: places, other cells."""
    found: dict[str, list[tuple[set[str], list[str]]]] = {}
    heading = ""
    for line in GUARDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("|") and "`" in line.split("|")[1]:
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            row = set()
            for file, names in re.findall(r"`([\w/]+\.py)`:((?: ?`[\w.]+`,?)+)", first):
                row |= {f"{file}:{name}" for name in re.findall(r"`([\w.]+)`", names)}
            found.setdefault(heading, []).append((row, cells))
    return found


def every_place() -> dict[str, bool]:
    """Returns the functions of the package, and whether each has a door."""
    return {
        f"{path.relative_to(PACKAGE).as_posix()}:{name}": has
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, has in places(path.read_text(encoding="utf-8"))
    }


def test_every_door_is_listed_and_every_listed_door_is_there():
    named = set().union(*(row for row, _ in listed()["Doors"]))
    found = {place for place, has in every_place().items() if has}
    assert found - named == set(), "do: list them in seg_jax/GUARDS.md, each with its guard"
    assert named - found == set(), "do: remove them from seg_jax/GUARDS.md"


def test_readers_of_our_own_are_there():
    named = set().union(*(row for row, _ in listed()["Readers of our own"]))
    assert named - every_place().keys() == set(), "do: correct seg_jax/GUARDS.md"


def test_every_row_has_its_cells():
    for heading, rows in listed().items():
        for row, cells in rows:
            assert row, f"{heading}: expected places as `file.py`: `function`"
            assert len(cells) == 2, row
            assert all(cells), f"{sorted(row)}: expected what comes in, and its guard"


@pytest.mark.parametrize(
    "source",
    [
        "def f(p): return open(p)",
        "def f(p): return p.open()",
        "def f(p): return p.read_text()",
        "def f(p): return Path(p).read_bytes()",
        "from PIL import Image\ndef f(p): return Image.open(p)",
        "def f(p):\n    from PIL import Image as I\n    return I.open(p)",
        "import PIL.Image\ndef f(p): return PIL.Image.open(p)",
        "import json\ndef f(p): return json.loads(p)",
        "import json\ndef f(p): return list(map(json.loads, p))",
        "from json import loads as read\ndef f(p): return read(p)",
        "import numpy as np\ndef f(p): return np.load(p, allow_pickle=True)",
        "import cv2\ndef f(p): return cv2.imdecode(p, 1)",
        "import subprocess as s\ndef f(p): return s.run(p)",
        "import os\ndef f(p): os.system(p)",
        "import os\ndef f(p): os.execvp(p, [])",
        "from urllib.request import urlopen\ndef f(p): return urlopen(p)",
        "import urllib.request\ndef f(p): return urllib.request.build_opener()",
        "import socket\ndef f(p): return socket.create_connection(p)",
        "import http.server\ndef f(p): return http.server.HTTPServer(p, None)",
        "import pickle\ndef f(p): return pickle.Unpickler(p).load()",
        "import yaml\ndef f(p): return yaml.safe_load(p)",
        "import tarfile\ndef f(p): tarfile.open(p).extractall()",
        "import zipfile\ndef f(p): zipfile.ZipFile(p)",
        "def f(p): return eval(p)",
        "def f(p): exec(compile(p, p, 'exec'))",
        "import importlib\ndef f(p): return importlib.import_module(p)",
        "import runpy\ndef f(p): return runpy.run_path(p)",
        "import jinja2\ndef f(p): return jinja2.Template(p)",
        "from jinja2.sandbox import SandboxedEnvironment\ndef f(p): return SandboxedEnvironment()",
        "import transformers\ndef f(p): return transformers.AutoModel.from_pretrained(p)",
        "def f(kind, p): return kind.from_pretrained(p)",
        "from tokenizers import Tokenizer\ndef f(p): return Tokenizer.from_file(p)",
        "from safetensors import safe_open\ndef f(p): return safe_open(p, 'np')",
        "import orbax.checkpoint as ocp\ndef f(p): return ocp.PyTreeCheckpointer().restore(p)",
        "import ctypes\ndef f(p): return ctypes.CDLL(p)",
        "import torch\ndef f(p): return torch.load(p)",
        "import xml.etree.ElementTree as E\ndef f(p): return E.parse(p)",
        "import gzip\ndef f(p): return gzip.open(p)",
    ],
)
def test_a_new_door_is_found(source):
    assert doors(source) == {"f"}


@pytest.mark.parametrize(
    "source",
    [
        "from seg_jax import files\ndef f(p): return files.read_bytes(p)",
        "from seg_jax.data import image_files\ndef f(p): return image_files.read(p)",
        "import json\ndef f(p): return json.dumps(p)",
        "import re\ndef f(p): return re.compile(p)",
        "import subprocess\ndef f(p): raise subprocess.SubprocessError",
        "from PIL import Image\ndef f(p): return Image.fromarray(p)",
        "class A:\n    def open(self): ...\ndef f(p): return A.open(p)",
        "import socket\ndef f(p: socket.socket) -> socket.socket:\n    x: socket.socket = p",
    ],
)
def test_what_lets_nothing_in_is_no_door(source):
    assert doors(source) == set()


def test_places_have_the_names_of_classes_and_functions_around_them():
    source = "class A:\n    def f(self):\n        def g(): open(1)\nopen(2)\nh = lambda: open(3)"
    assert doors(source) == {"A.f.g", "module"}
