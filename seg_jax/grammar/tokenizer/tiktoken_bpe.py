"""Tokenizers that come as a table of ranks (`tiktoken.model`), Moonshot's among them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from seg_jax.grammar.tokenizer import byte_level

FILE = "tiktoken.model"
CLASSES = ("TikTokenTokenizer", "TikTokenV3")
"""What Moonshot's tokenizers call themselves (`tokenizer_class`), and those made from them."""
MOST_TOKEN = 1000
"""Bytes of a token, which is looked through for its parts at every place; known ones have 128."""
RESERVED = 256
"""Ids after the last rank that are special tokens, named or not."""

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_HIGH = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOW = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_HIGH}*{_LOW}+{_ENDINGS}",
        f"{_BEFORE}{_HIGH}+{_LOW}*{_ENDINGS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Where Moonshot's tokenizers cut a text before they merge bytes; no file of theirs holds it but
the code that comes with them, which is never run. Source: the published checkpoints."""


def definition(table: str, config: Mapping[str, Any]) -> str:
    """Returns the tokenizer.json that does what a table of ranks does.

    Bytes are merged as tiktoken merges them: of all neighbours whose bytes together have a rank,
    those of the lowest rank first, the leftmost of these first.

    Args:
      table: the file, a line for each token: its bytes in base64, a space and its rank.
      config: the tokenizer_config.json beside it: `added_tokens_decoder` names special tokens by
        their ids, the others up to `num_reserved_special_tokens` are called by their number.

    Raises:
      ValueError: the table is damaged, or the tokenizer cuts texts in a way that is not known.

    Differs: where two ways to make one token overlap, the one of the shorter left part goes first
    rather than the one on the left. Random tables and texts have not shown a case.
    """
    kind = config.get("tokenizer_class")
    if kind not in CLASSES:
        raise ValueError(
            f"tiktoken_bpe.definition: expected a tokenizer_class of {', '.join(CLASSES)} beside "
            f"{FILE}, got {kind!r}; do: give a tokenizer.json, for how this one cuts texts is not "
            "known"
        )
    ranks = _ranks(table)
    names = {byte: character for character, byte in byte_level.byte_of().items()}

    def written(token: bytes) -> str:
        return token.decode("latin-1").translate(names)

    parts = (pair for token in ranks for pair in _merge_pairs(token, ranks))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {written(token): rank for token, rank in ranks.items()},
        "merges": [[written(left), written(right)] for left, right in parts],
    }
    cut = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level |= {"use_regex": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special_tokens(len(ranks), config),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False)


def _ranks(table: str) -> dict[bytes, int]:
    """Returns the tokens of a table in the order of their ranks, which are 0, 1, 2, ..."""
    ranks = {}
    for number, line in enumerate(table.splitlines(), 1):
        try:
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"tiktoken_bpe: expected a token in base64 and its rank in line {number} of "
                f"{FILE}, got {line[:40]!r}; do: fetch the file again"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or b"" in ranks:
        raise ValueError(
            f"tiktoken_bpe: expected ranks from 0 on without gaps in {FILE}, got {len(ranks)} "
            "tokens of others; do: fetch the file again"
        )
    if (longest := max(map(len, ranks), default=0)) > MOST_TOKEN:
        raise ValueError(
            f"tiktoken_bpe: expected tokens of at most {MOST_TOKEN} bytes in {FILE}, got one of "
            f"{longest}; do: fetch the file again"
        )
    if lost := sum(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(
            f"tiktoken_bpe: expected a rank for each of the 256 bytes in {FILE}, got none for "
            f"{lost}; do: fetch the file again"
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _merge_pairs(token: bytes, ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pairs of tokens that merge into a token."""
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        if left in ranks and right in ranks:
            yield left, right


def _special_tokens(base: int, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the special tokens, whose ids follow the last rank without a gap.

    All are special, whatever the config says of some: tiktoken knows no others.
    """
    found = config.get("added_tokens_decoder") or {}
    reserved = config.get("num_reserved_special_tokens", RESERVED)
    try:
        named = {int(number): token["content"] for number, token in found.items()}
        "".join(named.values())  # Fails for what is no text.
        end = max([base + int(reserved), *(number + 1 for number in named)])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "tiktoken_bpe: expected added_tokens_decoder with the content of each token, got "
            f"{error!r}; do: copy the tokenizer_config.json that belongs to the tokenizer"
        ) from error
    begin = min(named, default=base)
    if begin < base or end > 2 * base + 10_000 or len({*named.values()}) < len(named):
        raise ValueError(
            f"tiktoken_bpe: expected special tokens of different names from {base} on, after the "
            f"last rank of {FILE}, got {begin} to {end - 1}; do: copy the config that belongs to it"
        )
    texts = [named.get(number, f"<|reserved_token_{number}|>") for number in range(base, end)]
    same = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": base + place, "content": text, **same, "special": True}
        for place, text in enumerate(texts)
    ]
