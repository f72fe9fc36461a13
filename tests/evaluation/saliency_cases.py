"""Small grey maps with true masks, the same in every environment (helper)."""

import hashlib

import numpy as np


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns maps, uint8, and true masks, bool, by name."""
    rng = np.random.default_rng(20171027)
    found = {}
    for number in range(10):
        height, width = (int(side) for side in rng.integers(9, 64, 2))
        y, x = np.mgrid[:height, :width]
        truth = _discs(rng, y, x)
        noise = rng.integers(0, 256, (height, width))
        soft = np.clip(200 * _discs(rng, y, x) + noise // 4, 0, 255)
        found[f"soft {number}"] = soft.astype(np.uint8), truth
        found[f"mask {number}"] = 255 * _discs(rng, y, x).astype(np.uint8), truth
        found[f"noise {number}"] = noise.astype(np.uint8), truth
        near = np.where(rng.random((height, width)) < 0.95, truth, ~truth)
        found[f"near {number}"] = 255 * near.astype(np.uint8), truth
    return found | _odd(rng)


def _discs(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns a mask of two discs, each with a pixel at least."""
    mask = np.zeros(y.shape, bool)
    for _ in range(2):
        row, column = rng.integers(0, y.shape[0] - 2), rng.integers(0, y.shape[1] - 2)
        mask |= (y - row) ** 2 + (x - column) ** 2 <= rng.integers(1, 120)
    return mask


def _odd(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns empty, full, constant and one-pixel ones."""
    truth = np.zeros((20, 30), bool)
    truth[4:9, 7:20] = True
    noise = rng.integers(0, 256, (20, 30)).astype(np.uint8)
    grey = np.full((20, 30), 100, np.uint8)
    corner = np.zeros((20, 30), bool)
    corner[0, 0] = True
    ell = np.zeros((20, 30), bool)
    ell[2:18, 3:5] = ell[16:18, 3:27] = True
    return {
        "truth empty": (noise, np.zeros((20, 30), bool)),
        "truth full": (noise, np.ones((20, 30), bool)),
        "both empty": (0 * grey, np.zeros((20, 30), bool)),
        "both full": (0 * grey + 255, np.ones((20, 30), bool)),
        "map empty": (0 * grey, truth),
        "map full": (0 * grey + 255, truth),
        "map constant": (grey, truth),
        "map right": (255 * truth.astype(np.uint8), truth),
        "map wrong": (255 * (~truth).astype(np.uint8), truth),
        "map narrow": (40 + noise // 8, truth),
        "one pixel": (noise, corner),
        "one pixel right": (255 * corner.astype(np.uint8), corner),
        "an angle": (noise, ell),
        "an angle right": (255 * ell.astype(np.uint8), ell),
        "few greys": (noise // 64 * 64, truth),
    }


def digest(grey: np.ndarray, truth: np.ndarray) -> str:
    """Returns what tells a case from another one."""
    data = repr(grey.shape).encode() + grey.tobytes() + truth.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
