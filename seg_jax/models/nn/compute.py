"""How a model computes: dtypes, what is recomputed, which attention."""

from __future__ import annotations

import dataclasses
from typing import Literal

from seg_jax.kernels.attention import Kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model computes; changes no architecture and no saved weight."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and products; norms, softmax and logits are always float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    """What is recomputed in the backward pass: nothing, all but matrix products, every layer."""
    unroll: bool = False
    """Layers one after another instead of a scan: faster on CPU, slower to compile."""
    fuse: bool = False
    """One product for q, k and v, and for gate and up: a tenth faster on CPU, slower where kernels
    are split over devices."""
    attention: Kernel = "auto"
    """Kernel for whole rows: "auto" takes splash on TPUs, "cudnn" is for NVIDIA GPUs."""
    decode_gib: float | None = None
    """Memory of a device that weights may take to be whole while answers are decoded; None: a
    third. Where they take more they are gathered for every token; given a number, Qwen's tokens
    travel to them instead."""
