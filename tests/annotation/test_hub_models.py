"""Holds detector and segmenter to transformers' own classes and processors, on tiny models."""

import dataclasses
import json
import shutil
import subprocess
import sys

import known_scenes as known
import numpy as np
import pytest
import tiny_hub
import torch
import transformers
from PIL import Image

from seg_jax.annotation import choice, filters, hub
from seg_jax.annotation.annotator import Contour, annotate
from seg_jax.annotation.grounding import GroundingDino
from seg_jax.annotation.sam import Sam
from seg_jax.annotation.sam2 import Sam2
from seg_jax.annotation.stages import Stages, Unusable
from seg_jax.data.image_lists import ImageFile

SIZES = [(64, 64), (50, 90), (100, 30), (7, 7)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the folders of the models."""
    root = tmp_path_factory.mktemp("hub")
    made = {name: getattr(tiny_hub, name)(root / name) for name in ("detector", "sam", "sam2")}
    return made | {"sam2_video": tiny_hub.sam2(root / "sam2_video", video=True)}


def drawn_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_scores_are_those_of_transformers(folders, size):
    image = drawn_image(*size)
    labels = ["Red star", "the blue circles"]
    found = GroundingDino(folders["detector"], device="cpu").detect(image, labels)
    processor = transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessorPil.from_pretrained(folders["detector"]),
        transformers.AutoTokenizer.from_pretrained(folders["detector"]),
    )
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(folders["detector"]).eval()
    inputs = processor(images=image, text=[labels], return_tensors="pt")
    # [CLS] red star . the blue circle ##s . [SEP]
    assert inputs["input_ids"].shape == (1, 10)
    with torch.no_grad():
        outputs = model(**inputs)
    (official,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, text_threshold=0.0, target_sizes=[size]
    )
    assert len(found) == len(official["boxes"]) == 6
    boxes = np.array([one.box_px for one in found])
    np.testing.assert_allclose(boxes, official["boxes"].numpy(), atol=1e-3)
    by_token = outputs.logits[0].sigmoid().numpy()
    red, blue = by_token[:, 1:3].max(1), by_token[:, 4:8].max(1)
    np.testing.assert_allclose([one.score for one in found], np.maximum(red, blue), atol=1e-6)
    wanted = [labels[0] if r >= b else labels[1] for r, b in zip(red, blue, strict=True)]
    assert [one.label for one in found] == wanted


def test_names_that_do_not_fit_one_text_get_several(folders, tmp_path):
    image = drawn_image(48, 48)
    labels = ["red star", "blue circle", "the dog", "a dog", "the red star"]
    short = tiny_hub.detector(tmp_path / "short", max_text_len=9)
    model = GroundingDino(short, device="cpu")
    texts = model._texts(labels)
    assert [names for names, _, _ in texts] == [labels[:2], labels[2:4], labels[4:]]
    assert [spans for _, _, spans in texts] == [[[1, 2], [4, 5]], [[1, 2], [4, 5]], [[1, 2, 3]]]
    found = model.detect(image, labels)
    apart = [
        one for some in (labels[:2], labels[2:4], labels[4:]) for one in model.detect(image, some)
    ]
    assert found == apart
    assert len(found) == 18
    with pytest.raises(Unusable, match=r"expected names of at most 9 tokens, got 'red red .* 11"):
        model.detect(image, ["red " * 8])
    with pytest.raises(Unusable, match=r"labels: expected words, got '\.\.'"):
        model.detect(image, [".."])


def official_sam(folder, image, boxes):
    """Returns masks at both thresholds and qualities as SAM's own processor gives them."""
    processor = transformers.SamProcessor(transformers.SamImageProcessorPil.from_pretrained(folder))
    model = transformers.SamModel.from_pretrained(folder).eval()
    inputs = processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=False)
    (logits,) = processor.post_process_masks(
        outputs.pred_masks,
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        binarize=False,
    )
    return logits[:, 0].numpy(), outputs.iou_scores[0, :, 0].numpy()


def official_sam2(folder, image, boxes):
    """Returns the same of SAM 2, the image prepared here: its processor needs torchvision."""
    height, width = image.shape[:2]
    resized = np.array(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    square = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    # As its processor resizes, to half a level of what Pillow rounds.
    official = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(),
        (64, 64),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    assert (square - official).abs().max() <= 1.0
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    given = torch.tensor(boxes * np.array([64 / width, 64 / height] * 2), dtype=torch.float32)
    model = transformers.Sam2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(
            pixel_values=(square / 255 - mean) / deviation,
            input_boxes=given[None],
            multimask_output=False,
        )
        logits = torch.nn.functional.interpolate(
            outputs.pred_masks[0], (height, width), mode="bilinear", align_corners=False
        )
    return logits[:, 0].numpy(), outputs.iou_scores[0, :, 0].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sam", "sam2", "sam2_video"])
def test_masks_are_those_of_transformers(folders, kind, size):
    image, (height, width) = drawn_image(*size), size
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 0.5, (18, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.5, (18, 2))], 1)
    boxes *= [width, height, width, height]
    found = choice.segmenter(folders[kind], device="cpu").segment(image, boxes)
    official = official_sam if kind == "sam" else official_sam2
    logits, quality = official(folders[kind], image, boxes)
    assert len(found) == 18
    unsure = np.abs(logits) < 1e-4
    assert unsure.mean() < 0.02
    assert 0.02 < (logits > 0).mean() < 0.98
    masks = np.stack([one.mask for one in found])
    assert masks.shape == (18, height, width)
    np.testing.assert_array_equal(masks[~unsure], (logits > 0)[~unsure])
    np.testing.assert_allclose([one.quality for one in found], quality, atol=1e-4)
    for one, each in zip(found, logits, strict=True):
        less = np.count_nonzero(each > -1)
        wanted = np.count_nonzero(each > 1) / less if less else 0.0
        assert one.stability == pytest.approx(wanted, abs=0.01)


def counted(times, encode):
    return lambda *given: times.append(1) or encode(*given)


def test_an_image_is_encoded_once_for_all_its_boxes(folders, monkeypatch):
    sam, sam2 = Sam(folders["sam"], device="cpu"), Sam2(folders["sam2"])
    for model, of, name in (
        (sam, sam._model, "get_image_embeddings"),
        (sam2, sam2._segmenter, "_encode"),
    ):
        times: list[int] = []
        monkeypatch.setattr(of, name, counted(times, getattr(of, name)))
        boxes = np.tile([[4.0, 4.0, 30.0, 40.0]], (40, 1))
        drawn = model.segment(drawn_image(64, 64), boxes)
        assert (len(drawn), len(times)) == (40, 1)
        # The same box, the same mask, in whichever group it was decoded.
        assert all((one.mask == drawn[0].mask).all() for one in drawn)


def test_sam2_draws_without_pytorch(folders):
    """Neither PyTorch nor transformers is there; SAM asks for its extra."""
    code = f"""
import sys
sys.modules.update(torch=None, transformers=None)
from pathlib import Path
import numpy as np
from seg_jax.annotation import choice
from seg_jax.annotation.stages import Unusable
model = choice.segmenter(Path({str(folders["sam2_video"])!r}))
(one,) = model.segment(np.zeros((30, 40, 3), np.uint8), np.array([[1.0, 2.0, 20.0, 9.0]]))
print(one.mask.shape, sys.modules["torch"])
try:
    choice.segmenter(Path({str(folders["sam"])!r}))
except Unusable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shape, told = done.stdout.splitlines()
    assert shape == "(30, 40) None"
    assert "expected the package 'torch', got none" in told


def test_the_models_annotate_together(folders, tmp_path):
    known.make(tmp_path, 1)
    stages = Stages(GroundingDino(folders["detector"], device="cpu"), Sam2(folders["sam2"]), None)
    loose = filters.Filters(
        min_score=0.0, min_box=0.0, max_box=1.0, max_box_iou=0.99, min_quality=0.0
    )
    loose = dataclasses.replace(
        loose, min_stability=0.0, min_mask=0.0, max_outside=1.0, max_mask_iou=1.0
    )
    settings = known.settings(
        labels=("red star", "the dog"), filters=loose, contour=Contour(min_area_px=0)
    )
    image = ImageFile("000.png", tmp_path / "000.png")
    first, second = (annotate(image, stages, settings, models=known.MODELS) for _ in range(2))
    assert first == second
    assert first.failed == []
    assert first.line["objects"]
    assert {one["name"] for one in first.line["objects"]} <= {"red star", "the dog"}


def test_models_are_told_apart_by_their_weights(folders, tmp_path):
    one = hub.fingerprint(folders["sam"])
    assert one.name == "sam"
    assert one == hub.fingerprint(folders["sam"])
    cached = tmp_path / "models--facebook--sam-tiny" / "snapshots" / "0123abc"
    shutil.copytree(folders["sam"], cached)
    assert hub.fingerprint(cached) == ("facebook/sam-tiny", one.revision)
    file = cached / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert hub.fingerprint(cached).revision != one.revision
    with pytest.raises(Unusable, match="expected the folder of a model, got none"):
        hub.fingerprint(tmp_path / "none")


def pickled(folder):
    model = transformers.SamModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def thinned(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def foreign(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (pickled, "expected a whole model in safetensors, got OSError"),
        (
            thinned,
            "got 1 fewer, the first one mask_decoder.iou_token.weight; do: fetch the model again",
        ),
        (foreign, "expected a model of type sam or sam2 or sam2_video, got 'bert'"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: segmenter: expected this"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line(folders, tmp_path, spoil, told):
    folder = shutil.copytree(folders["sam"], tmp_path / "sam")
    spoil(folder)
    with pytest.raises(Unusable) as caught:
        choice.segmenter(folder, device="cpu")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (thinned, "mask_decoder.iou_token.weight"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "safetensors"),
    ],
)
def test_a_folder_that_is_no_sam2_is_one_line(folders, tmp_path, spoil, told):
    folder = shutil.copytree(folders["sam2"], tmp_path / "sam2")
    spoil(folder)
    with pytest.raises(Unusable) as caught:
        choice.segmenter(folder)
    assert told in str(caught.value)
    assert "; do: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_detector_is_no_segmenter(folders):
    for load in (choice.segmenter, Sam, Sam2):
        with pytest.raises(Unusable, match="segmenter: expected a model of type sam"):
            load(folders["detector"])
    with pytest.raises(Unusable, match="detector: expected a model of type grounding-dino"):
        GroundingDino(folders["sam"])


def test_without_pytorch_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unusable, match=r"expected the package 'torch', .* 'seg-jax\[annotate\]'"):
        Sam(folders["sam"])
