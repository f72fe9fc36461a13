"""Faults that fuzzing has found and no other test, each rebuilt by hand."""

import json
import re
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from seg_jax import checksums, escapes
from seg_jax.cli import convert, main
from seg_jax.data import record_schema, tf_example
from seg_jax.data.build import claims
from seg_jax.data.findings import Findings
from seg_jax.data.formats import conversations, yaml_text
from seg_jax.evaluation.referring import protocols
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens
from seg_jax.models.io import safetensors, torch_archive
from seg_jax.runs import protocol, run_folder

sys.path.append(str(Path(__file__).parents[1] / "models"))
import tiny_vlm

RECORD = record_schema.Record(
    key="a",
    split="train",
    image=b"",
    image_id=1,
    name="a.jpg",
    height=4,
    width=5,
    ids=(1,),
    names=("cup",),
    roles=(record_schema.Role.OBJECT,),
    counts=(b"d0",),
    areas=(20,),
    boxes_px=np.array([[0, 0, 5, 4]], np.float32),
    expressions=(record_schema.Expression(0, "the cup", (0,)),),
)


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("object/role", np.array([64])),
        ("object/box", np.array([1, 2, 3], np.float32)),
        ("object/box", np.array([0, 0, np.nan, 3], np.float32)),
        ("object/box", np.array([0, 0, 3e38, 3], np.float32)),
        ("object/box", [b"\x89PNG\r\n\x1a\n"]),
        ("phrase/text", [b"\xa2"]),
        ("phrase/text", [b"one", b"two"]),
    ],
)
def test_a_stored_feature_of_another_kind_is_one_line(feature, value):
    features = tf_example.decode(record_schema.encode(RECORD))
    assert record_schema.decode(tf_example.encode(features)).key == "a"
    with pytest.raises(ValueError, match=r"^record.*: expected .* got .*; do: build"):
        record_schema.decode(tf_example.encode(features | {feature: value}))


def test_a_list_of_floats_that_ends_within_one_is_one_line():
    whole = tf_example.encode({"a": np.ones(1, np.float32)})
    assert whole == b"\n\x0f\n\r\n\x01a\x12\x08\x12\x06\n\x04\0\0\x80\x3f"
    cut = b"\n\x0e\n\x0c\n\x01a\x12\x07\x12\x05\n\x03\0\0\x80"
    with pytest.raises(
        ValueError, match=r"^record: expected the bytes of an Example, got .*; do: "
    ):
        tf_example.decode(cut)


def test_a_claim_that_is_no_object_is_one_line(tmp_path):
    (tmp_path / claims.CLAIM).write_text("[1]")
    with (
        pytest.raises(ValueError, match=r"claim.json: expected a JSON object, got a list.*; do: "),
        claims.claim_folder(tmp_path, {"name": "folder"}, anew=False),
    ):
        pass


@pytest.mark.parametrize(
    "question",
    ["<ref>" * 18_000, "Where is " * 10_000, "is" * 40_000, "<|object_ref_start|>" * 4000],
)
def test_a_question_takes_time_by_its_length(question):
    """Each mark that nothing closed was looked for up to the end, and each place tried anew."""
    rules = conversations.Rules(questions=("Where is {}?", "is{} here"))
    begin = time.process_time()
    assert conversations.Book(rules, Findings())._phrase(question) == ""
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("Where is the red cup?", "the red cup"),
        ("So: Where is the cup ?", "the cup"),
        ("Where is?", ""),
        ("Where is it", ""),
        ("<ref>a cup</ref>, where?", "a cup"),
    ],
)
def test_what_is_asked_about_stands_between_the_words_of_a_form(question, phrase):
    book = conversations.Book(conversations.Rules(questions=("Where is {}?",)), Findings())
    assert book._phrase(question) == phrase


@pytest.mark.parametrize("text", ["\ud800 cup", "x" * 100_001])
def test_questions_and_labels_that_no_file_holds_are_left_out(text):
    ring = [[0.1, 0.1], [0.4, 0.1], [0.4, 0.3]]
    for asked, label in ((text, "cup"), ("Where?", text)):
        met = Findings()
        answer = json.dumps([{"polygon": ring, "label": label}])
        talk = {"image": "http://[::1/a.jpg", "query": asked, "response": answer}
        book = conversations.Book(conversations.Rules(), met)
        book.add(talk, "a.json, [0]", folders=[Path()])
        assert not book._answers
        (reason,) = met.counts
        assert reason.startswith("answer left out: "), reason


def test_a_mapping_of_many_names_takes_time_by_their_number(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("".join(f"{number:x}:\n" for number in range(30_000)))
    begin = time.process_time()
    assert len(yaml_text.read(path)) == 30_000
    assert time.process_time() - begin < 5
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ValueError, match=r"expected a mapping in YAML, got the name 'a' twice; do"):
        yaml_text.read(path)


@pytest.mark.parametrize("content", [["<|im_end|>"], {"a": 1}, None])
def test_a_special_token_that_is_no_text_is_one_line(content):
    with pytest.raises(ValueError, match="expected added_tokens_decoder with the content of each"):
        tiktoken_bpe._special_tokens(300, {"added_tokens_decoder": {"300": {"content": content}}})


def test_a_named_token_of_half_a_character_is_one_line(tmp_path):
    tokens.train(["a cup"], folder=tmp_path, vocab_size=300)
    path = tmp_path / tokens.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "\ud800"}))
    with pytest.raises(
        ValueError, match=r"expected the token .*ud800' in the vocabulary, got none; do"
    ):
        tokens.Tokenizer.load(tmp_path)


def test_infinitely_many_reserved_tokens_are_one_line():
    with pytest.raises(ValueError, match=r"expected added_tokens_decoder .*; do: "):
        tiktoken_bpe._special_tokens(300, {"num_reserved_special_tokens": float("inf")})


@pytest.mark.parametrize(
    "change",
    [
        {"giou": [1.0]},
        {"giou": {"mean": "0.5", "low": 0.4, "high": 0.6}},
        {"giou": {"mean": 0.5}},
        {"model": None},
        {"questions": "2"},
        {"protocol": {}},
    ],
)
def test_numbers_of_another_evaluation_are_checked(tmp_path, change):
    names = protocols.PROTOCOLS["res"].metrics
    summary = {"model": "m", "split": "s", "protocol": "res", "questions": 2}
    summary |= {name: {"mean": 0.5, "low": 0.4, "high": 0.6} for name in names}
    path = tmp_path / protocol.SUMMARY
    path.write_text(json.dumps(summary))
    assert protocol.read(tmp_path) == summary
    path.write_text(json.dumps(summary | change))
    (name,) = change
    with pytest.raises(ValueError, match=rf"summary.json, {name}.*: expected .*, got .*; do: give"):
        protocol.read(tmp_path)
    path.write_text(json.dumps({name: x for name, x in summary.items() if name != "giou"}))
    with pytest.raises(ValueError, match=r"summary.json, giou: expected .*, got 'nothing'; do: "):
        protocol.read(tmp_path)


@pytest.mark.parametrize("layout", ["abc", [1], 5])
def test_a_record_of_a_run_whose_parts_are_no_objects_is_of_another_run(tmp_path, layout):
    (tmp_path / run_folder.RECORD).write_text(json.dumps({"layout": layout, "task": {"a": 1}}))
    with (
        pytest.raises(ValueError, match=r"expected .*, got .*; do: "),
        run_folder.hold(tmp_path, {"layout": {"a": 1}, "task": {}}, resume=True, anew=False),
    ):
        pass


def test_a_size_of_a_model_that_is_no_number_is_told_with_its_name(tmp_path):
    """In a process of its own: tests check the types of all signatures, users do not."""
    hub = tiny_vlm.config().to_hf()
    for number, size in enumerate(["../../x", {"a": 8}, [8], 8.5]):
        (tmp_path / str(number)).mkdir()
        config = tmp_path / str(number) / "config.json"
        config.write_text(json.dumps(hub | {"vision_start_token_id": size}))
    code = (
        "import sys; from pathlib import Path; from seg_jax.models import families\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: families.read(folder)\n"
        "    except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert re.search(r"/config.json: .*vision_start_token_id: expected .*, got .*; do: ", line)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        json.dumps({"name": "a" * 5000, "nbytes": 1, "xxh3": "0" * 32}),
        json.dumps({"name": "a/" * 100 + "b", "nbytes": 1, "xxh3": "0" * 32}),
        '{"name": ["a"], "nbytes": 1, "xxh3": "0"}',
        '{"name": "config.json", "nbytes": 1e999, "xxh3": "0"}',
        "\udcff\x00",
    ],
    ids=["deep", "a long name", "a path", "a list", "a size", "bytes"],
)
def test_a_line_of_a_journal_that_is_none_of_ours_counts_for_nothing(tmp_path, line):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    config = convert.Config(source=str(source), dest=tmp_path / "dest")
    one = safetensors.Written("model.safetensors", 3, checksums.of_bytes(b"abc"))
    with convert._Partial(config, source) as partial:
        (partial.folder / one.name).write_bytes(b"abc")
        partial.add(one)
    journal = partial.folder / convert.JOURNAL
    journal.write_bytes(journal.read_bytes() + f"{line}\n".encode("utf-8", "surrogateescape"))
    with convert._Partial(config, source) as again:
        assert again.has(one.name)
        assert again.whole_bytes() == 3


def test_a_name_that_no_file_system_holds_is_damage(tmp_path):
    sums = {"a" * 5000: checksums.Sum(bytes=1, xxh3="0" * 32)}
    assert (
        checksums.find_damage(tmp_path, sums)
        == f"{'a' * 5000}: cannot be read (File name too long)"
    )


@pytest.mark.parametrize("entry", [["F32", [2], [0, 8]], {"dtype": "F32", "shape": 2}])
def test_an_entry_of_a_header_that_is_a_list_is_one_line(tmp_path, entry):
    """The library's reader takes a list of the three values for an object."""
    header = json.dumps({"a": entry}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(8)
    (tmp_path / safetensors.WHOLE).write_bytes(data)
    with pytest.raises(ValueError, match=r"model.safetensors.*: expected .* got .*; do: fetch"):
        safetensors.open_folder(tmp_path)


def test_an_error_about_a_long_value_is_cut_where_it_is_printed(monkeypatch, capsys):
    def refuse(*_):
        raise ValueError(f"a.json: expected a name, got {'x' * 100_000}; do: give a short one")

    monkeypatch.setattr(main, "_run", refuse)
    assert main.main(["build"]) == 1
    said = capsys.readouterr().err.strip()
    assert len(said) == escapes.MOST_SHOWN
    assert said.startswith("seg-jax build: a.json: expected a name, got xxx")
    assert "characters in all]" in said
    assert said.removesuffix(" (SEG_JAX_TRACEBACK=1 in the environment shows where)").endswith(
        "; do: give a short one"
    )
    assert json.dumps(escapes.brief("short")) == '"short"'


def test_a_pickle_of_millions_of_instructions_is_refused_unread(tmp_path):
    """Each byte may be an instruction: a pickle of ten million took ten seconds."""
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02)" + b"\x85" * 5_000_000 + b".")
        archive.writestr("archive/data/0", b"")
    with pytest.raises(
        ValueError, match=r"w.pt: expected weights .*, got a pickle of more than 4194304 bytes; do"
    ):
        torch_archive.Archive(tmp_path / "w.pt")
