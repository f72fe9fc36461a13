"""Which models annotate: found by their folders and addresses, identified, loaded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from seg_jax.annotation import endpoint as endpoints
from seg_jax.annotation import hub
from seg_jax.annotation.stages import Describer, Model, Models, Segmenter, Stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The models of an annotation; calling it loads them."""

    detector: Path
    segmenter: Path
    describer: str | None = None
    """Folder of a model that seg-jax can load, or address of an OpenAI-compatible endpoint; None:
    objects are named by their labels."""
    device: str = "auto"
    """Device of PyTorch."""
    endpoint: endpoints.Settings = endpoints.Settings()

    def models(self) -> Models:
        """Returns which models these are; reads their files once, and queries an endpoint.

        Raises:
          Unusable: there is no such folder, or the endpoint does not answer.
          ValueError: the address is not valid.
        """
        described: Model | None = None
        if self.describer is not None:
            endpoint = self._endpoint
            described = endpoint.model() if endpoint else hub.fingerprint(Path(self.describer))
        return Models(hub.fingerprint(self.detector), hub.fingerprint(self.segmenter), described)

    def with_endpoint_model(self, models: Models) -> Choice:
        """Returns the same choice, fixed to the model that the endpoint serves now."""
        if self._endpoint is None or models.describer is None:
            return self
        named = dataclasses.replace(self.endpoint, model=models.describer.name)
        return dataclasses.replace(self, endpoint=named)

    def __call__(self) -> Stages:
        """Returns the models, loaded.

        Raises:
          Unusable: one cannot be loaded.
        """
        from seg_jax.annotation import grounding

        # PyTorch and JAX share the memory of a GPU here.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        describer: Describer | None = self._endpoint
        if describer is None and self.describer is not None:
            from seg_jax.annotation import captioner

            most = self.endpoint.max_tokens
            describer = captioner.Captioner.load(Path(self.describer), max_tokens=most)
        return Stages(
            grounding.GroundingDino(self.detector, device=self.device),
            segmenter(self.segmenter, device=self.device),
            describer,
        )

    @property
    def _endpoint(self) -> endpoints.Endpoint | None:
        if self.describer is None or "://" not in self.describer:
            return None
        return endpoints.Endpoint(self.describer, self.endpoint)


def segmenter(folder: Path, *, device: str = "auto") -> Segmenter:
    """Returns the segmenter of a folder: SAM 2 runs in JAX, SAM in PyTorch.

    Args:
      folder: of the model.
      device: of PyTorch.

    Raises:
      Unusable: it cannot be loaded, or is none of both.
    """
    # What one of them needs is not waited for, nor asked for, by the other.
    from seg_jax.annotation import sam, sam2

    found = hub.read_config(folder, (*sam.TYPES, *sam2.TYPES), "segmenter").model_type
    return sam2.Sam2(folder) if found in sam2.TYPES else sam.Sam(folder, device=device)
