"""Cases drawn and the same cases as SPEC publishes them are scored alike, in both directions."""

import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from seg_jax.data import centre_crop
from seg_jax.data.formats import spec
from seg_jax.data.sources import scene_seed
from seg_jax.evaluation.matching import scoring, tables
from seg_jax.inference.matcher import Matcher
from seg_jax.runs import matching
from seg_jax.scenes import contrasts

CONFIG = contrasts.Config(side=40)
COUNT = 12


class Drawn(Matcher):
    """A model whose vectors are made up: equal images and equal texts have equal ones."""

    def __init__(self):
        self.cut, self.encoded = 0, 0

    def images(self, images):
        squares = [centre_crop.square(image, 8).astype(np.float32).ravel() for image in images]
        self.encoded += len(squares)
        weights = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
        found = (np.stack(squares) - 128) @ weights
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    def texts(self, texts):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        found = np.stack([np.random.default_rng(seed).normal(size=5) for seed in seeds])
        found = found.astype(np.float32)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


def publish(folder):
    """Writes drawn cases as SPEC is published."""
    lists: dict[str, list] = {}
    for index in range(COUNT):
        case = contrasts.make(CONFIG, scene_seed(3, index))
        place = folder / case.subset
        place.mkdir(parents=True, exist_ok=True)
        names = [f"{index}-{n}.png" for n in range(len(case.images))]
        for name, image in zip(names, case.images, strict=True):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            (place / name).write_bytes(out.getvalue())
        for label, (name, text) in enumerate(zip(names, case.texts, strict=True)):
            to_text = {"query": name, "keys": list(case.texts), "label": label}
            lists.setdefault(f"{case.subset}/image2text.json", []).append(to_text)
            to_image = {"query": text, "keys": names, "label": label}
            lists.setdefault(f"{case.subset}/text2image.json", []).append(to_image)
    for name, values in lists.items():
        (folder / name).write_text(json.dumps(values))
    return folder


def test_published_cases_are_scored_as_drawn_ones(tmp_path):
    model = Drawn()
    drawn = matching.score_drawn(model, CONFIG, COUNT, seed=3)
    images = model.encoded
    read = matching.score_published(model, spec.Published(publish(tmp_path / "data")))
    assert model.encoded == 2 * images == len(drawn)
    assert len(read) == len(drawn)
    one, other = scoring.summarise(drawn), scoring.summarise(read)
    assert one["subsets"].keys() == other["subsets"].keys()
    for name, told in one["subsets"].items():
        assert told["cases"] == other["subsets"][name]["cases"] == 2
        for way in ("image_to_text", "text_to_image"):
            got = other["subsets"][name][way]
            assert (got["mean"], got["choices"]) == (told[way]["mean"], told[way]["choices"])
    right = [choice.right for choice in drawn]
    assert 0 < sum(right) < len(right)


def test_scores_are_written_and_read_again(tmp_path, capsys):
    scored = matching.score_drawn(Drawn(), CONFIG, COUNT, seed=3)
    told = matching.summarise(scored, model="m", data="drawn", drawn=True)
    matching.write(tmp_path / "out", scored, summary=told)
    again = matching.read_scores(tmp_path / "out" / matching.SCORES)
    assert matching.summarise(again, model="m", data="drawn", drawn=True) == told
    assert json.loads((tmp_path / "out" / matching.SUMMARY).read_text()) == told
    assert (tmp_path / "out" / matching.TABLE).read_text() == tables.markdown([told])
    matching.show(told)
    assert "relative position" in capsys.readouterr().err
    assert matching.read(tmp_path / "out") == told
    told["subsets"]["count"].pop("image_to_text")
    told["subsets"]["count"].pop("text_to_image")
    (tmp_path / "out" / matching.SUMMARY).write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"count: expected a direction, got none; do: give what"):
        matching.read(tmp_path / "out")
    path = tmp_path / "scores.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="expected scores, got none"):
        matching.read_scores(path)
    path.write_text('{"subset": 3}\n')
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 1"):
        matching.read_scores(path)


class Names(Drawn):
    """A model that knows colours, and nothing else."""

    def images(self, images):
        middles = np.stack([np.median(image.reshape(-1, 3), 0) for image in images])
        things = [
            image.reshape(-1, 3)[np.abs(image.reshape(-1, 3) - middle).sum(1).argmax()]
            for image, middle in zip(images, middles, strict=True)
        ]
        return np.stack(things).astype(np.float32) / 255

    def texts(self, texts):
        return np.stack([np.ones(3, np.float32) * len(text) / 30 for text in texts])


def test_names_are_counted_beside_all_looks():
    chance = matching.name_accuracy(Names(), CONFIG, 20, seed=1)
    assert 0 <= chance.low <= chance.mean <= 0.3
