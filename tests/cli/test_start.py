"""How a run begins: weights and moments are made in their shards, and nothing is there twice."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
import small_run

from seg_jax.cli import finetune, reinforce
from seg_jax.data import pipeline
from seg_jax.inference import bundle as bundles
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.records import Rollout
from seg_jax.runs import reinforcement, supervised
from seg_jax.runs import start as start_of_run
from seg_jax.runs.stage import Place
from seg_jax.training import hlo, loop, optimizers, policy, sft, state, steps, topology
from seg_jax.training.log import SilentLog

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices"),
]

ADAM = optimizers.AdamW()
ONCE = loop.Loop(steps=1, log_every=1)
SHAPE = steps.Mesh(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def start():
    """The beginning of a run with random weights on the mesh of eight devices."""
    given = small_run.bundle()
    mesh = SHAPE.build()
    blank = dataclasses.replace(
        given, params=sharding.with_shardings(given.params, sharding.shardings(given.params, mesh))
    )
    return start_of_run.Start(
        blank, start_of_run.weight_initializer(small_run.sft_config(), blank, mesh)
    )


@pytest.fixture(scope="module")
def like(start):
    """The shapes of its state, as they lie on the devices."""
    return state.shapes(start.bundle.params, optimizers.build(ADAM), SHAPE.build())


def assert_laid_as(tree, wanted):
    for leaf, like in zip(*map(jax.tree.leaves, (tree, wanted)), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_random_weights_do_not_depend_on_the_mesh(start):
    found, wanted = start.weights(), small_run.bundle().params
    assert_laid_as(found, start.bundle.params)
    one_by_one = zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    )
    for (path, leaf), alone in one_by_one:
        # Rows of numbers are as long as all rows in the mean: round-off depends on the mesh.
        table = mesh_axes.names_of(path) == ("embed", "embedding")
        np.testing.assert_allclose(leaf, alone, rtol=0, atol=1e-7 if table else 0)
    assert np.std(np.asarray(found["embed"]["embedding"][...])) > 1e-3


@pytest.mark.slow
def test_no_tpu_draws_more_than_its_shards(start):
    pytest.importorskip("libtpu")
    on = steps.Mesh(fsdp=8, tensor=2).build(topology.from_name("v5e:4x4").devices)
    drawing = start_of_run.weight_initializer(small_run.sft_config(), start.bundle, on)
    sizes = drawing.lower().compile().memory_analysis()
    params = start.bundle.params
    weights = hlo.device_bytes(sharding.with_shardings(params, sharding.shardings(params, on)))
    assert weights <= sizes.output_size_in_bytes
    assert sizes.temp_size_in_bytes < weights


def test_weights_of_a_file_may_be_overwritten_by_steps(tmp_path):
    wanted = small_run.bundle()
    bundles.save(wanted, tmp_path / "given")
    config = small_run.sft_config(mesh=SHAPE)
    change = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    for resume in (False, True):
        run = dataclasses.replace(config, resume=resume, checkpoint=tmp_path / "given", model=None)
        start = start_of_run.from_checkpoint(run.completed())
        changed = change(start.weights())
        for leaf, before in zip(*map(jax.tree.leaves, (changed, wanted.params)), strict=True):
            # What several devices hold each must have been theirs alone.
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, 2 * np.asarray(before)[shard.index] + 1)


def held():
    """Returns the bytes of all arrays on every device."""
    gc.collect()
    found = np.zeros(8, int)
    for array in jax.live_arrays():
        # Not by `shard.data`: these are arrays too.
        size = hlo.device_bytes(array)
        for device in array.sharding.device_set:
            found[device.id] += size
    return found


@pytest.fixture
def measured(monkeypatch):
    """Puts steps that note what the devices hold in the place of the real ones."""
    found = []

    def stand_in(*_, **__):
        def step(current, *_):
            found.append(held())
            return current._replace(step=current.step + 1), dict.fromkeys(
                told, np.ones((), np.float32)
            )

        return step

    told = ("loss", "reward", "length/mean")
    monkeypatch.setattr(steps, "supervised_step", stand_in)
    monkeypatch.setattr(steps, "reinforcing_step", stand_in)
    nothing = Rollout(*(np.zeros((8, 1, 1), kind) for kind in (np.int32, bool, np.float32)))
    monkeypatch.setattr(steps, "sampler", lambda *_, **__: lambda *_: nothing)
    # What other tests of the process have left is not looked through again and again.
    gc.freeze()
    yield found
    gc.unfreeze()


def never():
    raise AssertionError("expected the weights of the checkpoint, got others made")


@pytest.mark.parametrize("offload", [False, True])
def test_a_run_holds_one_state_in_shards(start, measured, tmp_path, offload):
    config = small_run.sft_config(optimizer=ADAM, loop=ONCE, mesh=SHAPE, offload=offload)
    transform, params = optimizers.build(ADAM), start.bundle.params
    like = state.shapes(params, transform, SHAPE.build(), offload=offload)
    place = Place(tmp_path, "sft", SilentLog())
    before, share = held(), hlo.device_bytes(like)
    end = supervised.train(config, start, place).state
    (during,) = measured
    assert ((during - before >= share) & (during - before < 1.3 * share)).all()
    assert_laid_as(end, like)
    wanted = small_run.host(end)
    del end
    again = supervised.train(config, start._replace(weights=never), place).state
    after = held()
    assert ((after - before >= share) & (after - before < 1.3 * share)).all()
    assert_laid_as(again, like)
    small_run.assert_same(again, wanted)


def test_reinforcement_holds_its_reference_beside_the_state(start, like, measured, tmp_path):
    config = small_run.gspo_config(
        optimizer=ADAM, loop=ONCE, mesh=SHAPE, policy=policy.Policy(kl=0.1)
    )
    before, share = held(), hlo.device_bytes((like, like.params))
    start = start._replace(bundle=dataclasses.replace(start.bundle, task=config.task))
    reinforcement.train(config, start, Place(tmp_path, "gspo", SilentLog()))
    (during,) = measured
    assert ((during - before >= share) & (during - before < 1.3 * share)).all()


def _nothing_is_read(*_, **__):
    raise AssertionError("weights are read, or a tokenizer is made")


@pytest.fixture
def unread(monkeypatch):
    """Lets nothing be read or made from now on."""
    small_run.bundle()
    monkeypatch.setattr(bundles, "load", _nothing_is_read)
    monkeypatch.setattr(start_of_run, "make_tokenizer", _nothing_is_read)


@pytest.mark.parametrize("program", [finetune, reinforce])
def test_rows_that_the_devices_do_not_divide_are_refused_before_weights_are_read(
    program, tmp_path, unread
):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    bundles.save(small_run.bundle(), checkpoint)
    changes = {"feed": pipeline.Feed(batch=12), "out": out}
    given = {"checkpoint": checkpoint, "model": None, "layout": None}
    runs = [small_run.gspo_config(**changes, **given)]
    if program is finetune:
        runs = [small_run.sft_config(**changes, **given), small_run.sft_config(**changes)]
    for run in runs:
        with pytest.raises(ValueError, match="batch: expected rows that .* = 8 divides, got 12"):
            program.main(run)
    assert not out.exists()


def test_weights_that_the_devices_do_not_divide_are_refused_before_a_tokenizer_is_made(
    tmp_path, unread
):
    model = small_run.sft_config().model
    odd = dataclasses.replace(model, text=dataclasses.replace(model.text, intermediate_size=68))
    run = small_run.sft_config(model=odd, mesh=steps.Mesh(tensor=8), out=tmp_path / "out")
    with pytest.raises(ValueError, match="expected sizes that divide every weight"):
        finetune.main(run)
    assert not (tmp_path / "out").exists()


def test_pieces_that_do_not_divide_a_batch_are_refused_with_the_options():
    with pytest.raises(ValueError, match="accumulate: expected a divisor of the 8 rows .*, got 3"):
        small_run.sft_config(objective=sft.Objective(accumulate=3))
    with pytest.raises(ValueError, match="expected a divisor of the 8 prompts of a step, got 6"):
        small_run.gspo_config(policy=policy.Policy(minibatches=2, accumulate=3))
