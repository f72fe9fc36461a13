"""The pictures that the page offers are the scenes that they are said to be."""

from __future__ import annotations

import numpy as np

from seg_jax.data import image_files
from seg_jax.runs import experiments
from seg_jax.serving import examples, pictures


def test_examples_are_the_scenes_of_their_seed():
    scenes = experiments.load("simpleseg/nano_sft.py").scenes(seed=examples.SEED)
    kept = examples.of_drawn_scenes()
    assert len(kept) == 6
    for index, one in enumerate(kept):
        sample = scenes[index]
        assert one["texts"] == [some[0] for some in sample.phrases if some]
        image = image_files.read(pictures.bytes_of(one["image"], where="image"))
        assert np.abs(image.astype(int) - sample.image).max() <= 1
