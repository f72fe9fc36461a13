"""Scenes that ask about held-out looks and wordings alone, against the worlds they are drawn of."""

import dataclasses
from pathlib import Path

import pytest

from seg_jax.cli import evaluate
from seg_jax.data import sources
from seg_jax.data.unseen import Unseen
from seg_jax.runs import experiments
from seg_jax.scenes import phrases, world

NANO = experiments.load("simpleseg/nano_sft.py")
SCENES = dataclasses.replace(NANO.scenes(seed=7), count=12)
GROUPS = dataclasses.replace(
    SCENES, style=phrases.Style(full=True, several=True, absent=2, wordings=2)
)


def test_only_things_of_looks_that_are_held_out_are_asked_about():
    asked = Unseen(scenes=GROUPS, looks=True)
    assert len(asked) == 12
    kinds = set()
    for index in range(len(asked)):
        sample = asked[index]
        config = dataclasses.replace(SCENES.world, mode=world.HeldOut.REQUIRE)
        made = world.make(config, sources.scene_seed(7, index))
        held = [world.is_held_out(config, thing) for thing in made.things]
        assert any(held)
        count = len(held)
        for thing, bears, mask, some in zip(
            made.things, held, sample.masks[:count], sample.phrases[:count], strict=True
        ):
            assert bool(some) <= bears
            kinds |= {(thing.kind, thing.colour)} if some else set()
            # Whoever is among several held-out ones makes them so.
            for group, names in zip(sample.masks[count:], sample.phrases[count:], strict=True):
                if bears and (group & mask).any():
                    assert names
        for group, names in zip(sample.masks[count:], sample.phrases[count:], strict=True):
            rare = any((group & m).any() for m, h in zip(sample.masks, held, strict=False) if h)
            assert bool(names) == (rare or not group.any())
    assert len(kinds) > 2


def test_only_wordings_that_training_lacks_are_asked_in():
    asked = Unseen(scenes=GROUPS, wordings=True)
    taught, told = set(), set()
    for index in range(len(asked)):
        known, sample = GROUPS[index], asked[index]
        for one, other in zip(known.phrases, sample.phrases, strict=True):
            assert bool(other) == bool(one)
            assert not {*one} & {*other}
            taught |= {*one}
            told |= {*other}
        assert (known.masks == sample.masks).all()
        assert (known.image == sample.image).all()
    assert any(" that is " in way for way in told)
    assert not any(" that is " in way for way in taught)
    assert any(way.startswith("all ") for way in told)


def test_scenes_alone_are_changed_by_options():
    config = evaluate.Config(world="nano", several=True, protocol="gres", absent=3, scenes=4)
    source = evaluate.held_out(config)
    assert (source.style.several, source.style.absent, len(source)) == (True, 3, 4)
    both = dataclasses.replace(config, held_out_looks=True, held_out_wordings=True)
    assert evaluate.held_out(both) == Unseen(scenes=source, looks=True, wordings=True)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"absent": 1}, "--absent: expected --mixture.absent or --protocol beside it, got neither"),
        ({"absent": -1, "protocol": "gres"}, "evaluate.absent: expected at least 0, got -1"),
        ({"several": True, "protocol": "point_mask"}, "--several: expected questions with text"),
        (
            {"held_out_wordings": True, "data": (Path("one"),)},
            "--held-out-wordings: expected no --data",
        ),
    ],
)
def test_what_nothing_would_read_is_refused(options, wanted):
    with pytest.raises(ValueError, match=wanted) as error:
        evaluate.Config(**options)
    assert "; do: " in str(error.value)


def test_a_world_without_held_out_looks_cannot_be_asked_about_them():
    config = evaluate.Config(world="quickstart", held_out_looks=True)
    with pytest.raises(ValueError, match="held_out_looks: expected a world that holds .*; do: ask"):
        evaluate.held_out(config)
