"""The command line: `diffseg segment PHOTO...`, `diffseg label PHOTO...` and `diffseg explore PHOTO...`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from diffseg import __version__, presets
from diffseg.ahead import side_by_side
from diffseg.errors import UserError, printable
from diffseg.files import ATTENTION, OUTPUTS, check_writable, name_outputs, write
from diffseg.options import (
    Anchors,
    Coco,
    Demo,
    Device,
    Dtype,
    Iterations,
    LabelStudio,
    Manifest,
    MaybePhotos,
    Model,
    Nouns,
    OnRay,
    Opacity,
    Out,
    OutUri,
    Palette,
    PartSize,
    Polygons,
    Preset,
    Readers,
    Refine,
    Revision,
    Shard,
    Size,
    Threshold,
    Timestep,
    Weights,
    chosen,
    is_given,
    one_sentence,
)
from diffseg.start import uncollected

if TYPE_CHECKING:
    import numpy as np

    from diffseg.segmenter import DiffSeg, Segmentation, Settings
    from diffseg.semantic import LabelledSegmentation

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"diffseg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """DiffSeg: unsupervised zero-shot segmentation from the self-attention of a diffusion model."""


@app.command()
def segment(
    context: typer.Context,
    photos: MaybePhotos = None,
    out: OutUri = "segments",
    manifest: Manifest = None,
    part_size: PartSize = None,
    shard: Shard = None,
    readers: Readers = None,
    ray: OnRay = None,
    preset: Preset = None,
    demo: Demo = False,
    model: Model = "mini",
    revision: Revision = None,
    threshold: Threshold = None,
    anchors: Anchors = 16,
    iterations: Iterations = None,
    weights: Weights = None,
    timestep: Timestep = None,
    refine: Refine = False,
    device: Device = "auto",
    dtype: Dtype = None,
    size: Size = 512,
    numbers: Annotated[bool, typer.Option("--numbers", help="Segments' numbers on the overlay.")] = False,
    opacity: Opacity = 0.5,
    palette: Palette = "regions",
    coco: Coco = None,
    label_studio: LabelStudio = None,
    polygons: Polygons = False,
) -> None:
    """Segments photos. For each: NAME.labels.png, NAME.overlay.png and NAME.json (segments as COCO RLE, settings).

    With --manifest, for millions of photos: Parquet files of a thousand photos each, in a folder or store.
    """
    with one_sentence():
        options = chosen(context, preset)
        if manifest is not None:
            _check_for_manifest(context)
            from diffseg import bulk

            job = bulk.Request(manifest, out, bulk.shard_of(shard), part_size, device, readers, ray)
            folder = bulk.place(out).local
            if not bulk.segment(job, lambda load: _load(folder, device, dtype, load, **options), options):
                raise typer.Exit(1)
            return
        _check_without_manifest(context, out)
        credits = _demo(photos) if demo else {}
        jobs = name_outputs(find_photos(_given(photos, credits, "segment")))
        folder = Path(out)
        export = _exports(coco, label_studio, polygons, folder, jobs, opacity, palette)
        seg, settings = _load(folder, device, dtype, **options)
        drawing = {"opacity": opacity, "numbers": numbers, "palette": palette}
        streams = seg.model.streams((settings.size, settings.size))
        failed, records = process_files(
            lambda photo, path: seg.segment(photo, settings), jobs, folder, options["model"], drawing, streams
        )
        export(records)
        for path, credit in credits.items():
            typer.echo(f"{path.name}: {credit}; segmented by diffseg")
    if failed:
        raise typer.Exit(1)


_WITHOUT_MANIFEST = ("photos", "demo", "numbers", "opacity", "palette", "coco", "label_studio", "polygons")
_WITH_MANIFEST = ("part_size", "shard", "readers", "ray")


def _check_for_manifest(context: typer.Context) -> None:
    """Refuses what makes no sense with --manifest."""
    for key in _WITHOUT_MANIFEST:
        if is_given(context, key):
            given = "the photos on the command line" if key == "photos" else f"--{key.replace('_', '-')}"
            raise UserError(
                f"--manifest names the photos, and writes Parquet without overlays: leave out {given}, or --manifest; "
                f"diffseg merge makes COCO files and label maps of the parts"
            )


def _check_without_manifest(context: typer.Context, out: str) -> None:
    """Refuses what makes sense with --manifest alone."""
    given = [f"--{key.replace('_', '-')}" for key in _WITH_MANIFEST if is_given(context, key)]
    given += [f"--out {out}"] if "://" in out else []
    if given:
        raise UserError(f"{given[0]} is for the photos of a text file: name it with --manifest, or leave this out")


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="Folder or URI of diffseg segment --manifest.", show_default=False)],
    keys: Annotated[
        list[str] | None, typer.Argument(help="Lines of the manifest: photos to choose.", show_default=False)
    ] = None,
    keys_file: Annotated[str | None, typer.Option("--keys", help="Text file of photos to choose, one a line.")] = None,
    coco: Annotated[Path | None, typer.Option(help="One COCO file, segments as RLE.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder for NAME.labels.png of each photo.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Also where parts are missing still.")] = False,
) -> None:
    """Says what is in the parts of diffseg segment --manifest, and makes a COCO file or label maps of them."""
    with one_sentence():
        from diffseg import bulk

        complete = bulk.merge(run, keys or [], keys_file, coco, labels, partial)
    if not complete:
        raise typer.Exit(1)


@app.command()
def label(
    context: typer.Context,
    photos: MaybePhotos = None,
    out: Out = Path("labels"),
    preset: Preset = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Generated scenes, named by their own captions; drawn into the folder.")
    ] = False,
    nouns: Nouns = None,
    caption: Annotated[str | None, typer.Option(help="A sentence whose nouns to look for (needs spaCy).")] = None,
    captioner: Annotated[
        str | None,
        typer.Option(
            help="BLIP model that writes a caption where none is given, hub id or folder (needs spaCy). "
            "(default: Salesforce/blip-image-captioning-base)"
        ),
    ] = None,
    voting: Annotated[str, typer.Option(help="How a segment's pixels choose its noun: mean or majority.")] = "mean",
    model: Model = "mini",
    revision: Revision = None,
    threshold: Threshold = None,
    anchors: Anchors = 16,
    iterations: Iterations = None,
    weights: Weights = None,
    timestep: Timestep = None,
    refine: Refine = False,
    device: Device = "auto",
    dtype: Dtype = None,
    size: Size = 512,
    opacity: Opacity = 0.5,
    palette: Palette = "regions",
    attention: Annotated[
        bool, typer.Option("--attention", help="Also NAME.nouns.png: where each noun is attended to.")
    ] = False,
    coco: Coco = None,
    label_studio: LabelStudio = None,
    polygons: Polygons = False,
) -> None:
    """Segments photos and names the segments by the nouns of a caption.

    For each: NAME.labels.png (indices into the nouns), NAME.overlay.png (a name that is unsure has a question mark)
    and NAME.json (nouns, segments, settings).
    """
    with one_sentence():
        options = chosen(context, preset)
        words = _words_of_scenes(photos, out, (nouns, caption, captioner)) if demo else None
        jobs = name_outputs(find_photos(_given(photos, words or {}, "label")))
        export = _exports(coco, label_studio, polygons, out, jobs, opacity, palette)
        if sum(given is not None for given in (nouns, caption, captioner)) > 1:
            raise UserError("give only one of --nouns, --caption and --captioner")
        from diffseg.semantic import check_voting, warning
        from diffseg.semantic import label as label_photo

        check_voting(voting)
        words_of = _words(nouns, caption, captioner, device) if words is None else lambda photo, path: words[path]
        seg, settings = _load(out, device, dtype, **options)
        if doubt := warning(seg):
            typer.echo(doubt, err=True)
        failed, records = process_files(
            lambda photo, path: label_photo(seg, photo, *words_of(photo, path), settings, voting),
            jobs,
            out,
            options["model"],
            {"opacity": opacity, "palette": palette, "attention": attention},
        )
        export(records)
    if failed:
        raise typer.Exit(1)


@app.command()
def web(
    model: Annotated[list[str], typer.Option(help="As for segment; several can be chosen from on the page.")] = [  # noqa: B006
        "mini"
    ],
    host: Annotated[
        str, typer.Option(help="127.0.0.1: this machine alone; 0.0.0.0: whoever can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 7860,
    device: Device = "auto",
    dtype: Dtype = None,
    size: Size = 512,
    keep: Annotated[int, typer.Option(min=1, help="Photos whose attention is kept in memory, 150 MB each.")] = 4,
) -> None:
    """A page to try photos on in the browser (needs gradio, the extra "web")."""
    with one_sentence():
        if find_spec("gradio") is None:
            raise UserError('the page needs gradio: pip install "diffseg[web]"')
        from diffseg.web import serve

        serve(model, host, port, device, dtype, keep, size)


@app.command()
def explore(
    context: typer.Context,
    photos: MaybePhotos = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explore.html"),
    preset: Preset = None,
    demo: Demo = False,
    nouns: Nouns = None,
    model: Model = "mini",
    revision: Revision = None,
    threshold: Annotated[
        str | None, typer.Option(help="tau in nats that the slider starts at. (default: the model's own)")
    ] = None,
    anchors: Anchors = 16,
    iterations: Iterations = None,
    weights: Weights = None,
    timestep: Timestep = None,
    device: Device = "auto",
    dtype: Dtype = None,
    size: Size = 512,
    opacity: Opacity = 0.5,
) -> None:
    """Writes a page to explore photos with, in a browser: a slider for the threshold, and the attention of any point.

    The page needs no server and no network; it takes 1 to 1.5 MB a photo.
    """
    with one_sentence():
        options = chosen(context, preset)
        credits = _demo(photos) if demo else {}
        jobs = name_outputs(find_photos(_given(photos, credits, "explore")))
        listed = _page_options(out, options["threshold"], nouns, opacity, jobs)
        seg, settings = _load(out.parent, device, dtype, **options)
        from diffseg.page.explore import Photo, page_of, photo_data

        pages: dict[str, Photo] = {}

        def look(image: np.ndarray, photo: Path) -> Photo:
            explorer = seg.explore(image, listed, timestep=settings.timestep, size=settings.size)
            return photo_data(explorer, settings, photo.name, credits.get(photo, ""))

        def keep(page: Photo, photo: Path, name: str) -> None:
            pages[name] = page

        failed, seconds = each_photo(look, keep, jobs, "looking at", options["model"])
        if pages:
            write(out, page_of(list(pages.values()), options["model"], settings, opacity))
            megabytes = f"{out.stat().st_size / 1e6:.1f} MB"
            typer.echo(
                f"{_photos(len(pages))} in {seconds:.1f} s -> {printable(out)} ({megabytes}): open it in a browser"
            )
        tell_failed(failed, "explored")
    if failed:
        raise typer.Exit(1)


def _page_options(
    out: Path, threshold: str | None, nouns: str | None, opacity: float, jobs: dict[str, Path]
) -> tuple[str, ...] | None:
    """The nouns; what is wrong with the options of a page is found before any work."""
    from diffseg.images import check_opacity
    from diffseg.words import distinct

    check_opacity(opacity)
    if threshold is not None and len(_numbers("--threshold", threshold)) > 1:
        raise UserError("explore takes one --threshold, for all iterations: its slider moves it")
    if out.absolute() in {path.absolute() for path in jobs.values()}:
        raise UserError(f"--out {out} is also one of the photos: choose another")
    if _is_folder(out):
        raise UserError(f"--out {out} is a folder: give a file, such as {out / 'explore.html'}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is a page for a browser: give a file that ends in .html, such as {out}.html")
    return None if nouns is None else distinct(nouns.split(","))


def _given(photos: list[Path] | None, demo: Iterable[Path], command: str) -> list[Path]:
    """The photos that a command is given, or those of --demo."""
    if not (photos or demo):
        raise UserError(f"no photos are given: name some, or folders of them, or try diffseg {command} --demo")
    return list(demo or photos or [])


def _photos(count: int) -> str:
    return f"{count} photo{'s' * (count != 1)}"


@app.command()
def tune(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of photos.", show_default=False)],
    out: Out = Path("tuning"),
    labels: Annotated[
        Path | None, typer.Option(help="Folder of label maps of some of the photos: NAME.label.png, or NAME.png.")
    ] = None,
    ignore: Annotated[int, typer.Option(help="Value of label maps that is not scored.")] = 255,
    thresholds: Annotated[
        str | None, typer.Option(help="The tau to try: 0.5,0.7,0.9. (default: 17 around the model's own)")
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option(
            help="What to keep with --save: best, by labels; fewest, segments within a standard error of it; or a tau. "
            "(default: best)"
        ),
    ] = None,
    save: Annotated[str | None, typer.Option(help="Name to keep model and settings under, for --preset.")] = None,
    model: Model = "mini",
    revision: Revision = None,
    anchors: Anchors = 16,
    iterations: Iterations = None,
    weights: Weights = None,
    timestep: Timestep = None,
    refine: Refine = False,
    device: Device = "auto",
    dtype: Dtype = None,
    size: Size = 512,
) -> None:
    """Finds a threshold for a folder of photos; with labels of a few of them, the best one and how sure it is.

    Writes tune.csv, tune.svg and sheet.jpg, photos down and thresholds across. One pass of the model for each photo.
    """
    with one_sentence():
        from diffseg.eval.show.tuned import Request, run

        given = None if thresholds is None else _numbers("--thresholds", thresholds)
        photos = name_outputs([p for p in find_photos([folder]) if not p.name.endswith(".label.png")])
        request = Request(folder, photos, labels, ignore, given, choose, save, iterations, revision)
        whole = run(request, out, lambda: _load(out, device, dtype, **chosen(context, None)))
    if not whole:
        raise typer.Exit(1)


@app.command("presets")
def _presets() -> None:
    """Lists the presets that diffseg tune --save has kept: name, model, threshold, and how each came to be."""
    with one_sentence():
        known = {name: presets.load(name) for name in presets.names()}
        if not known:
            typer.echo(
                f"there are no presets in {printable(presets.folder())}: diffseg tune FOLDER --save NAME makes one"
            )
            return
        table = Table("name", "model", "tau", "from", box=box.SIMPLE_HEAD)
        for name, kept in known.items():
            tau = kept.options.get("threshold", "the model's own")
            taus = ", ".join(map(str, tau)) if isinstance(tau, list) else str(tau)
            origin = "; ".join(f"{key} {value}" for key, value in kept.made.items())
            table.add_row(*(Text(printable(cell)) for cell in (name, kept.model, taus, origin)))
        Console().print(table)


_TICKS = {"good": "[green]\u2713[/]", "missing": "[red]\u2717[/]", "optional": "[yellow]-[/]"}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for bug reports.")] = False,
    data: Annotated[Path, typer.Option(help="Where data sets lie, each in its folder.")] = Path("data"),
) -> None:
    """Says what this machine has for diffseg, and what to do about what is missing. Asks no network."""
    from diffseg import doctor

    findings = doctor.examine(data)
    if as_json:
        typer.echo(json.dumps(doctor.as_json(findings), indent=1))
        return
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table("", section, "", "", box=box.SIMPLE_HEAD, expand=True)
        table.columns[1].no_wrap = True
        for column, ratio in zip(table.columns[2:], (3, 2), strict=True):
            column.ratio, column.overflow = ratio, "fold"  # a command is cut nowhere
        for finding in findings:
            if finding.section == section:
                texts = (Text(printable(text)) for text in (finding.name, finding.found, finding.advice))
                table.add_row(_TICKS[finding.state], *texts)
        Console().print(table)


def _demo(photos: list[Path] | None) -> dict[Path, str]:
    """The photos of --demo and their credits."""
    if photos:
        raise UserError("--demo brings its own photos: leave out either it or yours")
    from diffseg.demo import demo_photos

    return demo_photos()


def _words_of_scenes(
    photos: list[Path] | None, out: Path, words: tuple[str | None, ...]
) -> dict[Path, tuple[tuple[str, ...], str]]:
    """The scenes of label --demo, drawn into `out`, with their nouns and captions."""
    if photos or any(given is not None for given in words):
        raise UserError("--demo brings its own scenes and captions: leave out either it or yours")
    from diffseg.demo import demo_scenes

    check_writable(out, "choose another with --out")
    return demo_scenes(out)


def _exports(
    coco: Path | None,
    label_studio: Path | None,
    polygons: bool,
    out: Path,
    jobs: dict[str, Path],
    opacity: float,
    palette: str,
) -> Callable[[list[dict[str, Any]]], None]:
    """A function that writes photos' records for tools; what is wrong with its options is found before any work."""
    from diffseg import outputs
    from diffseg.images import check_opacity, check_palette

    check_opacity(opacity)
    check_palette(palette)
    files = {"--coco": coco, "--label-studio": label_studio}
    asked = {option: path for option, path in files.items() if path is not None}
    if polygons and not asked:
        raise UserError("--polygons is for the files of --coco and --label-studio: give one of them, or leave it out")
    taken = {path.absolute() for path in jobs.values()}
    taken |= {(out / f"{name}{suffix}").absolute() for name in jobs for suffix in (*OUTPUTS, ATTENTION)}
    for option, path in asked.items():
        if path.absolute() in taken:
            raise UserError(f"{option} {path} is also the name of another file of this call: choose another")
        taken.add(path.absolute())
        if _is_folder(path):
            raise UserError(f"{option} {path} is a folder: give a file, such as {path / 'annotations.json'}")

    def export(records: list[dict[str, Any]]) -> None:
        forms = {"--coco": outputs.coco, "--label-studio": outputs.label_studio}
        for option, path in asked.items() if records else ():
            write(path, json.dumps(forms[option](records, polygons)) + "\n")
            typer.echo(f"{len(records)} photo{'s' * (len(records) != 1)} -> {printable(path)}")

    for option, path in asked.items():
        check_writable(path.parent, f"choose another with {option}")
    return export


def _words(
    nouns: str | None, caption: str | None, captioner: str | None, device: str
) -> Callable[[np.ndarray, Path], tuple[tuple[str, ...], str | None]]:
    """A function (photo uint8 [H, W, 3], its path) -> nouns and their caption, from whichever is given."""
    from diffseg.captions import CAPTIONER, Captioner, CaptionError, load_tagger, nouns_of
    from diffseg.images import ImageError
    from diffseg.semantic import distinct

    if nouns is not None:
        listed = distinct(nouns.split(","))
        return lambda photo, path: (listed, None)
    tagger = load_tagger()
    if caption is not None:
        found = nouns_of(tagger(caption))
        return lambda photo, path: (found, caption)
    describe = Captioner.from_pretrained(captioner or CAPTIONER, device=device)

    def words(photo: np.ndarray, path: Path) -> tuple[tuple[str, ...], str]:
        written = describe(photo)
        try:
            return nouns_of(tagger(written)), written
        except CaptionError as error:  # one photo's trouble, not that of the rest
            raise ImageError(f"{path}: {error}; name what it shows with --nouns") from None

    return words


def _load(
    out: Path | None,
    device: str,
    dtype: str | None,
    loader: Callable[..., DiffSeg] | None = None,
    *,
    model: str,
    revision: str | None,
    threshold: str | None = None,
    weights: str | None,
    timestep: int | None,
    **options: Any,
) -> tuple[DiffSeg, Settings]:
    """The model and its settings; what is wrong with the options is found before any work.

    out: the folder for results; None: there is none to check. loader: in place of `DiffSeg.from_pretrained`.
    options: the other settings, anchors, iterations, refine and size.
    """
    given = None if threshold is None else _numbers("--threshold", threshold)
    thresholds = given[0] if given is not None and len(given) == 1 else given  # one is for all iterations
    options = {**options, "weights": None if weights is None else _numbers("--weights", weights)}
    with _waiting() as say, uncollected():
        say("loading torch")
        from diffseg.devices import resolve_device, resolve_dtype, slow_dtype
        from diffseg.segmenter import DiffSeg, Settings

        place = resolve_device(device)
        slow = slow_dtype(resolve_dtype(dtype, place), place)
        if slow:
            typer.echo(slow, err=True)
        usual = 300 if timestep is None else timestep
        Settings.make(1.0 if thresholds is None else thresholds, timestep=usual, **options)
        if out is not None:
            check_writable(out, "choose another with --out")
        say(f"loading the model {printable(model)}")
        seg = (loader or DiffSeg.from_pretrained)(model, revision=revision, device=device, dtype=dtype)
    return seg, seg.settings(thresholds, timestep, **options)


@contextmanager
def _waiting() -> Iterator[Callable[[str], None]]:
    """A function that says what is being waited for, on a terminal alone; the line is gone afterwards."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda text: None
        return
    with screen.status("") as status:
        yield lambda text: status.update(Text(f"{text} ..."))


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers separated by commas, got {text!r}") from None


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """The photos named, and those directly in the folders named, sorted; results of earlier runs are left out.

    Raises:
        UserError: a folder without photos; none of the paths is there.
    """
    from diffseg.images import SUFFIXES

    def inside(folder: Path) -> list[Path]:
        ours = (*OUTPUTS, ATTENTION)
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.endswith(ours))

    paths = list(paths)
    if paths and not any(map(_may_be_there, paths)):
        raise UserError(f"{paths[0]} is missing: there is no such file or folder")
    found: list[Path] = []
    for path in paths:
        if not _is_folder(path):
            found.append(path)
            continue
        photos = inside(path)
        if not photos:
            raise UserError(f"the folder {path} has no photos ({', '.join(sorted(SUFFIXES))}) directly in it")
        found += photos
        for folder in sorted(p for p in path.iterdir() if _is_folder(p) and p not in paths):
            with suppress(OSError):
                if inside(folder):
                    typer.echo(f"photos in {printable(folder)} are left out: name it, too, to have them", err=True)
    return list(dict.fromkeys(found))


def _may_be_there(path: Path) -> bool:
    """Whether there is such a file or folder, as far as can be known without reading it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # such as too long a name: reading the photo says so, and the others are done
        return True
    return True


def _is_folder(path: Path) -> bool:
    with suppress(OSError):  # such as too long a name: reading the photo says so, and the others are done
        return path.is_dir()
    return False


def process_files(
    make: Callable[[np.ndarray, Path], Segmentation | LabelledSegmentation],
    jobs: dict[str, Path],
    out: Path,
    model: str,
    drawing: dict[str, Any],
    streams: int = 1,
) -> tuple[dict[Path, str], list[dict[str, Any]]]:
    """Segments photos into the folder `out`, with progress and a summary.

    Args:
        make: photo uint8 [H, W, 3] and its path -> what to write. jobs: {result name: photo}. model: its name.
        drawing: how overlays are drawn. streams: photos to work on at a time.

    Returns:
        {photo: what was wrong with it}, and the records of the others.

    Raises:
        UserError: a setting that does not fit the model. OSError: a result cannot be written.
    """
    from diffseg.outputs import write_results

    records: list[dict[str, Any]] = []
    segments = 0

    def keep(made: Segmentation | LabelledSegmentation, photo: Path, name: str) -> None:
        nonlocal segments
        records.append(write_results(made, out / name, photo, **drawing))
        segments += len(made)

    try:
        failed, seconds = each_photo(make, keep, jobs, "segmenting", model, streams)
    except KeyboardInterrupt:
        kept = f"{_photos(len(records))} of {len(jobs)} done, kept in {printable(out)}"
        typer.echo(f"diffseg: stopped; {kept}", err=True)
        raise
    if records:
        each = f"{seconds / len(records):.1f} s each"
        made = f"{_photos(len(records))}, {segments} segment{'s' * (segments != 1)}"
        typer.echo(f"{made} in {seconds:.1f} s ({each}) -> {printable(out)}")
    tell_failed(failed, "segmented")
    return failed, records


Made = TypeVar("Made")


def each_photo(
    make: Callable[[np.ndarray, Path], Made],
    keep: Callable[[Made, Path, str], None],
    jobs: dict[str, Path],
    doing: str,
    model: str,
    streams: int = 1,
) -> tuple[dict[Path, str], float]:
    """Works on photos in order, with progress; one that cannot be used is told, and skipped.

    Args:
        make: (photo uint8 [H, W, 3], its path) -> what is made of it. keep: (that, the path, its result name).
        jobs: {result name: photo}. doing: as a word. streams: photos to work on at a time.

    Returns:
        {photo: what was wrong with it}, and the seconds it took.
    """
    from diffseg.images import ImageError, load_image

    def attempt(photo: Path) -> Made | ImageError:
        try:
            return make(load_image(photo), photo)
        except ImageError as error:
            return error

    failed: dict[Path, str] = {}
    results = side_by_side(attempt, jobs.values(), streams)
    start, screen = time.perf_counter(), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    typer.echo(f"{doing} {_photos(len(jobs))} with {model}", err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(doing, total=len(jobs))
        for name, photo in jobs.items():
            progress.update(task, description=printable(photo.name))
            made = next(results)
            if isinstance(made, ImageError):
                failed[photo] = str(made)
                progress.console.print(f"skipped: {made}", style="red", highlight=False, soft_wrap=True, markup=False)
            else:
                keep(made, photo, name)
            progress.advance(task)
    return failed, time.perf_counter() - start


def tell_failed(failed: dict[Path, str], done: str) -> None:
    """Names the photos that failed in one line on stderr. done: what could not be done to them."""
    if failed:
        typer.echo(f"{len(failed)} could not be {done}: {', '.join(map(printable, failed))}", err=True)


def main() -> None:
    """The command `diffseg`."""
    app()


if __name__ == "__main__":
    main()
