"""Draws folders of labelled pictures as people have them, of things that no scene has (helper).

Mugs, bottles, leaves and keys of any colour on any ground, in pictures of 300 to 800 pixels a side.
python tests/own_pictures.py labelme DIR --count 50 --seed 0
"""

import argparse
import json
import math
from pathlib import Path

import label_folders
import numpy as np
from PIL import Image, ImageDraw

NAMES = ("mug", "bottle", "leaf", "key")
FORMATS = ("labelme", "yolo", "coco", "sharegpt")
_FINER = 2
"""Pictures are drawn so many times as large, and averaged."""


def _arc(x, y, radius, begin, end, count=12):
    angles = np.radians(np.linspace(begin, end, count))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def _shape(name, form):
    """Returns the outline of a thing about 0, within -1..1; `form` in 0..1 changes it a little."""
    if name == "mug":
        wide = 0.5 + 0.2 * form
        handle = _arc(wide, 0.0, 0.42, -70, 70)
        foot = 0.85 * wide
        points = [[-wide, -0.8], [wide, -0.8], *handle, [foot, 0.8], [-foot, 0.8]]
    elif name == "bottle":
        neck, wide = 0.13 + 0.05 * form, 0.34 + 0.12 * form
        half = [[neck, -1.0], [neck, -0.5], [wide, -0.2], [wide, 0.9], [0.85 * wide, 1.0]]
        points = [*half, *([-x, y] for x, y in reversed(half))]
    elif name == "leaf":
        side = np.linspace(-1, 1, 14)
        bulge = (0.35 + 0.2 * form) * np.cos(side * math.pi / 2) ** 0.8
        points = [*np.stack([bulge, side], 1), *np.stack([-bulge, side], 1)[::-1][1:-1]]
    else:
        thick = 0.1 + 0.05 * form
        head = _arc(0.0, -0.6, 0.4, 105, 435, 24)
        teeth = [[thick, 0.5], [0.4, 0.5], [0.4, 0.65], [thick, 0.65], [thick, 0.8], [0.35, 0.8]]
        points = [*head, *teeth, [0.35, 1.0], [-thick, 1.0]]
    return np.array(points, float)


def _thing(rng, name, size, taken):
    """Returns the ring of a thing (x, y, .. in pixels) that lies beside the others, or None."""
    height, width = size
    for _ in range(40):
        radius = rng.uniform(0.17, 0.3) * min(size)
        x = rng.uniform(radius, width - radius)
        y = rng.uniform(radius, height - radius)
        if all(math.hypot(x - a, y - b) > radius + other for a, b, other in taken):
            break
    else:
        return None
    taken.append((x, y, radius))
    turn = rng.normal(0, 0.35)
    rows = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    stretch = np.array([rng.uniform(0.85, 1.15), 1.0])
    ring = (_shape(name, rng.random()) * stretch) @ rows.T
    ring *= radius / np.linalg.norm(ring, axis=1).max()
    return [round(float(one), 1) for one in np.add(ring, [x, y]).ravel()]


def _ground(rng, size):
    """Returns a ground with a gradient, soft spots and noise, and its mean tone."""
    height, width = size
    tone = rng.uniform(30, 225, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    slope = rng.uniform(-30, 30, 2)
    shade = slope[0] * rows / height + slope[1] * columns / width
    small = Image.fromarray(rng.uniform(0, 255, (6, 6)).astype(np.uint8))
    spots = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) - 127
    whole = tone + shade[..., None] + 0.12 * spots[..., None]
    return whole + rng.normal(0, 4, whole.shape), tone


def paint(rng, size):
    """Returns a picture uint8 [H W 3] and its things, one to three of different names."""
    names = rng.permutation(NAMES)[: rng.integers(1, 4)]
    taken, things = [], []
    ground, tone = _ground(rng, size)
    height, width = size
    pixels = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    pixels = pixels.resize((_FINER * width, _FINER * height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(pixels)
    for name in names:
        ring = _thing(rng, name, size, taken)
        if ring is None:
            continue
        colour = rng.uniform(0, 255, 3)
        while np.linalg.norm(colour - tone) < 90:
            colour = rng.uniform(0, 255, 3)
        outline = [_FINER * one for one in ring]
        pen.polygon(outline, fill=tuple(int(one) for one in colour))
        pen.line([*outline, *outline[:2]], fill=tuple(int(0.7 * c) for c in colour), width=3)
        things.append(label_folders.Thing(str(name), [ring]))
    return np.asarray(pixels.resize((width, height), Image.Resampling.BOX)), things


def make(root: Path, form, *, count=50, seed=0):
    """Writes a folder of pictures without splits, with labels in a format; returns the pictures.

    Args:
      root: the folder.
      form: one of `FORMATS`.
      count: of the pictures.
      seed: of what is drawn.
    """
    drawn = []
    place = {"labelme": ".", "sharegpt": "."}.get(form, "images")
    (root / place).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        size = tuple(int(one) for one in rng.integers(300, 801, 2))
        pixels, things = paint(rng, size)
        picture = label_folders.Picture("train", f"photo_{number:03d}.jpg", *size, things)
        Image.fromarray(pixels).save(root / place / picture.name, quality=92)
        drawn.append(picture)
    {"labelme": _labelme, "yolo": _yolo, "coco": _coco, "sharegpt": _sharegpt}[form](root, drawn)
    return drawn


def _labelme(root, drawn):
    for one in drawn:
        shapes = [
            {"label": thing.label, "points": label_folders.pairs(thing.rings[0])}
            | {"shape_type": "polygon", "group_id": None, "description": "", "flags": {}}
            for thing in one.things
        ]
        told = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": one.name}
        told |= {"imageData": None, "imageHeight": one.height, "imageWidth": one.width}
        (root / one.name).with_suffix(".json").write_text(json.dumps(told, indent=2))


def _yolo(root, drawn):
    (root / "labels").mkdir(exist_ok=True)
    for one in drawn:
        lines = []
        for thing in one.things:
            shares = [x / (one.width, one.height)[n % 2] for n, x in enumerate(thing.rings[0])]
            numbers = (f"{share:.6f}" for share in shares)
            lines.append(" ".join([str(NAMES.index(thing.label)), *numbers]))
        (root / "labels" / one.name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{names}")


def _coco(root, drawn):
    kinds = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    images, notes = [], []
    for number, one in enumerate(drawn):
        images.append({"id": number, "file_name": one.name})
        images[-1] |= {"height": one.height, "width": one.width}
        for thing in one.things:
            ring = thing.rings[0]
            low, high = (min(ring[::2]), min(ring[1::2])), (max(ring[::2]), max(ring[1::2]))
            note = {"id": len(notes) + 1, "image_id": number, "iscrowd": 0}
            note |= {"category_id": NAMES.index(thing.label) + 1, "segmentation": [ring]}
            box = [*low, high[0] - low[0], high[1] - low[1]]
            notes.append(note | {"bbox": box, "area": box[2] * box[3]})
    (root / "annotations").mkdir(exist_ok=True)
    told = {"images": images, "annotations": notes, "categories": kinds}
    (root / "annotations" / "instances.json").write_text(json.dumps(told))


def _sharegpt(root, drawn):
    every = []
    for one in drawn:
        turns = []
        for thing in one.things:
            ring = label_folders.pairs([round(number) for number in thing.rings[0]])
            asked = f"Outline the {thing.label}."
            turns.append({"from": "human", "value": asked if turns else f"<image>\n{asked}"})
            answer = json.dumps({"polygon": ring, "label": thing.label})
            turns.append({"from": "gpt", "value": answer})
        every.append({"images": [one.name], "conversations": turns})
    (root / "dataset.json").write_text(json.dumps(every))


def main():
    """Writes the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", choices=FORMATS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    make(told.folder, told.form, count=told.count, seed=told.seed)


if __name__ == "__main__":
    main()
