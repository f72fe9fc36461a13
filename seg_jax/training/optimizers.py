"""Optimizers: Muon for matrices with AdamW for the rest, plain AdamW, and their schedule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from seg_jax.records import Array, check_least
from seg_jax.training import muon

MATRICES = ("kernel", "lora_a", "lora_b")
"""Last path entries of the leaves that are matrices, apart from embeddings and heads."""
FROZEN = ("directions",)
"""Last path entries of the leaves that no training moves, and that no moments are kept of: SAM 2's
random directions, which decay would move though no gradient reaches them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then cosine decay to `final` times the peak.

    Source: SimpleSeg SFT (warm-up ratio 0.03, cosine 5e-5 -> 2e-6, so final = 0.04).
    """

    warmup: float = 0.03
    """Share of all steps."""
    final: float = 0.04
    """Last rate as a share of the peak; 1 keeps the rate constant after the warm-up."""

    def __post_init__(self):
        if not (0 <= self.warmup <= 1 and 0 <= self.final < math.inf):
            raise ValueError(
                "optimizer.schedule: expected 0 <= warmup <= 1 and final >= 0, "
                f"got {self.warmup} and {self.final}"
                "; do: correct the one that is out of range"
            )

    def rate(
        self, peak: float, step: int | Int[Array, ""], horizon: int | Int[Array, ""]
    ) -> Float[Array, ""]:
        """Returns the learning rate of a step (from 0) of `horizon` steps."""
        rising = jnp.maximum(1.0, self.warmup * horizon)
        falling = jnp.clip((step - rising) / jnp.maximum(horizon - rising, 1.0), 0.0, 1.0)
        cosine = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * falling))
        return peak * jnp.minimum((step + 1.0) / rising, 1.0) * cosine


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW on every leaf; decay on matrices and embeddings only."""

    lr: float = 1e-4
    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest global norm of the gradient."""

    def __post_init__(self):
        _check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon on matrices, AdamW on embeddings, head, norms and biases, at one learning rate.

    Source: Moonlight, arXiv 2502.16982, section 2.2: update 0.2 sqrt(max(A, B)) NS(g + m M),
    decoupled decay of lr * weight_decay.
    """

    lr: float = 5e-5
    schedule: Schedule = Schedule()
    momentum: float = 0.95
    weight_decay: float = 0.1
    newton_schulz_steps: int = 5
    newton_schulz_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    """Largest global norm of the gradient."""

    def __post_init__(self):
        _check(self)
        if not (0 <= self.momentum < 1 and self.newton_schulz_steps >= 1):
            raise ValueError(
                "optimizer: expected 0 <= momentum < 1 and newton_schulz_steps >= 1, "
                f"got {self.momentum} and {self.newton_schulz_steps}"
                "; do: correct the one that is out of range"
            )


Optimizer = Muon | AdamW


def _check(config: Optimizer) -> None:
    """Raises ValueError where a number that both optimizers have makes no sense."""
    check_least(config, "optimizer", lr=0, weight_decay=0)
    for name in ("eps", "clip"):  # No clipping is an infinite one.
        if not getattr(config, name) > 0:
            raise ValueError(
                f"optimizer: expected {name} > 0, got {getattr(config, name)}; do: give a number "
                "above 0"
            )
    for name in ("b1", "b2"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(
                f"optimizer: expected 0 <= {name} < 1, got {getattr(config, name)}; do: give a "
                "number in this range"
            )


def is_matrix(path: tuple[Any, ...]) -> bool:
    """Returns whether the leaf at a key path is a (stack of) matrices that Muon trains."""
    names = _names(path)
    return names[-1] in MATRICES and not any("head" in name for name in names)


def is_frozen(path: tuple[Any, ...]) -> bool:
    """Returns whether the leaf at a key path stays as it is, whatever is trained."""
    return _names(path)[-1] in FROZEN


def _names(path: tuple[Any, ...]) -> list[str]:
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return [name for name in names if name != "value"]


def build(config: Optimizer) -> optax.GradientTransformation:
    """Returns the transformation of gradients into a direction of descent at learning rate 1.

    The rate is applied by `state.advance`: it depends on a horizon that may move at run time.
    """
    adam = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_decays),
    )
    if isinstance(config, AdamW):
        return _beside_frozen(optax.chain(optax.clip_by_global_norm(config.clip), adam))
    matrices = optax.chain(
        muon.scale_by_muon(
            momentum=config.momentum,
            steps=config.newton_schulz_steps,
            dtype=jnp.dtype(config.newton_schulz_dtype),
        ),
        optax.add_decayed_weights(config.weight_decay),
    )
    both = optax.partition({"muon": matrices, "adam": adam}, _labels)
    return _beside_frozen(optax.chain(optax.clip_by_global_norm(config.clip), both))


def _beside_frozen(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation of all leaves but the frozen ones, whose direction is 0.

    Where there is no frozen leaf the moments lie as those of the transformation do.
    """

    def trained(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: optax.MaskedNode() if is_frozen(path) else leaf, tree
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        direction, state = transform.update(trained(updates), state, trained(params))
        hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
        filled = jax.tree.map(
            lambda leaf, grad: jnp.zeros_like(grad) if hidden(leaf) else leaf,
            direction,
            updates,
            is_leaf=hidden,
        )
        return filled, state

    return optax.GradientTransformation(lambda params: transform.init(trained(params)), update)


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "muon" if is_matrix(path) else "adam", params
    )


def _decays(params: Any) -> Any:
    """Returns a mask of the leaves that weight decay shrinks: not norms, not biases."""

    def decays(path, leaf) -> bool:
        return not any(name in ("bias", "scale") for name in _names(path))

    return jax.tree_util.tree_map_with_path(decays, params)
