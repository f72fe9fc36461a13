"""Patterns of tokenizer.json: published ones are taken, those of unbounded time are not."""

import json

import pytest

from seg_jax.grammar.tokenizer import patterns, tiktoken_bpe, tokens

WORD = r"[^\r\n\p{L}\p{N}]?"
HIGH, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k, Llama 3": rf"{CONTRACTED}|{WORD}\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "Qwen": rf"{CONTRACTED}|{WORD}\p{{L}}+|\p{{N}}|{REST}",
    "o200k": rf"{WORD}{HIGH}*{LOW}+{CONTRACTED}?|{WORD}{HIGH}+{LOW}*{CONTRACTED}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p"
    r"{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "numbers in threes": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    "spaces": " {2,}",
    "BLOOM": " ?[^(\\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    "han": r"[\u4e00-\u9fa5\u3040-\u309f]+",
    "Moonshot": tiktoken_bpe.PATTERN,
    "flags": r"(?i)ab+",
}


def definition(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, split]}
    return {"model": {"Regex": "(a+)+"}, "pre_tokenizer": steps}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_published_tokenizers_are_taken(name):
    patterns.check(definition(PUBLISHED[name]))


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


def test_many_patterns_are_refused():
    many = {"normalizer": [{"pattern": {"Regex": "a"}}] * 201}
    with pytest.raises(ValueError, match="expected at most 200 patterns, got 201"):
        patterns.check(many)
