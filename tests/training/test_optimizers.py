"""Optimizers and schedules against formulas, Muon and AdamW also against torch.optim."""

import exact_muon
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from seg_jax.models.parallel import mesh_axes
from seg_jax.models.sam2.config import Config
from seg_jax.models.sam2.sam2 import Sam2
from seg_jax.training import muon, optimizers, state


def train(config, weights, grads):
    transform = optimizers.build(config)
    current = state.fresh(weights, transform, horizon=len(grads))
    for grad in grads:
        current, _ = state.advance(current, grad, optimizer=config, transform=transform)
    return current.params


def gradients(shape, steps=6, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(steps)]


def torch_trained(start, grads):
    """Returns a matrix after updates of torch.optim.Muon, which iterates in bfloat16."""
    weight = torch.nn.Parameter(torch.tensor(start))
    peer = torch.optim.Muon(
        [weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for grad in grads:
        weight.grad = torch.tensor(grad)
        peer.step()
    return weight.detach().numpy()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_muon_is_its_formulas_and_in_bfloat16_as_near_to_them_as_torch(shape):
    start = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    grads = gradients(shape)
    exact = exact_muon.trained(start, grads, lr=0.02)
    moved = np.linalg.norm(exact - start)
    error = {"torch": np.linalg.norm(torch_trained(start, grads) - exact) / moved}
    for dtype in ("float32", "bfloat16"):
        config = optimizers.Muon(
            lr=0.02,
            weight_decay=0.1,
            clip=1e9,
            newton_schulz_dtype=dtype,
            schedule=optimizers.Schedule(warmup=0.0, final=1.0),
        )
        ours = train(config, {"kernel": start}, [{"kernel": g} for g in grads])["kernel"]
        error[dtype] = np.linalg.norm(ours - exact) / moved
    assert error["float32"] < 1e-5
    assert 1e-3 < error["torch"] < 0.02
    assert error["bfloat16"] < 1.25 * error["torch"]


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1.0, 1e6, 1e25])
def test_bfloat16_is_as_near_to_float64_as_torch_at_any_scale(scale):
    """muon-1: coefficients and sums are float32."""
    matrix = gradients((256, 256), steps=1)[0]
    exact = exact_muon.flattened(matrix)
    torch_start = np.zeros_like(matrix)
    theirs = torch_trained(torch_start, [matrix]) / (-0.02 * 0.2 * 16)
    ours = muon.orthogonalise(
        jnp.asarray(np.float32(matrix * scale)), steps=5, dtype=jnp.dtype(jnp.bfloat16)
    ).astype(jnp.float32)
    size = np.linalg.norm(exact)
    error = [np.linalg.norm(each - exact) / size for each in (ours, theirs)]
    assert 0.01 < error[1] < 0.0125
    assert error[0] < 1.05 * error[1]
    np.testing.assert_allclose(np.linalg.norm(ours) / size, 1.0, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_lone_number_is_flattened_as_the_formula_has_it(scale):
    for shape in ((1, 1), (3, 5), (5, 3)):
        matrix = np.zeros(shape, np.float32)
        matrix[0, -1] = -scale
        flat = muon.orthogonalise(jnp.asarray(matrix), steps=5, dtype=jnp.dtype(jnp.float32))
        np.testing.assert_allclose(flat, exact_muon.flattened(matrix), rtol=1e-5)


def test_nothing_to_flatten_stays_nothing():
    for dtype in (jnp.float32, jnp.bfloat16):
        flat = muon.orthogonalise(jnp.zeros((3, 4, 6)), steps=5, dtype=jnp.dtype(dtype))
        assert flat.dtype == dtype
        assert not np.any(flat)


def test_newton_schulz_flattens_the_spectrum():
    matrix = jnp.asarray(gradients((32, 48), steps=1)[0])
    flat = muon.orthogonalise(matrix, steps=5, dtype=jnp.dtype(jnp.float32))
    singular = np.linalg.svd(np.asarray(flat), compute_uv=False)
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    left, _, right = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    aligned = np.diag(left.T @ np.asarray(flat) @ right.T)
    assert (aligned > 0.5).all()


def test_stacked_matrices_are_separate():
    stack = jnp.asarray(gradients((3, 8, 12), steps=1)[0])
    together = muon.orthogonalise(stack, steps=5, dtype=jnp.dtype(jnp.float32))
    for one, alone in zip(together, stack, strict=True):
        each = muon.orthogonalise(alone, steps=5, dtype=jnp.dtype(jnp.float32))
        np.testing.assert_allclose(one, each, atol=1e-5)


def test_embeddings_head_and_vectors_get_adamw_not_nadamw():
    shapes = {"embed": {"embedding": (10, 6)}, "head": {"kernel": (6, 10)}, "norm": {"scale": (6,)}}
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    start = jax.tree.unflatten(tree, [rng.normal(size=s).astype(np.float32) for s in leaves])
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)] * 4
    config = optimizers.Muon(
        lr=0.01, weight_decay=0.1, clip=1e9, schedule=optimizers.Schedule(warmup=0.0, final=1.0)
    )
    ours = jax.tree.leaves(train(config, start, grads))
    flat = jax.tree_util.tree_leaves_with_path(start)
    for index, (path, begin) in enumerate(flat):
        weight = torch.nn.Parameter(torch.tensor(begin))
        decay = 0.0 if "scale" in jax.tree_util.keystr(path) else 0.1
        peer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), weight_decay=decay)
        for grad in grads:
            weight.grad = torch.tensor(jax.tree.leaves(grad)[index])
            peer.step()
        np.testing.assert_allclose(ours[index], weight.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", [optimizers.AdamW, optimizers.Muon])
def test_frozen_weights_stay_whatever_their_gradient_and_the_others_do_not_notice(kind):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    trained = {"q": {"kernel": draw(3, 4), "bias": draw(4)}}
    frozen = {"fourier": {"directions": draw(2, 5)}}
    grads = [{"q": {"kernel": draw(3, 4), "bias": draw(4)}} for _ in range(3)]
    constant = optimizers.Schedule(warmup=0.0, final=1.0)
    config = kind(lr=0.1, weight_decay=0.5, clip=0.5, schedule=constant)
    alone = train(config, trained, grads)
    whole = [grad | frozen for grad in grads]
    both = train(config, trained | frozen, whole)
    np.testing.assert_array_equal(both["fourier"]["directions"], frozen["fourier"]["directions"])
    for name, value in alone["q"].items():
        np.testing.assert_array_equal(both["q"][name], value)
        assert np.abs(value - trained["q"][name]).max() > 0.1
    transform = optimizers.build(config)
    kept = [jax.tree.map(jnp.shape, transform.init(p)) for p in (trained, trained | frozen)]
    assert jax.tree.leaves(kept[0]) == jax.tree.leaves(kept[1])


def test_the_frozen_weights_of_a_segmenter_are_those_that_no_gradient_reaches():
    model = nnx.eval_shape(lambda: Sam2(Config(), rngs=nnx.Rngs(0)))
    paths = jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])
    frozen = [mesh_axes.names_of(path) for path, _ in paths if optimizers.is_frozen(path)]
    assert frozen == [("fourier", "directions"), ("prompts", "fourier", "directions")]


def test_schedule_follows_the_papers_numbers():
    schedule = optimizers.Schedule(warmup=0.03, final=0.04)
    rates = np.array([schedule.rate(5e-5, s, 3125) for s in (0, 93, 1609, 3124)], np.float64)
    assert rates[0] < 1e-6
    np.testing.assert_allclose(rates[1], 5e-5, rtol=1e-2)
    np.testing.assert_allclose(rates[2], (5e-5 + 2e-6) / 2, rtol=1e-2)
    np.testing.assert_allclose(rates[3], 2e-6, rtol=1e-2)


@pytest.mark.parametrize(
    ("warmup", "final", "horizon", "wanted"),
    [
        (0.25, 0.2, 8, {0: 0.5, 1: 1.0, 2: 1.0, 5: 0.6, 8: 0.2, 100: 0.2}),
        (0.5, 1.0, 8, {0: 0.25, 1: 0.5, 3: 1.0, 7: 1.0}),
        (0.0, 0.0, 3, {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.0}),
        (0.0, 0.5, 1, {0: 1.0, 1: 1.0, 2: 0.5}),
        (1.0, 0.0, 4, {0: 0.25, 3: 1.0, 4: 1.0, 5: 0.0}),
    ],
)
def test_schedule_is_its_formula(warmup, final, horizon, wanted):
    """A straight way up, of at least one step, then half a cosine down to the last rate."""
    schedule = optimizers.Schedule(warmup=warmup, final=final)
    rates = {step: float(schedule.rate(2.0, step, horizon)) / 2 for step in wanted}
    assert rates == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", [optimizers.AdamW, optimizers.Muon])
def test_large_gradients_are_clipped_by_their_global_norm(kind):
    """The first update hangs on no scale: that of a small gradient behind a large one does."""
    rng = np.random.default_rng(0)
    start = {"q": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    start = jax.tree.map(np.float32, start)
    ways = [jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), start) for _ in range(2)]
    size = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(ways[0])))
    constant = optimizers.Schedule(warmup=0.0, final=1.0)

    def trained(clip, *scales):
        config = kind(lr=0.1, clip=clip, schedule=constant)
        grads = [
            jax.tree.map(lambda x, s=scale: s * x / size, way)
            for scale, way in zip(scales, ways, strict=True)
        ]
        return np.concatenate([x.ravel() for x in jax.tree.leaves(train(config, start, grads))])

    clipped = trained(2.0, 50.0, 0.1)
    np.testing.assert_allclose(clipped, trained(1e9, 2.0, 0.1), atol=1e-5)
    assert np.abs(clipped - trained(1e9, 50.0, 0.1)).max() > 0.003
    np.testing.assert_allclose(trained(2.0, 1.9, 0.1), trained(1e9, 1.9, 0.1), atol=1e-6)


@pytest.mark.parametrize("kind", [optimizers.AdamW, optimizers.Muon])
def test_decay_shrinks_matrices_and_embeddings_alone(kind):
    """Where no gradient comes nothing else moves a weight."""
    names = {"kernel": (3, 4), "bias": (4,), "scale": (4,), "embedding": (5, 4)}
    start = {"q": {name: np.ones(shape, np.float32) for name, shape in names.items()}}
    constant = optimizers.Schedule(warmup=0.0, final=1.0)
    config = kind(lr=0.1, weight_decay=0.5, schedule=constant)
    after = train(config, start, [jax.tree.map(np.zeros_like, start)] * 2)["q"]
    for name, weight in after.items():
        left = 1.0 if name in ("bias", "scale") else 0.95**2
        np.testing.assert_allclose(weight, left, rtol=1e-6, err_msg=name)


def test_settings_at_the_ends_of_their_ranges_are_taken():
    infinite = float("inf")
    for warmup, final in ((0.0, 0.0), (1.0, 5.0)):
        assert optimizers.Schedule(warmup=warmup, final=final).final == final
    for kind in (optimizers.AdamW, optimizers.Muon):
        assert kind(lr=0.0, weight_decay=0.0, b1=0.0, b2=0.0, clip=infinite).clip == infinite
    assert optimizers.Muon(momentum=0.0, newton_schulz_steps=1).momentum == 0


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (optimizers.AdamW, {"lr": -1.0}),
        (optimizers.Muon, {"lr": float("nan")}),
        (optimizers.Muon, {"weight_decay": -0.1}),
        (optimizers.AdamW, {"clip": 0.0}),
        (optimizers.AdamW, {"eps": 0.0}),
        (optimizers.Muon, {"b1": 1.0}),
        (optimizers.AdamW, {"b2": -0.1}),
        (optimizers.Muon, {"momentum": 1.0}),
        (optimizers.Muon, {"newton_schulz_steps": 0}),
        (optimizers.Schedule, {"warmup": 1.5}),
        (optimizers.Schedule, {"warmup": -0.1}),
        (optimizers.Schedule, {"final": -0.1}),
        (optimizers.Schedule, {"final": float("inf")}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^optimizer.*{name}.*, got "):
        kind(**wrong)
