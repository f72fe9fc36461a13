"""Patterns of tokenizer.json: published ones are taken, those that take long are not."""

import json
import math
import time

import pytest
import tokenizers

from seg_jax.grammar.tokenizer import patterns, tokens

PUBLISHED = patterns.LINEAR | {
    "spaces": " {2,}",
    "BLOOM": " ?[^(\\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    "han": r"[\u4e00-\u9fa5\u3040-\u309f]+",
    "flags": r"(?i)ab+",
}
THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))"
"""Numbers in threes from their end, as some published patterns have it."""


def definition(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, split]}
    return {"model": {"Regex": "(a+)+"}, "pre_tokenizer": steps}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_published_tokenizers_are_taken(name):
    assert patterns.check(definition(PUBLISHED[name])) == patterns.MOST_TEXT


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_published_tokenizers_take_linear_time(name):
    """On what they match late or not at all: a few seconds where the time grew with the square."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(PUBLISHED[name]), "isolated"
    )
    begin = time.process_time()
    for text in (" ", "\n", " \r", "A", "a", "ª", "1", ".", "a ", "A1", "\u4e00"):
        assert backend.encode(text * 20_000).ids == []
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("pattern", "opened"),
    [
        (THREES, 1),
        (r"[\]b]+\.?", 0),
        ("a+a*", 0),
        ("a+b", 1),
        ("(?:a+)?b", 1),
        ("(?:a+|b)c", 1),
        ("(?=a*)x", 1),
        ("(?!a+)b", 1),
        ("(?:ab)*c", 1),
        ("a++b", 1),
        ("a+?b", 1),
        ("(?>a+)b", 1),
        ("a{,4}b", 1),
        ("a{2,}b", 1),
        ("a{1,3}b{3}", 0),
        ("x|a+b|[+]c+d", 2),
    ],
)
def test_texts_for_patterns_of_square_time_are_bounded(pattern, opened):
    most = patterns.check(definition(pattern))
    assert most == (math.isqrt(patterns.MOST_STEPS // opened) if opened else patterns.MOST_TEXT)
    assert opened == 0 or most < 22_361


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(?:a|a)*b",
        "(?:a?){20}b",
        "(?:a|b){30}",
        "(?:(?:a{1,2})){1,2}+",
        "a{1,2}{1,2}",
        "(?>a*)*",
        "(?=(a+)+b)",
        r"(a)\1",
        r"(?<n>a)\k<n>",
        r"(a\g<0>?)",
        "(?(1)a|b)",
        "a*" * 7,
        "(?:a{999}){999}",
        "a" * 20_001,
        "[a(b+)+",
        "((a)",
        "a)+",
        "a+a+[^a]",
        "a*a*a*b",
        "(?:a+b){2}",
        r"\s*[\r\n]+x|\s+",
    ],
)
def test_patterns_of_unbounded_time_are_refused(pattern):
    with pytest.raises(ValueError, match=r"^expected .*patterns .*, got "):
        patterns.check(definition(pattern))
    with pytest.raises(ValueError, match="expected patterns"):
        patterns.check({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*"}}})


def test_a_tokenizer_with_such_a_pattern_is_one_line(single):
    """Each letter could take half a second, in this process, where nothing ends it."""
    folder, _ = single
    whole = json.loads((folder / tokens.TOKENS).read_text())
    steps = whole["pre_tokenizer"]["pretokenizers"]
    steps[0] = {**steps[0], "pattern": {"Regex": "(?:(?:.?){22})X"}}
    config = json.loads((folder / tokens.CONFIG).read_text())
    with pytest.raises(ValueError, match="expected patterns as published") as error:
        tokens.Tokenizer(json.dumps(whole), config)
    assert "\n" not in str(error.value)


def test_what_a_text_costs_is_bounded_before_it_is_cut(single):
    """A chat template could write a text for its own tokenizer's pattern: 17 s at 1,000 letters."""
    folder, tokenizer = single
    whole = json.loads((folder / tokens.TOKENS).read_text())
    steps = whole["pre_tokenizer"]["pretokenizers"]
    steps[0] = {**steps[0], "pattern": {"Regex": "[^x]+[yz]|[^x]+"}}
    whole["normalizer"] = {"type": "NFKC"}
    config = json.loads((folder / tokens.CONFIG).read_text())
    square = tokens.Tokenizer(json.dumps(whole), config)
    assert square.encode("a" * 70)
    for text in ("a" * 22_361, "é" * 12_000, "\ufdfa" * 1000):
        with pytest.raises(ValueError, match=r"^tokenizer: expected a text of at most 22360 char"):
            square.encode(text)
    with pytest.raises(ValueError, match="at most 1000000 characters, .*, got 1000001; do: short"):
        tokenizer.encode("a" * 1_000_001)
    whole["normalizer"] = {"type": "Replace", "pattern": {"Regex": "a+b"}, "content": ""}
    with pytest.raises(ValueError, match="got one in normalizer with parts that may match much"):
        tokens.Tokenizer(json.dumps(whole), config)


@pytest.mark.parametrize("most", [201, -1, "100", 1e9])
def test_words_that_are_looked_up_in_parts_are_bounded(most):
    """A word of 2,000 characters took five seconds."""
    with pytest.raises(ValueError, match="expected max_input_chars_per_word of at most 200, got "):
        patterns.check({"model": {"max_input_chars_per_word": most}})
    assert patterns.check({"model": {"max_input_chars_per_word": 100}}) == 100_000


def test_many_patterns_are_refused():
    many = {"normalizer": [{"pattern": {"Regex": "a"}}] * 201}
    with pytest.raises(ValueError, match="expected at most 200 patterns, got 201"):
        patterns.check(many)
