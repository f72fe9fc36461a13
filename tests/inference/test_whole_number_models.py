"""A grown model says of what it knew what it said before; new tokens begin as what they mean."""

import jax
import numpy as np
import pytest
from flax import nnx

from seg_jax.grammar.tokenizer import whole_numbers as tokens_of_numbers
from seg_jax.inference import bundle as bundles
from seg_jax.inference import whole_numbers
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import experiments


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    exact = Compute(param_dtype="bfloat16")
    small = bundles.load(experiments.QUICKSTART_START, compute=exact)
    folder = tmp_path_factory.mktemp("made") / "grown"
    whole_numbers.save(small, folder, frame=96)
    return small, bundles.load(folder, compute=exact)


def table(bundle):
    return np.asarray(nnx.merge(bundle.graph, bundle.params).embed.embedding[...], np.float32)


def test_all_weights_are_kept_and_the_table_is_longer(both):
    small, grown = both
    mine, theirs = jax.tree.leaves(small.params), jax.tree.leaves(grown.params)
    longer = 0
    for before, after in zip(mine, theirs, strict=True):
        assert before.dtype == after.dtype
        longer += before.shape != after.shape
        if before.shape == after.shape:
            np.testing.assert_array_equal(before, after)
    assert longer == 1
    assert table(grown).shape[0] % whole_numbers.ROWS == 0
    assert grown.tokenizer.vocab_size <= table(grown).shape[0]
    assert grown.layout == small.layout
    assert grown.task == small.task


def test_rows_of_new_tokens_are_those_of_what_they_mean(both):
    small, grown = both
    before, after = table(small), table(grown)
    made = tokens_of_numbers.grow(small.tokenizer, frame=96)
    digits = {small.tokenizer.id(str(digit)) for digit in range(10)}
    kept = [token for token in range(small.tokenizer.vocab_size) if token not in digits]
    np.testing.assert_array_equal(after[kept], before[kept])
    np.testing.assert_array_equal(after[made.alike[:, 0]], before[made.alike[:, 1]])
    for tag, pieces in made.tags:
        mean = after[[*pieces]].mean(0)
        np.testing.assert_allclose(after[tag], mean, rtol=2**-8, atol=1e-3)


def test_the_packaged_start_of_the_clickstart_is_the_grown_quickstart(both):
    _, grown = both
    packaged = bundles.load(experiments.CLICKSTART_START, compute=Compute(param_dtype="bfloat16"))
    assert packaged.tokenizer.definition == grown.tokenizer.definition
    for one, other in zip(
        jax.tree.leaves(packaged.params), jax.tree.leaves(grown.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
