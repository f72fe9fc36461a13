"""The products of a SAM 2: one multiplication with one addition is two operations.

Counted are products of matrices as the port computes them, windows filled up included; norms,
softmax, resizing and the like are left out.
"""

from __future__ import annotations

from seg_jax.models.sam2 import decoder, hiera
from seg_jax.models.sam2.config import KERNEL, PATCH, Config


def encoding(config: Config) -> float:
    """Returns the operations of encoding one image."""
    side = config.side // PATCH
    widths = config.backbone.embed_dim_per_stage
    done = 2.0 * side**2 * 3 * KERNEL**2 * widths[0]
    sides = []
    for run in hiera.runs(config.backbone):
        done += run.count * _block(run, side, widths[run.stage - run.halves], widths[run.stage])
        side //= 2 if run.halves else 1
        sides[run.stage :] = [side]
    width = config.width
    for side, wide in zip(sides, widths, strict=True):
        done += 2.0 * side**2 * wide * width
    done += 2.0 * width * (sides[0] ** 2 * width // 8 + sides[1] ** 2 * width // 4)
    return done


def _block(run: hiera.Run, side: int, narrow: int, width: int) -> float:
    """Returns the operations of a block that sees side x side places."""
    window = run.window or side
    padded = (side + -side % window) ** 2
    shrink = 4 if run.halves else 1
    queries, places = padded // shrink, side**2 // shrink
    done = 2.0 * padded * narrow * 3 * width + 2.0 * queries * width**2
    done += 4.0 * queries * window**2 * width
    done += 2.0 * side**2 * narrow * width if run.halves else 0.0
    return done + 2.0 * places * 8 * width**2


def decoding(config: Config, points: int) -> float:
    """Returns the operations of one prompt of so many clicks and corners, the first of its image.

    The others share the first projections of the image.
    """
    count = config.num_multimask_outputs + 1
    tokens, places, width = 2 + count + points + 2, config.places**2, config.width
    inner = width // config.attention_downsample_rate
    cross = 4.0 * (tokens + places) * width * inner + 4.0 * tokens * places * inner
    own = 8.0 * tokens * width**2 + 4.0 * tokens**2 * width
    done = decoder.DEPTH * (own + 2 * cross + 4.0 * tokens * width * config.mlp_dim) + cross
    done += 2.0 * places * width * width + 2.0 * 4 * places * (width // 4) * (width // 2)
    masks = 2.0 * 16 * places * count * (width // 8)
    heads = 2.0 * (count + 2) * 2 * width**2
    return done + masks + heads
