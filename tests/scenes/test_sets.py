"""Phrases of several things and of none, read back from their text and held to the masks."""

import dataclasses
import re

import numpy as np
import pytest

from seg_jax.data import sources
from seg_jax.runs import experiments
from seg_jax.scenes import draw, phrases, sets, world
from seg_jax.scenes.things import Kind

PRESETS = (world.easy, world.standard, world.hard, world.varied)
STYLE = phrases.Style(texture=True, several=True, absent=3, wordings=8)
NOUNS = {f"{kind}s": str(kind) for kind in Kind} | {str(kind): str(kind) for kind in Kind}
NOUNS |= {"crosses": "cross", "pairs of discs": "pair of discs"}
NOUNS |= dict.fromkeys(("object", "objects", "thing", "things"), "")
COUNTS = {"both": 2, "the two": 2, "the three": 3, "the four": 4}


def meant(text, things):
    """Returns the things that a phrase of attributes means, and the number that it says."""
    lead = re.match(r"(both|the two|the three|the four|all|the) ", text)
    head, _, tail = text.removeprefix(lead.group() if lead else "").partition(" that is ")
    noun = next(n for n in sorted(NOUNS, key=len, reverse=True) if re.search(rf"(^| ){n}$", head))
    words = {*head.removesuffix(noun).split(), *tail.replace(" and ", " ").split()}
    found = [
        number
        for number, thing in enumerate(things)
        if NOUNS[noun] in ("", str(thing.kind)) and words <= {str(thing.colour), str(thing.texture)}
    ]
    return found, COUNTS.get(lead.group(1)) if lead else None


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_are_all_things_that_fit_and_absent_ones_fit_none(preset):
    config, met = preset(), {"several": 0, "absent": 0}
    for seed in range(40):
        made = world.make(config, seed)
        masks = draw.render(made)[1]
        seen = [
            thing if mask.any() else None for thing, mask in zip(made.things, masks, strict=True)
        ]
        assert None not in seen
        for group in sets.find_groups(made, masks, config=config, style=STYLE):
            met["several" if group.things else "absent"] += 1
            assert group.phrases
            for text in group.phrases:
                found, count = meant(text, seen)
                assert found == sorted(group.things), text
                assert count in (None, len(group.things)), text
    assert met["absent"] == 120
    assert met["several"] >= 40


def test_it_is_the_same_for_the_same_world_and_leaves_the_rest_alone():
    plain = sources.Scenes(world=world.hard(), seed=4)
    style = dataclasses.replace(plain.style, several=True, absent=2)
    more = dataclasses.replace(plain, style=style)
    drawn = set()
    for index in range(12):
        one, other, again = plain[index], more[index], more[index]
        count = len(one.masks)
        assert other.phrases == again.phrases
        assert other.phrases[:count] == one.phrases
        np.testing.assert_array_equal(other.image, one.image)
        np.testing.assert_array_equal(other.masks[:count], one.masks)
        assert (one.together, other.together[:count]) == ((), (False,) * count)
        rest = zip(other.masks[count:], other.phrases[count:], other.together[count:], strict=True)
        things = world.make(plain.world, sources.scene_seed(4, index)).things
        for mask, told, together in rest:
            assert together == mask.any()
            for text in told:
                np.testing.assert_array_equal(mask, one.masks[meant(text, things)[0]].any(0))
            drawn |= {*told} if not mask.any() else set()
        assert not other.masks[-2:].any()
        assert len(other.names) == len(other.masks) == len(other.phrases)
    assert len(drawn) > 20


def test_what_is_held_out_is_never_said_to_be_absent():
    source = experiments.load("simpleseg/nano_sft.py").scenes(seed=1)
    config, style = source.world, dataclasses.replace(source.style, absent=50)
    told = set()
    for seed in range(40):
        made = world.make(config, seed)
        for group in sets.find_groups(made, draw.render(made)[1], config=config, style=style):
            told |= {text.removeprefix("the ") for text in group.phrases}
    assert "green star" in told
    held = {"red star", "blue ring", "green cross", "striped blob"}
    assert not held & told
    assert not any(re.search(r"^(\w+ )?(red star|blue ring|green cross)$", text) for text in told)
    assert not any(re.search(r"^striped \w+ blob$", text) for text in told)


def test_absent_things_are_near_misses():
    config = world.easy()
    made = world.make(config, 3)
    style = phrases.Style(absent=1000, wordings=1)
    told = [
        g.phrases[0]
        for g in sets.find_groups(made, draw.render(made)[1], config=config, style=style)
    ]
    kinds, colours = ({str(getattr(t, name)) for t in made.things} for name in ("kind", "colour"))
    pairs = [text.split()[1:] for text in told if len(text.split()) == 3 and "object" not in text]
    assert len(pairs) > 5
    assert all(colour in colours or kind in kinds for colour, kind in pairs)


def test_wrong_styles_are_told():
    with pytest.raises(ValueError, match=r"style.absent: expected >= 0 expressions, got -1"):
        phrases.Style(absent=-1)
    # None at all once kept the search for expressions going for ever.
    with pytest.raises(ValueError, match=r"style.wordings: expected >= 1, got 0"):
        phrases.Style(wordings=0)


def test_plurals():
    kinds = {sets.plurals(phrases.Expression(kind=kind), 0, 1)[0] for kind in Kind}
    assert {"the crosses", "the pairs of discs", "the ellipses", "the stars"} <= kinds
    assert sets.plurals(phrases.Expression(), 2, 4) == (
        "the objects",
        "both objects",
        "the two objects",
        "all objects",
    )


def test_a_tokenizer_learns_its_words():
    style = phrases.Style(several=True, absent=1, wordings=3)
    texts = sources.corpus(sources.Scenes(world=world.hard(), style=style, count=60), 400)
    assert len(texts) == 400
    assert {"both", "all"} <= {word for text in texts for word in text.split()}
