"""The function that CVAT runs, by CVAT's own kit where it is installed."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import scripted
from PIL import Image

from seg_jax.serving import cvat_agent

cvataa = pytest.importorskip("cvat_sdk.auto_annotation", reason="do: pip install cvat-sdk")
TOKEN = "a token of many characters"


def test_cvat_gets_the_polygons_of_all_names(monkeypatch):
    with scripted.serve(monkeypatch, token=TOKEN) as served:
        function = cvat_agent.create("star, ring", server=served.address, token=TOKEN)
        assert [label.name for label in function.spec.labels] == ["star", "ring"]
        image = Image.open(io.BytesIO(scripted.picture()))
        context = SimpleNamespace(conf_threshold=None)
        found = function.detect(context, image)
        assert [shape.label_id for shape in found] == [0, 1]
        assert found[0].points == [15, 10, 45, 10, 45, 30, 15, 30]
        assert str(found[0].type) == "polygon"
        assert function.detect(SimpleNamespace(conf_threshold=0.9), image) == []
        monkeypatch.setenv("SEG_JAX_TOKEN", "another token of many")
        other = cvat_agent.create("star", server=served.address)
        with pytest.raises(OSError, match="401"):
            other.detect(context, image)
