"""A small tokenizer of CLIP's form, as transformers saves it, learnt from a few sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from seg_jax.grammar.tokenizer import byte_level

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def make(folder: Path, corpus: Iterable[str], *, merges: int = 150) -> Any:
    """Writes the tokenizer's files; returns transformers' tokenizer.

    The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, start and end.
    """
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=512 + merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    learnt = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    letters = sorted(byte_level.byte_of())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, learnt)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    found = transformers.CLIPTokenizer(vocab=vocabulary, merges=learnt, model_max_length=77)
    found.save_pretrained(folder)
    return found
