"""Images are held out of every kind of source: always the same ones, and never learnt from."""

import dataclasses

import published_formats as formats
import pytest

from seg_jax.cli import main
from seg_jax.data import held_out
from seg_jax.data.fitting import Chosen
from seg_jax.data.sources import Built, Mixed, Scenes, pass_length
from seg_jax.runs import evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the folder of two data sets, both of the same images."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("refcoco_unc", "grefcoco_unc"):
        formats.refer(root, name, images=8)
        words = ["build", name, "--source", root, "--out", root / "data" / name, "--workers", 1]
        assert main.main([str(word) for word in words]) == 0
    return root / "data"


def names(source):
    parts = source.parts if isinstance(source, Mixed) else (source,)
    return {part.record(i).name for part in parts for i in range(len(part))}


def test_scenes_are_of_another_seed():
    for seed in (0, 7, 8, 9):
        source = Scenes(seed=seed, count=40)
        learnt, asked = held_out.hold_out(source, 5)
        assert learnt == source
        assert len(asked) == 5
        assert asked.seed not in (seed, evaluation.HELD_OUT)
        assert dataclasses.replace(asked, seed=seed, count=40) == source
    assert held_out.hold_out(Scenes(), 5).asked.seed == held_out.SEED


def test_scenes_have_no_split():
    with pytest.raises(
        ValueError, match=r"^validate.split: expected data sets, got 'val' .*; do: "
    ):
        held_out.hold_out(Scenes(), 5, split="val")


def test_images_of_a_data_set_are_never_learnt_from(made):
    source = Built(folders=(made / "refcoco_unc",))
    learnt, asked = held_out.hold_out(source, 2)
    assert (len(learnt), len(asked)) == (len(source) - 2, 2)
    assert not names(learnt) & names(asked)
    assert names(learnt) | names(asked) == names(source)
    assert held_out.hold_out(source, 2).asked == asked
    assert asked[0].key.startswith("refcoco_unc/")
    # What rows cannot hold is in neither.
    fitted = Chosen(folders=source.folders, numbers=tuple(range(1, len(source))))
    learnt, asked = held_out.hold_out(
        fitted, 2, fit=lambda whole: Chosen(folders=whole.folders, numbers=tuple(range(4)))
    )
    assert {*asked.numbers} < {1, 2, 3}
    assert {*learnt.numbers, *asked.numbers} == {*fitted.numbers}


def test_an_image_of_two_data_sets_is_learnt_from_in_none(made):
    folders = (made / "refcoco_unc", made / "grefcoco_unc")
    one_after_other = Built(folders=folders)
    shared = names(Built(folders=folders[:1])) & names(Built(folders=folders[1:]))
    assert shared, "the test needs images that are in both"
    mixed = Mixed(parts=tuple(Built(folders=(one,)) for one in folders), weights=(3.0, 1.0))
    for source in (one_after_other, mixed):
        learnt, asked = held_out.hold_out(source, 4)
        assert len(asked) == 4
        assert not names(learnt) & names(asked)
    assert [len(part) for part in asked.parts] == [3, 1]


def test_a_split_of_its_own(made):
    source = Built(folders=(made / "refcoco_unc",))
    learnt, asked = held_out.hold_out(source, 1, split="val")
    assert learnt == source
    assert (asked.split, len(asked)) == ("val", 1)
    for split, samples, told in (
        ("nosuch", 1, r"validate.split: expected one of .*val.*, got 'nosuch'"),
        ("val", 1000, r"validate.samples: expected at most \d+, the images of val in .*, got 1000"),
        (None, len(source), r"validate.samples: expected at most \d+, half of the images of train"),
    ):
        with pytest.raises(ValueError, match=f"^{told}.*; do: "):
            held_out.choose(source, samples, split=split)


def test_a_mixture_gives_by_its_weights(made):
    parts = (Scenes(seed=8), Built(folders=(made / "refcoco_unc",)), Scenes(seed=9))
    source = Mixed(parts=parts, weights=(2.0, 1.0, 0.1))
    learnt, asked = held_out.hold_out(source, 6)
    assert [len(part) for part in asked.parts] == [4, 2]
    assert asked.parts[0].seed == 10
    assert learnt.parts[0] == parts[0]
    assert len(learnt.parts[1]) == len(parts[1]) - 2


def test_another_source_is_refused():
    class Mine:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            raise IndexError

    with pytest.raises(ValueError, match=r"^validate.samples: expected drawn .* 'Mine'; do: "):
        held_out.hold_out(Mine(), 2)


def test_the_length_of_a_pass():
    assert pass_length(Scenes(count=9)) == 9
    assert pass_length(Scenes()) is None
    assert pass_length(Mixed(parts=(Scenes(count=9),), weights=(1.0,))) is None
