"""The sizes of a SAM 2: what a `config.json` says of its image path, and back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from seg_jax.models.facts import hub_config

MODEL_TYPE = "sam2"
VIDEO_TYPE = "sam2_video"
"""What folders of the hub say: the same image path, with a memory of frames beside it."""
PATCH = 4
"""Pixels of a side of a patch; its convolution sees `KERNEL` of them."""
KERNEL = 7
STAGES = 4
"""Stages of the trunk. Each after the first begins by halving rows and columns."""
COARSEST = PATCH * 2 ** (STAGES - 1)
"""Pixels of a side of what the last stage sees as one place."""
MOST_SIDE = 4096
"""The largest image that a model may ask for; the published ones take 1024."""

_FIXED_BACKBONE: dict[str, Any] = {
    "num_channels": 3,
    "patch_kernel_size": [KERNEL, KERNEL],
    "patch_stride": [PATCH, PATCH],
    "patch_padding": [3, 3],
    "query_stride": [2, 2],
    "num_query_pool_stages": STAGES - 1,
    "mlp_ratio": 4.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
_FIXED_VISION: dict[str, Any] = {
    "fpn_kernel_size": 1,
    "fpn_stride": 1,
    "fpn_padding": 0,
    "fpn_top_down_levels": [2, 3],
    "num_feature_levels": 3,
}
_FIXED_PROMPT: dict[str, Any] = {
    "patch_size": 16,
    "num_point_embeddings": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "scale": 1,
}
_FIXED_DECODER: dict[str, Any] = {"hidden_act": "gelu", "num_hidden_layers": 2}
"""What no published SAM 2 has otherwise, and this port cannot be otherwise."""


def _check_tuple(trunk: Hiera, name: str) -> None:
    """Raises ValueError unless a field has a positive number for each stage, or axis."""
    found = getattr(trunk, name)
    if name == "global_attention_blocks":
        return
    wanted = 2 if name.startswith("window_positional") else STAGES
    if len(found) != wanted or not all(0 < size < 2**20 for size in found):
        raise ValueError(
            f"backbone.{name}: expected {wanted} numbers above 0, got {found}; do: give as many"
        )
    if name == "blocks_per_stage" and sum(found) > 1000:
        raise ValueError(f"backbone.{name}: expected at most 1000 blocks, got {found}; do: fewer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hiera:
    """The trunk (`vision_config.backbone_config`); the defaults are those of the tiny one.

    Source: Hiera, Ryali et al. 2023; window positions, Bolya et al. 2023 (arXiv 2311.05613).
    """

    blocks_per_stage: tuple[int, ...] = (1, 2, 7, 2)
    embed_dim_per_stage: tuple[int, ...] = (96, 192, 384, 768)
    num_attention_heads_per_stage: tuple[int, ...] = (1, 2, 4, 8)
    window_size_per_stage: tuple[int, ...] = (8, 4, 14, 7)
    """Places of a side of a window. The first block of a stage has that of the stage before."""
    global_attention_blocks: tuple[int, ...] = (5, 7, 9)
    """Blocks of the whole trunk in which places see all others."""
    window_positional_embedding_background_size: tuple[int, ...] = (7, 7)
    """Rows and columns of the learned grid that is stretched over the image."""

    def __post_init__(self):
        hub_config.check_sizes(self, "backbone")
        for field in dataclasses.fields(self):
            _check_tuple(self, field.name)
        widths, heads = self.embed_dim_per_stage, self.num_attention_heads_per_stage
        for width, count in zip(widths, heads, strict=True):
            if width % count:
                raise ValueError(
                    "backbone.num_attention_heads_per_stage: expected heads that divide the widths "
                    f"{widths}, got {heads}; do: take such numbers of heads"
                )
        if any(a == b for a, b in itertools.pairwise(widths)):
            raise ValueError(
                "backbone.embed_dim_per_stage: expected each stage wider than the one before, "
                f"got {widths}; do: give other widths"
            )
        if any(window % 2 for window in self.window_size_per_stage[:-1]):
            raise ValueError(
                "backbone.window_size_per_stage: expected even windows but in the last stage, got "
                f"{self.window_size_per_stage}; do: take windows that can be halved"
            )
        depth = sum(self.blocks_per_stage)
        halving = set(itertools.accumulate(self.blocks_per_stage[:-1]))
        if not set(self.global_attention_blocks) <= set(range(depth)) - halving:
            raise ValueError(
                f"backbone.global_attention_blocks: expected numbers of blocks below {depth} but "
                f"{sorted(halving)}, with which stages begin, got {self.global_attention_blocks}; "
                "do: leave the others out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The image path of a SAM 2 (`config.json` of the hub); the defaults are SAM 2.1 tiny's.

    Source: SAM 2, Ravi et al. 2024 (arXiv 2408.00714); config names of `transformers`
    (`Sam2Config`) where they name one thing only.
    """

    backbone: Hiera = Hiera()
    side: int = 1024
    """Rows and columns of the images; every image is stretched to them (`image_size`)."""
    width: int = 256
    """Channels of the features and of the decoder (`hidden_size`)."""
    mask_input_channels: int = 16
    mlp_dim: int = 2048
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    """How many times narrower attention to the image is."""
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    dynamic_multimask_via_stability: bool = True
    """Whether a single mask whose edge is unsure gives way to the best of several."""
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Not of `config.json` but of `preprocessor_config.json`."""

    def __post_init__(self):
        hub_config.check_sizes(self, "model")
        least = self.num_attention_heads * self.attention_downsample_rate
        if self.width % 8 or self.width % least:
            raise ValueError(
                f"model.width: expected a multiple of 8 and of heads x downsampling ({least}), got "
                f"{self.width}; do: take another width or fewer heads"
            )
        if self.mask_input_channels % 4:
            raise ValueError(
                "model.mask_input_channels: expected a multiple of 4, got "
                f"{self.mask_input_channels}; do: take another number"
            )
        if not 2 <= self.iou_head_depth <= 16:
            raise ValueError(
                f"model.iou_head_depth: expected 2 to 16 layers, got {self.iou_head_depth}; do: "
                "give another number"
            )
        if self.num_multimask_outputs > 64:
            raise ValueError(
                "model.num_multimask_outputs: expected at most 64, got "
                f"{self.num_multimask_outputs}; do: give fewer"
            )
        window = self.backbone.window_size_per_stage[0]
        if self.side % COARSEST or self.side % (PATCH * window) or self.side > MOST_SIDE:
            raise ValueError(
                f"model.side: expected a multiple of {COARSEST} and of the first window's "
                f"{PATCH * window} pixels, at most {MOST_SIDE}, got {self.side}; do: take another "
                "side"
            )

    @property
    def places(self) -> int:
        """Rows of the coarse features, `h` of the shapes."""
        return self.side * 2 // COARSEST

    @property
    def mask_side(self) -> int:
        """Rows of the logits, four times the coarse features'."""
        return 4 * self.places

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Config:
        """Returns the config that a `config.json` describes, of stills or of videos.

        Raises:
          ValueError: it is of another model, sizes are missing or do not fit each other.
        """
        if hf.get("model_type") != VIDEO_TYPE:
            hub_config.check_model_type(hf, MODEL_TYPE)
        vision, prompt, decoder = (
            dict(hf.get(f"{name}_config") or {})
            for name in ("vision", "prompt_encoder", "mask_decoder")
        )
        hiera = dict(vision.get("backbone_config") or {})
        trunk = [field.name for field in dataclasses.fields(Hiera)]
        of_decoder = [name for name in _DECODER if not name.startswith("dynamic")]
        hub_config.check_present(
            {
                "vision_config.backbone_config.": (hiera, trunk),
                "vision_config.": (vision, ["fpn_hidden_size"]),
                "prompt_encoder_config.": (prompt, ["image_size", "mask_input_channels"]),
                "mask_decoder_config.": (decoder, of_decoder),
            }
        )
        fixed = (
            (hiera, _FIXED_BACKBONE, "vision_config.backbone_config"),
            (vision, _FIXED_VISION, "vision_config"),
            (prompt, _FIXED_PROMPT, "prompt_encoder_config"),
            (decoder, _FIXED_DECODER, "mask_decoder_config"),
        )
        for part, values, where in fixed:
            hub_config.check_fixed({k: _as_json(v) for k, v in part.items()}, values, where=where)
        config = cls(
            backbone=Hiera(**{name: _tuple(hiera[name]) for name in trunk}),
            side=prompt["image_size"],
            width=vision["fpn_hidden_size"],
            mask_input_channels=prompt["mask_input_channels"],
            **{name: decoder[name] for name in _DECODER if name in decoder},
        )
        config._check_repeated(hf)
        return config

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers' `Sam2Config` reads."""
        trunk = dataclasses.asdict(self.backbone)
        narrow = {"hidden_size": trunk["embed_dim_per_stage"][0]}
        narrow["num_attention_heads"] = trunk["num_attention_heads_per_stage"][0]
        decoder = {name: getattr(self, name) for name in _DECODER}
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["Sam2Model"],
            "vision_config": _FIXED_VISION
            | {
                "model_type": "sam2_vision_model",
                "backbone_config": {name: _as_json(value) for name, value in trunk.items()}
                | _FIXED_BACKBONE
                | narrow
                | {"model_type": "sam2_hiera_det_model", "image_size": [self.side] * 2},
                "backbone_channel_list": list(self.backbone.embed_dim_per_stage[::-1]),
                "backbone_feature_sizes": self._feature_sizes(),
                "fpn_hidden_size": self.width,
            },
            "prompt_encoder_config": _FIXED_PROMPT
            | {
                "model_type": "sam2_prompt_encoder",
                "hidden_size": self.width,
                "image_size": self.side,
                "mask_input_channels": self.mask_input_channels,
            },
            "mask_decoder_config": _FIXED_DECODER
            | decoder
            | {"model_type": "sam2_mask_decoder", "hidden_size": self.width},
        }

    def to_preprocessor(self) -> dict[str, Any]:
        """Returns a `preprocessor_config.json` that transformers' image processor reads."""
        return {
            "image_processor_type": "Sam2ImageProcessor",
            "do_resize": True,
            "size": {"height": self.side, "width": self.side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "mask_size": {"height": self.mask_side, "width": self.mask_side},
        }

    def _feature_sizes(self) -> list[list[int]]:
        return [[self.places * scale] * 2 for scale in (4, 2, 1)]

    def _check_repeated(self, hf: Mapping[str, Any]) -> None:
        """Raises ValueError where what a `config.json` says twice is not the same twice."""
        ours = self.to_hf()
        repeated = {
            "vision_config": ("backbone_channel_list", "backbone_feature_sizes"),
            "prompt_encoder_config": ("hidden_size",),
            "mask_decoder_config": ("hidden_size",),
        }
        for name, fields in repeated.items():
            fixed = {field: ours[name][field] for field in fields}
            got = {k: _as_json(v) for k, v in (hf.get(name) or {}).items()}
            hub_config.check_fixed(got, fixed, where=name)
        trunk = ours["vision_config"]["backbone_config"]
        fixed = {key: trunk[key] for key in ("hidden_size", "num_attention_heads", "image_size")}
        hiera = (hf.get("vision_config") or {}).get("backbone_config") or {}
        got = {key: _as_json(value) for key, value in hiera.items()}
        hub_config.check_fixed(got, fixed, where="vision_config.backbone_config")


_DECODER = (
    "mlp_dim",
    "num_attention_heads",
    "attention_downsample_rate",
    "num_multimask_outputs",
    "iou_head_depth",
    "iou_head_hidden_dim",
    "dynamic_multimask_via_stability",
    "dynamic_multimask_stability_delta",
    "dynamic_multimask_stability_thresh",
)
"""Fields that `mask_decoder_config` has under the same names."""


def with_preprocessor(config: Config, found: Mapping[str, Any]) -> Config:
    """Returns a config with the means and deviations of a `preprocessor_config.json`.

    Raises:
      ValueError: it prepares images otherwise than SAM 2 does.
    """
    side = {"height": config.side, "width": config.side}
    only = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
    told = {k: v for k, v in found.items() if v is not None}
    hub_config.check_fixed(told, only | {"size": side}, where="preprocessor_config.json")
    hub_config.check_fixed(told, {"resample": 2}, where="preprocessor_config.json")
    if abs(float(told.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-8:
        raise ValueError(
            "preprocessor_config.json.rescale_factor: expected 1/255, got "
            f"{told['rescale_factor']!r:.40}; do: copy the file that belongs to the weights"
        )
    return dataclasses.replace(config, **hub_config.pixel_statistics(told))


def _as_json(value: Any) -> Any:
    """Returns tuples as JSON has them."""
    return [_as_json(one) for one in value] if isinstance(value, list | tuple) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
