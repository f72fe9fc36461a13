"""Annotations of COCO and lines of folders, good ones and what tests make of them."""

import json

from seg_jax.data.formats import coco, folder

RING = [10, 10, 40, 10, 40, 30, 10, 30]
FULL = {"size": [48, 64], "counts": [0, 48 * 64]}


def nested(levels):
    return "[" * levels + "]" * levels


def coco_text(root, text):
    """Reads an instances.json of this text."""
    path = root / "instances_val.json"
    path.write_text(text)
    return coco.read_instances(path, images=root, split="val")


def coco_data(*notes, **changes):
    """Returns two images with a cup, and changed or added annotations of the first."""
    data = {
        "images": [
            {"id": n, "file_name": f"p{n}.jpg", "height": 48, "width": 64} for n in range(2)
        ],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [RING], "iscrowd": 0}
            for n in range(2)
        ],
    }
    for number, note in enumerate(notes):
        data["annotations"].append(data["annotations"][0] | {"id": 10 + number} | note)
    return data | changes


def read_coco(root, *notes, **changes):
    return coco_text(root, json.dumps(coco_data(*notes, **changes)))


def read_folder(root, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "train.jsonl").write_text(text)
    return folder.read(root)


def line(*outlines, image="a.jpg", **changes):
    """Returns a line with an object for each outline, and a phrase for each."""
    objects = [{"segmentation": one} for one in outlines]
    phrases = [{"text": f"thing {n}", "objects": [n]} for n in range(len(objects))]
    return {"image": image, "objects": objects, "phrases": phrases} | changes
