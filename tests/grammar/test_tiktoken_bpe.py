"""Tokenizers from a table of ranks against tiktoken itself, whole and damaged."""

import base64
import json
import pickle
import random

import moonshot
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens

ATOMS = [
    "0",
    "1",
    "371",
    "0.5",
    "[",
    "]]",
    "]].",
    ", ",
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "-",
    "a",
    "A",
    "é",
    "ß",
    "ǅ",
    "ʰ",
    "e\u0301",
    "\u0301",
    "'s",
    "'S",
    "'\u017f",
    "'ll",
    "'",
    "don't",
    "汉",
    "漢字",
    "ひら",
    "カナ",
    "한",
    "\u0627",
    "٣",
    "½",
    "🦊",
    "👩‍🚀",
    "<|im_end|>",
    "<|im_",
    "[EOS]",
    "\u00a0",
    "\u3000",
    "\u0085",
    "\u2028",
    "\ufeff",
    "\x00",
    "_",
    "The",
    "XML",
    "iPhone",
]


def oracle(found, tokenizer):
    """Returns tiktoken's own encoding of a table with the same special tokens."""
    special = tokenizer.special
    return tiktoken.Encoding(
        "oracle", pat_str=tiktoken_bpe.PATTERN, mergeable_ranks=found, special_tokens=special
    )


def assert_same(tokenizer, encoding, text):
    plain = tokenizer.encode(text)
    assert plain == encoding.encode(text, disallowed_special=()), text
    assert b"".join(tokenizer.pieces[token] for token in plain) == text.encode()
    assert tokenizer.decode(plain) == text
    whole = tokenizer.encode(text, special=True)
    assert whole == encoding.encode(text, allowed_special="all"), text
    assert tokenizer.decode(whole, special=True) == text


@given(text=st.one_of(st.text(), st.lists(st.sampled_from(ATOMS)).map("".join)))
def test_any_text_is_cut_and_merged_as_by_tiktoken(moonshots, text):
    _, found, tokenizer = moonshots
    assert_same(tokenizer, oracle(found, tokenizer), text)


def test_answers_and_long_runs_too(moonshots, answers):
    _, found, tokenizer = moonshots
    encoding = oracle(found, tokenizer)
    runs = [2000 * atom for atom in (" ", "\n", "7", "a", "汉", "]", "🦊", "é", " a", "'s")]
    for text in [*(text for text, _ in answers(2000, digits=3)), *runs, *chat.sentences([])]:
        assert_same(tokenizer, encoding, text)
    cut = tokenizer.encode("[[0.371, 0.500]")
    assert len(cut) == 10, "three digits are a token"
    assert tokenizer.decode(cut[3:4]) == "371"


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_tables_of_any_kind(letters, tmp_path):
    rng = random.Random(len(letters))

    def word(most):
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, most)))

    for trial in range(12):
        found = moonshot.table([word(40) for _ in range(100)], 256 + rng.randint(1, 60))
        if trial % 3 == 1:  # Ranks in any order.
            found = dict(zip(found, rng.sample(range(len(found)), len(found)), strict=True))
        elif trial % 3 == 2:  # Any pieces, made of others with a rank or not.
            pieces = dict.fromkeys([*found][:256] + [word(7).encode() for _ in range(40)])
            found = {piece: rank for rank, piece in enumerate(pieces)}
        tokenizer = tokens.Tokenizer.load(moonshot.write(tmp_path / str(trial), found))
        encoding = oracle(found, tokenizer)
        for _ in range(200):
            assert_same(tokenizer, encoding, word(40))


def test_bytes_that_are_no_text(moonshots):
    _, found, tokenizer = moonshots
    encoding, rng = oracle(found, tokenizer), random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(found)) for _ in range(rng.randint(0, 20))]
        data = b"".join(tokenizer.pieces[token] for token in ids)
        assert data == encoding.decode_bytes(ids)
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace")
    assert tokenizer.decode(tokenizer.encode("x\ud800y")) == "x?y"


def test_special_tokens_are_those_of_the_config(moonshots):
    folder, found, tokenizer = moonshots
    base = len(found)
    for place, name in moonshot.NAMED.items():
        assert tokenizer.special[name] == base + place
        assert tokenizer.encode(name, special=True) == [base + place]
        assert base + place not in tokenizer.encode(name)
        assert tokenizer.pieces[base + place] is None
    assert tokenizer.special[f"<|reserved_token_{base + 5}|>"] == base + 5
    assert tokenizer.vocab_size == base + moonshot.RESERVED
    assert tokenizer.image_id == tokenizer.id("<|media_pad|>")
    assert tokenizer.pad_id == tokenizer.id("[PAD]")
    assert tokenizer.eos_id == tokenizer.id("[EOS]")
    # A chat never has eos_token: turns end otherwise.
    assert tokenizer.end_id == tokenizer.id("<|im_end|>")
    config = json.loads((folder / tokens.CONFIG).read_text())
    del config["num_reserved_special_tokens"]
    text = tiktoken_bpe.definition((folder / tiktoken_bpe.FILE).read_text(), config)
    assert tokens.Tokenizer(text, config).vocab_size == base + 256


def test_it_travels_to_other_processes(moonshots):
    _, _, tokenizer = moonshots
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "".join(ATOMS)
    assert copy.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert copy.end_id == tokenizer.end_id


def test_a_tokenizer_json_beside_it_is_read_first(moonshots, whole, tmp_path):
    folder, _, _ = moonshots
    (tmp_path / tiktoken_bpe.FILE).write_bytes((folder / tiktoken_bpe.FILE).read_bytes())
    for name in (tokens.TOKENS, tokens.CONFIG):
        (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
    assert tokens.Tokenizer.load(tmp_path).special == whole[1].special


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: lines[:100], "expected a rank for each of the 256 bytes"),
        (lambda lines: [*lines[:300], "!!! 300", *lines[301:]], "in line 301 of tiktoken.model"),
        (lambda lines: [*lines[:300], "YQ==", *lines[301:]], "in line 301 of tiktoken.model"),
        (lambda lines: [*lines[:300], "YWJj x", *lines[301:]], "in line 301 of tiktoken.model"),
        (lambda lines: [*lines[:300], *lines[301:]], "ranks from 0 on without gaps"),
        (lambda lines: [*lines, lines[-1].split()[0] + " 9999"], "ranks from 0 on without gaps"),
        (lambda lines: [*lines[:-1], lines[-1][:5]], r"in line \d+ of tiktoken.model, got"),
        (lambda lines: [], "expected a rank for each of the 256 bytes"),
        (lambda lines: ["\ufffd" * 9], "in line 1 of tiktoken.model"),
        (lambda lines: [*lines, "YWJj" * 9999 + f" {len(lines)}"], "tokens of at most 1000 bytes"),
    ],
)
def test_damaged_tables_give_one_clear_error(moonshots, tmp_path, change, word):
    folder, _, _ = moonshots
    lines = change((folder / tiktoken_bpe.FILE).read_text().splitlines())
    (tmp_path / tiktoken_bpe.FILE).write_text("\n".join(lines))
    (tmp_path / tokens.CONFIG).write_bytes((folder / tokens.CONFIG).read_bytes())
    with pytest.raises(ValueError, match=word) as caught:
        tokens.Tokenizer.load(tmp_path)
    assert "; do: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"tokenizer_class": "QWenTokenizer"}, "expected a tokenizer_class of TikTokenTokenizer"),
        ({"tokenizer_class": None}, "got None; do: give a tokenizer.json"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "expected added_tokens_decoder with"),
        ({"added_tokens_decoder": {"900": "y"}}, "expected added_tokens_decoder with"),
        ({"added_tokens_decoder": [3]}, "expected added_tokens_decoder with"),
        ({"added_tokens_decoder": {"3": {"content": "y"}}}, "special tokens of different names"),
        ({"added_tokens_decoder": {"2147483647": {"content": "y"}}}, "special tokens of different"),
        ({"added_tokens_decoder": {}}, r"expected the token '\[PAD\]' in the vocabulary"),
        ({"num_reserved_special_tokens": "many"}, "expected added_tokens_decoder with"),
        ({"num_reserved_special_tokens": float("inf")}, "expected added_tokens_decoder with"),
        ({"num_reserved_special_tokens": 10**12}, "special tokens of different"),
        ({"pad_token": None}, r"expected pad_token in tokenizer_config\.json, got none"),
    ],
)
def test_configs_that_do_not_fit(moonshots, tmp_path, entries, word):
    folder, _, _ = moonshots
    config = json.loads((folder / tokens.CONFIG).read_text()) | entries
    (tmp_path / tiktoken_bpe.FILE).write_bytes((folder / tiktoken_bpe.FILE).read_bytes())
    (tmp_path / tokens.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=word) as caught:
        tokens.Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "; do: " in str(caught.value)


def test_a_table_can_be_read_by_tiktoken_as_it_is_written(moonshots):
    folder, found, _ = moonshots
    lines = (folder / tiktoken_bpe.FILE).read_bytes().splitlines()
    assert {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines} == found
