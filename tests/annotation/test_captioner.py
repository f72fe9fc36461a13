"""Holds descriptions by a model of ours to what its parts give one question at a time."""

import jax
import jax.numpy as jnp
import known_scenes as known
import numpy as np
import pytest
import small_run
from flax import nnx

from seg_jax.annotation.captioner import BATCH, Captioner
from seg_jax.annotation.stages import Failed, Question, Unusable
from seg_jax.data.image_lists import ImageFile
from seg_jax.inference import bundle as bundles
from seg_jax.models.vlm import sampler


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """Returns a captioner of random weights, read from a folder."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return Captioner.load(folder, max_tokens=7)


def asks(count):
    rng = np.random.default_rng(0)
    return [
        Question(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), f"Name it {n}")
        for n in range(count)
    ]


@pytest.mark.slow
def test_answers_do_not_depend_on_their_neighbours(captioner):
    many = asks(BATCH + 1)
    answers = captioner.describe(many)
    assert len(answers) == BATCH + 1
    bundle = small_run.bundle()
    model = nnx.merge(bundle.graph, bundle.params)

    @jax.jit
    def generate(tokens, images):
        return sampler.generate(
            model,
            tokens,
            images,
            answers=1,
            max_tokens=7,
            sampler=sampler.Greedy(),
            end_ids=bundle.end_ids,
            pad_id=bundle.tokenizer.pad_id,
            key=jax.random.key(1),
        )

    for ask, answer in zip(many[:2] + many[-1:], answers[:2] + answers[-1:], strict=True):
        tokens, images = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[None], bundle.encoder.question(ask.view, ask.text)
        )
        alone = generate(tokens, images)
        ids = np.asarray(alone.ids)[0, 0][np.asarray(alone.used)[0, 0]]
        assert answer.text == bundle.tokenizer.decode(ids)
        assert answer.finished == (int(ids[-1]) in bundle.end_ids)
    assert captioner.describe([]) == []


@pytest.mark.slow
def test_a_question_that_is_too_long_costs_its_image_alone(captioner):
    with pytest.raises(Failed, match="tokens in the prompt"):
        captioner.describe([*asks(1), asks(1)[0]._replace(text="word " * 500)])


def test_a_folder_that_is_no_model_is_told(tmp_path):
    with pytest.raises(Unusable, match="describer: .*expected a checkpoint folder"):
        Captioner.load(tmp_path / "none")


@pytest.mark.slow
def test_it_is_a_describer_of_an_annotation(captioner, tmp_path):
    from seg_jax.annotation.annotator import annotate

    known.make(tmp_path, 1)
    stages = known.Load(1)()._replace(describer=captioner)
    image = ImageFile("000.png", tmp_path / "000.png")
    outcome = annotate(image, stages, known.settings(), models=known.TALKING)
    # Random weights hardly come to an end by themselves; whatever they write is judged, not raised.
    refused = [one["object"]["label"] for one in outcome.failed]
    kept = [one["name"] for one in outcome.line["objects"]] if outcome.line else []
    assert len(refused) + len(kept) == 2
