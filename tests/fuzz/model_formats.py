"""Formats of models, tokenizers, templates and answers, with what reads them (fuzzer's helper)."""

from __future__ import annotations

import functools
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byte_mutations
import container_mutations
import json_mutations
import moonshot
from harness import Format

from seg_jax.data import sources
from seg_jax.evaluation.referring import judging, protocols, tables, text4seg
from seg_jax.evaluation.referring.answers import Saved
from seg_jax.grammar import chat, outline
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.inference import bundle
from seg_jax.models import families
from seg_jax.models.io import safetensors, torch_archive
from seg_jax.records import Kind
from seg_jax.runs import experiments, protocol
from seg_jax.tasks.referring import Referring, draw

_JSON = json_mutations.mutated_json
_LINES = json_mutations.mutated_lines


def _make_safetensors(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    some = {"a.weight": rows, "a.bias": rows[0], "scale": np.array(3, np.float16)}
    save_file(some, folder / safetensors.WHOLE, {"format": "pt"})


def _make_index(folder: Path) -> None:
    _make_safetensors(folder)
    (folder / safetensors.WHOLE).rename(folder / "one.safetensors")
    names = dict.fromkeys(("a.weight", "a.bias", "scale"), "one.safetensors")
    index = {"metadata": {"total_size": 124}, "weight_map": names}
    (folder / safetensors.INDEX).write_text(json.dumps(index))


_PICKLE = (
    b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n"
    b"FloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtRX\x05\0\0\0epochK\x03u."
)
"""What torch.save writes of a tensor of two rows and three columns, and of a number."""


def _make_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", _PICKLE)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(24))


def _read_archive(folder: Path) -> None:
    found = torch_archive.Archive(folder / "weights.pt")
    for name in found.names():
        for _, block in found.blocks(name):
            block.tobytes()


def _read_safetensors(folder: Path) -> None:
    found = safetensors.open_folder(folder)
    for name in found.names():
        for _, block in found.blocks(name):
            block.tobytes()


_TALK = [
    {"role": "system", "content": "Outline what you are asked for."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the red star"}]},
]


def _read_tokenizer(folder: Path) -> None:
    """Uses a tokenizer for all that a run does with one."""
    tokenizer = Tokenizer.load(folder)
    text = tokenizer.render(_TALK, add_generation_prompt=True)
    ids = tokenizer.encode(f"{text} [[0.1, 0.25]] \ud800\u4e2d", special=True)
    tokenizer.decode(ids)
    tokenizer.pieces  # noqa: B018
    tokenizer.end_id  # noqa: B018
    tokens.whole_decimals(tokenizer)
    tokens.number_table(tokenizer)


def _make_tokenizer(folder: Path) -> None:
    tokens.train(chat.sentences(["the red star"]), folder=folder, vocab_size=300)


def _make_ranks(folder: Path) -> None:
    moonshot.write(folder, moonshot.table(chat.sentences(["the red star"]), 290))


def _make_template(folder: Path) -> None:
    _make_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(tokens.CHAT_TEMPLATE)


_JINJA = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    "|",
    ".",
    "[",
    "]",
    "(",
    ")",
    "~",
    "**",
    "*",
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{% if a %}",
    "{% endif %}",
    "{% else %}",
    "{% set x = namespace(a=1) %}",
    "{% set x.a = x.a * 2 %}",
    "{% macro m(a) %}",
    "{% endmacro %}",
    "{{ m(m) }}",
    "{% raw %}",
    "{% include 'x' %}",
    "{% import '/etc/passwd' as y %}",
    "{{ messages | tojson(indent=9) }}",
    "{{ 'a' * 10**9 }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ [0] * 999999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ range(10**9)|list }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ self }}",
    "{{ cycler.__init__ }}",
    "{{ lipsum(n=9999) }}",
    "{{ raise_exception('\\x1b]0;OWNED\\x07') }}",
    "{{ raise_exception(messages) }}",
    "{% break %}",
    "{{ strftime_now('%Y' * 9999) }}",
    "{{ messages|map('upper')|join }}",
    "{{ 1/0 }}",
    "{{ a.b.c }}",
    "{{ 'a'.center(999999999) }}",
    "{{ 'a'|indent(999999999) }}",
    "{{ 'ab'.replace('', 'c'*99999) }}",
    "{{ messages|batch(10**9, 1)|list }}",
    "{% for a in messages recursive %}",
    "{{ loop(messages) }}",
    "{{ ('a'*9999)|wordwrap(1) }}",
    "{{ 'a'|format(1) }}",
    "{{ 1e999|int }}",
    "{{ '\\ud800' }}",
    "{{ 'a'.join(range(9999999)) }}",
    "{{ '9'*5000|int }}",
    "{{ ('9'*99999)|int }}",
    "messages",
    "message",
    "content",
    "role",
    "text",
    "item",
    "loop.index",
    "namespace",
    "dict",
)


def _mutated_template(data: bytes, rng: random.Random) -> bytes:
    """Returns a template with whole statements put between others, or with changed words."""
    if rng.random() < 0.5:
        return byte_mutations.mutated_text(data, rng, _JINJA)
    parts = re.split(r"(?=\{[{%])", data.decode())
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(parts) + 1)
        match rng.randrange(4):
            case 0:
                a, b = (
                    rng.choice((1, 2, 10, 10, 30, 99_999)),
                    rng.choice(("", "x", "{{ message }}")),
                )
                loop = f"{{% for a in range({a}) %}}" * rng.choice((1, 2, 3))
                parts.insert(place, loop + b + "{% endfor %}" * loop.count("for"))
            case 1:
                other = rng.randrange(len(parts) + 1)
                parts[place:place] = parts[min(place, other) : max(place, other)]
            case 2:
                del parts[place : place + 1]
            case _:
                parts.insert(place, rng.choice([one for one in _JINJA if one.endswith("}}")]))
    return "".join(parts).encode()


_TOKENIZERS = (
    Format(
        name="safetensors",
        make=_make_safetensors,
        mutations={"*": container_mutations.mutated_safetensors},
        read=_read_safetensors,
    ),
    Format(
        name="torch_archive",
        make=_make_archive,
        mutations={"*": container_mutations.mutated_archive},
        read=_read_archive,
    ),
    Format(
        name="index",
        make=_make_index,
        mutations={"*.json": _JSON},
        read=_read_safetensors,
    ),
    Format(
        name="tokenizer",
        make=_make_tokenizer,
        mutations={"*.json": _JSON},
        read=_read_tokenizer,
        may_start=True,
    ),
    Format(
        name="tiktoken",
        make=_make_ranks,
        mutations={
            tiktoken_bpe.FILE: byte_mutations.mutated_text,
            "tokenizer_config.json": _JSON,
        },
        read=_read_tokenizer,
        may_start=True,
    ),
    Format(
        name="template",
        make=_make_template,
        mutations={"*.jinja": _mutated_template},
        read=_read_tokenizer,
        may_start=True,
    ),
)


def _make_bundle(folder: Path) -> None:
    import tiny_folders

    from seg_jax.data.encode import Layout

    tiny_folders.make("qwen2_5_vl", folder)
    layout = Layout(patch=6, max_patches=64, min_pixels=144, max_pixels=2304)
    bundle.write_manifest(folder, layout, Referring())
    for path in folder.glob("*.safetensors"):
        path.unlink()


def _make_hub(folder: Path) -> None:
    import tiny_folders

    for kind in tiny_folders.KINDS:
        tiny_folders.make(kind, folder / kind)
        for path in (folder / kind).glob("*.safetensors"):
            path.unlink()


def _read_bundle(folder: Path) -> None:
    """Reads all small files of a model that was trained here."""
    bundle.blank(folder)
    bundle.own_task(folder)


def _read_hub(folder: Path) -> None:
    """Reads how three published models are built, and how they cut images."""
    for one in folder.iterdir():
        families.noted_dtype(one)
        bundle.describe(one)


_MODELS = (
    Format(
        name="bundle",
        make=_make_bundle,
        mutations={
            "config.json": _JSON,
            "seg_jax.json": _JSON,
            "generation_config.json": _JSON,
        },
        read=_read_bundle,
        may_start=True,
        batch=5000,
    ),
    Format(
        name="hub",
        make=_make_hub,
        mutations={"*/config.json": _JSON, "*/preprocessor_config.json": _JSON},
        read=_read_hub,
        may_start=True,
    ),
)

_ANSWERS = (
    b"[[[0.10, 0.20], [0.90, 0.20], [0.55, 0.88]], [[0.2, 0.3], [0.4, 0.3], [0.4, 0.5]]].",
    b"It is at [0.25, 0.5], I think.",
    b"The box [0.1, 0.2, 0.8, 0.9] holds it [sic].",
    b"There is none: [].",
)
_PIECES = (
    "[",
    "]",
    "[[",
    "]]",
    "[[[",
    "]]]",
    ",",
    ".",
    "-",
    "[]",
    "0.5",
    "1",
    "0.999",
    ", [",
    "1e9",
)


def _make_answers(folder: Path) -> None:
    for number, text in enumerate(_ANSWERS):
        (folder / f"{number}.answer").write_bytes(text)


def _read_answer(folder: Path) -> None:
    """Reads what a model wrote in every way that answers are read."""
    (path,) = folder.iterdir()
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    for kind in Kind:
        outline.read(text, kind, rings=3, points=50)
        draw(text, kind, (30, 40))
    text4seg.answer(text4seg.polygons(text), 30, 40)


def _mutated_answer(data: bytes, rng: random.Random) -> bytes:
    out = byte_mutations.mutated_text(data, rng, _PIECES)
    return out.decode("utf-8", "replace").encode()


@functools.cache
def _asking(name: protocols.Name = "res") -> protocol.Asking:
    scenes = experiments.load("simpleseg/nano_sft.py").scenes(seed=1)
    source = sources.Scenes(world=scenes.world, style=scenes.style, seed=1, count=2)
    return protocol.Asking(
        protocol=protocols.PROTOCOLS[name], source=source, task=Referring(), form=0, seed=0
    )


@functools.cache
def _questions() -> list[protocols.Question]:
    return list(_asking().questions())


def _make_saved(folder: Path) -> None:
    lines, asking = [], _asking()
    for question in _questions():
        line: dict[str, Any] = {"key": question.sample.key, "which": question.which}
        line |= {"given": question.given, "kind": "mask", "phrase": question.phrase}
        lines.append(line | {"text": _ANSWERS[0].decode(), "tokens": 40})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / protocol.ANSWERS).write_text(text)
    rows = [
        judging.judge(asking.protocol, question, _ANSWERS[0].decode(), tokens=40)
        for question in asking.questions()
    ]
    summary = protocol.numbers(rows, asking, model="m", split="refcoco-val")
    (folder / protocol.SUMMARY).write_text(json.dumps(summary))


def _read_saved(folder: Path) -> Iterator[str]:
    """Judges saved answers, and puts the numbers of another evaluation into a table."""
    saved = Saved(folder / protocol.ANSWERS)
    for question, text, used in saved(_questions()):
        judging.judge(protocols.PROTOCOLS["res"], question, text, tokens=used)
    summary = protocol.read(folder)
    yield from tables.markdown({str(summary["model"]): [summary]}).splitlines()


_TEXTS = (
    Format(
        name="answer",
        make=_make_answers,
        mutations={"*": _mutated_answer},
        read=_read_answer,
        alone=True,
        batch=5000,
        may_refuse=False,
    ),
    Format(
        name="answers",
        make=_make_saved,
        mutations={"*.jsonl": _LINES, "*.json": _JSON},
        read=_read_saved,
        batch=5000,
    ),
)

FORMATS = {form.name: form for form in (*_TOKENIZERS, *_MODELS, *_TEXTS)}
