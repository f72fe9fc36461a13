"""Sizes, patch order and rotary positions against the reference image processor and model."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.geometry import grid


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(14, 2), (8, 1), (16, 2), (4, 2)]),
    st.sampled_from([(56 * 56, 28 * 28 * 1280), (1, 64 * 64), (400 * 400, 401 * 401)]),
)
def test_smart_resize_is_the_reference(height, width, cell, budget):
    reference = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    ).smart_resize
    options = {"patch": cell[0], "merge": cell[1]}
    options |= {"min_pixels": budget[0], "max_pixels": budget[1]}
    try:
        expected = reference(height, width, cell[0] * cell[1], *budget)
    except ValueError:
        with pytest.raises(ValueError, match=f"aspect ratio of at most 200, got {height}x{width}"):
            grid.smart_resize(height, width, **options)
        return
    assert grid.smart_resize(height, width, **options) == expected


def test_smart_resize_rounds_halves_to_even():
    options = {"patch": 14, "merge": 2, "min_pixels": 1, "max_pixels": 10**6}
    assert grid.smart_resize(42, 70, **options) == (56, 56)
    assert grid.smart_resize(126, 28, **options) == (112, 28)
    assert grid.smart_resize(200, 1, patch=1, merge=1, min_pixels=1, max_pixels=999) == (200, 1)
    with pytest.raises(ValueError, match="got 201x1"):
        grid.smart_resize(201, 1, **options)
    with pytest.raises(ValueError, match="got 0x5"):
        grid.smart_resize(0, 5, **options)


def reference_of_k25():
    """Returns the sizes that transformers' Kimi-K2.5 computes; its module needs torchvision."""
    folder = pytest.importorskip("transformers.models.kimi_k25").__path__[0]
    tree = ast.parse((Path(folder) / "image_processing_kimi_k25.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "navit_resize"]
    space = {"math": math}
    exec(compile(tree, "navit_resize", "exec"), space)
    return space["navit_resize"]


SIDES = st.one_of(st.integers(1, 200), st.integers(1, 9000))


@given(SIDES, SIDES, st.sampled_from([(14, 2), (16, 2), (6, 3)]), st.sampled_from([16, 4096]))
def test_native_fit_is_the_reference(height, width, cell, limit):
    options = {"patch": cell[0], "merge": cell[1], "limit": limit, "pad": True}
    sides = reference_of_k25()(height, width, *cell, limit, 10**9)
    over = max(sides[1]) >= 512 * cell[0]
    if min(height, width) < cell[0]:
        # There the two part: Kimi-VL counts no patch, and so never scales.
        sides = (
            (height, width),
            tuple(-(-s // math.prod(cell)) * math.prod(cell) for s in (height, width)),
        )
        over = max(sides[1]) >= 512 * cell[0]
    if over:
        with pytest.raises(
            ValueError, match=r"fewer than 512 patches a side, got .*; do: crop or drop"
        ):
            grid.native_fit(height, width, **options)
    else:
        assert grid.native_fit(height, width, **options) == sides


def test_native_fit_by_hand():
    keep = {"patch": 14, "merge": 2, "limit": 4096, "pad": True}
    assert grid.native_fit(480, 640, **keep) == ((480, 640), (504, 644))
    assert grid.native_fit(896, 896, **keep) == ((896, 896), (896, 896))
    assert grid.native_fit(909, 909, **keep) == ((909, 909), (924, 924))  # 64 whole patches.
    assert grid.native_fit(910, 910, **keep) == ((896, 896), (896, 896))
    assert grid.native_fit(1, 5000, **keep) == ((1, 5000), (28, 5012))
    assert grid.native_fit(14, 7139, **keep)[1] == (28, 7140)
    with pytest.raises(ValueError, match="got 2x512 of an image of 1x7141"):
        grid.native_fit(1, 7141, **keep)
    with pytest.raises(ValueError, match="got 0x5"):
        grid.native_fit(0, 5, **keep)
    cut = keep | {"pad": False}
    assert grid.native_fit(480, 640, **cut) == ((480, 640), (476, 616))
    with pytest.raises(ValueError, match="at least 28x28 to cut to whole cells, got 27x640"):
        grid.native_fit(27, 640, **cut)


def test_places_in_merge_block_order():
    assert grid.patch_positions(2, 4, 2).tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
        [0, 2],
        [0, 3],
        [1, 2],
        [1, 3],
    ]
    assert grid.patch_positions(2, 2, 1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(ValueError, match="multiples of 2 patches, got 3x4"):
        grid.patch_positions(3, 4, 2)


def test_patchify_follows_places():
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    patches = grid.patchify(image, 6, 2)
    places = grid.patch_positions(4, 6, 2)
    assert patches.shape == (24, 108)
    for patch, (row, column) in zip(patches, places, strict=True):
        part = image[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
        np.testing.assert_array_equal(patch.reshape(3, 6, 6), part.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="multiples of 12 pixels, got 30x36"):
        grid.patchify(np.zeros((30, 36, 3), np.uint8), 6, 2)


def test_patchify_is_the_reference():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = np.random.default_rng(1).integers(0, 256, (56, 140, 3), dtype=np.uint8)
    process = module.Qwen2VLImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
    out = process(image, return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, 4, 10]]
    frames = out["pixel_values"].reshape(40, 3, 2, 196)
    np.testing.assert_array_equal(frames[:, :, 0].reshape(40, -1), grid.patchify(image, 14, 2))


@pytest.mark.parametrize("shape", [(4, 4), (10, 14), (6, 4), (2, 2), (2, 18)])
def test_windows_tile_the_image(shape):
    got = grid.windows(*shape, merge=2, window_tokens=2)
    across = -(-shape[1] // 4)
    for window, (row, column) in zip(got, grid.patch_positions(*shape, 2), strict=True):
        assert window == row // 4 * across + column // 4
    assert sorted(set(got.tolist())) == list(range(across * -(-shape[0] // 4)))


@pytest.mark.parametrize("shape", [(10, 14), (8, 8), (6, 4), (2, 18)])
def test_windows_are_the_reference(shape):
    module = pytest.importorskip("transformers.vision_utils")
    torch = pytest.importorskip("torch")
    order, bounds = module.get_vision_window_index(torch.tensor([[1, *shape]]), 2, 56, 14)
    bounds = np.unique(np.asarray(bounds))  # without the empty windows of its padding
    expected = np.empty(len(order), int)
    expected[np.asarray(order)] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds) // 4)
    np.testing.assert_array_equal(
        grid.windows(*shape, merge=2, window_tokens=2), expected.repeat(4)
    )


TEXT, CELL = 1, 9


def row(*parts):
    """Returns token kinds: a number is that many words, a pair an image of that many patches."""
    kinds = [[TEXT] * p if isinstance(p, int) else [CELL] * (p[0] * p[1] // 4) for p in parts]
    grids = [p for p in parts if not isinstance(p, int)]
    return np.concatenate(kinds) == CELL, grids


ROWS = [
    row(5, (10, 14), 7, (6, 4), 9),
    row(1, (2, 2), 1, (20, 4), 3),
    row((4, 6), 2),
    row(3, (8, 8)),
    row(6),
]


@pytest.mark.parametrize(("is_visual", "grids"), ROWS)
def test_positions_are_the_reference(is_visual, grids):
    module = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig

    class Bare:
        config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2})

        def __getattr__(self, name):
            return getattr(module.Qwen2_5_VLModel, name).__get__(self)

    if not grids:
        got = grid.rotary_positions(is_visual, grids, merge=2)
        np.testing.assert_array_equal(got.positions, np.tile(np.arange(6), (3, 1)))
        assert got.following == 6
        return
    ids = torch.tensor(np.where(is_visual, CELL, TEXT))[None]
    thw = torch.tensor([(1, *g) for g in grids])
    types = torch.tensor(is_visual.astype(int))[None]
    expected, delta = Bare().get_rope_index(ids, types, thw)
    got = grid.rotary_positions(is_visual, grids, merge=2)
    np.testing.assert_array_equal(got.positions, expected[:, 0])
    assert got.following == is_visual.size + int(delta)


def test_positions_of_neighbouring_images():
    got = grid.rotary_positions(np.array([0, 1, 1, 1, 1, 1, 0], bool), [(1, 3), (2, 1)], merge=1)
    assert got.positions.tolist() == [
        [0, 1, 1, 1, 4, 4, 6],
        [0, 1, 1, 1, 4, 5, 6],
        [0, 1, 2, 3, 4, 4, 6],
    ]
    assert got.following == 7


def test_positions_refuse_a_wrong_count():
    with pytest.raises(ValueError, match=r"expected 4 visual tokens .* got 3"):
        grid.rotary_positions(np.array([1, 1, 1], bool), [(4, 4)], merge=2)
    with pytest.raises(ValueError, match="without a break"):
        grid.rotary_positions(np.array([1, 1, 0, 1, 1], bool), [(4, 4)], merge=2)
    with pytest.raises(ValueError, match="multiples of 2 patches, got 3x4"):
        grid.rotary_positions(np.array([1, 1], bool), [(3, 4)], merge=2)
