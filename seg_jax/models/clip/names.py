"""Where the weights of a CLIP stand in the files of the hub."""

from __future__ import annotations

_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _blocks(ours: str, theirs: str) -> dict[str, str]:
    ours, theirs = f"{ours}/blocks/", f"{theirs}.encoder.layers.{{}}."
    return {
        **{f"{ours}{one}/*": f"{theirs}self_attn.{other}.*" for one, other in _PARTS.items()},
        f"{ours}up/*": theirs + "mlp.fc1.*",
        f"{ours}down/*": theirs + "mlp.fc2.*",
        **_norm(ours + "norm_attention", theirs + "layer_norm1"),
        **_norm(ours + "norm_ffn", theirs + "layer_norm2"),
    }


NAMES = {
    "log_scale": "logit_scale",
    "vision/patch/*": "vision_model.embeddings.patch_embedding.*",
    "vision/first": "vision_model.embeddings.class_embedding",
    "vision/positions/embedding": "vision_model.embeddings.position_embedding.weight",
    **_norm("vision/norm_before", "vision_model.pre_layrnorm"),
    **_blocks("vision", "vision_model"),
    **_norm("vision/norm", "vision_model.post_layernorm"),
    "vision/project/*": "visual_projection.*",
    "tower/embed/embedding": "text_model.embeddings.token_embedding.weight",
    "tower/positions/embedding": "text_model.embeddings.position_embedding.weight",
    **_blocks("tower", "text_model"),
    **_norm("tower/norm", "text_model.final_layer_norm"),
    "tower/project/*": "text_projection.*",
}
"""Our names to theirs, as `io.weights` reads them; transformers spells `pre_layrnorm` so."""
