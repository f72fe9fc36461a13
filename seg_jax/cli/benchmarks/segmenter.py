"""Measures SAM 2 at work on one core, encoding and prompts, against transformers (PyTorch).

Both have the same random weights and compute in float32; the time is that of the processor, so that
what others take of the core does not count.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seg_jax.cli.benchmarks import harness, torch_peer
from seg_jax.runs import run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of a segmenter."""

    size: Literal["tiny", "small", "base-plus", "large"] = "tiny"
    """Which of the published SAM 2.1."""
    side: int = 1024
    """Rows and columns of the image; the published ones take 1024."""
    prompts: int = 16
    """Prompts of the image, decoded together."""
    clicks: int = 4
    """Clicks of a prompt."""
    rounds: int = 3
    """Turns of both; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if min(self.prompts, self.clicks, self.rounds) < 1 or self.seed < 0:
            raise ValueError(
                "segmenter: expected prompts, clicks and rounds >= 1 and a seed >= 0, got "
                f"{self.prompts}, {self.clicks}, {self.rounds} and {self.seed}; do: choose values "
                "in this range"
            )
        if self.side < 1 or self.side % 256:
            raise ValueError(
                f"segmenter: expected a side in 256s, got {self.side}; do: take 1024, or 512"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    if torch_peer.missing("torch", "transformers"):
        return 1
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    return run_folder.plain(config) | harness.on_one_core(rows, config)


def rows(config: Config) -> dict[str, Any]:
    """Returns what a step takes of this core, ours and theirs by turns."""
    import torch

    torch.set_num_threads(1)
    image, points, labels = _questions(config)
    theirs, tensors, sizes = _theirs(config)
    ours = _ours(tensors, sizes)
    encode, decode = (lambda: ours.encode(image)), (lambda: ours.decode(points, labels))
    runs = {
        "encode": encode,
        "encode, peer": lambda: theirs.encode(image),
        "prompts": decode,
        "prompts, peer": lambda: theirs.decode(points, labels),
    }
    seconds = harness.by_turns(runs, config.rounds, harness.process_seconds)
    found = []
    for name in ("encode", "prompts"):
        mine, other = (np.asarray(runs[one]()) for one in (name, f"{name}, peer"))
        found.append(
            {
                "step": name,
                "ours_microseconds": 1e6 * seconds[name],
                "torch_microseconds": 1e6 * seconds[f"{name}, peer"],
                "ratio": seconds[f"{name}, peer"] / seconds[name],
                "largest_gap": float(np.abs(mine - other).max()),
            }
        )
    return {"machine": harness.machine(), "steps": found}


@dataclasses.dataclass
class Side:
    """One of both: what encodes an image, and what decodes prompts of the latest."""

    embed: Callable[[np.ndarray], Any]
    """image [1 side side 3] -> (features, coarsest map [1 h w D])."""
    draw: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
    """(features, points [1 N T 2], labels [1 N T]) -> logits [1 N h w]."""
    features: Any = None

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Returns the coarsest map; the features are kept."""
        self.features, coarse = self.embed(image)
        return coarse

    def decode(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the logits of the masks of all prompts."""
        return self.draw(self.features, points, labels)


def _questions(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a random normalised image, clicks in its pixels, and their labels."""
    rng, side = np.random.default_rng(config.seed), config.side
    image = rng.normal(size=(1, side, side, 3)).astype(np.float32)
    points = rng.uniform(0, side, (1, config.prompts, config.clicks, 2)).astype(np.float32)
    labels = rng.integers(0, 2, points.shape[:3]).astype(np.int32)
    return image, points, labels


def _theirs(config: Config) -> tuple[Side, dict[str, np.ndarray], Any]:
    """Returns transformers' model with random weights, these, and our sizes of it."""
    import torch

    from seg_jax.models.sam2 import meta_names
    from seg_jax.models.sam2.config import Config as Sizes

    sizes = Sizes(backbone=meta_names.SIZES[config.size], side=config.side)
    # By name, as in torch_peer.py.
    transformers = importlib.import_module("transformers")
    torch.manual_seed(config.seed)
    model = transformers.Sam2Model(transformers.Sam2Config(**sizes.to_hf())).eval()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def embed(image: np.ndarray) -> tuple[Any, np.ndarray]:
        with torch.inference_mode():
            pixels = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
            found = model.get_image_embeddings(pixels)
        return found, found[-1].permute(0, 2, 3, 1).numpy()

    def draw(features: Any, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = model(
                image_embeddings=list(features),  # Its decoder may change what it is given.
                input_points=torch.from_numpy(points),
                input_labels=torch.from_numpy(labels),
                multimask_output=False,
            )
        return found.pred_masks[:, :, 0].numpy()

    return Side(embed, draw), tensors, sizes


def _ours(tensors: dict[str, np.ndarray], sizes: Any) -> Side:
    """Returns our model with the same weights."""
    import jax
    from flax import nnx

    from seg_jax.models.io import weights

    graph, params = nnx.split(weights.load(tensors, config=sizes))
    encode = jax.jit(lambda params, image: nnx.merge(graph, params).encode(image))

    @jax.jit
    def decode(params: Any, features: Any, points: Any, labels: Any) -> Any:
        used = labels >= 0
        return nnx.merge(graph, params).decode(features, points, labels, used=used).logits

    def embed(image: np.ndarray) -> tuple[Any, np.ndarray]:
        found = encode(params, image)
        return found, np.asarray(found.coarse)

    return Side(embed, lambda features, *asked: np.asarray(decode(params, features, *asked)))


def _show(results: dict[str, Any]) -> None:
    harness.show_ratios(
        results,
        f"SAM 2.1 {results['size']} at {results['side']}, {results['prompts']} prompts",
        rows="steps",
        name="step",
        peer=("transformers", "torch_microseconds"),
    )
