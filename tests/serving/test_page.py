"""The page in a real browser: Debian's chromium, driven by Playwright; skipped where there is none.

With SEG_JAX_SCREENSHOTS=FOLDER in the environment pictures of the page are left there.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scripted
from PIL import Image
from pycocotools import mask as coco

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="expected chromium for the tests of the page, got none; do: apt-get install chromium",
)
expect = playwright.expect


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch, scripted.serve(patch) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser, served):
    """Returns the page with a picture of 60 x 40; no error may come up while a test runs."""
    made = browser.new_page(viewport={"width": 1200, "height": 800})
    made.set_default_timeout(60_000)
    made.set_default_navigation_timeout(60_000)
    expect.set_options(timeout=60_000)
    errors = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    made.goto(served.address)
    expect(made.locator("#examples button")).to_have_count(6)
    choose(made, scripted.picture(), "drawn.png")
    yield made
    made.close()
    assert [one for one in errors if "status of 4" not in one] == []


def choose(page, data, name):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    expect(page.locator("#status")).to_contain_text(name)


def asked(served):
    return served.batch.placed[-1][0]


def spot(page, x, y):
    """Returns where a pixel of the picture is on the screen."""
    box = page.locator("#picture").bounding_box()
    return box["x"] + box["width"] * x / 60, box["y"] + box["height"] * y / 40


def drag(page, begin, end):
    page.mouse.move(*spot(page, *begin))
    page.mouse.down()
    page.mouse.move(*spot(page, *end), steps=3)
    page.mouse.up()


def rings(page):
    """Returns the vertices of the first outline."""
    path = page.locator("#shapes path").first.get_attribute("d")
    return [
        [[float(value) for value in point.split()] for point in ring.split("L")]
        for ring in re.findall(r"M([^Z]*)Z", path)
    ]


def shoot(page, name):
    if folder := os.environ.get("SEG_JAX_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def ask(page, text="the red star"):
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text("answered")


SQUARE = [[15, 10], [45, 10], [45, 30], [15, 30]]


def test_a_text_is_outlined_and_what_the_model_wrote_is_shown(page, served):
    ask(page)
    assert "the red star" in asked(served)
    assert rings(page) == [SQUARE]
    expect(page.locator("#wrote")).to_have_text(scripted.SQUARE)
    expect(page.locator("#read")).to_contain_text("OK")
    expect(page.locator("#read")).to_contain_text("4 vertices")
    assert page.input_value("#objects input") == "the red star"
    shoot(page, "text")


def test_an_example_a_click_and_a_box(page, served):
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#status")).to_contain_text("example 2.png")
    assert page.input_value("#text")
    choose(page, scripted.picture(), "again.png")
    page.mouse.click(*spot(page, 30, 20))
    expect(page.locator("#shapes path")).to_have_count(1)
    assert "point [0.50, 0.50]" in asked(served)
    page.keyboard.down("Shift")
    page.mouse.click(*spot(page, 3, 2))
    page.keyboard.up("Shift")
    expect(page.locator("#status")).to_contain_text("answered")
    expect(page.locator("#shapes path")).to_have_count(1)
    page.click("#tool-box")
    drag(page, (6, 8), (54, 36))
    expect(page.locator("#shapes path")).to_have_count(2)
    assert "box [0.10, 0.20, 0.90, 0.90]" in asked(served)


def test_vertices_are_dragged_added_deleted_and_all_is_undone(page):
    ask(page)
    page.click("#tool-edit")
    expect(page.locator("#handles .vertex")).to_have_count(4)
    drag(page, (15, 10), (5, 4))
    assert rings(page)[0][0] == pytest.approx([5, 4], abs=0.5)
    drag(page, (45, 20), (55, 20))
    assert len(rings(page)[0]) == 5
    page.locator("#handles .vertex").nth(2).dblclick()
    assert len(rings(page)[0]) == 4
    expect(page.locator("#objects")).to_contain_text("edited")
    page.click("#tool-hole")
    drag(page, (20, 14), (30, 24))
    assert len(rings(page)) == 2
    shoot(page, "edited")
    while page.locator("#undo").is_enabled():
        page.keyboard.press("Control+z")
    expect(page.locator("#shapes path")).to_have_count(0)
    while page.locator("#redo").is_enabled():
        page.keyboard.press("Control+Shift+Z")
    assert len(rings(page)) == 2


def test_it_is_asked_again_from_the_edited_outline(page, served):
    ask(page)
    page.click("#tool-edit")
    drag(page, (15, 10), (6, 4))
    page.click("#again")
    expect(page.locator("#status")).to_contain_text("answered")
    assert re.search(r"box \[0.10, 0.10, 0.75, 0.75\]", asked(served))
    assert rings(page) == [SQUARE]
    assert page.input_value("#objects input") == "the red star"


def test_several_named_objects_are_saved(page):
    ask(page)
    ask(page, 'a <b>ring</b> & "more"')
    page.click("#tool-hole")
    drag(page, (20, 14), (30, 24))
    expect(page.locator("#shapes path")).to_have_count(2)
    page.locator("#objects input").first.fill("mine")
    page.locator("#objects input").first.press("Enter")

    def saved(button):
        with page.expect_download() as caught:
            page.click(button)
        return Path(caught.value.path()).read_bytes()

    told = json.loads(saved("#save-coco"))
    assert [one["name"] for one in told["categories"]] == ["mine", 'a <b>ring</b> & "more"']
    first, second = told["annotations"]
    assert first["segmentation"] == [[15, 10, 45, 10, 45, 30, 15, 30]]
    assert (first["area"], first["bbox"]) == (600, [15, 10, 30, 20])
    hole = coco.decode(second["segmentation"]).astype(bool)
    assert hole.sum() == second["area"] < 600
    text = saved("#save-svg").decode()
    assert text.count("<path") == 2
    assert "&#60;b&#62;ring" in text
    pixels = np.asarray(Image.open(io.BytesIO(saved("#save-png"))))
    assert pixels.shape[:2] == (40, 60)
    colour = pixels[12, 17, :3]
    assert colour.any()
    np.testing.assert_array_equal((pixels[..., :3] == colour).all(-1), hole)
    assert not pixels[0, 0, :3].any()


def test_a_huge_picture_is_asked_about_at_a_smaller_size(page, served):
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 600), "white").save(buffer, "PNG")
    choose(page, buffer.getvalue(), "huge.png")
    expect(page.locator("#status")).to_contain_text("9000 x 600; it is asked about at a smaller")
    ask(page)
    assert max(x for x, _ in rings(page)[0]) == 6750


def test_what_is_no_picture_is_told(page):
    broken = scripted.picture()[:200]
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": broken})
    expect(page.locator("#status")).to_contain_text("b.png is no picture")
    page.set_input_files("#file", {"name": "<i>", "mimeType": "image/png", "buffer": b"hello"})
    expect(page.locator("#status")).to_have_text("<i> is no picture that this browser can read.")


def test_what_the_server_refuses_is_told(page, monkeypatch):
    page.fill("#text", "x " * 900)
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text("tokens in the prompt")
    expect(page.locator("#status")).to_have_class("error")
    monkeypatch.setattr(scripted.Batch, "script", staticmethod(lambda *_: "<img src=x>"))
    ask(page)
    expect(page.locator("#wrote")).to_have_text("<img src=x>")
    expect(page.locator("#read")).to_contain_text("EMPTY")


def test_all_is_done_by_keys(page, served):
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#shapes path")).to_have_count(1)
    assert re.search(r"point \[0.5[12], 0.50\]", asked(served))
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#shapes path")).to_have_count(2)
    assert "box [0." in asked(served)
    page.keyboard.press("e")
    page.keyboard.press("n")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+ArrowLeft")
    assert rings(page)[0][0] == [5, 10]
    page.keyboard.press("i")
    assert len(rings(page)[0]) == 5
    page.keyboard.press("Delete")
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    expect(page.locator("#shapes path")).to_have_count(1)


def test_a_phone_has_room_for_all_of_it(browser, served):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(served.address)
    choose(page, scripted.picture(), "drawn.png")
    page.touchscreen.tap(*spot(page, 30, 20))
    expect(page.locator("#shapes path")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#tool-edit")
    assert page.locator("#handles .vertex").first.bounding_box()["width"] > 18
    shoot(page, "phone")
    page.close()
