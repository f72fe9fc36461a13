"""What Moonshot's checkpoints have: tokenizer files, here small ones, a way to cut images."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from seg_jax.grammar.tokenizer import byte_level, tiktoken_bpe, tokens

NAMED = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "[UNK]",
    23: "[PAD]",
}
"""Special tokens by their place after the last rank; the gaps are reserved."""
RESERVED = 24

# Of the same build as the published one, in words of our own.
TEMPLATE = (
    "{%- for turn in messages -%}"
    "{%- if loop.first and messages[0]['role'] != 'system' -%}"
    "{{'<|im_system|>system<|im_middle|>Outline what you are asked for<|im_end|>'}}"
    "{%- endif -%}"
    "{%- for role in ['system', 'user', 'assistant'] -%}"
    "{%- if turn['role'] == role -%}{{'<|im_' + role + '|>'}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- turn['role'] -}}{{'<|im_middle|>'}}"
    "{%- if turn['content'] is string -%}{{- turn['content'] + '<|im_end|>' -}}"
    "{%- else -%}"
    "{%- for part in turn['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{'<|media_start|>image<|media_content|><|media_pad|><|media_end|>'}}"
    "{%- else -%}{{part['text']}}{%- endif -%}"
    "{%- endfor -%}"
    "{{'<|im_end|>'}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<|im_assistant|>assistant<|im_middle|>'}}{%- endif -%}"
)


def table(corpus: Iterable[str], size: int) -> dict[bytes, int]:
    """Returns the ranks of at most `size` tokens learnt from a corpus."""
    from tokenizers import models, pre_tokenizers, trainers

    backend = tokens._backend(models.BPE(), tiktoken_bpe.PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    found = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return {byte_level.token_bytes(token, byte_level=True): rank for token, rank in found}


def write(folder: Path, found: dict[bytes, int], *, kind: str = "TikTokenTokenizer") -> Path:
    """Writes the tokenizer's files of a checkpoint; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in found.items()]
    (folder / tiktoken_bpe.FILE).write_bytes(b"".join(lines))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(len(found) + place): {"content": text, "special": True} | flags
        for place, text in NAMED.items()
    }
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": list(NAMED.values())[2:-2],
        "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "num_reserved_special_tokens": RESERVED,
        "pad_token": "[PAD]",
        "tokenizer_class": kind,
        "unk_token": "[UNK]",
    }
    (folder / tokens.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenization_moonshot.py").write_text("raise SystemExit('this is never run')\n")
    return folder


def patches(
    image: np.ndarray, *, patch: int, merge: int, limit: int, pad: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns an image's patches line by line and how many rows and columns, as Kimi cuts it.

    The published rule, told again with Pillow and torch; torchvision is not needed.
    """
    import torch

    shown = Image.fromarray(image)
    width, height = shown.size
    count = (width // patch) * (height // patch)
    if count > limit:
        scale = math.sqrt(limit / count)
        size = int(width * scale), int(height * scale)
        shown = shown.resize(size, Image.Resampling.BICUBIC)
    cell = patch * merge
    width, height = shown.size
    if pad:
        shown = ImageOps.expand(shown, (0, 0, -width % cell, -height % cell), fill=0)
    else:
        left, top = round(width % cell / 2), round(height % cell / 2)
        box = left, top, left + width // cell * cell, top + height // cell * cell
        shown = shown.crop(box)
    pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
    cut = pixels.unfold(1, patch, patch).unfold(2, patch, patch)
    rows, columns = cut.shape[1:3]
    return cut.permute(1, 2, 0, 3, 4).reshape(rows * columns, -1).numpy(), (rows, columns)
