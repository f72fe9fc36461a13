"""Sentences become the tokens that transformers' `CLIPTokenizer` makes of them."""

import clip_tokenizer
import numpy as np
import pytest

from seg_jax.grammar.tokenizer import sentences
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.scenes import contrasts

LENGTH = 24


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Returns all that cases say, in several wordings, and what people may write."""
    said = []
    for seed in range(36):
        for claim in contrasts.make(contrasts.Config(side=32), seed).claims:
            said += contrasts.wordings(claim)
    return [
        *dict.fromkeys(said),
        "",
        " ",
        "\t\n  \u00a0 ",
        "A  Photo\tof\n a CAT.",
        "it's a dog's, they've, I'M, we'll, he'd, 'tis",
        "12 345,6 7\u00bd \u0663\u0664 x2y3",
        "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u0130stanbul \ufb01sh \u1e9e",
        "\u4e00\u53ea\u732b\u3068\u72ac \ud55c\uad6d\uc5b4 \u05d0\u05d1 \u0627\u0644\u0639",
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2192\u2211\u20ac",
        "!!!???... --- ***; [x](y) <b>&amp;</b> _under_score_",
        "\u0000\u0007 control \u200b zero \ufeff width",
        "a long one " * 40,
        "x" * 500,
    ]


@pytest.fixture(scope="module")
def both(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    theirs = clip_tokenizer.make(folder, [text for text in texts[:200] if len(text) < 200])
    return theirs, Tokenizer.load(folder)


def test_ids_are_those_of_transformers(both, texts):
    theirs, ours = both
    found = sentences.rows(ours, texts, length=LENGTH)
    want = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    for text, got, row in zip(texts, found.ids.tolist(), want, strict=True):
        assert got == row, text
    assert found.ids.dtype == np.int32
    whole = theirs(texts)["input_ids"]
    assert found.cut == sum(len(row) > LENGTH for row in whole) > 3
    # Words of the corpus are few tokens: merges are used.
    assert np.mean([len(row) for row in whole[:100]]) < 14


def test_names_of_special_tokens_in_a_text_are_text(both):
    _, ours = both
    ids = sentences.rows(ours, ["a <|endoftext|> b"], length=LENGTH).ids[0].tolist()
    assert ids.index(ours.eos_id) > 5
    assert ids.count(ours.bos_id) == 1


def test_room_for_start_and_end_is_needed(both):
    _, ours = both
    assert sentences.rows(ours, ["cat"], length=2).ids.tolist() == [[ours.bos_id, ours.eos_id]]
    assert sentences.rows(ours, [], length=5).ids.shape == (0, 5)
    with pytest.raises(ValueError, match="expected room for start and end, got 1"):
        sentences.rows(ours, ["cat"], length=1)
