"""A table of files as nobody wants them, read as photos and as label maps: a result, or one sentence with the name.

All are read by a process of its own, with little memory and an alarm: what hangs or takes all memory fails one test.
"""

import json
import os
import random
import resource
import signal
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

MEMORY_BYTES, ALARM_S = 6 << 30, 60
NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
GREY = NOISE[..., 0]


def png_saying(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A small PNG file whose header says a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(array: np.ndarray, mode: str | None = None, **options) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)

    return write


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def floats(value: float) -> Callable[[Path], None]:
    values = GREY.astype(np.float32) / 255
    values[3, 4] = value
    return saved(values, format="TIFF")


def numbers(value: int) -> Callable[[Path], None]:
    values = (GREY % 5).astype(np.int32)
    values[3, 4] = value
    return saved(values, format="TIFF")


def pages(path: Path) -> None:
    Image.fromarray(GREY).save(path, "TIFF", save_all=True, append_images=[Image.fromarray(GREY // 2)])


def link_to_file(path: Path) -> None:
    Image.fromarray(GREY % 5).save(path.with_name("target"), "PNG")
    path.symlink_to("target")


def half(path: Path) -> None:
    Image.fromarray(GREY % 5).save(path)
    path.write_bytes(path.read_bytes()[:300])


# name: (how it is made, whether it is a photo, whether it is a label map). A sentence may say no to all others.
FILES: dict[str, tuple[Callable[[Path], object], bool, bool]] = {
    "grey 8 bits": (saved(GREY % 5), True, True),
    "colours": (saved(NOISE), True, False),
    "grey 16 bits": (saved((GREY % 5).astype(np.uint16)), True, True),
    "palette": (saved(GREY % 5, "P"), True, True),
    "black and white": (saved(GREY, "1"), True, True),
    "transparent": (saved(np.dstack([NOISE, GREY])), True, False),
    "CMYK": (saved(NOISE, "CMYK", format="TIFF"), True, False),
    "Lab": (saved(NOISE, "LAB", format="TIFF"), True, False),
    "link": (link_to_file, True, True),
    "pages": (pages, True, False),
    "bomb 400 megapixels": (holding(png_saying(20_000, 20_000)), False, False),
    "bomb 90 megapixels": (holding(png_saying(9_000, 10_001, 16, 6)), False, False),
    "bomb 110 megapixels": (holding(png_saying(11_000, 10_000)), False, False),
    "bomb of colours": (holding(png_saying(60_000, 60_000, 16, 6)), False, False),
    "size 0": (holding(png_saying(0, 10)), False, False),
    "fractions": (floats(0.25), True, False),
    "NaN": (floats(float("nan")), False, False),
    "infinite": (floats(float("inf")), False, False),
    "enormous": (floats(3e38), True, False),
    "value -1": (numbers(-1), True, False),
    "value 1023": (numbers(1023), True, True),
    "value 32770": (numbers(32_770), True, False),
    "value 65535": (numbers(65_535), True, False),
    "value 120000": (numbers(120_000), True, False),
    "value 2147483647": (numbers(2**31 - 1), True, False),
    "pipe": (lambda path: os.mkfifo(path), False, False),
    "device": (lambda path: path.symlink_to("/dev/zero"), False, False),
    "folder": (lambda path: path.mkdir(), False, False),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), False, False),
    "link to itself": (lambda path: path.symlink_to(path.name), False, False),
    "empty": (holding(b""), False, False),
    "text": (holding(b"no picture"), False, False),
    "half": (half, False, False),
    "header alone": (holding(b"\x89PNG\r\n\x1a\n"), False, False),
}


def limited(read: Callable[[], object]) -> str:
    """ "", the sentence that says no, or a traceback."""
    from diffseg.errors import UserError

    signal.alarm(ALARM_S)
    try:
        read()
    except UserError as error:
        return str(error)
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def read_all(root: Path) -> None:
    """Reads root/photos by the command, by `dataset=folder` and by their hashes, root/maps/NAME as labelled folders."""
    import torch

    from diffseg.cli import app
    from diffseg.datasets.folder import Folder

    def rang(*_):
        raise TimeoutError("it hung")

    signal.signal(signal.SIGALRM, rang)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    report: dict[str, dict[str, str]] = {"photo": {}, "map": {}}
    data = Folder(root / "photos", size=64)
    report["hashes"] = {"": limited(data.fingerprint)}
    for name in FILES:
        report["photo"][name] = limited(lambda key=name: data.image(key))
        report["map"][name] = limited(lambda folder=root / "maps" / name: Folder(folder, size=64).label("a"))
    options = ["--out", str(root / "out"), "--size", "64", "--anchors", "4", "--device", "cpu"]
    signal.alarm(2 * ALARM_S)
    ran = CliRunner().invoke(app, ["segment", str(root / "photos"), *options])
    signal.alarm(0)
    lines = ran.stderr.splitlines()
    skipped = {n: next((x for x in lines if x.startswith("skipped: ") and f"/{n}.png" in x), "") for n in FILES}
    trouble = "" if isinstance(ran.exception, SystemExit) else "".join(traceback.format_exception(ran.exception))
    report |= {"segment": skipped, "command": {"": trouble}}
    (root / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, commands):
    """What reading said, by the way of reading and the file; and the folder."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "photos").mkdir()
    for name, (make, _, _) in FILES.items():
        make(root / "photos" / f"{name}.png")
        folder = root / "maps" / name
        folder.mkdir(parents=True)
        Image.fromarray(NOISE).save(folder / "a.png")
        make(folder / "a.label.png")
    ran = commands(root, module="tests.test_hostile_files", cwd=root)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Warning" not in ran.stderr
    return root, json.loads((root / "report.json").read_text())


def check_sentence(text: str, name: str, good: bool) -> None:
    if good:
        assert text == ""
    else:
        assert name in text
        assert len(text.splitlines()) == 1
        assert "Traceback" not in text


@pytest.mark.parametrize("name", FILES)
def test_as_a_photo(outcome, name):
    root, report = outcome
    good = FILES[name][1]
    check_sentence(report["segment"][name], f"{name}.png", good)
    check_sentence(report["photo"][name], f"{name}.png", good)
    assert (root / "out" / f"{name}.labels.png").is_file() == good


@pytest.mark.parametrize("step", ["command", "hashes"])
def test_none_stops_the_others(outcome, step):
    assert outcome[1][step][""] == ""


@pytest.mark.parametrize("name", FILES)
def test_as_a_label_map(outcome, name):
    check_sentence(outcome[1]["map"][name], f"{name}/a.label.png", FILES[name][2])


def test_names_of_a_data_set_must_be_text(tmp_path):
    from diffseg.datasets.base import DataError
    from diffseg.datasets.folder import Folder

    Image.fromarray(NOISE).save(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(DataError, match=r"caf\\udce9.png is not UTF-8.*rename it"):
        Folder(tmp_path)


@pytest.mark.parametrize("bomb", ["b.png", "b.label.png"])
def test_a_bomb_is_passed_over_where_that_is_asked(tmp_path, bomb):
    from diffseg.datasets.base import DataError
    from tests.test_eval import SMALL, evaluated

    for key in ("a", "b"):
        Image.fromarray(NOISE).save(tmp_path / f"{key}.png")
        Image.fromarray(GREY % 3).save(tmp_path / f"{key}.label.png")
    (tmp_path / bomb).write_bytes(png_saying(20_000, 20_000))
    settings = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.size=128", "dataset.classes=[x,y,z]", *SMALL[2:]]
    with pytest.raises(DataError, match=rf"{bomb} is too large, at most 100 megapixels"):
        evaluated(tmp_path / "runs", *settings)
    assert list(evaluated(tmp_path / "runs", *settings, "on_error=skip")["skipped"]) == ["b"]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_anywhere_is_one_sentence(tmp_path, form):
    from diffseg.images import ImageError, load_image, read_numbers

    path, chance, sentences = tmp_path / "damaged", random.Random(form), []
    Image.fromarray(NOISE).save(path, form)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(min(len(whole), chance.choice((60, 10**6))))] = chance.choice((0, 255, 77))
        path.write_bytes(damaged)
        for read in (load_image, read_numbers):
            try:
                read(path)
            except ImageError as error:
                sentences.append(str(error))
    assert len(sentences) > 10
    assert all(str(path) in sentence and "\n" not in sentence for sentence in sentences)


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
