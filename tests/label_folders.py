"""Makes tiny folders of labels as labelling tools write them, all of the same drawings (helper)."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import published_formats as formats
from PIL import Image

from seg_jax.data.build import dataset, record_files
from seg_jax.data.formats import yolo as yolo_reader
from seg_jax.geometry import bitmask


class Thing(NamedTuple):
    """A drawn object."""

    label: str
    rings: list[list[float]]
    """x, y, x, y, .. in pixels."""
    box: bool = False
    """Whether it is a box, drawn as one."""


class Picture(NamedTuple):
    """An image and what is drawn on it."""

    split: str
    name: str
    height: int
    width: int
    things: list[Thing]


BOX = Thing("fork", [[8.0, 10.0, 24.0, 10.0, 24.0, 30.0, 8.0, 30.0]], box=True)


def pictures(*, parts=1, boxes=False):
    """Returns drawings of two splits; one thing of each image has so many parts."""
    rng = np.random.default_rng(0)
    found = []
    for number, split in enumerate(("train", "train", "val")):
        height, width = ((61, 83), (48, 64), (75, 43))[number]

        def star(height=height, width=width):
            return formats.star(rng, height, width)

        things = [Thing("cup", [star()]), Thing("fork", [star() for _ in range(parts)])]
        things += [Thing("cup", [star()]), *[BOX] * boxes]
        found.append(Picture(split, f"{number}.png", height, width, things))
    return found


def draw(root: Path, picture: Picture, place: str):
    """Writes an image below a folder."""
    return formats.image(
        root / place / picture.name, 7, height=picture.height, width=picture.width, form="PNG"
    )


def coco(root: Path, drawn):
    """Writes COCO's files of the drawings."""
    for split in sorted({one.split for one in drawn}):
        some = [one for one in drawn if one.split == split]
        data = {"images": [], "annotations": [], "categories": []}
        data["categories"] = [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}]
        for number, picture in enumerate(some):
            draw(root, picture, split)
            size = {"height": picture.height, "width": picture.width}
            data["images"].append({"id": number, "file_name": picture.name, **size})
            for thing in picture.things:
                note = {"image_id": number, "id": len(data["annotations"]), "iscrowd": 0}
                note["category_id"] = 1 if thing.label == "cup" else 2
                data["annotations"].append(note | {"segmentation": thing.rings})
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))


def yolo(root: Path, drawn, *, write=repr):
    """Writes YOLO's folder of the drawings, numbers by `write`; of each thing the first ring."""
    for picture in drawn:
        draw(root, picture, f"images/{picture.split}")
        size = picture.width, picture.height
        lines = []
        for thing in picture.things:
            ring = thing.rings[0]
            if thing.box:  # Its centre, width and height.
                ring = [(ring[0] + ring[4]) / 2, (ring[1] + ring[5]) / 2]
                ring += [thing.rings[0][place] - thing.rings[0][place - 4] for place in (4, 5)]
            numbers = [write(one / size[n % 2]) for n, one in enumerate(ring)]
            lines.append(" ".join([str(["cup", "fork"].index(thing.label)), *numbers]))
        path = root / "labels" / picture.split / f"{picture.name[:-4]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnc: 2\nnames:\n  0: cup\n  1: fork\n"
    )


YOLO_LINE = "0 0.1 0.1 0.6 0.1 0.6 0.6\n"


def yolo_folder(root, text, *, yaml="train: images\nnames: [cup, no]\n", **changes):
    """Writes a folder of one image with this text of labels, and reads it."""
    draw(root, pictures()[0]._replace(**changes), "images")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "0.txt").write_text(text)
    (root / "data.yaml").write_text(yaml)
    return yolo_reader.read(root)


def png(mask):
    """Returns a mask as LabelMe writes it: a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(mask)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pairs(ring):
    return [[x, y] for x, y in zip(ring[::2], ring[1::2], strict=True)]


def labelme(root: Path, drawn):
    """Writes LabelMe's files; parts of a thing are shapes of one group."""
    for picture in drawn:
        draw(root, picture, picture.split)
        shapes = []
        for group, thing in enumerate(picture.things):
            for ring in thing.rings:
                shape = {"label": thing.label, "points": pairs(ring), "shape_type": "polygon"}
                if thing.box:
                    shape |= {"points": pairs([*ring[:2], *ring[4:6]]), "shape_type": "rectangle"}
                shape |= {"group_id": group if len(thing.rings) > 1 else None, "description": ""}
                shapes.append(shape | {"flags": {}, "mask": None})
        told = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": picture.name}
        told |= {"imageData": None, "imageHeight": picture.height, "imageWidth": picture.width}
        path = root / picture.split / f"{picture.name[:-4]}.json"
        path.write_text(json.dumps(told, indent=2))


def brush(mask):
    """Returns a mask as Label Studio's brush writes it: runs of bytes, and bytes one by one."""
    values = np.repeat(255 * np.asarray(mask, np.uint8).ravel(), 4)
    lengths = (3, 8, 12, 16)
    bits = [f"{values.size:032b}", f"{7:05b}", *(f"{one - 1:04b}" for one in lengths)]
    ends = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    for begin, end in itertools.pairwise(ends):
        for at in range(begin, end, 60_000):
            run = min(end - at, 60_000)
            which = next(place for place, one in enumerate(lengths) if run <= 2**one)
            literal = run <= 8
            told = f"{values[at]:08b}" * (run if literal else 1)
            bits.append(f"{int(not literal)}{which:02b}{run - 1:0{lengths[which]}b}{told}")
    whole = "".join(bits)
    whole += "0" * (-len(whole) % 8)
    return [int(whole[at : at + 8], 2) for at in range(0, len(whole), 8)]


def label_studio(root: Path, drawn):
    """Writes exports of Label Studio; a thing of several parts is brushed."""
    tasks = {}
    for number, picture in enumerate(drawn):
        draw(root, picture, "images")
        size = picture.width, picture.height
        results = []
        for place, thing in enumerate(picture.things):
            ring = thing.rings[0]
            shares = [100 * one / size[n % 2] for n, one in enumerate(ring)]
            value, kind = {"points": pairs(shares), "closed": True}, "polygonlabels"
            if len(thing.rings) > 1:
                mask = formats.true_mask(thing.rings, picture.height, picture.width)
                value, kind = {"format": "rle", "rle": brush(mask)}, "brushlabels"
            if thing.box:
                value = {"x": shares[0], "y": shares[1], "rotation": 0}
                value |= {"width": shares[4] - shares[0], "height": shares[5] - shares[1]}
                kind = "rectanglelabels"
            result = {"id": f"r{place}", "type": kind, "value": value | {kind: [thing.label]}}
            result |= {"original_width": size[0], "original_height": size[1]}
            result |= {"image_rotation": 0, "from_name": "label", "to_name": "image"}
            results.append(result | {"origin": "manual"})
        told = {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{picture.name}"}}
        told["annotations"] = [{"id": 1, "was_cancelled": False, "result": results}]
        tasks.setdefault(picture.split, []).append(told)
    for split, some in tasks.items():
        (root / f"{split}.json").write_text(json.dumps(some))


def cvat(root: Path, drawn):
    """Writes a project of CVAT; the second part of a thing is a polygon of its group."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>"]
    lines += ["<meta><task><name>a &amp; b</name></task></meta>"]
    for number, picture in enumerate(drawn):
        draw(root, picture, f"images/{picture.split}")
        size = f'width="{picture.width}" height="{picture.height}"'
        subset = f'subset="{picture.split}"'
        lines.append(f'<image id="{number}" name="{picture.name}" {subset} {size}>')
        for place, thing in enumerate(picture.things):
            for ring in thing.rings:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(ring))
                group = f' group_id="{place + 1}"' if len(thing.rings) > 1 else ""
                told = f'label="{thing.label}" source="manual" occluded="0" z_order="0"{group}'
                if thing.box:
                    corners = zip(
                        ("xtl", "ytl", "xbr", "ybr"), (*ring[:2], *ring[4:6]), strict=True
                    )
                    ends = " ".join(f'{name}="{one:.2f}"' for name, one in corners)
                    lines.append(f"<box {told} {ends}></box>")
                else:
                    lines.append(f'<polygon {told} points="{points}"></polygon>')
        lines.append("</image>")
    (root / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))


VOC = ((0, 0, 0), (224, 64, 0), (0, 128, 128))
"""Colours of background, cup and fork."""


def voc(root: Path, drawn):
    """Writes masks of Pascal VOC, palettes as the challenge's; later things lie on top."""
    from seg_jax.data.formats.voc import colour

    palette = [channel for n in range(256) for channel in colour(n).to_bytes(3, "little")]
    lists = {}
    for picture in drawn:
        draw(root, picture, "JPEGImages")
        shape = picture.height, picture.width
        classes, objects = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
        for place, thing in enumerate(picture.things):
            mask = formats.true_mask(thing.rings, *shape)
            classes[mask] = VOC[1 if thing.label == "cup" else 2]
            objects[mask] = place + 1
        classes[:2], objects[:2] = (224, 224, 192), 255
        for folder in ("SegmentationClass", "SegmentationObject"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes).save(root / "SegmentationClass" / picture.name)
        indexed = Image.fromarray(objects).convert("P")
        indexed.putpalette(palette)
        indexed.save(root / "SegmentationObject" / picture.name)
        lists.setdefault(picture.split, []).append(picture.name[:-4])
    names = [
        f"{n}:{','.join(map(str, c))}::"
        for n, c in zip(("background", "cup", "fork"), VOC, strict=True)
    ]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *names]))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for split, stems in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems))


def conversations(root: Path, drawn):
    """Writes conversations about the drawings: LLaVA's and messages, numbers in thousandths."""
    lines = {}
    for picture in drawn:
        draw(root, picture, ".")
        answer = []
        for thing in picture.things:
            limits = picture.width, picture.height
            rings = [
                [round(1000 * one / limits[place % 2]) for place, one in enumerate(ring)]
                for ring in thing.rings
            ]
            told = {"polygon": [pairs(ring) for ring in rings], "label": thing.label}
            if thing.box:
                told = {"bbox_2d": [*rings[0][:2], *rings[0][4:6]], "label": thing.label}
            answer.append(told)
        turns = [("user", "<image>Outline everything"), ("assistant", json.dumps(answer))]
        turns += [
            ("user", "Where is <ref>the fork</ref>?"),
            ("assistant", "<box>(1,2),(900,800)</box>"),
        ]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.setdefault(picture.split, []).append({"images": [picture.name], "messages": messages})
    for split, some in lines.items():
        (root / f"{split}.json").write_text(json.dumps(some))


def records(name, source: Path, **options):
    """Builds without writing; returns the records by split and name of the image, and findings."""
    plan = dataset.Plan(name=name, source=source, out=source / "out", **options)
    planned = dataset.plan_files(plan)
    met, found = planned.findings, {}
    for task in planned.tasks:
        for image in task.images:
            try:
                record, _ = record_files.build_record(image, met)
            except record_files.BrokenImage as error:
                met.add(error.reason, error.got)
                continue
            found[record.split, record.name] = record
    return found, met


def things(record):
    """Returns the names and masks of a record, and what each expression means."""
    masks = [bitmask.from_rle(record.rle(place)) for place in range(len(record.ids))]
    return [*zip(record.names, masks, strict=True)], {
        one.text: one.objects for one in record.expressions
    }


def assert_same(found, wanted):
    """Asserts that two builds have the same images with the same masks and expressions."""
    assert found.keys() == wanted.keys()
    for place in wanted:
        (some, texts), (true, true_texts) = things(found[place]), things(wanted[place])
        assert texts == true_texts
        for (name, mask), (true_name, true_mask) in zip(some, true, strict=True):
            assert name == true_name
            np.testing.assert_array_equal(mask, true_mask)
