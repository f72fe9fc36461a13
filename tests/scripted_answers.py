"""A model that writes an outline by what it is asked (helper)."""

import dataclasses
import zlib

import numpy as np
import small_run

from seg_jax.grammar import outline
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Rollout


def bundle():
    small = small_run.bundle()
    room = {"max_answer": 240, "max_prompt": 200, "max_question": 120, "buckets": 2}
    return dataclasses.replace(small, layout=dataclasses.replace(small.layout, **room))


class Scripted(Predictor):
    """Writes an outline that the question decides; `events[n]` is called before the n-th batch."""

    def __init__(self):
        super().__init__(bundle())
        self.batches, self.events = [], {}

    def answer(self, prompts, params=None):
        self.batches.append(len(prompts.tokens.ids))
        self.events.get(len(self.batches), lambda: None)()
        tokenizer, rows = self.bundle.tokenizer, []
        for ids, segments in zip(prompts.tokens.ids, prompts.tokens.segments, strict=True):
            asked = tokenizer.decode(ids[segments > 0].tolist())
            text = "[]." if "nothing" in asked else outline_of(asked)
            rows.append([*tokenizer.encode(text), tokenizer.end_id][:240])
        ids = np.zeros((len(rows), 1, 240), np.int32)
        used = np.zeros(ids.shape, bool)
        for row, each in enumerate(rows):
            ids[row, 0, : len(each)], used[row, 0, : len(each)] = each, True
        return Rollout(ids, used, np.full(ids.shape, np.log(0.5), np.float32)), None


def outline_of(asked):
    rng = np.random.default_rng(zlib.crc32(asked.encode()))
    rings = [rng.random((4, 2)) for _ in range(1 + asked.count("both"))]
    return outline.write_mask(rings, digits=2)
