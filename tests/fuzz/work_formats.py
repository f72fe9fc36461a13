"""Formats of what interrupted programs have left and go on with (helper of the fuzzer)."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byte_mutations
import container_mutations
import json_mutations
from harness import Format

sys.path.append(str(Path(__file__).parents[1] / "annotation"))

_JSON = json_mutations.mutated_json
_SCENES = 3
_PATHS = ("000.png", "../list.txt", "/dev/zero", "/dev/stdin", "http://127.0.0.1/a.png", "*", "..")


def _annotate(folder: Path) -> Iterator[str]:
    """Annotates the images of a list, from where another annotation was interrupted."""
    import known_scenes

    from seg_jax.annotation import jobs, results
    from seg_jax.data import image_lists
    from seg_jax.data.findings import Findings

    # Shards know the paths of their images: as they were when they were made.
    with contextlib.chdir(folder):
        job, met = known_scenes.job(Path("out"), _SCENES, records=1), Findings()
        with jobs.claim_folder(job, anew=False):
            if (job.out / jobs.LIST).exists():  # As machines of a pipeline read it.
                jobs.read_list(job)
            every = jobs.cut_into_shards(image_lists.list_images("web/list.txt", met), job.records)
            yield from met.lines()
            yield from jobs.damaged_shards(every, job).lines()
            jobs.forget_failures(every, job)
            jobs.annotate_shards(every, job, workers=1, progress=lambda done: None)
            jobs.write_list([one for shard in every for one in shard.images], job)
            summary = results.gather_shards(every, job, results.Splits())
    yield from Findings.from_json(summary["findings"]).lines()


def _make_shards(folder: Path) -> None:
    import known_scenes

    known_scenes.make(folder / "web", _SCENES)
    (folder / "web" / "list.txt").write_text("000.png\n002.png\n")
    for _ in _annotate(folder):
        pass


def _mutated_shard(data: bytes, rng: random.Random) -> bytes:
    """Returns a shard with a changed first line, which half of the time is of its own digest."""
    from seg_jax import schemas
    from seg_jax.data import shard_files
    from seg_jax.data.findings import Findings

    first, _, rest = data.partition(b"\n")
    if rng.random() < 0.3:
        return json_mutations.mutated_lines(data, rng)
    changed = _JSON(first, rng)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        value = json.loads(changed)
        head = schemas.check(value, shard_files._Head, where="head")
        if rng.random() < 0.5:
            met = Findings.from_json(head.findings)
            own = shard_files._own_digest(head.digest, head.sha256, counts=head.counts, met=met)
            changed = json.dumps(value | {"own": own}).encode()
    return changed + b"\n" + rest


_ASKED = {"image": "web/000.png", "id": 7, "questions": [{"text": "the cup", "name": "cup"}]}
_POINTED = [{"point": [0.25, 0.5]}, {"box": [0.1, 0.2, 0.6, 0.9], "answer": "box"}]


def _make_questions(folder: Path) -> None:
    lines = [_ASKED, {"image": "web/001.png", "questions": _POINTED}]
    lines += [{"image": "web/2.png", "text": "all of them", "image_id": 3, "category_id": 1}]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines[:2]))
    (folder / "numbers.jsonl").write_text(f"{json.dumps(lines[2])}\n")


def _plan_questions(folder: Path) -> Iterator[str]:
    """Reads the questions of files, and plans their answers in every format."""
    from seg_jax.data import question_lists
    from seg_jax.data.exports import table
    from seg_jax.data.findings import Findings
    from seg_jax.runs import prediction_jobs

    for path in sorted(folder.glob("*.jsonl")):
        met = Findings()
        asked = question_lists.read(path, met)
        yield from met.lines()
        job = prediction_jobs.plan(
            asked,
            out=folder / "out",
            batch=1,
            formats=[*table.WHOLE, *table.FOLDERS],
            identity={"model": "x"},
            kinds=("point", "box", "mask"),
        )
        for shard in prediction_jobs.cut_shards(job):
            json.dumps(
                [question.asked_json() for one in shard.pictures for question in one.questions]
            )
        yield from (one.name for one in job.categories)


_FINGERPRINT = "what is converted"
_WEIGHTS = {
    "model-00001-of-00002.safetensors": b"one" * 99,
    "model-00002-of-00002.safetensors": b"",
}


@functools.cache
def _convert() -> Any:
    from seg_jax.cli import convert

    return convert


def _conversion(folder: Path) -> Any:
    """Returns what `convert` begins with."""
    convert = _convert()
    config = convert.Config(source=str(folder / "source"), dest=folder / "dest")
    return config, convert._fingerprint(config, folder / "source")


def _make_journal(folder: Path) -> None:
    from seg_jax.models.io import safetensors

    convert = _convert()
    (folder / "source").mkdir()
    (folder / "source" / "config.json").write_text("{}")
    config, fingerprint = _conversion(folder)
    with convert._Partial(config, folder / "source") as partial:
        for name, data in _WEIGHTS.items():
            (partial.folder / name).write_bytes(data)
            one = convert.checksums.of_file(partial.folder / name)
            partial.add(safetensors.Written(name, one.bytes, one.xxh3))
    path = partial.folder / convert.JOURNAL
    text = path.read_text()
    assert text.startswith(json.dumps(fingerprint))
    path.write_text(text.replace(json.dumps(fingerprint), json.dumps(_FINGERPRINT)))


def _resume_journal(folder: Path) -> None:
    """Goes on with a conversion; of what is there only whole files of ours may be kept."""
    convert = _convert()
    config, fingerprint = _conversion(folder)
    path = folder / "dest.partial" / convert.JOURNAL
    text = path.read_bytes()  # The folder of a case has other times than that of the valid files.
    path.write_bytes(
        text.replace(json.dumps(_FINGERPRINT).encode(), json.dumps(fingerprint).encode())
    )
    with convert._Partial(config, folder / "source") as partial:
        assert partial.whole_bytes() >= 0
        for name in partial._whole:
            assert (partial.folder / name).is_file()
    with convert._Partial(config, folder / "source") as again:
        assert again._whole == partial._whole


def _make_conversion(folder: Path) -> None:
    import tiny_folders

    tiny_folders.make("qwen2_5_vl", folder / "source")


def _convert_folder(folder: Path) -> None:
    """Converts a folder of the hub; what is made is whole, and of what is refused nothing is."""
    from seg_jax import checksums

    dest = folder / "dest"
    try:
        _convert().main(_convert().Config(source=str(folder / "source"), dest=dest))
    except (ValueError, OSError):
        assert not dest.exists(), "a folder of a model that was refused"
        raise
    checksums.check_folder(dest, lambda name: True)
    assert (dest / checksums.FILE).is_file()


_FORMATS = (
    Format(
        name="conversion",
        make=_make_conversion,
        mutations={
            "*/*.safetensors": container_mutations.mutated_safetensors,
            "*/*config.json": _JSON,
        },
        read=_convert_folder,
        may_start=True,
    ),
    Format(
        name="shards",
        make=_make_shards,
        mutations={
            "out/.annotated/*.jsonl": _mutated_shard,
            "out/.images.jsonl": json_mutations.mutated_lines,
            "web/list.txt": lambda data, rng: byte_mutations.mutated_text(data, rng, _PATHS),
        },
        read=_annotate,
    ),
    Format(
        name="questions",
        make=_make_questions,
        mutations={"*.jsonl": json_mutations.mutated_lines},
        read=_plan_questions,
    ),
    Format(
        name="journal",
        make=_make_journal,
        mutations={
            "dest.partial/.convert.jsonl": json_mutations.mutated_lines,
            "dest.partial/*.safetensors": byte_mutations.mutated,
        },
        read=_resume_journal,
    ),
)

FORMATS = {form.name: form for form in _FORMATS}
