"""Sentences as rows of tokens of one length, as towers of texts read them.

Axes here: `N` sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seg_jax import files
from seg_jax.grammar.tokenizer import byte_level
from seg_jax.grammar.tokenizer.tokens import CONFIG, TOKENS, Tokenizer


class Rows(NamedTuple):
    """Sentences as tokens."""

    ids: Int[np.ndarray, "N T"]
    cut: int
    """How many sentences were too long: their last tokens are missing, the end is not."""


def rows(tokenizer: Tokenizer, texts: Sequence[str], *, length: int) -> Rows:
    """Returns sentences between a start and an end token, filled up behind it.

    What the tokenizer's files do to a text is done (CLIP's: one space for several, lower case).

    Differs: names of special tokens within a text are plain text, where CLIP's own tokenizers take
    them for the tokens; OpenAI's also mends broken encodings and HTML, which is left as it is.

    Args:
      tokenizer: has a token that begins texts (`bos_token`) and one that ends them (`eos_token`).
      texts: of any length.
      length: tokens of a row.

    Raises:
      ValueError: the tokenizer has no such tokens, or cannot cut a text.
    """
    if length < 2:
        raise ValueError(f"length: expected room for start and end, got {length}; do: give more")
    start, end, cut = tokenizer.bos_id, tokenizer.eos_id, 0
    ids = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    for row, text in zip(ids, texts, strict=True):
        found = tokenizer.encode(text)
        cut += len(found) > length - 2
        whole = [start, *found[: length - 2], end]
        row[: len(whole)] = whole
    return Rows(ids, cut)


_START, _END = "<|startoftext|>", "<|endoftext|>"
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(corpus: Iterable[str], *, folder: Path, vocab_size: int = 1024) -> Tokenizer:
    """Makes a small tokenizer of CLIP's form and saves it as transformers' `CLIPTokenizer` does.

    The end token has the largest id, as in CLIP's own vocabulary.

    Args:
      corpus: sentences as they are to be read.
      folder: where tokenizer.json and tokenizer_config.json go.
      vocab_size: at most so many tokens, start and end aside.

    Raises:
      ValueError: there is no room for bytes, and bytes that end words.
    """
    from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    if vocab_size < 512:
        raise ValueError(
            f"tokenizer: expected a vocab_size of at least 512 for bytes, got {vocab_size}; do: "
            "raise it"
        )
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(byte_level.byte_of())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    model = files.parse_json(backend.to_str(), where="tokenizer")["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    entries = [*letters, *(f"{one}</w>" for one in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    backend.model = models.BPE(
        vocab=vocabulary,
        merges=merges,
        end_of_word_suffix="</w>",
        unk_token=None,
    )
    backend.add_special_tokens([_START, _END])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENS))
    named = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    files.write_json(folder / CONFIG, {"tokenizer_class": "CLIPTokenizer"} | named)
    return Tokenizer.load(folder)
