"""The page of `ino web` in a browser, from opening it to taking masks home."""

import shutil
import threading
import time
import zipfile

import numpy as np
import pytest
import uvicorn

from ino.data.label_maps import read_labels
from web.visitors import make_tracker, write_clip

SIZE = (120, 160)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path):
    """A server on a free port, and the labels of the video clip.mp4."""
    from ino.web.server import Site, make_app

    (tmp_path / "videos").mkdir()
    labels = write_clip(tmp_path / "videos/clip.mp4", num_frames=12, size=SIZE)
    site = Site(tmp_path / "root", folders=[tmp_path / "videos"], make_tracker=make_tracker)
    server = uvicorn.Server(uvicorn.Config(make_app(site), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield site, f"http://127.0.0.1:{port}/", labels
    server.should_exit = True
    thread.join(20)


class Person:
    """Somebody in front of the page."""

    def __init__(self, page):
        from playwright.sync_api import expect

        self.page, self.expect, self.faults = page, expect, []
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda one: one.type == "error" and self.faults.append(one.text))

    def place(self, x, y):
        box = self.page.locator("#view").bounding_box()
        return box["x"] + x * box["width"] / SIZE[1], box["y"] + y * box["height"] / SIZE[0]

    def stroke(self, *points):
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point), steps=4)
        self.page.mouse.up()

    def saved(self):
        self.expect(self.page.locator("#saved")).to_have_text("All drawings are saved")

    def says(self, place, text):
        self.expect(self.page.locator(place)).to_contain_text(text, timeout=20_000)

    def is_at(self, number):
        self.expect(self.page.locator("#number")).to_have_value(str(number))
        self.expect(self.page.locator("#stage")).to_have_attribute("data-frame", str(number))

    def open(self, address):
        self.page.goto(address)
        self.page.fill("#path", "clip.mp4")
        self.page.click("#path-form button")
        self.says("#facts", "12 frames")
        self.expect(self.page.locator("#hint")).to_be_visible()


@pytest.fixture
def person(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    one = Person(context.new_page())
    yield one
    assert one.faults == []
    context.close()


def drawn(site, number):
    (path,) = site.root.glob(f"*/clip-*/drawings/{number:05d}.png")
    return read_labels(path)


def test_a_person_follows_an_object(person, site, tmp_path):
    site, address, labels = site
    page = person.page
    person.open(address)
    rows, columns = np.nonzero(labels[0] == 1)
    x, y = float(columns.mean()), float(rows.mean())
    person.expect(page.locator("#follow")).to_be_disabled()
    sent = []
    page.on("request", lambda request: sent.append(request.method))
    person.stroke((x - 4, y), (x + 4, y), (x + 4, y + 4), (x - 4, y + 4))
    person.saved()
    assert sent.count("PUT") <= 2  # the stroke and the view, and not each point
    first = drawn(site, 0)
    assert first[round(y), round(x)] == 1
    page.keyboard.press("Control+z")
    person.expect(page.locator("#clear")).to_be_hidden()
    person.saved()
    assert not list(site.root.glob("*/clip-*/drawings/*.png"))
    page.keyboard.press("Control+Shift+z")
    person.expect(page.locator("#clear")).to_be_visible()
    person.saved()
    np.testing.assert_array_equal(drawn(site, 0), first)

    page.click("#follow")
    person.says("#result", "Every frame has its mask")
    page.locator("#line").click(position={"x": 5, "y": 25})
    person.is_at(0)
    page.locator("#opacity").fill("80")
    person.says("#opacity-text", "80 %")
    box = page.locator("#line").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 7.5 * box["width"] / 12, box["y"] + 20, steps=5)
    page.mouse.up()
    person.is_at(7)

    person.expect(page.locator("#clear")).to_be_hidden()  # nobody drew on this frame
    page.keyboard.press("e")
    person.stroke((x - 8, y - 8), (x + 8, y + 8))
    page.keyboard.press("n")
    page.keyboard.press("b")
    person.stroke((20, 20), (30, 20))
    person.saved()
    assert drawn(site, 7)[20, 25] == 2
    person.says("#result", "follow again")
    page.keyboard.press("f")
    person.says("#result", "Every frame has its mask")
    masks = sorted(site.root.glob("*/clip-*/masks/*.png"))
    assert len(masks) == 12
    np.testing.assert_array_equal(read_labels(masks[7]), drawn(site, 7))

    page.click("#home")
    page.locator(".card a").click()
    person.says("#result", "Every frame has its mask")
    person.is_at(7)
    person.says("#opacity-text", "80 %")
    person.expect(page.locator(".object")).to_have_count(2)
    with page.expect_download() as download:
        page.click("[data-kind=masks]")
    download.value.save_as(tmp_path / "masks.zip")
    names = zipfile.ZipFile(tmp_path / "masks.zip").namelist()
    assert sum(name.startswith("masks/") for name in names) == 12


def test_the_other_tools(person, site):
    site, address, labels = site
    page = person.page
    person.open(address)
    page.keyboard.press("p")
    for point in ((20, 20), (60, 20), (60, 50)):
        page.mouse.click(*person.place(*point))
    page.keyboard.press("Enter")
    person.saved()
    polygon = drawn(site, 0)
    assert polygon[30, 50] == 1 and polygon[45, 25] == 0
    assert polygon.sum() == pytest.approx(40 * 30 / 2, rel=0.05)
    page.keyboard.press("ArrowRight")
    person.is_at(1)
    page.keyboard.press("x")
    rows, columns = np.nonzero(labels[1] == 1)
    person.stroke((columns.min() - 3, rows.min() - 3), (columns.max() + 3, rows.max() + 3))
    person.expect(page.locator("#clear")).to_be_visible()
    person.saved()
    assert drawn(site, 1).any()
    page.keyboard.press("ArrowRight")
    person.is_at(2)
    page.keyboard.press("c")
    page.mouse.click(*person.place(float(columns.mean()), float(rows.mean())))
    person.expect(page.locator("#clear")).to_be_visible()
    person.saved()
    assert drawn(site, 2).any()
    page.click("#keys")
    person.expect(page.locator("#keys-dialog")).to_be_visible()


def test_a_drawing_waits_for_a_server_that_does_not_answer(person, site):
    site, address, _ = site
    page = person.page
    person.open(address)
    page.route("**/labels/0", lambda route: route.abort())
    person.stroke((20, 20), (40, 20))
    person.says("#saved", "Not saved yet")
    person.says("#toasts", "does not answer")
    page.unroute("**/labels/0")
    person.saved()
    assert drawn(site, 0)[20, 30] == 1
    person.faults = [one for one in person.faults if "ERR_FAILED" not in one]


def test_uploads(person, site, tmp_path):
    _, address, _ = site
    page = person.page
    page.goto(address)
    person.says("#limits", "4 GB")
    page.set_input_files("#file", tmp_path / "videos/clip.mp4")
    person.says("#facts", "12 frames")
    page.click("#home")
    person.expect(page.locator(".card")).to_have_count(1)
    (tmp_path / "letter.txt").write_text("no video")
    page.set_input_files("#file", tmp_path / "letter.txt")
    person.says("#toasts", "no video by its name")
    dropped = page.evaluate_handle(
        "() => { const one = new DataTransfer(); one.items.add(new File(['x'], 'dropped.doc')); "
        "return one; }"
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    person.says("#toasts", "dropped.doc is no video by its name")
