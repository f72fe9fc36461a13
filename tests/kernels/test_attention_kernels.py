"""The kernels of attention: what a table of all pairs gives, and on TPUs without that table."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.kernels import attention
from seg_jax.training import topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs"
)


def given(seed, *, dtype, length, behind=0, heads=4, kv=2, width=16, deep=None, packed=True):
    """Returns queries, keys, values, segments and used prompt tokens of two rows."""
    rng = np.random.default_rng(seed)
    keys = behind + length

    def draw(*shape):
        return rng.uniform(-0.5, 0.5, shape).astype(jnp.dtype(dtype))

    q, k = draw(2, length, heads, width) * 4, draw(2, keys, kv, width) * 4
    # Rows of segments that are equally long, with padding at their end.
    cuts = np.sort(rng.choice(np.arange(1, length), (2, 3)), 1)
    segments = (np.arange(length) >= cuts[..., None]).sum(1)
    segments = np.where(segments == 3, -1, segments).astype(np.int32) if packed else None
    used = np.arange(behind) >= rng.integers(0, behind, (2, 1)) if behind else None
    return (q, k, draw(2, keys, kv, deep or width)), segments, used


def table(segments, used, length, *, causal, reach):
    """Returns who sees whom, pair by pair."""
    seen = np.zeros((2, length, (0 if used is None else used.shape[1]) + length), bool)
    behind = seen.shape[2] - length
    for row, i, j in np.ndindex(2, length, length):
        near = reach is None or abs(i - j) < reach
        own = segments is None or segments[row, i] == segments[row, j]
        seen[row, i, behind + j] = near and own and (j <= i or not causal)
    if used is not None:
        seen[:, :, :behind] = used[:, None]
    return seen


def plain(q, k, v, seen):
    """Returns the softmax over all pairs, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), -1)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision="highest")


CASES = {
    "causal": ({"length": 200}, {"causal": True}),
    "everywhere": ({"length": 130, "kv": 4, "width": 80}, {"causal": False}),
    "near": ({"length": 300, "kv": 4}, {"causal": False, "reach": 16}),
    "behind a prompt": ({"length": 70, "behind": 90, "packed": False}, {"causal": True}),
    "packed behind a prompt": ({"length": 140, "behind": 90}, {"causal": True}),
    "wide keys": ({"length": 60, "kv": 4, "width": 24, "deep": 16}, {"causal": True}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_splash_is_the_softmax_over_what_a_query_sees(name, dtype):
    sizes, how = CASES[name]
    how = {"reach": None} | how
    heads, segments, used = given(len(name), dtype=dtype, **sizes)
    seen = table(segments, used, sizes["length"], **how)
    pull = np.random.default_rng(1).normal(size=heads[0].shape[:3] + heads[2].shape[3:])

    def both(function, *heads):
        out, back = jax.vjp(function, *heads)
        return out, back(jnp.asarray(pull, out.dtype))

    def kernel(q, k, v):
        return attention.splash(q, k, v, segments=segments, used=used, interpret=True, **how)

    @jax.jit
    def graded(*heads):
        wide = [x.astype(jnp.float32) for x in heads]
        return both(kernel, *heads), both(lambda *x: plain(*x, seen), *wide)

    (got, gradients), (want, wanted) = jax.tree.map(np.asarray, graded(*heads))
    assert got.dtype == dtype
    close = 1e-5 if dtype == "float32" else 2e-3
    np.testing.assert_allclose(np.float32(got), want, rtol=close, atol=close)
    for mine, theirs in zip(gradients, wanted, strict=True):
        most = float(np.abs(theirs).max())
        np.testing.assert_allclose(np.float32(mine), theirs, rtol=0, atol=5 * close * most)


@pytest.mark.parametrize("name", [name for name in CASES if name != "wide keys"])
def test_cudnn_is_told_the_same(name):
    sizes, how = CASES[name]
    how = {"reach": None} | how
    sizes = sizes | {"length": sizes["length"] + 1}  # Odd, which cuDNN would not take.
    heads, segments, used = given(2, dtype="float32", **sizes)
    seen = table(segments, used, sizes["length"], **how)

    @jax.jit
    def both(*heads):
        out = attention.cudnn(*heads, segments=segments, used=used, implementation="xla", **how)
        return out, plain(*heads, seen)

    got, want = both(*heads)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_blocks_pad_little():
    found = {
        count: attention._block_size(count, small=False) for count in (64, 768, 1023, 1792, 2304)
    }
    assert found == {64: 128, 768: 384, 1023: 512, 1792: 256, 2304: 384}
    assert attention._block_size(2304, small=True) == 256


def chosen(kind, length=256, dtype=jnp.bfloat16, width=128, deep=128):
    q, v = np.zeros((2, length, 4, width), dtype), np.zeros((2, length, 2, deep), dtype)
    return attention.choose_kernel(kind, q, v)


def test_the_devices_of_the_program_choose():
    assert [chosen(kind) for kind in ("auto", "xla", "splash", "cudnn")] == [
        "xla",
        "xla",
        "interpret",
        "xla",
    ]
    pytest.importorskip("libtpu")
    devices = topology.from_name("v5e:2x2").devices
    with jax.set_mesh(jax.sharding.Mesh(np.asarray(devices), "x")):
        assert attention.platform() == "tpu"
        assert [chosen(kind) for kind in ("auto", "xla", "splash", "cudnn")] == [
            "splash",
            "xla",
            "splash",
            "xla",
        ]
        assert chosen("auto", length=100) == "xla"  # A block would be mostly padding.
    assert attention.platform() == "cpu"


def test_cudnn_is_left_alone_where_it_would_refuse(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    assert chosen("cudnn") == "cudnn"
    assert chosen("cudnn", dtype="float32") == "xla"
    assert chosen("cudnn", width=192, deep=128) == "xla"
    assert chosen("cudnn", width=36, deep=36) == "xla"
    assert chosen("auto") == "xla"


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "how"),
    [
        # An image of 7B in full attention, an answer behind its prompt, a row of Kimi-VL.
        (((2304, 16, 80), (2304, 16, 80), (2304, 16, 80)), {"causal": False}),
        (((2304, 16, 80), (2304, 16, 80), (2304, 16, 80)), {"causal": False, "reach": 64}),
        (((1024, 28, 128), (1792, 4, 128), (1792, 4, 128)), {"causal": True}),
        (((768, 16, 192), (768, 16, 192), (768, 16, 128)), {"causal": True}),
    ],
)
def test_a_tpu_holds_no_table_of_pairs(shapes, how):
    place = jax.sharding.SingleDeviceSharding(topology.from_name("v5e:2x2").devices[0])

    def of(shape, dtype):
        return jax.ShapeDtypeStruct((2, *shape), dtype, sharding=place)

    (length, heads, _), (keys, *_), _ = shapes
    used = of((keys - length,), "bool") if keys > length else None
    arguments = [of(shape, "bfloat16") for shape in shapes], of((length,), "int32"), used

    def loss(heads, segments, used):
        return (
            attention.splash(*heads, segments=segments, used=used, **how).astype(jnp.float32).sum()
        )

    program = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    text = program.as_text()
    assert all(f"splash_mha_{name}" in text for name in ("fwd", "dq", "dkv"))
    pairs = 4 * 2 * heads * length * keys
    assert program.memory_analysis().temp_size_in_bytes < 0.6 * pairs
