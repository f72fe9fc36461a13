"""Shapes of SVG: what is drawn lies where the rings say, and nothing else gets in."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from seg_jax.report import vector_overlay

SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.5], [0.25, 0.5]])
COLOUR = (1, 2, 3)


def numbers(path):
    return [float(one) for one in re.findall(r"-?[\d.]+", path)]


def test_a_ring_is_a_path_in_the_ratio_of_the_image():
    root = ElementTree.fromstring(vector_overlay.shapes((30, 60), [SQUARE], colour=COLOUR))
    assert root.get("viewBox") == "0 0 1000.0 500.0"
    region, rim, line, *dots = root
    assert numbers(region.get("d")) == [250, 125, 750, 125, 750, 250, 250, 250]
    assert region.get("fill-rule") == "evenodd"
    assert region.get("fill") == "rgb(1,2,3)"
    assert rim.get("d") == line.get("d") == region.get("d")
    assert len(dots) == 2


def test_points_boxes_and_what_is_not_finite():
    odd = np.array([[0.1, 0.1], [np.nan, 0.2], [0.9, np.inf], [0.5, 0.9]])
    text = vector_overlay.shapes(
        (10, 10),
        [odd, SQUARE[:1]],
        points_unit=[(0.5, 0.25)],
        boxes_unit=[(0.0, 0.0, 1.0, 0.5)],
        colour=COLOUR,
    )
    root = ElementTree.fromstring(text)
    region, rim, _, *dots = root
    assert numbers(region.get("d")) == [100, 100, 500, 900]
    assert numbers(rim.get("d"))[-8:] == [0, 0, 1000, 0, 1000, 500, 0, 500]
    assert numbers(dots[-1].get("d")) == [250, 250, 0, 500, 250, 0]
    assert "nan" not in text
    assert "inf" not in text


def test_many_vertices_have_no_dots():
    angles = np.linspace(0, 6, 300)
    ring = 0.5 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert vector_overlay.shapes((10, 10), [ring], colour=COLOUR).count("<path") == 3


def test_nothing_is_drawn_of_nothing():
    root = ElementTree.fromstring(vector_overlay.shapes((10, 10), [], colour=COLOUR))
    assert [one.get("d") for one in root] == ["", "", ""]
