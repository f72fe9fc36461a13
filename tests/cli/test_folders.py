"""Predict on folders of the hub: odd images as transformers answers, bad files in one line."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import struct
import types
import zlib
from pathlib import Path

import jax
import moonshot
import numpy as np
import pytest
import tiktoken
import tiny_folders
import transformers
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from seg_jax.cli import main, model_options
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.models import families
from seg_jax.models.io import safetensors, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.records import Kind, Verdict
from seg_jax.runs import console

torch = pytest.importorskip("torch")
test_kimi_parity = pytest.importorskip("test_kimi_parity")  # tiny_folders knows its folder.
KINDS = tiny_folders.KINDS
ANSWER = 6
"""Tokens of an answer here."""
WORDS = ("--text", "the red star")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns a hub folder of each family."""
    folder = tmp_path_factory.mktemp("folders")
    return {kind: tiny_folders.make(kind, folder / kind) for kind in KINDS}


@pytest.fixture
def run(capfd, monkeypatch):
    """Returns a function that runs a program: its status, standard output, lines of errors."""
    monkeypatch.delenv("SEG_JAX_TRACEBACK", raising=False)
    monkeypatch.setattr(console.TERMINAL, "width", 1000)

    def call(*words):
        status = main.main([str(word) for word in words])
        out, errors = capfd.readouterr()
        assert "Traceback" not in errors, errors
        return status, out, errors.strip().splitlines()

    return call


@pytest.fixture
def refused(run, tmp_path):
    """Returns a function that asks in vain: the only line that predict says, nothing written."""
    Image.new("RGB", (50, 30)).save(tmp_path / "fine.png")

    def call(folder, image=None):
        out = tmp_path / "out"
        image = image or tmp_path / "fine.png"
        words = ("--checkpoint", folder, "--image", image, *WORDS, "--out", out)
        status, told, lines = run("predict", *words)
        assert (status, told) == (1, "")
        assert len(lines) == 1, lines
        assert "SEG_JAX_TRACEBACK" not in lines[0]
        assert not out.exists() or not list(out.iterdir())
        return lines[0]

    return call


def scene(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


# Odd images, answered as transformers answers.


def qwens(folder, image, talk):
    """Returns transformers' model, prompt and inputs for an image, by its own files alone."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    process = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
    seen = process(Image.fromarray(image), return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    visual_tokens = int(seen["image_grid_thw"].prod()) // 4
    ids = tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * visual_tokens))
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def more(ids):
        return dict(seen) | {"mm_token_type_ids": (ids == image_id).int()}

    return model, ids, more


def kimis(theirs, folder, image, talk):
    """Returns the same of Kimi-K2.5, by tiktoken, the published rule and the folder's template."""
    config = json.loads((folder / tokens.CONFIG).read_text())
    lines = (folder / tiktoken_bpe.FILE).read_bytes().splitlines()
    table = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    named = config["added_tokens_decoder"].items()
    encoding = tiktoken.Encoding(
        "oracle",
        pat_str=tiktoken_bpe.PATTERN,
        mergeable_ranks=table,
        special_tokens={token["content"]: int(number) for number, token in named},
    )
    patches, (rows, columns) = moonshot.patches(image, patch=6, merge=2, limit=64, pad=True)
    pixels = torch.tensor((patches.reshape(-1, 3, 6, 6) / 255 - 0.5) / 0.5, dtype=torch.float32)
    text = transformers.utils.chat_template_utils.render_jinja_template(
        [talk], chat_template=config["chat_template"], add_generation_prompt=True
    )[0][0]
    visual_tokens = "<|media_pad|>" * (rows * columns // 4)
    ids = encoding.encode(text.replace("<|media_pad|>", visual_tokens), allowed_special="all")
    seen = {"pixel_values": pixels, "image_grid_thw": torch.tensor([(1, rows, columns)])}
    return theirs, ids, lambda ids: seen


def greedy(model, ids, more, ends):
    """Returns the tokens that a model of transformers likes best, each with all before it."""
    answer = []
    while len(answer) < ANSWER and not {*answer} & {*ends}:
        whole = torch.tensor([[*ids, *answer]])
        with torch.no_grad():
            answer.append(int(model(input_ids=whole, **more(whole)).logits[0, -1].argmax()))
    return answer


def loud(config):
    """Returns one of Qwen's models whose answers hang on its image."""
    graph, params = nnx.split(weights.blank(config, Compute()))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = [getattr(key, "key", "") for key in path]
        made = 0.3 * rng.normal(size=leaf.shape).astype(np.float32) + ("scale" in names)
        if "head" in names:
            made[config.image_token_id] = 0
        return made

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, params))


@pytest.mark.parametrize("kind", KINDS)
def test_odd_images_are_answered_as_by_transformers(kind, tmp_path):
    theirs = None

    def model(config):
        # transformers embeds no placeholder where there is no image: none may be written.
        if kind != "kimi_vl":
            return loud(config)
        nonlocal theirs
        theirs, _ = test_kimi_parity.build(config)
        with torch.no_grad():
            theirs.lm_head.weight[config.image_token_id] = 0
        return test_kimi_parity.ours(theirs, config)

    folder = tiny_folders.make(kind, tmp_path / kind, model)
    bundle = bundles.load(folder)
    layout = dataclasses.replace(bundle.layout, max_answer=ANSWER, canvas=(64, 64))
    asked = Predictor(dataclasses.replace(bundle, layout=layout))
    question = chat.question(Kind.MASK, "the red star")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    rollouts, answers = [], []
    answer = asked.answer
    asked.answer = lambda *words: rollouts.append(answer(*words)) or rollouts[-1]
    for size in ((31, 53), (90, 17), (59, 60)):
        image = scene(*size)
        told = asked.predict_one(image, "the red star").as_json()
        assert told["size"] == {"height": size[0], "width": size[1]}
        assert told["rle"]["size"] == list(size)
        rollout = rollouts[-1][0]
        ours = rollout.ids[0, 0][rollout.used[0, 0]].tolist()
        model_of = (theirs, folder, image, talk)
        found = kimis(*model_of) if kind == "kimi_vl" else qwens(*model_of[1:])
        assert ours == greedy(*found, bundle.end_ids)
        answers.append(ours)
    assert len({tuple(ours) for ours in answers}) > 1, "the image is looked at"


def test_moonshots_tokenizer_beside_qwens_weights(folders, run, tmp_path, monkeypatch):
    # As in the released SimpleSeg-Qwen2.5-VL, it is said.
    source = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "source")
    (source / tokens.TOKENS).unlink()
    for name in (tiktoken_bpe.FILE, tokens.CONFIG):
        shutil.copy(folders["kimi_vl"] / name, source / name)
    text = (source / tokens.CONFIG).read_text().replace("<|media_pad|>", "<|media_placeholder|>")
    config = json.loads(text) | {"tokenizer_class": "TikTokenV3"}
    (source / tokens.CONFIG).write_text(json.dumps(config))
    status, _, lines = run("convert", source, tmp_path / "dest")
    assert status == 0
    assert "expected Qwen's tokenizer beside qwen2_5_vl, got Moonshot's" in lines[0]
    image_id = tokens.Tokenizer.load(source).id("<|media_placeholder|>")
    assert f"as in config.json, got {image_id}; do: set image_token_id" in lines[1]
    assert len(lines) == 2
    # Told apart from what is wrong with it: with the right number it predicts.
    hub = json.loads((source / "config.json").read_text()) | {"image_token_id": image_id}
    (source / "config.json").write_text(json.dumps(hub))
    assert len(run("convert", source, tmp_path / "right")[2]) == 1
    bundle = bundles.load(tmp_path / "right")
    assert bundle.tokenizer.image_id == image_id
    many = {"num_reserved_special_tokens": 99}
    (source / tokens.CONFIG).write_text(json.dumps(config | many))
    _, _, lines = run("convert", source, tmp_path / "many")
    assert f"expected at most {tiny_folders.VOCAB} tokens, for which there are weights" in lines[1]


# Bad folders.


@pytest.fixture
def broken(folders, tmp_path):
    """Returns a copy of a family's folder to break."""
    return lambda kind: shutil.copytree(folders[kind], tmp_path / "broken")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_weights(kind, broken, refused, run, tmp_path):
    folder = broken(kind)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: " in (line := refused(folder))
    assert "got a broken or truncated one" in line
    status, _, lines = run("convert", folder, tmp_path / "dest")
    assert (status, len(lines)) == (1, 1)
    assert "got a broken or truncated one" in lines[0]
    assert not list(tmp_path.glob("dest*"))


def test_wrong_indices(broken, refused, run, tmp_path):
    folder = broken("kimi_vl")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: whole[name] for name in some}, folder / file)
    right = {name: file for file, some in parts.items() for name in some}
    lost = {name: file for name, file in right.items() if name != names[0]}
    for wrong, word in (
        (right | {names[0]: "c.safetensors"}, "c.safetensors"),
        (right | {names[0]: "b.safetensors"}, names[0]),
        (right | {names[0]: "../model.safetensors"}, "broken/model.safetensors"),
        (right | {"stranger": "a.safetensors"}, "stranger"),
        (lost, names[0]),
        ({}, "missing"),
        ([3], "weight_map"),
    ):
        (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": wrong}))
        assert word in refused(folder)
        status, _, lines = run("convert", folder, tmp_path / "dest")
        assert (status, len(lines)) == (1, 1)
        assert word in lines[0]
        assert not list(tmp_path.glob("dest*"))
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": right}))
    assert bundles.load(folder).end_ids


@pytest.mark.parametrize("kind", KINDS)
def test_other_models_and_other_tokenizers(kind, broken, refused, run, tmp_path):
    folder = broken(kind)
    path = folder / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"model_type": "kimi_lv"}))
    line = refused(folder)
    assert (
        "expected one of qwen2_5_vl, qwen3_vl, kimi_vl, sam2, clip, got 'kimi_lv' (near kimi_vl)"
        in line
    )
    status, _, lines = run("convert", folder, tmp_path / "dest")
    assert (status, len(lines), list(tmp_path.glob("dest*"))) == (1, 1, [])
    path.write_text(whole)
    image = "<|media_pad|>" if kind == "kimi_vl" else "<|image_pad|>"
    path = folder / (tokens.CONFIG if kind == "kimi_vl" else tokens.TOKENS)
    path.write_text(path.read_text().replace(image, "<|cow|>"))
    assert "in the vocabulary, got none; do: use the tokenizer that belongs" in refused(folder)
    for path in (folder / tiktoken_bpe.FILE, folder / tokens.TOKENS):
        path.unlink(missing_ok=True)
    assert "tokenizer.json: expected a readable file" in refused(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    assert "preprocessor_config.json, got neither" in refused(folder)
    (folder / "preprocessor_config.json").write_text('{"patch_size": "six"}')
    line = refused(folder)
    assert "patch_size: expected a positive whole number, got 'six'" in line
    assert line.count("; do: ") == 1


# Images of every sort.


@pytest.mark.parametrize("kind", KINDS)
def test_strips(kind, folders, refused, tmp_path):
    Image.new("RGB", (1, 5000)).save(tmp_path / "strip.png")
    line = refused(folders[kind], tmp_path / "strip.png")
    assert ("512 patches a side" if kind == "kimi_vl" else "aspect ratio of at most 200") in line
    assert f"{tmp_path / 'strip.png'}: " in line
    assert "5000x1" in line
    assert "crop or drop" in line


@pytest.fixture
def seen(monkeypatch):
    """Returns the images that the model is asked about; it is a stand-in."""
    asked = []

    class Asked(Predictor):
        def __init__(self, bundle, **_):
            self.bundle = bundle
            self._segmenter = None
            rollout = types.SimpleNamespace(
                ids=np.full((1, 1, 1), bundle.tokenizer.end_id), used=np.ones((1, 1, 1), bool)
            )
            self.answer = lambda *_: (rollout, None)

        def predict_one(self, image, *words):
            asked.append(image)
            return super().predict_one(image, *words)

    monkeypatch.setattr(model_options, "Predictor", Asked)
    return asked


def of_every_sort(folder):
    """Yields images of one scene, 13 x 7 pixels, each with how far its colours may be off."""
    image = Image.fromarray(scene(7, 13))
    image.save(folder / "plain.png")
    yield "plain.png", 0
    image.convert("CMYK").save(folder / "cmyk.tiff")
    yield "cmyk.tiff", 1
    image.convert("RGBA").save(folder / "alpha.png")
    yield "alpha.png", 0
    image.quantize(256).save(folder / "palette.png")
    yield "palette.png", 255
    Image.fromarray(scene(7, 13)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    yield "deep.png", None
    image.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (13, 7))])
    yield "moving.gif", 255
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    yield "turned.png", 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_sort_reach_the_model_upright_in_colours(
    kind, folders, run, seen, tmp_path
):
    for name, off in of_every_sort(tmp_path):
        ask = ("--checkpoint", folders[kind], "--image", tmp_path / name, *WORDS)
        status, out, lines = run("predict", *ask, "--out", tmp_path / "out")
        assert (status, lines) == (0, []), name
        told = json.loads(out)
        assert told["verdict"] in Verdict.__members__
        assert told["size"] == {"height": 7, "width": 13}, name
        assert Path(told["overlay"]).exists()
        image = seen.pop()
        assert (image.shape, image.dtype) == ((7, 13, 3), np.uint8), name
        wanted = scene(7, 13).astype(int)
        if off is None:
            np.testing.assert_array_equal(image, wanted[..., :1].repeat(3, 2))
        else:
            assert np.abs(image - wanted).max() <= off, name
            assert np.abs(image - wanted).mean() < 40, name


def test_overlays_of_equal_names_do_not_meet(folders, run, tmp_path, monkeypatch):
    """name-1: the second one was written over the first."""
    monkeypatch.chdir(tmp_path)
    told = []
    for image in ("a/cup.png", "b/cup.png", "cup.png", "a/cup.png"):
        Path(image).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(image)
        ask = ("--checkpoint", folders["kimi_vl"], "--image", image, *WORDS, "--out", "out")
        told.append(json.loads(run("predict", *ask)[1])["overlay"])
    assert told[2] == "out/cup.png-overlay.png"
    assert told[3] == told[0]
    assert len({*told}) == len([*Path("out").iterdir()]) == 3


def test_bombs_and_damaged_images_are_refused_in_a_line(folders, refused, tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(scene(60, 60)).save(whole)
    data = whole.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    header = struct.pack(">II", 60_000, 60_000)
    bomb = data[:16] + header + data[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    folder = folders["kimi_vl"]
    assert "got a damaged one" in refused(folder, tmp_path / "cut.png")
    assert "80 million pixels" in refused(folder, tmp_path / "bomb.png")


# What may be said about a model's numbers and rows.


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_cells_are_asked_for_or_those_of_the_folder(kind, folders, tmp_path):
    folder = folders[kind]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "half").mkdir()
    for path in folder.iterdir():
        shutil.copy(path, tmp_path / "half" / path.name)
    half = families.with_dtype(config | {"dtype": "float32"}, "bfloat16")
    (tmp_path / "half" / "config.json").write_text(json.dumps(half))
    for given, dtype, want in [
        (tmp_path / "half", None, "bfloat16"),
        (tmp_path / "half", "float32", "float32"),
        (folder, "bfloat16", "bfloat16"),
        (folder, None, "float32"),
    ]:
        bundle = (
            model_options.ModelOptions(checkpoint=given, dtype=dtype, visual_tokens=9)
            .predictor()
            .bundle
        )
        model = nnx.merge(bundle.graph, bundle.params)
        assert (model.compute.dtype, model.compute.param_dtype) == (want, want)
        # Strips may take more than there are in a square, frames are counted in.
        assert 4 < bundle.layout.max_patches // bundle.layout.merge**2 < 60
        assert bundle.layout.max_patches < bundles.load(given).layout.max_patches


def test_cells_that_cannot_be_are_refused(folders, run, tmp_path):
    Image.new("RGB", (50, 30)).save(tmp_path / "fine.png")
    for visual_tokens in (0, 3, 10**9):
        ask = ("--checkpoint", folders[KINDS[0]], "--image", tmp_path / "fine.png", *WORDS)
        status, _, lines = run("predict", *ask, "--visual-tokens", visual_tokens)
        assert status == 1
        assert len(lines) == 1
        assert "visual_tokens: expected 4 to" in lines[0]


def test_cells_of_a_trained_model_are_its_own(folders, tmp_path):
    bundle = bundles.load(folders[KINDS[0]])
    bundles.save(bundle, tmp_path / "trained")
    taught = bundle.layout.max_patches // bundle.layout.merge**2
    assert bundles.load(tmp_path / "trained", visual_tokens=taught).layout == bundle.layout
    with pytest.raises(
        ValueError,
        match=f"visual_tokens: expected {taught}, with which .* do: leave --visual-tokens out",
    ):
        bundles.load(tmp_path / "trained", visual_tokens=taught - 1)
