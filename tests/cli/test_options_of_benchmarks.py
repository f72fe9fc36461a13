"""Every option of a benchmark changes what is measured, or is refused; nothing is timed.

Those of `benchmark step` are in `test_options_of_compile`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import types
from pathlib import Path

import fingerprints
import jax
import numpy as np
import pytest
import small_run

from seg_jax.cli.benchmarks import (
    boundary,
    data,
    decode,
    harness,
    masks,
    policy,
    polygon_cases,
    raster,
    raster_costs,
    raster_peers,
    reader,
    reward,
    rollout,
    saliency,
    segmenter,
    torch_loader,
    torch_peer,
)
from seg_jax.data import pipeline
from seg_jax.data.build import dataset
from seg_jax.data.packing import Pack
from seg_jax.data.sources import Built, Scenes
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import console, run_folder, start
from seg_jax.tasks import task
from seg_jax.training import optimizers, state, steps


@pytest.fixture
def note(monkeypatch, tmp_path):
    """Returns what notes what a measurement receives."""
    note = fingerprints.Notes(monkeypatch, tmp_path)

    def by_turns(runs, rounds, clock):
        note("turns", sorted(runs), rounds)
        return {name: 1.0 + place for place, name in enumerate(runs)}

    patch = monkeypatch.setattr
    patch(harness, "on_one_core", lambda function, *values: function(*values))
    patch(harness, "by_turns", by_turns)
    patch(harness, "machine", dict)
    patch(harness, "operations", lambda compiled: 1.0)
    patch(run_folder, "tell_json", lambda results, path: note("numbers", path))
    patch(console, "say", lambda text: None)
    patch(console, "table", lambda *_: None)
    programs = (boundary, data, decode, masks, policy, raster, reader, reward, rollout, saliency)
    for program in (*programs, segmenter):
        patch(program, "_show", lambda results: None)
    return note


def _digest(array):
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


RASTER = {
    "as a user starts it": raster.Config(),
    "all": raster.Config(full=True),
    "two kinds": raster.Config(kinds=("blob", "thin"), sizes=(64, 128), batches=(4,)),
}


@pytest.mark.parametrize("mode", RASTER)
def test_every_option_of_raster(mode, note, monkeypatch):
    def costs(name):
        return lambda base, *_, rounds, seed: note(name, base, rounds, seed)

    patch = monkeypatch.setattr
    patch(raster_peers, "find_module", lambda name: None)
    patch(polygon_cases, "draw", lambda case, seed: note("draw", case, seed))
    patch(raster, "_compare", lambda case, data, peers, *, rounds: note("compare", case, rounds))
    for name in ("growth", "roofline", "reading"):
        patch(raster_costs, name, costs(name))
    fingerprints.walk(note.of, raster, RASTER[mode])


def test_every_option_of_boundary(note, monkeypatch):
    masks = boundary._masks

    def noted(config):
        drawn = masks(config)
        note("masks", _digest(np.stack(drawn)))
        return drawn

    def jit(function):
        return lambda *values: np.zeros(len(values[0]))

    monkeypatch.setattr(boundary, "_masks", noted)
    monkeypatch.setattr(boundary, "_iou", lambda mask, other: 0.0)
    monkeypatch.setattr(boundary, "_f", lambda mask, other: 0.0)
    monkeypatch.setattr(jax, "jit", jit)
    fingerprints.walk(note.of, boundary, boundary.Config(size=16, batch=2))


def test_every_option_of_saliency(note, monkeypatch):
    maps = saliency._maps

    def noted(config):
        greys, truths = maps(config)
        note("maps", _digest(np.stack(greys)), _digest(np.stack(truths)))
        return greys, truths

    monkeypatch.setattr(saliency, "_maps", noted)
    monkeypatch.setattr(saliency, "_peer_of_masks", lambda grey, truth: (0.0,))
    monkeypatch.setattr(saliency, "_peer_of_maps", lambda grey, truth: (0.0,))
    monkeypatch.setattr(jax, "jit", lambda function: lambda words, *_: np.zeros((len(words), 1)))
    fingerprints.walk(note.of, saliency, saliency.Config(size=16, batch=2))


def test_every_option_of_reward(note, monkeypatch):
    def large(seed):
        note("scenes", seed)
        return Scenes()

    def batches_in_order(source, asked, encoder, *, batch):
        note("questions", source.count, batch)
        example = types.SimpleNamespace(answer="the answer")
        return iter([([example] * batch, types.SimpleNamespace(truth=np.zeros(batch)))])

    def judge(asked, answers, truth, *, reader):
        note("judge", answers.ids.shape)
        return types.SimpleNamespace(scores={"iou": np.ones(1)})

    patch, given = monkeypatch.setattr, small_run.bundle()
    patch(torch_peer, "large", large)
    patch(start, "make_tokenizer", lambda *_: given.tokenizer)
    patch(pipeline, "batches_in_order", batches_in_order)
    patch(task, "judge", judge)
    patch(jax, "jit", lambda function, **_: function)
    fingerprints.walk(note.of, reward, reward.Config(prompts=2, answers=2, columns=8))


def _stand_for_the_sampler(patch, note):
    """Notes how answers are sampled, and how long they may be."""
    given = small_run.bundle()

    def questions(count, seed):
        note("questions", count, seed)
        return types.SimpleNamespace(bundle=given, prompts=np.zeros(count))

    def program(questions, answers, tokens, **options):
        options.pop("grammar", None)  # A table; there is one or there is none.

        def sample(params, prompts, limits):
            note("sample", answers, tokens, options, len(prompts))
            if limits is not None:
                note("limits", _digest(np.asarray(limits)))
            ones = np.ones(1, np.int32)
            return types.SimpleNamespace(ids=ones, computed=ones)

        return sample

    class Jitted:
        def __init__(self, function):
            self.call = function

        def __call__(self, *values):
            return self.call(*values)

        def lower(self, *values):
            self.call(*values)
            return types.SimpleNamespace(compile=lambda: None)

    patch(torch_peer, "questions", questions)
    patch(rollout, "_program", program)
    patch(jax, "jit", Jitted)
    patch(jax, "device_put", lambda values: values)
    # Prompts are copied for each answer, and what is made is read from the device.
    patch(jax.tree, "map", lambda function, value: value)


def test_every_option_of_rollout(note, monkeypatch):
    _stand_for_the_sampler(monkeypatch.setattr, note)
    fingerprints.walk(note.of, rollout, rollout.Config(prompts=4, answers=4, long_share=0.5))


def test_an_option_of_a_benchmark_that_nothing_reads_is_found(note, monkeypatch):
    _stand_for_the_sampler(monkeypatch.setattr, note)

    def dropping(config):
        rollout.main(dataclasses.replace(config, chunk=1))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="chunk: read and dropped"):
        fingerprints.walk(note.of, program, rollout.Config(prompts=4), parts=("chunk",))


def test_numbers_go_where_they_are_wanted(note, monkeypatch):
    monkeypatch.setattr(boundary, "measure", lambda config: {})
    assert note.of(boundary, boundary.Config(json=Path("a.json"))) == (("numbers", Path("a.json")),)


def _questions(note):
    """Returns what stands for the questions of both sides."""
    given = small_run.bundle()

    def questions(count, seed, size="tiny"):
        note("questions", count, seed, size)
        prompts = jax.tree.map(
            lambda leaf: np.repeat(leaf[:1], count, 0), small_run.batch("prompts")
        )
        examples = [types.SimpleNamespace(question="?", image=None)] * count
        config = small_run.sft_config().model
        return torch_peer.Questions(given, examples, prompts, config, Compute())

    return questions


def _stand_for_decoding(patch, note):
    """Notes which answers are decoded, by both sides."""

    def ours(bundle, prompts, group, tokens):
        note("ours", len(prompts.tokens.ids), group, tokens)
        return lambda: types.SimpleNamespace(ids=np.zeros((len(prompts.tokens.ids), group, tokens)))

    def theirs(peer, questions, prompts, group, tokens):
        note("theirs", peer, len(prompts.tokens.ids), group, tokens)
        return lambda: np.zeros((len(prompts.tokens.ids), tokens))

    def by_turns(runs, rounds, clock):
        note("turns", sorted(runs), rounds)
        return {name: 1.0 + len(name) for name in runs}

    def product_per_second(rounds, dtype):
        note("product", rounds, dtype)
        return 1.0

    patch(torch_peer, "questions", _questions(note))
    patch(torch_peer, "missing", lambda *names: note("missing", names) or [])
    patch(torch_peer, "model", lambda questions, size: note("model", size) or f"model {size}")
    patch(decode, "_ours", ours)
    patch(decode, "_theirs", theirs)
    patch(harness, "by_turns", by_turns)
    patch(harness, "product_per_second", product_per_second)


DECODE = {
    "both sides": decode.Config(rows=8, tokens=4, groups=(1, 2)),
    "ours alone": decode.Config(rows=8, tokens=4, peer=False),
}


@pytest.mark.parametrize("mode", DECODE)
def test_every_option_of_decode(mode, note, monkeypatch):
    _stand_for_decoding(monkeypatch.setattr, note)
    fingerprints.walk(note.of, decode, DECODE[mode])


class _Trl:
    """Stands for transformers and TRL: the trainer takes as many steps as it is told."""

    class TrainerCallback:
        """Is told of steps."""

    PrinterCallback = None

    def __init__(self, note):
        trl = self

        class Trainer:
            def __init__(self, model, reward, *, args, train_dataset, processing_class, callbacks):
                note("trainer", model, train_dataset, processing_class)
                self.args, self.callbacks = args, callbacks

            def remove_callback(self, kind):
                assert kind is trl.PrinterCallback

            def train(self):
                for _ in range(self.args["max_steps"]):
                    for one in self.callbacks:
                        one.on_step_begin()
                        one.on_step_end()
                        one.on_log(logs={"reward": 0.0, "completions/mean_length": 1.0})

        def settings(*, output_dir, **options):
            note("settings", options)
            return options

        self.GRPOTrainer, self.GRPOConfig = Trainer, settings


def _stand_for_policy(patch, note, *, lost):
    """Notes what either side's step is built of, and counts its turns."""
    modules = {"transformers": _Trl(note), "trl": _Trl(note)}

    def sampler(actor, *options, **named):
        note("sampler", options, {name: named[name] for name in ("seed", "task")})
        return lambda *_: None

    def learning(actor, task, **options):
        note("step", options)

        def learn(now, prompts, rollout, reference):
            note("turn", prompts.tokens.ids.shape)
            return now, {"reward": 0.0, "length/mean": 1.0}

        return learn

    given = small_run.batch("prompts")
    one, zero = jax.tree.map(lambda leaf: leaf[0], given), np.zeros((), np.int32)
    real = importlib.import_module
    patch(policy.importlib, "import_module", lambda name: modules.get(name) or real(name))
    patch(torch_peer, "questions", _questions(note))
    patch(torch_peer, "missing", lambda *names: list(lost))
    patch(torch_peer, "model", lambda questions: "model")
    patch(torch_peer, "processor", lambda questions: "processor")
    patch(torch_peer, "device", lambda: "cpu")
    patch(policy, "_dataset", lambda questions: len(questions.examples))
    patch(steps, "sampler", sampler)
    patch(steps, "reinforcing_step", learning)
    patch(optimizers, "build", lambda optimizer: note("optimizer", optimizer))
    patch(state, "fresh", lambda params, *_, **__: state.State(zero, zero, params, ()))
    patch(harness, "mesh", lambda rows: note("mesh", rows) or small_run.alone())
    patch(type(small_run.bundle().encoder), "prompt_row", lambda *_: one)


@pytest.mark.parametrize("lost", [(), ("trl",)])
def test_every_option_of_policy(lost, note, monkeypatch):
    _stand_for_policy(monkeypatch.setattr, note, lost=lost)
    base = policy.Config(prompts=2, answers=2, tokens=4, rounds=2)
    fingerprints.walk(note.of, policy, base)


def _stand_for_data(patch, note, *, lost):
    """Notes what is drawn, fed and collated; images are drawn for true, but neither encoded."""

    class Watch:
        def __call__(self, name, do, *, share=1):
            note("watch", name, share)
            return do()

        def median_milliseconds(self):
            return {}

    class Samples:
        def __init__(self, source, tokenizer, layout, task, seed):
            note("samples", len(source), seed)
            self.source, self.row_of_record = source, lambda *_: {}
            self.process_image, self.collate = (
                lambda image: None,
                lambda rows: note("collate", len(rows)),
            )

    def loader(samples, *, batch, workers):
        note("loader", batch, workers)
        return [{"input_ids": [0] * batch}]

    def batches(source, task, encoder, *, feed, rows):
        note("batches", len(source), feed, rows)
        places = np.ones((feed.batch, 4), np.int32)
        images = types.SimpleNamespace(image=places - 1)
        batch = types.SimpleNamespace(tokens=types.SimpleNamespace(segments=places), images=images)

        def forever():
            while True:
                note("batch")
                yield batch

        return forever()

    images: dict[str, list[bytes]] = {}
    encoded: list[int] = []

    def stored(source):
        return images[str(source.folders[0])]

    def record(source, index):
        return types.SimpleNamespace(pixels=lambda: stored(source)[index])

    def sample(source, index, *_):
        return types.SimpleNamespace(image=stored(source)[index])

    for name, value in (("__getitem__", sample), ("record", record), ("sample", sample)):
        patch(Built, name, value)
    patch(Built, "__len__", lambda source: len(stored(source)))

    def data_set(config, folder):
        encoded.clear()
        rng = np.random.default_rng(config.seed)
        (folder / "images").mkdir()
        for number in range(config.images):
            data._draw_image(rng, folder, f"images/{number}.jpg")
        files = sorted((folder / "images").iterdir())
        note("images", [hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        images[str(folder)] = [file.read_bytes() for file in files]
        return Built(folders=(folder,))

    item = types.SimpleNamespace(size=types.SimpleNamespace(tokens=4, patches=2))

    def encode_item(encoder, examples):
        encoded.append(1)
        return types.SimpleNamespace(size=(4 + len(encoded) % 3, 2 + len(encoded) % 5))

    class Encoder(data.Encoder):
        def __init__(self, tokenizer, layout):
            vars(self).update(layout=layout)

        def image_patches(self, image):
            return image

    full = types.SimpleNamespace(
        LAYOUT=types.SimpleNamespace(max_prompt=8, max_answer=8, max_patches=8),
        TASK=types.SimpleNamespace(example=lambda sample, rng: note("asked", rng.random())),
    )
    patch(data, "SIZES", {(24, 32): 0.5, (32, 24): 0.5})
    patch(data, "_full_size", lambda: full)
    patch(data, "_Watch", Watch)
    patch(data, "Encoder", Encoder)
    patch(data, "data_set", data_set)
    patch(data.tokens, "train", lambda corpus, *, folder: None)
    patch(data.packing, "item_from_patches", lambda *_: item)
    patch(data.packing, "pack_row", lambda encoder, four, pack: note("pack", len(four), pack))
    patch(data.packing, "encode_item", encode_item)
    patch(pipeline, "batches", batches)
    patch(torch_loader, "Samples", Samples)
    patch(torch_loader, "loader", loader)
    patch(run_folder, "tell_json", lambda found, path: note("numbers", path, found["useful"]))
    patch(torch_peer, "missing", lambda *names: list(lost))


@pytest.mark.parametrize("lost", [(), ("torch",)])
def test_every_option_of_data(lost, note, monkeypatch):
    _stand_for_data(monkeypatch.setattr, note, lost=lost)
    base = data.Config(images=8, rows=2, batch=3, pack=Pack(tokens=32, patches=64), rounds=2)
    fingerprints.walk(note.of, data, base)


def test_the_data_set_of_data_has_its_images(monkeypatch, tmp_path):
    """What stands for it above draws the same images."""
    claimed = []
    patch = monkeypatch.setattr
    patch(data, "SIZES", {(24, 32): 1.0})
    patch(dataset, "claim_build", lambda plan, *, anew: claimed.append(plan) or _Nothing())
    patch(dataset, "plan_files", lambda plan: types.SimpleNamespace(tasks=[]))
    patch(dataset, "make_files", lambda tasks, *, workers, progress: [])
    patch(dataset, "finish_build", lambda *_: None)
    counts = []
    for images in (2, 3):
        folder = tmp_path / str(images)
        data.data_set(data.Config(images=images), folder)
        counts.append(len([*(folder / "raw" / "images").iterdir()]))
    assert counts == [2, 3]
    assert [plan.source for plan in claimed] == [tmp_path / "2" / "raw", tmp_path / "3" / "raw"]


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Has nothing to close."""


DROPPED = {
    "decode": (decode, DECODE["both sides"], "tokens"),
    "decode alone": (decode, DECODE["ours alone"], "rounds"),
    "policy": (policy, policy.Config(prompts=2, answers=2, tokens=4, rounds=2), "lr"),
    "data": (data, data.Config(images=4, rows=2, batch=3, rounds=1), "workers"),
}


@pytest.mark.parametrize("case", DROPPED)
def test_an_option_that_is_dropped_is_found(case, note, monkeypatch):
    program, base, name = DROPPED[case]
    patch = monkeypatch.setattr
    if program is decode:
        _stand_for_decoding(patch, note)
    elif program is policy:
        _stand_for_policy(patch, note, lost=())
    else:
        _stand_for_data(patch, note, lost=())

    def dropping(config):
        return program.main(dataclasses.replace(config, **{name: getattr(base, name)}))

    with pytest.raises(AssertionError, match=f"{name}: read and dropped"):
        fingerprints.walk(note.of, types.SimpleNamespace(main=dropping), base, parts=(name,))


def test_every_option_of_masks(note, monkeypatch):
    def drawer(seed):
        def draw(view, clicks):
            note("asked", _digest(view), *map(_digest, clicks))
            return np.zeros((*clicks.used.shape[:2], 1, 32), np.uint32)

        note("weights", seed)
        return draw, 32

    monkeypatch.setattr(masks, "drawer", drawer)
    fingerprints.walk(note.of, masks, masks.Config(images=2, answers=2, boxes=2, clicks=3))


def test_every_option_of_reader(note, monkeypatch):
    real = reader._answers

    def answers(config):
        found = real(config)
        note("answers", _digest(found[1]), _digest(found[2]))
        return found

    given = small_run.bundle()
    monkeypatch.setattr(start, "make_tokenizer", lambda *_: given.tokenizer)
    monkeypatch.setattr(reader, "_answers", answers)
    fingerprints.walk(note.of, reader, reader.Config(answers=2, columns=40))


def test_every_option_of_segmenter(note, monkeypatch):
    def side():
        def embed(image):
            note("image", _digest(image))
            return None, image

        def draw(features, *asked):
            note("asked", *map(_digest, asked))
            return asked[0]

        return segmenter.Side(embed, draw)

    def theirs(config):
        note("weights", config.size, config.side, config.seed)
        return side(), {}, None

    monkeypatch.setattr(segmenter, "_theirs", theirs)
    monkeypatch.setattr(segmenter, "_ours", lambda tensors, sizes: side())
    monkeypatch.setattr(torch_peer, "missing", lambda *names: [])
    fingerprints.walk(note.of, segmenter, segmenter.Config(side=256, prompts=2))
