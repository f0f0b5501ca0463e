"""The page of `diffseg web`: a photo, a slider, its segments, what a point attends to. Only this file knows gradio.

It serves as a Hugging Face Space as well (docs/web.md). Nothing is asked of any other machine, and nothing is written
outside a temporary folder, which goes when the server does. What is kept of photos is bounded (`Desk`).
"""

from __future__ import annotations

import atexit
import html
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffseg import demo, outputs
from diffseg.errors import UserError, printable
from diffseg.explorer import Explorer
from diffseg.files import OUTPUTS, is_file_name
from diffseg.images import beside, heat, load_image, overlay, palette_image, write_names
from diffseg.methods.base import Segmenter, upsample_labels
from diffseg.methods.merging import Merging
from diffseg.methods.pamr import Refined
from diffseg.methods.walk import Walk
from diffseg.segmenter import DiffSeg, Segmentation
from diffseg.semantic import LabelledSegmentation

# All that the page writes lies here and goes with the process. gradio reads it when it is imported.
FOLDER = Path(tempfile.mkdtemp(prefix="diffseg-web-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
os.environ |= {"GRADIO_TEMP_DIR": str(FOLDER / "gradio"), "GRADIO_ANALYTICS_ENABLED": "False"}
import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

PIXELS = 2_000_000  # of a photo that is kept: larger ones are shrunk
SIDE = 960  # the longest of a picture that is sent, in pixels
UPLOAD = "30mb"
HOUR_S = 3600
DIFFSEG, REFINED, WALK = "DiffSeg", "DiffSeg, refined by colour (PAMR)", "random walk"
METHODS = (DIFFSEG, REFINED, WALK)
TAU, CUT = "in nats; fewer segments to the right", "normalized cut; fewer segments to the left"
# Nothing may be asked of any other machine, whatever the page's scripts would like to.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "media-src 'self' blob:"
)

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Photo:
    """What is kept of a photo: its name, uint8 [H, W, 3] of at most PIXELS, and what it was before."""

    name: str
    pixels: np.ndarray
    original: tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What someone has chosen on the page. threshold: tau in nats, of the walk NCut. nouns: "dog, grass"; "": none."""

    model: str = "mini"
    method: str = DIFFSEG
    threshold: float = 1.0
    anchors: int = 16
    nouns: str = ""
    numbers: bool = False


class _Latest(OrderedDict[Any, Kept]):
    """The latest `most` things that were asked for."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def of(self, key: Any, make: Callable[[], Kept]) -> Kept:
        """The thing of a key, made where it is not kept."""
        if key not in self:
            while len(self) >= self.most:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]


class Desk:
    """The photos that people have chosen, and what the models have seen of the latest ones.

    A photo has a key that nobody can guess: people see their own alone. Of `photos` of them the pixels are kept
    (6 MB each), of `seen` what a model has shown of them (about 150 MB for 512 x 512 pixels of Stable Diffusion 1 or
    mini, see `diffseg.explorer`); what is no longer kept is made anew, or a sentence asks for the photo.

    models: {name: model}, the first is the default. size: as for a call of `DiffSeg`.
    """

    def __init__(self, models: dict[str, DiffSeg], photos: int = 64, seen: int = 4, size: int = 512):
        self.models, self.size = models, size
        self.examples: dict[str, Photo] = {}  # by name, which is no secret
        self._photos: _Latest[Photo] = _Latest(photos)
        self._seen: _Latest[Explorer] = _Latest(seen)
        self._one = threading.RLock()  # a model and what it has seen serve one at a time

    def take(self, path: str | Path) -> str:
        """Keeps the photo of a file, and says its key.

        Raises:
            ImageError: it cannot be used; the sentence names it by its name alone, not by where the server has it.
        """
        photo, key = _photo(Path(path)), uuid.uuid4().hex
        with self._one:
            self._photos.of(key, lambda: photo)
        return key

    def photo(self, key: str) -> Photo:
        """A photo by its key.

        Raises:
            UserError: none is chosen, or it is no longer kept.
        """
        if key in self.examples:
            return self.examples[key]
        with self._one:
            if key not in self._photos:
                raise UserError("that photo is no longer kept: choose it again" if key else "choose a photo first")
            self._photos.move_to_end(key)  # so that it is kept longest
            return self._photos[key]

    def explorer(self, key: str, choice: Choice) -> Explorer:
        """What a model has seen of a photo."""
        photo = self.photo(key)
        if choice.model not in self.models:
            raise UserError(f"there is no model {choice.model!r} here: choose one of {', '.join(self.models)}")
        nouns = tuple(noun for noun in choice.nouns.split(",") if noun.strip()) or None
        seen = partial(Explorer, self.models[choice.model], photo.pixels, nouns, size=self.size)
        return self._seen.of((key, choice.model, nouns), seen)

    def labels(self, key: str, choice: Choice) -> Segmentation | LabelledSegmentation | np.ndarray:
        """What a choice makes of a photo at the size that is kept; of other methods than DiffSeg the labels alone."""
        with self._one:
            explorer = self.explorer(key, choice)
            if choice.method == DIFFSEG:
                make = explorer.named if explorer.nouns else explorer.segmentation
                return make(choice.threshold, choice.anchors)
            return _method(choice).segment(explorer.observed)

    def draw(self, key: str, choice: Choice) -> tuple[Image.Image, str]:
        """The photo under its segments, at most SIDE pixels long, and a sentence about it."""
        with self._one:
            explorer, photo = self.explorer(key, choice), self.photo(key)
            small = _fitted(photo.pixels, SIDE)
            names: Sequence[str] = ()
            if choice.method == DIFFSEG and not explorer.nouns:
                labels = explorer.labels_at(small.shape[:2], explorer.settings(choice.threshold, choice.anchors))
                labels = labels.astype(np.int32)
            else:
                made = self.labels(key, choice)
                whole = made if isinstance(made, np.ndarray) else made.labels
                labels = _nearest(whole, small.shape[:2])
                names = made.titles() if isinstance(made, LabelledSegmentation) else []
        segments = len(np.unique(labels))
        if not names and choice.numbers:
            names = [str(i) for i in range(int(labels.max()) + 1)]
        picture = overlay(small, labels)
        if names:
            write_names(picture, labels, names)
        return picture, _sentence(photo, segments, bool(explorer.nouns and choice.method == DIFFSEG))

    def look(self, key: str, choice: Choice, x: float, y: float) -> Image.Image:
        """What the point (x, y), in pixels of what `draw` gives, attends to: at each resolution, and aggregated."""
        with self._one:
            explorer, photo = self.explorer(key, choice), self.photo(key)
            height, width = photo.pixels.shape[:2]
            scale = max(1.0, max(height, width) / SIDE)
            attention = explorer.attention_at(min(x * scale, width - 1), min(y * scale, height - 1))
        small = Image.fromarray(_fitted(photo.pixels, 240))
        maps = [*attention.levels.values(), attention.aggregated]
        pictures = [heat(small, weights / max(float(np.quantile(weights, 0.995)), 1e-12)) for weights in maps]
        for picture in pictures:
            point = x * scale / width * small.width, y * scale / height * small.height
            ImageDraw.Draw(picture).circle(point, 5, outline="white", width=2)
        return beside(pictures, [*(f"attention at {h} x {w}" for h, w in attention.levels), "aggregated"])

    def files(self, key: str, choice: Choice, folder: Path) -> list[Path]:
        """Writes what the command line writes of a photo, and a COCO file, into a folder; returns the files.

        Of other methods than DiffSeg these are label map and overlay alone.
        """
        with self._one:
            made, photo = self.labels(key, choice), self.photo(key)
        name = photo.name if is_file_name(photo.name) else "photo"
        stem = folder / name
        if isinstance(made, np.ndarray):
            palette_image(made).save(stem.with_name(f"{name}.labels.png"))
            overlay(photo.pixels, made).save(stem.with_name(f"{name}.overlay.png"))
            return sorted(folder.iterdir())
        record = outputs.write_results(made, stem, name)
        annotations = stem.with_name(f"{name}.coco.json")
        annotations.write_text(json.dumps(outputs.coco([record])) + "\n")
        return [*(stem.with_name(name + suffix) for suffix in OUTPUTS), annotations]


def _method(choice: Choice) -> Segmenter:
    if choice.method == REFINED:
        return Refined(Merging(choice.threshold, anchors=choice.anchors))
    if choice.method == WALK:
        return Walk(choice.threshold)
    raise UserError(f"there is no method {choice.method!r} here: choose one of {', '.join(METHODS)}")


def _photo(path: Path, name: str | None = None) -> Photo:
    """A file's photo, under its own name or another."""
    try:
        pixels = load_image(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None
    return Photo(name or path.stem, _shrunk(pixels, PIXELS), (pixels.shape[0], pixels.shape[1]))


def _sentence(photo: Photo, segments: int, named: bool) -> str:
    height, width = photo.original
    kept = photo.pixels.shape[:2]
    shrunk = "" if kept == photo.original else f", here {kept[1]} x {kept[0]}"
    what = "name" if named else "segment"
    return (
        f"**{segments} {what}{'s' * (segments != 1)}** · {html.escape(photo.name)}, {width} x {height} pixels{shrunk}"
    )


def _shrunk(pixels: np.ndarray, most: int) -> np.ndarray:
    """A photo uint8 [H, W, 3] of at most `most` pixels, each side at least one."""
    height, width = pixels.shape[:2]
    scale = (most / (height * width)) ** 0.5
    return pixels if scale >= 1 else _resized(pixels, (max(1, int(height * scale)), max(1, int(width * scale))))


def _fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """A photo uint8 [H, W, 3] no longer than `side`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return pixels if scale >= 1 else _resized(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


def _resized(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0))


def _nearest(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return upsample_labels(torch.from_numpy(labels.astype(np.int64)), (shape[0], shape[1])).numpy()


# --- The page ---------------------------------------------------------------------------------------------------------


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with what someone asks for, as one sentence on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(printable(error)), title="", print_exception=False) from None


class _Answers:
    """What the page's controls get from a desk. photo: a key of its; chosen: the fields of a `Choice`."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def draw(self, photo: str, *chosen):
        """Picture and sentence."""
        with _told():
            return self.desk.draw(photo, Choice(*chosen))

    def redraw(self, photo: str, *chosen):
        """As `draw`; nothing where no photo is chosen."""
        return self.draw(photo, *chosen) if photo else (None, "")

    def show(self, photo: str, *chosen):
        """A photo that has just been chosen: its key, picture and sentence, and no point."""
        return photo, *self.redraw(photo, *chosen), gr.Image(None, visible=False)

    def take(self, path: str | None, *chosen):
        """An uploaded photo, or none any more."""
        with _told():
            photo = "" if path is None else self.desk.take(path)
        return self.show(photo, *chosen)

    def pick(self, event: gr.SelectData, *chosen):
        """One of the examples."""
        return self.show(list(self.desk.examples)[int(event.index)], *chosen)

    def look(self, event: gr.SelectData, photo: str, *chosen):
        """The attention of the point that was clicked."""
        with _told():
            return gr.Image(self.desk.look(photo, Choice(*chosen), *event.index), visible=True)

    def choose(self, photo: str, model: str, method: str, _: float, *rest):
        """Another model or method: where its slider stands, and what it draws."""
        slider, value = _slider(self.desk.models[model], method)
        return slider, *self.redraw(photo, model, method, value, *rest)

    def write(self, photo: str, *chosen):
        """Files to download."""
        with _told():
            place = Path(tempfile.mkdtemp(dir=FOLDER))
            return gr.File(list(map(str, self.desk.files(photo, Choice(*chosen), place))), visible=True)


def page(desk: Desk) -> gr.Blocks:
    """The page over a desk."""
    names = list(desk.models)
    tau = desk.models[names[0]].settings().threshold[0]
    examples = _examples(FOLDER / "examples")
    desk.examples = {name: _photo(path, name) for name, path in examples.items()}
    answer = _Answers(desk)

    with gr.Blocks(title="diffseg", analytics_enabled=False, fill_width=True, delete_cache=(600, HOUR_S)) as blocks:
        gr.Markdown(
            "# diffseg\nSegments of any photo from the self-attention of a diffusion model, without training. Choose a "
            "photo, move tau, click a point to see what it attends to."
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                key = gr.State("", time_to_live=HOUR_S)
                picture = gr.Image(
                    format="jpeg",
                    type="pil",
                    interactive=False,
                    show_label=False,
                    buttons=["fullscreen"],
                    height=560,
                    elem_id="picture",
                )
                said = gr.Markdown(elem_id="said")
                attention = gr.Image(
                    show_label=False,
                    format="jpeg",
                    type="pil",
                    interactive=False,
                    buttons=["fullscreen"],
                    visible=False,
                    elem_id="attention",
                )
            with gr.Column(scale=1, min_width=320):
                threshold = gr.Slider(0.05, 3, tau, step=0.01, label="tau", info=TAU, elem_id="threshold")
                upload = gr.File(label="a photo of yours", file_types=["image"], height=170, elem_id="upload")
                gallery = gr.Gallery(
                    [(path, None) for path in examples.values()],
                    columns=3,
                    height="auto",
                    show_label=False,
                    allow_preview=False,
                    format="jpeg",
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                nouns = gr.Textbox(label="names to choose from", placeholder="dog, grass, sky")
                method = gr.Dropdown(list(METHODS), value=DIFFSEG, label="method")
                model = gr.Dropdown(names, value=names[0], label="model", visible=len(names) > 1)
                anchors = gr.Slider(2, 32, 16, step=1, label="anchors a side (M)")
                numbers = gr.Checkbox(label="numbers on the segments")
                download = gr.Button("Get files: labels, overlay, JSON, COCO", size="md")
                files = gr.File(label="files", file_count="multiple", interactive=False, visible=False)
        gr.Markdown("Example photos: " + "; ".join(f"{name}, {credit}" for name, credit in _credits().items()))

        settings = [key, model, method, threshold, anchors, nouns, numbers]

        once: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        quietly: dict[str, Any] = {**once, "show_progress": "hidden", "trigger_mode": "always_last"}
        private: dict[str, Any] = {"api_visibility": "private", **once}
        everything = [key, picture, said, attention]
        blocks.load(partial(answer.show, next(iter(examples))), settings[1:], everything, **private)
        upload.change(answer.take, [upload, *settings[1:]], everything, api_name="take", **once)
        gallery.select(answer.pick, settings[1:], everything, **private)
        threshold.input(answer.redraw, settings, [picture, said], api_name="draw", **quietly)
        anchors.input(answer.redraw, settings, [picture, said], **private | quietly)
        for control in (nouns.submit, nouns.blur, numbers.input):
            control(answer.redraw, settings, [picture, said], **private)
        for control in (method.input, model.input):
            control(answer.choose, settings, [threshold, picture, said], **private)
        picture.select(answer.look, settings, attention, **private)
        download.click(answer.write, settings, files, api_name="files", **once)
    return blocks


def _slider(seg: DiffSeg, method: str) -> tuple[gr.Slider, float]:
    """The slider of a method, and where it stands."""
    if method == WALK:
        return gr.Slider(0.05, 1.5, 0.5, label="largest cut", info=CUT), 0.5
    tau = seg.settings().threshold[0]
    return gr.Slider(0.05, 3, tau, label="tau", info=TAU), tau


def _credits() -> dict[str, str]:
    return {name: credit for name, (_, _, credit) in demo.PHOTOS.items()}


def _examples(folder: Path) -> dict[str, Path]:
    """{name: file} of photos and scenes to try."""
    folder.mkdir(exist_ok=True)
    return {name: demo.demo_photo(name) for name in demo.PHOTOS} | {p.stem: p for p in demo.demo_scenes(folder)}


# --- The server -------------------------------------------------------------------------------------------------------


def application(desk: Desk, local: bool = True) -> FastAPI:
    """The server's application over a desk.

    Args:
        local: it answers to this machine's own names alone, so that no page from elsewhere can reach it by a name of
            its own that leads here.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @app.middleware("http")
    async def guarded(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    blocks = page(desk)
    blocks.queue(max_size=64)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Soft(
            primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        max_file_size=UPLOAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
    )


def serve(
    models: Sequence[str] = ("mini",),
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    dtype: str | None = None,
    seen: int = 4,
    size: int = 512,
) -> None:
    """Loads models and serves the page until it is interrupted.

    Args:
        host: 127.0.0.1, this machine alone; 0.0.0.0, whoever can reach it. port: 0, any that is free. seen: of how many
            photos what a model has shown is kept. size: as for a call of `DiffSeg`.

    Raises:
        UserError: gradio is missing, the port is taken, a model cannot be loaded.
    """
    listening = _listen(host, port)
    loaded = {name: DiffSeg.from_pretrained(name, device=device, dtype=dtype) for name in dict.fromkeys(models)}
    local = host in ("127.0.0.1", "localhost", "::1")
    app = application(Desk(loaded, seen=seen, size=size), local)
    print(f"diffseg is at http://{host}:{listening.getsockname()[1]} (stop it with Ctrl+C)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the folder would stay
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen at {host}, port {port} ({reason}): choose with --host and --port") from None
