"""The page: what it draws is what the library makes, what it keeps is bounded, and people do not mix."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from diffseg import DiffSeg
from diffseg.datasets.scenes import scene
from diffseg.images import overlay
from diffseg.methods.walk import Walk
from diffseg.semantic import label
from tests.browser import Browser

pytest.importorskip("gradio", reason="gradio is not installed")
from diffseg.web import DIFFSEG, PIXELS, REFINED, SIDE, WALK, Choice, Desk

SIZE = 128


@pytest.fixture(scope="module")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


@pytest.fixture
def desk(seg):
    return Desk({"mini": seg}, photos=3, seen=2, size=SIZE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos of 160 x 120 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(2):
        Image.fromarray(scene(4, index, 160).image[:120]).save(folder / f"scene{index}.png")
    return sorted(folder.iterdir())


def test_a_drawing_is_the_overlay_of_a_plain_call(seg, desk, photos):
    key = desk.take(photos[0])
    for tau, anchors in ((0.4, 8), (1.12, 16)):
        made = seg(photos[0], threshold=tau, anchors=anchors, size=SIZE)
        picture, said = desk.draw(key, Choice(threshold=tau, anchors=anchors))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(made.overlay()))
        assert said.startswith(f"**{len(made)} segment")
        assert "scene0, 160 x 120 pixels" in said


def test_other_methods_and_names_come_from_the_same_photo(seg, desk, photos):
    key, image = desk.take(photos[0]), np.asarray(Image.open(photos[0]))
    walked = Walk(0.5).segment(seg.observe(photos[0], size=SIZE))
    picture, _ = desk.draw(key, Choice(method=WALK, threshold=0.5))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(overlay(image, walked)))
    refined, _ = desk.draw(key, Choice(method=REFINED, threshold=1.0))
    assert np.asarray(refined).shape == image.shape

    named = label(seg, photos[0], ["sky", "dog"], settings=seg.settings(1.0, size=SIZE))
    picture, said = desk.draw(key, Choice(threshold=1.0, nouns=" sky,dog, "))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(named.overlay()))
    assert said.startswith(f"**{len(named)} name")


def test_a_point_is_looked_at_where_it_was_clicked(desk, tmp_path):
    """Of a photo that is shown smaller: the corner of the picture is the corner of the photo."""
    Image.fromarray(np.zeros((600, 2 * SIDE, 3), np.uint8)).save(tmp_path / "wide.png")
    key, choice = desk.take(tmp_path / "wide.png"), Choice(anchors=8)
    picture, _ = desk.draw(key, choice)
    assert picture.size == (SIDE, 300)
    explorer, asked = desk.explorer(key, choice), []
    explorer.attention_at = lambda x, y: asked.append((x, y)) or type(explorer).attention_at(explorer, x, y)
    assert desk.look(key, choice, 100, 50).width > 240
    desk.look(key, choice, SIDE, 300)
    assert asked == [(200, 100), (2 * SIDE - 1, 599)]


def test_what_is_kept_is_bounded(desk, photos, tmp_path):
    keys = [desk.take(photos[0]) for _ in range(4)]
    assert len(set(keys)) == 4
    with pytest.raises(ValueError, match="no longer kept: choose it again"):
        desk.photo(keys[0])
    for key in keys[1:]:
        desk.draw(key, Choice())
    assert len(desk._seen) == 2
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "large.png")
    photo = desk.photo(desk.take(tmp_path / "large.png"))
    height, width = photo.pixels.shape[:2]
    assert PIXELS * 0.99 < height * width <= PIXELS
    assert photo.original == (1500, 3000)
    assert (photo.pixels == (255, 0, 0)).all()


def test_bad_requests_are_one_sentence(desk, photos, tmp_path):
    for key, sentence in (("", "choose a photo first"), ("made up", "no longer kept")):
        with pytest.raises(ValueError, match=sentence):
            desk.draw(key, Choice())
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:500])
    Image.new("RGB", (4, 4)).save(tmp_path / "tiny.png")
    for name, words in (("broken.jpg", "damaged"), ("tiny.png", "too small"), ("none.png", "missing")):
        with pytest.raises(ValueError, match=words) as caught:
            desk.take(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
        assert name in str(caught.value)
    key = desk.take(photos[0])
    for choice, sentence in (
        (Choice(model="other"), "no model 'other' here"),
        (Choice(method="other"), "no method 'other' here"),
        (Choice(threshold=0), "threshold must be above 0"),
        (Choice(anchors=99), "anchors"),
    ):
        with pytest.raises(ValueError, match=sentence):
            desk.draw(key, choice)


def test_files_are_those_of_the_command_line(seg, desk, photos, tmp_path):
    key = desk.take(photos[1])
    written = desk.files(key, Choice(threshold=0.6), tmp_path)
    assert [path.name for path in written] == [
        "scene1.labels.png", "scene1.overlay.png", "scene1.json", "scene1.coco.json"
    ]  # fmt: skip
    made = seg(photos[1], threshold=0.6, size=SIZE)
    np.testing.assert_array_equal(np.asarray(Image.open(written[0])), made.labels)
    assert len(COCO(written[3]).anns) == len(made)
    assert str(tmp_path) not in written[2].read_text()
    (tmp_path / "walk").mkdir()
    walked = desk.files(key, Choice(method=WALK, threshold=0.5), tmp_path / "walk")
    assert [path.name for path in walked] == ["scene1.labels.png", "scene1.overlay.png"]


# --- A server, as it is started ---------------------------------------------------------------------------------------


class Served:
    """A running `diffseg web` in an empty folder, with an empty home."""

    def __init__(self, folder: Path):
        for name in ("work", "home", "temporary"):
            (folder / name).mkdir()
        self.folder = folder
        environment = {
            **os.environ,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "temporary"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        command = [sys.executable, "-m", "diffseg.cli", "web", "--port", "0", "--size", str(SIZE), "--device", "cpu"]
        self.process = subprocess.Popen(
            command, cwd=folder / "work", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+", line).group() + "/"

    def stop(self) -> str:
        """What it complained of, once it has ended."""
        self.process.terminate()
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Nothing is left behind: nothing beside the temporary folder while it serves, nor there when it has ended."""
    server = Served(tmp_path_factory.mktemp("served"))
    yield server
    assert "Traceback" not in server.stop()
    for name in ("work", "temporary"):
        assert [path.name for path in (server.folder / name).iterdir()] == []
    left = [path for path in (server.folder / "home").rglob("*") if path.is_file()]
    assert [path.name for path in left if path.parent.name != "matplotlib"] == []  # its list of fonts


def asked(url: str, photo: Path, thresholds, results: dict) -> None:
    """Chooses a photo and moves the slider, as a user of one's own; the pictures that came go into results."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, analytics_enabled=False)
    rest = ["mini", DIFFSEG, thresholds[0], 16, "", False]
    client.predict(handle_file(photo), *rest, api_name="/take")
    pictures = []
    for tau in thresholds:
        rest[2] = tau
        picture, said = client.predict(*rest, api_name="/draw")
        pictures.append((np.asarray(Image.open(picture)).astype(int), said))
    results[photo] = pictures


def test_several_users_at_once_do_not_mix(served, seg, photos):
    thresholds, results = [0.3, 0.6, 1.2], {}
    people = [threading.Thread(target=asked, args=(served.url, photo, thresholds, results)) for photo in photos]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for photo in photos:
        for tau, (picture, said) in zip(thresholds, results[photo], strict=True):
            made = seg(photo, threshold=tau, size=SIZE)
            assert f"**{len(made)} segment" in said
            assert photo.stem in said
            assert np.abs(picture - np.asarray(made.overlay()).astype(int)).mean() < 12  # JPEG


def test_a_person_uses_the_page(served, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no photo")
    picture = "document.querySelector('#picture img')?.src"
    with Browser() as browser:
        page = browser.open(served.url, width=1200, height=1000)
        page.wait_for(picture)

        # Another photo; the slider, by keyboard; a point
        before = page.evaluate(picture)
        page.click("#examples .gallery-item:nth-child(2) button")
        page.wait_for(f"{picture} && {picture} !== {json.dumps(before)}")
        assert "flower" in page.evaluate("document.querySelector('#said').innerText")
        before = page.evaluate(picture)
        page.evaluate("document.querySelector('#threshold input[type=range]').focus()")
        for _ in range(60):
            page.press("ArrowLeft")
        page.wait_for(f"{picture} !== {json.dumps(before)}")
        assert page.evaluate("document.querySelector('#attention img')") is None
        for _ in range(100):  # a click is lost while the picture is exchanged
            page.click("#picture img")
            time.sleep(0.5)
            if page.evaluate("document.querySelector('#attention img') !== null"):
                break
        page.wait_for("document.querySelector('#attention img')")

        # A broken file is answered by a sentence; the next one is segmented
        upload(page, tmp_path / "broken.jpg")
        page.wait_for("document.body.innerText.includes('broken.jpg is damaged')")
        page.evaluate("document.querySelector('#upload button[aria-label=Clear]')?.click()")
        page.wait_for("document.querySelector('#upload input[type=file]')")
        upload(page, photos[0])
        page.wait_for("document.querySelector('#said').innerText.includes('scene0')")

        assert [url for url in page.requests if not url.startswith(served.url)] == []
        own = ("ERR_ABORTED", "Method not implemented.")  # gradio's: streams that it closes, something of its files
        assert [told for told in page.problems if not any(words in told for words in own)] == []


def upload(page, path: Path) -> None:
    """Gives the page a file, as the dialogue of a browser does."""
    found = page.send("Runtime.evaluate", expression="document.querySelector('#upload input[type=file]')")
    page.send("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])


def test_names_that_lead_here_from_elsewhere_are_refused(served):
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    with urlopen(served.url) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(served.url, headers={"Host": "elsewhere.example"}))


def test_a_taken_port_is_one_sentence(tmp_path, commands):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ran = commands("web", "--port", port, module="diffseg.cli", cwd=tmp_path)
    assert ran.returncode == 2
    assert f"port {port}" in ran.stderr
    assert "Traceback" not in ran.stderr
