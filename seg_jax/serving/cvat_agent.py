"""An auto-annotation function of CVAT that asks a server: names to polygons.

`cvat-cli` loads this file by itself, so it needs the standard library, `cvat-sdk` and Pillow only:

    cvat-cli function create-native NAME --function-file cvat_agent.py -p names=str:star,ring
    cvat-cli function run-agent ID --function-file cvat_agent.py -p names=str:star,ring

Source: `cvat_sdk.auto_annotation`, protocol of detection functions.
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.request
from typing import Any

SECONDS = 120.0
"""Longest wait for an answer."""


class Function:
    """Outlines things by their names."""

    def __init__(self, names: str, *, server: str, token: str):
        """Makes the function.

        Args:
          names: labels, parted by commas; each is asked for in every picture.
          server: address of the server.
          token: that it asks for; empty for none.
        """
        import cvat_sdk.auto_annotation as cvataa  # pyright: ignore[reportMissingImports]

        self._names = [name.strip() for name in names.split(",") if name.strip()]
        self._address, self._token = f"{server.rstrip('/')}/v1/segment", token
        labels = [cvataa.label_spec(name, index) for index, name in enumerate(self._names)]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Any) -> list[Any]:
        """Returns the outlines of all names in a picture of Pillow's.

        Args:
          context: of CVAT; its `conf_threshold` leaves out answers of a lower score.
          image: the picture.
        """
        import cvat_sdk.auto_annotation as cvataa  # pyright: ignore[reportMissingImports]

        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        found, least = [], context.conf_threshold or 0.0
        for index, name in enumerate(self._names):
            (answer,) = self._ask({"image": picture, "text": name})["objects"]
            if answer["score"] >= least:
                found += [
                    cvataa.polygon(index, [value for point in ring for value in point])
                    for ring in answer["polygons_px"]
                    if len(ring) >= 3
                ]
        return found

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return json.loads(reply.read(64 << 20))


def create(names: str, server: str = "http://127.0.0.1:8000", token: str | None = None) -> Function:
    """Returns the function, as CVAT asks for it.

    Args:
      names: labels, parted by commas.
      server: address of the server.
      token: that it asks for; None: that of `SEG_JAX_TOKEN` in the environment, or none.
    """
    found = os.environ.get("SEG_JAX_TOKEN", "") if token is None else token
    return Function(names, server=server, token=found)
