"""Makes tiny data sets in exactly the published formats, with masks that are known."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SPLITS = {
    "refcoco_unc": ("train", "val", "testA", "testB"),
    "refcoco_google": ("train", "val", "test"),
    "refcocoplus_unc": ("train", "val", "testA", "testB"),
    "refcocog_umd": ("train", "val", "test"),
    "refcocog_google": ("train", "val"),
    "grefcoco_unc": ("train", "val", "testA", "testB"),
    "refclef_unc": ("train", "val", "testA", "testB", "testC"),
    "refclef_berkeley": ("train", "val", "test"),
}


def image(path: Path, seed: int, *, height=48, width=64, mode="RGB", form="JPEG"):
    """Writes an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, form)
    return path


def star(rng, height=48, width=64):
    """Returns a polygon of COCO with two decimals, within an image."""
    centre = rng.uniform(0.3, 0.7, 2) * [width, height]
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(0.15, 0.28, 9) * min(height, width)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    return np.round(points, 2).ravel().tolist()


def rectangle(y0, x0, y1, x1, height=48, width=64):
    """Returns a mask."""
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def true_mask(segmentation, height=48, width=64):
    """Returns the mask of a `segmentation` by pycocotools."""
    if isinstance(segmentation, dict):
        return coco.decode(coco.frPyObjects(segmentation, height, width)).astype(bool)
    if isinstance(segmentation[0], dict):
        rles = [one | {"counts": one["counts"].encode()} for one in segmentation]
        return coco.decode(coco.merge(rles)).astype(bool)
    return coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))).astype(bool)


def annotation(rng, number, image_id, *, kind="polygons"):
    """Returns an annotation of instances.json."""
    if kind == "polygons":
        segmentation = [star(rng) for _ in range(int(rng.integers(1, 3)))]
    elif kind == "crowd":
        mask = rectangle(*rng.integers(0, 20, 2), *rng.integers(25, 48, 2))
        counts = np.diff(
            np.flatnonzero(np.diff(mask.ravel("F"), prepend=~mask[0, 0])), append=mask.size
        )
        counts = counts.tolist() if not mask[0, 0] else [0, *counts.tolist()]
        segmentation = {"size": [48, 64], "counts": counts}
    else:  # RefCLEF's: a list of compressed run lengths, in text.
        rle = coco.encode(np.asfortranarray(rectangle(5, 6, 30, 40).astype(np.uint8)))
        segmentation = [{"size": rle["size"], "counts": rle["counts"].decode()}]
    mask = true_mask(segmentation)
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "segmentation": segmentation,
        "area": float(mask.sum()),
        "iscrowd": int(kind == "crowd"),
        "image_id": image_id,
        "bbox": [float(n) for n in box],
        "category_id": 1 + number % 2,
        "id": number,
    }


CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 2, "name": "bicycle"},
]


def info(number, name):
    """Returns what instances.json tells of an image."""
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://mscoco.org/images/{number}",
        "height": 48,
        "width": 64,
        "date_captured": "2013-11-15 02:41:42",
        "flickr_url": "http://farm1.staticflickr.com/1.jpg",
        "id": number,
    }


def sentence(number, text):
    """Returns a sentence of a reference; `raw` as it was typed, `sent` cleaned."""
    return {"tokens": text.split(), "raw": f"{text.title()}.", "sent_id": number, "sent": text}


def reference(number, note, split, name, texts):
    """Returns a reference of refs(*).p."""
    first = number * 10
    return {
        "sent_ids": list(range(first, first + len(texts))),
        "file_name": f"{Path(name).stem}_{note['id']}.jpg",
        "ann_id": note["id"],
        "ref_id": number,
        "image_id": note["image_id"],
        "split": split,
        "sentences": [sentence(first + place, text) for place, text in enumerate(texts)],
        "category_id": note["category_id"],
    }


def refer(root: Path, name: str, *, images=3, first=1, protocol=2, seed=0):
    """Makes an edition of the refer family: so many images a split, two references each.

    Images of a split have the numbers first, first + 1, ..; those of the next go on there.
    """
    rng = np.random.default_rng(seed)
    folder, by = name.replace("refcocoplus", "refcoco+").split("_")
    clef = folder == "refclef"
    data = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": CATEGORIES}
    refs, number, ref_id = [], first, 0
    for split in SPLITS[name]:
        for _ in range(images):
            file = f"{number}.jpg" if clef else f"COCO_train2014_{number:012d}.jpg"
            place = "images/saiapr_tc-12" if clef else "images/mscoco/images/train2014"
            inner = f"{number // 1000:02d}/images/{file}" if clef else file
            image(root / place / inner, number)
            data["images"].append(info(number, file))
            notes = [
                annotation(rng, number * 10 + k, number, kind="runs" if clef else "polygons")
                for k in range(2)
            ]
            data["annotations"] += notes
            for note in notes:
                texts = [f"the one {note['id']}", f"thing {ref_id}", f"left\u00e9 {ref_id}"]
                refs.append(reference(ref_id, note, split, file, texts[: 1 + ref_id % 3]))
                ref_id += 1
            number += 1
    (root / folder).mkdir(parents=True, exist_ok=True)
    path = root / folder / "instances.json"
    if path.exists():  # Two partitions share one instances.json.
        before = json.loads(path.read_text())
        known = {one["id"] for one in before["images"]}
        before["images"] += [one for one in data["images"] if one["id"] not in known]
        ids = {one["id"] for one in before["annotations"]}
        before["annotations"] += [one for one in data["annotations"] if one["id"] not in ids]
        by_id = {one["id"]: one for one in before["annotations"]}
        for ref in refs:
            assert ref["ann_id"] in by_id
        data = before
    path.write_text(json.dumps(data))
    if folder == "grefcoco":
        refs = generalised(refs, data)
        (root / folder / f"grefs({by}).json").write_text(json.dumps(refs))
    else:
        (root / folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol))
    return data, refs


def generalised(refs, data):
    """Returns references as gRefCOCO has them: lists of annotations, one of many, one of none."""
    found = []
    for ref in refs:
        found.append(
            ref
            | {"ann_id": [ref["ann_id"]], "category_id": [ref["category_id"]], "no_target": False}
        )
    for place, image in enumerate(data["images"]):
        here = [ref for ref in refs if ref["image_id"] == image["id"]]
        number = 1000 + 2 * place
        common = {
            "image_id": image["id"],
            "split": here[0]["split"],
            "file_name": here[0]["file_name"],
        }
        ids = [ref["ann_id"] for ref in here]
        both = {"ann_id": ids, "ref_id": number, "category_id": [1] * len(ids), "no_target": False}
        none = {"ann_id": [-1], "ref_id": number + 1, "category_id": [-1], "no_target": True}
        for each, text in ((both, "both of them"), (none, "the green cow")):
            sent_id = each["ref_id"] * 10
            found.append(
                common | each | {"sent_ids": [sent_id], "sentences": [sentence(sent_id, text)]}
            )
    return found


def instances(root: Path, split="train2017", *, images=3, seed=0):
    """Makes COCO instances: the last annotation of each image is a crowd."""
    rng = np.random.default_rng(seed)
    data = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(1, images + 1):
        file = f"{number:012d}.jpg"
        image(root / split / file, number)
        data["images"].append(info(number, file))
        for k, kind in enumerate(("polygons", "polygons", "polygons", "crowd")):
            data["annotations"].append(annotation(rng, number * 10 + k, number, kind=kind))
    data["images"].append(info(99, "without_objects.jpg"))
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return data


def panoptic(root: Path, split="val2017", *, images=2, seed=0):
    """Makes COCO panoptic; returns the JSON and the segment numbers of pixels by image."""
    rng = np.random.default_rng(seed)
    data = {"info": {}, "images": [], "annotations": []}
    data["categories"] = [
        {"supercategory": "person", "isthing": 1, "id": 1, "name": "person"},
        {"supercategory": "sky", "isthing": 0, "id": 187, "name": "sky-other-merged"},
    ]
    numbers = {}
    for number in range(1, images + 1):
        file = f"{number:012d}.jpg"
        image(root / split / file, number)
        data["images"].append(info(number, file))
        segments = np.zeros((48, 64), np.int64)
        ids = [int(n) for n in rng.integers(1000, 2**24, 3)]
        for place, one in enumerate(ids):
            segments[place * 15 : place * 15 + 12, 5:50] = one
        pixels = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1)
        png = root / "annotations" / f"panoptic_{split}" / f"{number:012d}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(png)
        told = [
            {
                "id": one,
                "category_id": 187 if place == 2 else 1,
                "iscrowd": 0,
                "bbox": [5, place * 15, 45, 12],
                "area": int((segments == one).sum()),
            }
            for place, one in enumerate(ids)
        ]
        note = {"segments_info": told, "file_name": png.name, "image_id": number}
        data["annotations"].append(note)
        numbers[number] = segments
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(data))
    return data, numbers


def reasonseg(root: Path, *, images=2):
    """Makes ReasonSeg; returns the JSON of each image."""
    notes = {}
    for split in ("train", "val", "test"):
        for number in range(images):
            stem = f"{split}_{number}"
            image(root / split / f"{stem}.jpg", number)
            shapes = [
                {"label": "target", "points": [[5.6, 5.2], [40.9, 6.0], [38.0, 30.5], [7.5, 28.0]]},
                {"label": "ignore", "points": [[20.0, 10.0], [30.0, 10.0], [30.0, 20.0]]},
                {"label": "flag", "points": [[1.0, 1.0], [2.0, 1.0], [2.0, 2.0]]},
            ]
            shapes = shapes if number else shapes[::2]
            for shape in shapes:
                shape |= {"labels": [shape["label"]], "shape_type": "polygon", "flags": {}}
                shape |= {"image_name": f"{stem}.jpg", "group_id": None}
            note = {
                "text": [f"what would keep caf\u00e9 warm, {stem}?", "the \u2019warm\u2019 thing"],
                "is_sentence": number == 0,
                "shapes": shapes,
            }
            encoding = "cp1252" if number else "utf-8"
            text = json.dumps(note, ensure_ascii=False)
            (root / split / f"{stem}.json").write_bytes(text.encode(encoding))
            notes[f"{split}/{stem}"] = note
    return notes


def folder(root: Path):
    """Makes a user's own folder; returns its lines."""
    rng = np.random.default_rng(0)
    rle = coco.encode(np.asfortranarray(rectangle(3, 4, 20, 30).astype(np.uint8)))
    lines = []
    for number in range(4):
        image(root / "images" / f"{number}.png", number, form="PNG")
        lines.append(
            {
                "image": f"images/{number}.png",
                "objects": [
                    {"segmentation": [star(rng)], "name": "star"},
                    {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}},
                    {"segmentation": [star(rng)], "name": "star", "ignore": True},
                ],
                "phrases": [
                    {"text": "the star", "objects": [0]},
                    {"text": "both of them", "objects": [0, 1]},
                    {"text": "a fork", "objects": []},
                ],
            }
        )
    for split, some in (("train", lines[:3]), ("val", lines[3:])):
        (root / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in some))
    return lines


def masks(root: Path, name: str, *, images=2, seed=0):
    """Makes a data set of images and grey masks as it is published; returns the true masks.

    The result is by split and name of the image.
    """
    from seg_jax.data.formats import mask_folders

    layout, made = mask_folders.LAYOUTS[name], {}
    rng = np.random.default_rng(seed)
    ending = "png" if name == "hku_is" else "jpg"
    for split, pair in layout.splits.items():
        for number in range(images):
            stem = f"COD10K-CAM-1-Aquatic-{number}-Crab-{split}" if name == "cod10k" else ""
            stem = stem or f"{split}#{number}"
            form = "PNG" if ending == "png" else "JPEG"
            image(root / pair.images[0] / f"{stem}.{ending}", number, form=form)
            mask = rectangle(*rng.integers(0, 15, 2), *rng.integers(20, 40, 2))
            folder = root / pair.masks[0]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{stem}.png")
            made[split, f"{stem}.{ending}"] = mask
    return made
