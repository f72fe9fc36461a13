"""What programs ask of a model that draws masks of points and boxes.

Axes here: `N` prompts of an image, `T` clicks and corners of a prompt.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Real

from seg_jax.records import Array


@runtime_checkable
class Masks(Protocol):
    """A mask for every prompt."""

    @property
    def logits(self) -> Float[Array, "B N _ _"]:
        """Above 0 within the mask, on a square grid over the whole image."""
        ...

    @property
    def quality(self) -> Float[Array, "B N"]:
        """The IoU with the true mask that the model expects."""
        ...

    @property
    def presence(self) -> Float[Array, "B N"]:
        """Logit of there being an object at all."""
        ...


@runtime_checkable
class Promptable(Protocol):
    """A model that encodes an image once and draws what its prompts mean."""

    config: Any
    """Has `side`: rows and columns of the images, to which every image is stretched."""

    def normalise(self, images: Real[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Returns images of values 0..255 as the model was taught to see them."""
        ...

    def encode(self, images: Float[Array, "B side side 3"]) -> Any:
        """Returns the features of normalised images."""
        ...

    def decode(
        self,
        features: Any,
        points_px: Float[Array, "B N T 2"],
        labels: Int[Array, "B N T"],
        *,
        used: Bool[Array, "B N T"],
    ) -> Masks:
        """Returns the masks of prompts: labels 1 and 0 are clicks, 2 and 3 corners of a box."""
        ...
