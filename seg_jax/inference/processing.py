"""What other programs need to load a folder of ours unchanged: how it sees, how it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seg_jax import files
from seg_jax.data.encode import Layout
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.models import families
from seg_jax.models.facts.image_layout import ImageLayout

PREPROCESSOR, GENERATION = "preprocessor_config.json", "generation_config.json"
TRANSFORMERS_5 = "processor_config.json"
"""Where transformers 5 keeps both processors; it goes before the file of the images alone."""


def write(folder: Path, *, config: Any, layout: Layout, tokenizer: Tokenizer) -> None:
    """Writes `preprocessor_config.json` and, where none came along, `generation_config.json`.

    What came with the model is kept but for how images are cut, and for a limit of answers below
    the layout's: both are as the layout has them, so that another program shows the model what it
    was trained on and lets it end.

    Args:
      folder: of the model, with the files that travel with it.
      config: of the model.
      layout: of its rows.
      tokenizer: of the model.

    Raises:
      ValueError: a file that came with the model is broken.
      OSError: the folder cannot be written.
    """
    cut = families.vlm_facts(config).preprocessor(config, image_layout(layout))
    found = families.preprocessor(folder)
    kept = {name: found[name] for name in ("image_processor_type", "resample") if name in found}
    files.write_json(folder / PREPROCESSOR, found | cut | kept)
    _drop_stale(folder)
    path = folder / GENERATION
    ends = files.read_json_object(path) if path.exists() else {}
    most = ends.get("max_new_tokens", layout.max_answer)
    if not path.exists():
        files.write_json(path, _generation(layout, tokenizer))
    elif not isinstance(most, int) or most < layout.max_answer:  # It would cut answers short.
        files.write_json(path, ends | {"max_new_tokens": layout.max_answer})


def image_layout(layout: Layout) -> ImageLayout:
    """Returns the part of a layout that says how images are cut."""
    native = layout.native
    return ImageLayout(
        patch=layout.patch,
        merge=layout.merge,
        max_patches=layout.max_patches,
        min_pixels=layout.min_pixels if native is None else None,
        max_pixels=layout.max_pixels if native is None else None,
        native_limit=None if native is None else native.limit,
        native_pad=native is not None and native.pad,
    )


def _drop_stale(folder: Path) -> None:
    """Takes the images out of transformers 5's file: it would be believed before ours."""
    path = folder / TRANSFORMERS_5
    if path.exists() and "image_processor" in (found := files.read_json_object(path)):
        del found["image_processor"]
        files.write_json(path, found)


def _generation(layout: Layout, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "do_sample": False,
        "eos_token_id": list(dict.fromkeys((tokenizer.end_id, tokenizer.eos_id))),
        "pad_token_id": tokenizer.pad_id,
        "max_new_tokens": layout.max_answer,
    }
