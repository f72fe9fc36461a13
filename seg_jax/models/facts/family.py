"""The record in which a port says everything that programs need to know of a family of models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from seg_jax.models.facts.arithmetic import Arithmetic
from seg_jax.models.facts.image_layout import ImageLayout


@runtime_checkable
class SpecialTokens(Protocol):
    """The special tokens of a tokenizer, as a port needs them."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def pad_id(self) -> int:
        """Token that fills rows."""
        ...

    @property
    def end_id(self) -> int:
        """Token that ends a turn."""
        ...

    @property
    def image_id(self) -> int:
        """Token that stands for a visual token."""
        ...

    def id(self, text: str, /) -> int:
        """Returns the number of a special token."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLM:
    """What only vision-language models have: a tokenizer, rows of tokens and patches, answers.

    Their configs have `text.vocab_size`, `text.hidden_size`, `vision.patch_size`,
    `vision.spatial_merge_size` and `image_token_id`.
    """

    tokenizer: Literal["qwen", "moonshot"]
    """Maker of the tokenizer that the published checkpoints have."""
    with_tokens: Callable[[Any, SpecialTokens], Any]
    """Returns a config with the special tokens of a tokenizer."""
    image_layout: Callable[..., ImageLayout]
    """Returns how images are cut: (preprocessor_config.json, visual_tokens=most of a row)."""
    preprocessor: Callable[[Any, ImageLayout], dict[str, Any]]
    """Returns the `preprocessor_config.json` of a config and of how its images are cut."""
    arithmetic: Callable[[Any], Arithmetic]
    """Returns what a model of a config computes for a token and for a patch."""
    merger: tuple[str, ...]
    """Our names of the layers between the vision tower, `vision`, and the decoder."""
    window_tokens: Callable[[Any], int] | None = None
    """Returns the side of an attention window in visual tokens; None: the tower has no windows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter:
    """What only models have that draw masks of points and boxes; their configs have `side`."""

    encoding: Callable[[Any], float]
    """Returns the operations of encoding one image."""
    decoding: Callable[[Any, int], float]
    """Returns the operations of one prompt of so many clicks and corners."""
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Configs of published models by their names on the hub: what is compiled for weights that are
    not here yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """What only models have that say which text fits which image.

    Their configs have `side`, `length` (most tokens of a text) and `text.vocab_size`.
    """

    image: Callable[[Any], float]
    """Returns the operations of encoding one image."""
    text: Callable[[Any], float]
    """Returns the operations of encoding one text of the full length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Weights as the authors of a model publish them: one file of tensors, without a config."""

    is_of: Callable[[Mapping[str, tuple[int, ...]]], bool]
    """Returns whether the names and shapes of a file are of this family."""
    config: Callable[[Mapping[str, tuple[int, ...]]], Any]
    """Returns the config that they are of."""
    sources: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Sequence[str]]]
    """Returns the names of the hub, each with the tensors that it is made of, row behind row."""
    preprocessor: Callable[[Any], Mapping[str, Any]]
    """Returns the `preprocessor_config.json` of a config, which such a file lacks."""
    names: Callable[[Any], Mapping[str, str]] | None = None
    """A table of our names to those that `sources` gives; None: they are the hub's."""
    choices: Callable[[Any, str], Any] | None = None
    """Returns a config with an activation (`gelu`, `quick_gelu`), which stands in no shape and has
    to be told; None: there is only one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """All that programs need to know of a family of models.

    The limits of its meshes are not here: `mesh_limits` reads them off the shapes of the weights.
    """

    model_type: str
    """Its name in `config.json`."""
    config: type[Any]
    """Class of its configs: a frozen dataclass with `from_hf` and `to_hf`."""
    model: type[Any]
    """Class of its models, made by (config, compute=.., rngs=..); they keep both arguments."""
    names: Mapping[str, str] | Callable[[Any], Mapping[str, str]]
    """Our names of weights to those of the hub, as `io.weights` reads them; of a config where they
    depend on its sizes."""
    other_types: tuple[str, ...] = ()
    """Names of larger models in `config.json` whose folders hold all of this one."""
    surplus: re.Pattern[str] | None = None
    """Beginnings of the tensors that only those larger models have: they are passed over."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Beginnings of names that some files have, each with that of the hub."""
    relatives: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of models that are close to this family but not of it, each with what differs."""
    convolutions: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    """Returns the kernels that are no matrices on the hub, by our names, with the sizes of all
    axes but the first."""
    repeated: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """Returns names of tensors that some files hold beside those of the model: they are passed
    over."""
    with_preprocessor: Callable[[Any, Mapping[str, Any]], Any] = lambda config, found: config
    """Returns a config with what `preprocessor_config.json` says of its images."""
    remarks: Callable[[Mapping[str, Any], Collection[str]], list[str]] = lambda hub, names: []
    """Returns what is unusual about a `config.json`, or about the names of a file of its authors',
    a sentence each; the other one is empty."""
    segmenter: Segmenter | None = None
    """What it has as one whose models draw masks of points and boxes, as `models/promptable.py`
    has it; None: they draw none."""
    pairs: Pairs | None = None
    """What it has as one whose models say which text fits which image; None: they do not."""
    published: Published | None = None
    """Reads the names of its authors' own files; None: there are none but the hub's."""
    vlm: VLM | None = None
    """What it has as a vision-language model; None: it is none, and has no tokenizer."""

    def table(self, config: Any, *, published: bool = False) -> Mapping[str, str]:
        """Returns our names of the weights of a config to those of the hub.

        Args:
          config: of this family.
          published: the names of the authors' own file instead, as far as they are others.
        """
        if published and self.published is not None and self.published.names is not None:
            return self.published.names(config)
        return self.names if isinstance(self.names, Mapping) else self.names(config)
