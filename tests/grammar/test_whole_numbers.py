"""A tokenizer of decimals gets whole numbers and tags; what it wrote, it writes as before."""

import json

import numpy as np
import pytest
import transformers

from seg_jax.grammar.tokenizer import tokens, whole_numbers
from seg_jax.runs import experiments

CLICK = "<points>[[37,5]]</points> <labels>[1]</labels>"
OLD = (
    "[[[0.12, 0.34], [0.56, 1.00]]].",
    "the red circle at 0.37, 0.05<|im_end|>",
    "é漢字 5 a b7 [[1, 2], 3]",
)


@pytest.fixture(scope="module")
def small():
    return tokens.Tokenizer.load(experiments.QUICKSTART_START)


@pytest.fixture(scope="module")
def grown(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    made = whole_numbers.grow(small, frame=96)
    (folder / tokens.TOKENS).write_text(made.definition, encoding="utf-8")
    config = (experiments.QUICKSTART_START / tokens.CONFIG).read_text()
    (folder / tokens.CONFIG).write_text(config)
    return folder, made, tokens.Tokenizer.load(folder)


def test_numbers_and_tags_are_a_token_each(grown):
    _, made, tokenizer = grown
    parts = [tokenizer.decode([token]) for token in tokenizer.encode(CLICK)]
    assert parts == [
        "<points>[[",
        "37",
        ",",
        "5",
        "]]</points> <labels>[",
        "1",
        "]</labels>",
    ]
    for number in range(97):
        assert len(tokenizer.encode(str(number))) == 1
    assert tokenizer.decode(tokenizer.encode("8497 1996")) == "8497 1996"
    assert tokenizer.vocab_size == made.vocab_size


def test_other_texts_and_special_tokens_keep_their_ids(grown, small):
    _, _, tokenizer = grown
    for text in OLD:
        assert tokenizer.encode(text, special=True) == small.encode(text, special=True)
    assert tokenizer.special == small.special
    assert tokenizer.pieces[: small.vocab_size] == small.pieces


def test_each_number_is_told_the_nearest_decimal(grown):
    _, made, tokenizer = grown
    assert made.alike.shape == (97, 2)
    for number, (new, old) in enumerate(made.alike.tolist()):
        assert tokenizer.decode([new]) == str(number)
        assert abs(float(tokenizer.decode([old])) - number / 96) <= 0.005 + 1e-9


def test_tags_are_told_the_pieces_that_they_were_written_in(grown, small):
    _, made, tokenizer = grown
    assert [tokenizer.decode([tag]) for tag, _ in made.tags] == [*whole_numbers.TAGS]
    for tag, pieces in made.tags:
        assert small.decode(pieces) == tokenizer.decode([tag])
        assert tag >= small.vocab_size


def test_transformers_reads_the_same_ids(grown):
    folder, _, tokenizer = grown
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (CLICK, *OLD, "0.37 37 3.7 00"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, special=True)


@pytest.mark.parametrize("frame", [0, 100, -3])
def test_frames_of_other_than_two_digits_are_refused(small, frame):
    with pytest.raises(ValueError, match=f"expected a frame in 1..99, got {frame}"):
        whole_numbers.grow(small, frame=frame)


def test_a_tokenizer_that_has_them_or_is_another_is_refused(grown, small, tmp_path):
    with pytest.raises(ValueError, match="got one that has them"):
        whole_numbers.grow(grown[2], frame=96)
    other = tokens.train(["the red star"], folder=tmp_path, numbers="digits")
    with pytest.raises(ValueError, match="as small models of ours have it, got another"):
        whole_numbers.grow(other, frame=96)
    assert "37" not in json.loads(small.definition)["model"]["vocab"]
    np.testing.assert_array_equal(small.encode("37"), [small.id("3"), small.id("7")])
