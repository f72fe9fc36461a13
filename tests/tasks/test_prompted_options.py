"""Every option of the task of boxes and clicks acts on what is asked, read or scored."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import small_run
from fingerprints import walk

from seg_jax.data import sources
from seg_jax.grammar import clicks
from seg_jax.records import Trace, Verdict
from seg_jax.runs import start
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks.prompted import Mixture, Prompted

FRAME = 96
BOXES = [(0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9), (0.2, 0.6, 0.4, 0.8)]
POINTS = [(0.1 * n, 0.15 + 0.1 * n) for n in range(7)]
TRACE = Trace("Where is it?", "Here.", "<bbox>[1,2,30,40]</bbox>")


@functools.cache
def sample():
    """Returns a scene of several things with a conversation about it."""
    scenes = sources.Scenes(seed=3, count=24)
    found = next(one for one in map(scenes.__getitem__, range(24)) if len(one.masks) > 1)
    return found.__class__(**{**vars(found), "traces": (TRACE,)})


@functools.cache
def tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        return start.blank_model(small_run.sft_config(), Path(folder) / "tokenizer").tokenizer


def asked_read_and_scored(_, asks):
    """Returns all that a task makes of a sample, of answers and of masks, as plain values."""
    rng = np.random.default_rng(0)
    examples = [asks.example(sample(), rng) for _ in range(12)]
    asked = [(e.system, e.question, e.answer, e.image.shape) for e in examples]
    truth = asks.truth(next(e for e in examples if e.judged), canvas=(32, 32))
    labels = [n % 2 for n in range(len(POINTS))]
    many = clicks.write(BOXES, POINTS, labels, frame=FRAME, thought="so")
    read = [asks.predict(examples[0], text) for text in (many, many.replace(",", " ", 1))]
    told = [(p.verdict, p.boxes_unit.tolist(), p.points_unit.tolist()) for p in read]
    ids = tokenizer().encode(many)
    answer, verdict = asks.reader(tokenizer().pieces)(
        jnp.array([ids]), jnp.ones((1, len(ids)), bool), None
    )
    held = asks.grammar(tokenizer().pieces, [tokenizer().end_id])
    mask = np.zeros((asks.frame, asks.frame), bool)
    mask[: asks.frame // 3] = True
    words = jnp.array(packed_masks.pack(mask, mask.shape))[None]
    truths = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], truth)
    judged = asks.judge(answer, jnp.array([int(Verdict.OK)]), truths, masks=words)
    arrays = (answer, verdict, truth.words, held.following.shape, dict(judged.scores))
    return repr((asked, told, [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(arrays)]))


def test_every_option_of_prompted():
    asks = Prompted(
        stage="sft",
        frame=FRAME,
        boxes=1,
        points=4,
        clicks=3,
        mixture=Mixture(whole=1.0, text=1.0, trace=1.0),
    )
    walk(asked_read_and_scored, None, asks)
    walk(asked_read_and_scored, None, Prompted(stage="rl", frame=FRAME), parts=("stage",))
