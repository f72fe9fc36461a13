"""The sizes of a CLIP: what a `config.json` says, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from seg_jax.models.facts import hub_config

MODEL_TYPE = "clip"
Activation = Literal["quick_gelu", "gelu"]
LEGACY_EOS = 2
"""What published files name as the end of a text; what is meant is the token of the largest id."""
MOST_SIDE = 4096
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The tower of images (`vision_config`); the defaults are those of ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        hub_config.check_sizes(self, "vision")
        _check_heads(self, "vision")
        if self.image_size % self.patch_size or self.image_size > MOST_SIDE:
            raise ValueError(
                f"vision.image_size: expected a multiple of the patch's {self.patch_size} pixels, "
                f"at most {MOST_SIDE}, got {self.image_size}; do: take another side"
            )

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The tower of texts (`text_config`); the defaults are those of ViT-B/32."""

    vocab_size: int = 49_408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49_407
    """Token at whose first place a text is read off; 2: at the token of the largest id."""

    def __post_init__(self):
        hub_config.check_sizes(self, "text")
        _check_heads(self, "text")
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(
                f"text.eos_token_id: expected a token below {self.vocab_size}, got "
                f"{self.eos_token_id}; do: give the one of the tokenizer"
            )


def _check_heads(tower: Vision | Text, name: str) -> None:
    """Raises ValueError unless heads share a width evenly, and it is not absurd."""
    if tower.hidden_size % tower.num_attention_heads:
        raise ValueError(
            f"{name}.num_attention_heads: expected heads that divide the width "
            f"{tower.hidden_size}, got {tower.num_attention_heads}; do: take another number"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Both towers of a CLIP and the space they meet in; the defaults are those of ViT-B/32.

    Source: Radford et al. 2021 (arXiv 2103.00020), table 19; config names of transformers
    (`CLIPConfig`).
    """

    vision: Vision = Vision()
    text: Text = Text()
    projection_dim: int = 512
    """Width of the common space, `E` of the shapes."""
    image_mean: tuple[float, float, float] = _MEAN
    image_std: tuple[float, float, float] = _DEVIATION
    """Not of `config.json` but of `preprocessor_config.json`."""

    def __post_init__(self):
        hub_config.check_sizes(self, "model")

    @property
    def side(self) -> int:
        """Rows and columns of the images."""
        return self.vision.image_size

    @property
    def length(self) -> int:
        """Most tokens of a text."""
        return self.text.max_position_embeddings

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Config:
        """Returns the config that a `config.json` describes.

        Sizes that are left out are those of ViT-B/32: transformers does not write them.

        Raises:
          ValueError: it is of another model, or sizes do not fit each other.
        """
        hub_config.check_model_type(hf, MODEL_TYPE)
        vision, text = _tower(hf, "vision", Vision), _tower(hf, "text", Text)
        hub_config.check_fixed(vision, {"num_channels": 3}, where="vision_config")
        return cls(
            vision=Vision(**hub_config.pick_fields(Vision, vision)),
            text=Text(**hub_config.pick_fields(Text, text)),
            projection_dim=hf.get("projection_dim", cls.projection_dim),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers' `CLIPConfig` reads."""
        width = {"projection_dim": self.projection_dim}
        vision = {"model_type": "clip_vision_model", "num_channels": 3}
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["CLIPModel"],
            "projection_dim": self.projection_dim,
            "vision_config": vision | dataclasses.asdict(self.vision) | width,
            "text_config": {"model_type": "clip_text_model"}
            | dataclasses.asdict(self.text)
            | width,
        }

    def to_preprocessor(self) -> dict[str, Any]:
        """Returns a `preprocessor_config.json` that transformers' image processor reads."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.side},
            "crop_size": {"height": self.side, "width": self.side},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "rescale_factor": 1 / 255,
        } | _PREPARED


_PREPARED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
}
"""What is done to every image: its shorter side is made the model's, by bicubic, its middle cut."""


def _tower(hf: Mapping[str, Any], name: str, kind: type[Vision] | type[Text]) -> dict[str, Any]:
    """Returns what a `config.json` says of a tower, as transformers reads it.

    An older file says it twice; there what `NAME_config_dict` says goes first, with transformers'
    defaults for what it leaves out.
    """
    told = dict(hf.get(f"{name}_config") or {})
    older = hf.get(f"{name}_config_dict") or {}
    if not isinstance(older, Mapping):
        raise ValueError(
            f"{name}_config_dict: expected an object, got {older!r:.40}; do: copy the file that "
            "belongs to the weights"
        )
    if older:
        told |= dataclasses.asdict(kind()) | dict(older)
    return told


def with_preprocessor(config: Config, found: Mapping[str, Any]) -> Config:
    """Returns a config with the means and deviations of a `preprocessor_config.json`.

    Raises:
      ValueError: it prepares images otherwise than CLIP does.
    """
    told = {k: v for k, v in found.items() if v is not None}
    where = "preprocessor_config.json"
    hub_config.check_fixed(told, _PREPARED, where=where)
    side, square = config.side, {"height": config.side, "width": config.side}
    # Older files give one number for each.
    for name, wanted in (("size", {"shortest_edge": side}), ("crop_size", square)):
        if told.get(name, side) != side:
            hub_config.check_fixed(told, {name: wanted}, where=where)
    if abs(float(told.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-8:
        raise ValueError(
            f"{where}.rescale_factor: expected 1/255, got {told['rescale_factor']!r:.40}; do: copy "
            "the file that belongs to the weights"
        )
    return dataclasses.replace(config, **hub_config.pixel_statistics(told))
