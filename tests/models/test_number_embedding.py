"""Embeddings of numbers: close where the values are, everything else as it was drawn."""

import jax
import numpy as np
import pytest
from flax import nnx

from seg_jax.models.nn.linear import Embedding
from seg_jax.models.vlm import number_embedding

VALUES = np.array([np.nan, 0.0, 0.01, 0.02, 0.5, 1.0, 0.5, np.nan], np.float32)


def table(width=64):
    return Embedding((10, width), std=0.02, dtype="float32", rngs=nnx.Rngs(0))


def rows(width=64, key=0):
    return np.asarray(number_embedding.embed(table(width), VALUES, jax.random.key(key)))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_close_values_begin_close_and_equal_ones_can_be_told_apart():
    got = rows()
    assert min(cosine(got[1], got[2]), cosine(got[1], got[3])) > 0.7
    assert max(cosine(got[1], got[4]), cosine(got[1], got[5])) < 0.3
    assert 0.7 < cosine(got[4], got[6]) < 0.99


def test_other_tokens_stay_as_they_were_drawn():
    others = [0, 7, 8, 9]
    np.testing.assert_array_equal(rows()[others], np.asarray(table().embedding[...])[others])


def test_the_key_draws_the_basis():
    np.testing.assert_array_equal(rows(key=1), rows(key=1))
    assert np.abs(rows(key=1)[1] - rows(key=2)[1]).max() > 0.01


def test_a_table_too_narrow_is_refused():
    with pytest.raises(ValueError, match="width 16 or more, got 8"):
        rows(width=8)
