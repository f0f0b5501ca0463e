"""`diffseg doctor`: what this machine has for diffseg, and what to do about what is missing.

It asks no network and loads no model; nothing that it finds is an error.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from diffseg import __version__, presets
from diffseg.captions import TAGGER
from diffseg.devices import free_bytes, slow_dtype
from diffseg.errors import UserError
from diffseg.files import cache_folder

GOOD, MISSING, OPTIONAL = "good", "missing", "optional"
_CONF = Path(__file__).parent / "conf"
_NAMED = ("torch", "diffusers", "transformers", "numpy")  # always shown; others where something is wrong with them
_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
_ROOM_BYTES = 10_000_000_000  # a model and its download, or a data set
_NEEDED_BYTES = 6 << 30  # Stable Diffusion 1.4 in float32, see docs/performance.md
# Images/s of a whole evaluation, as measured in docs/performance.md; what for, and where.
RATES = {
    ("mini", "cpu"): (1.46, "two CPU cores"),
    ("sd14", "cpu"): (0.07, "two CPU cores"),
    ("sd14", "cuda"): (64.0, "an H100"),
}
# Annotations that take many seconds to read; they are looked for, and not read.
_LARGE = {
    "pascal_context": "VOCdevkit/VOC2010/trainval_merged.json",
    "coco_stuff27": "annotations/stuff_val2017.json",
    "coco_stuff171": "annotations/stuff_val2017.json",
    "coco_object": "annotations/stuff_val2017.json",
}


@dataclass(frozen=True)
class Finding:
    """One thing: there (GOOD), lacking (MISSING) or one to do without (OPTIONAL); and what to do about it."""

    section: str
    name: str
    state: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Target:
    """What `make NAME` evaluates. images: of each data set; 0: how long it takes has not been measured."""

    data: tuple[str, ...]
    model: str = "sd14"
    images: int = 0


_SIX = ("coco_stuff27", "cityscapes", "voc", "pascal_context", "ade20k", "coco_object")
TARGETS = {
    "eval": Target(("scenes",), "mini", 64),
    "eval-coco": Target(("coco_stuff27",), images=2175),
    "eval-cityscapes": Target(("cityscapes",), images=500),
    "eval-voc": Target(("voc",), images=1449),
    "eval-context": Target(("pascal_context",), images=5105),
    "eval-ade20k": Target(("ade20k",), images=2000),
    "eval-coco-object": Target(("coco_object",), images=2175),
    "eval-bsds": Target(("bsds500",)),
    "eval-sixpack": Target(_SIX),
}
# What fetches a data set, or says where to get it.
FETCHING = {
    "coco_stuff27": "data-coco",
    "coco_stuff171": "data-coco",
    "coco_object": "data-coco",
    "cityscapes": "data-cityscapes",
    "voc": "data-voc",
    "pascal_context": "data-context",
    "ade20k": "data-ade20k",
    "bsds500": "data-bsds",
}


def examine(data: Path, results: Path = Path("results")) -> list[Finding]:
    """Everything, in the order in which it is shown.

    Args:
        data: where data sets lie, each in its folder. results: where runs are kept.
    """
    models, data_sets = list(_models()), list(_data_sets(data))
    return [
        *_packages(),
        *_machine(),
        *_disk(results),
        *models,
        *_token(),
        *data_sets,
        *_targets({f.name: f.state == GOOD for f in [*models, *data_sets]}),
    ]


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings for a bug report; the home folder is written as ~."""
    home = str(Path.home())
    rows = [{key: value.replace(home, "~") for key, value in asdict(f).items()} for f in findings]
    return {"diffseg": __version__, "platform": platform.platform(), "findings": rows}


# --- software ---------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Finding]:
    """Python, and whether the packages that diffseg requires are there, in the versions that it requires."""
    from packaging.requirements import Requirement

    python = platform.python_version()
    is_new = sys.version_info >= (3, 11)
    yield Finding("software", "Python", GOOD if is_new else MISSING, python, "" if is_new else "use 3.11 or later")
    yield Finding("software", "diffseg", GOOD, f"{__version__} in {Path(__file__).parent}")
    try:
        required = [Requirement(line) for line in requires("diffseg") or ()]
    except PackageNotFoundError:
        yield Finding("software", "packages", OPTIONAL, "not known: diffseg is not installed", "pip install .")
        return
    always = [requirement for requirement in required if requirement.marker is None]
    wrong = 0
    for requirement in always:
        installed, tested = _version(requirement.name), _known_good().get(requirement.name.lower(), "")
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong += 1
            advice = f"pip install '{requirement}'"
            yield Finding("software", requirement.name, MISSING, installed or "not installed", advice)
        elif requirement.name in _NAMED:
            differs = tested not in ("", installed.partition("+")[0])  # 2.13.0+cpu is 2.13.0
            told = f"{installed} ({tested} is known to be good)" if differs else installed
            yield Finding("software", requirement.name, GOOD, told)
    if not wrong:
        yield Finding("software", "packages", GOOD, f"all {len(always)} that are required, in versions that fit")
    yield from _extras(required)


def _extras(required: list[Any]) -> Iterator[Finding]:
    """The extras of which something is not installed, but for those of developers."""
    lacking: dict[str, list[str]] = {}
    for requirement in required:
        named = re.search(r"extra == ['\"](\w+)", str(requirement.marker or ""))
        if named and named[1] not in ("dev", "docs") and not requirement.extras and not _version(requirement.name):
            lacking.setdefault(named[1], []).append(requirement.name)
    for extra, names in lacking.items():
        yield Finding("software", extra, OPTIONAL, f"without {', '.join(names)}", f"pip install 'diffseg[{extra}]'")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _known_good() -> dict[str, str]:
    """{package: version} of constraints.txt, in a checkout; {} elsewhere."""
    file = Path(__file__).resolve().parents[1] / "constraints.txt"
    if not file.is_file():
        return {}
    return {name.lower(): found for name, found in re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(), re.M)}


# --- hardware ---------------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    """Cores, threads, memory, what the CPU does fast, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, given = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    advice = f"unset OMP_NUM_THREADS (it is {given}) to use all cores" if given and threads < cores else ""
    yield Finding("machine", "CPU", GOOD, f"{cores} cores, {threads} thread{'s' * (threads != 1)} of torch", advice)
    flags = _cpu_flags()
    fast = [name for flag, name in _FLAGS.items() if flag in flags]
    halves = {"amx_bf16", "avx512_bf16"} & flags
    advice = "--dtype bfloat16 saves time with models of Stable Diffusion's size" if halves else ""
    advice = advice or slow_dtype(torch.bfloat16, torch.device("cpu"))
    yield Finding("machine", "CPU, fast for", GOOD if fast else OPTIONAL, ", ".join(fast) or "not known", advice)
    yield _memory()
    yield from _gpus()


def _cpu_flags() -> set[str]:
    """What Linux says that the CPU can do; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", file.read_text(), re.M) if file.is_file() else None
    return set(found[1].split()) if found else set()


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = free_bytes(torch.device("cpu"))
    if free is None:
        return Finding("machine", "memory", OPTIONAL, f"{_gigabytes(total)}, free: not known")
    short = free < _NEEDED_BYTES
    advice = "Stable Diffusion's size needs about 6 GB on the CPU in float32; mini needs 1" if short else ""
    found = f"{_gigabytes(free)} free of {_gigabytes(total)}"
    return Finding("machine", "memory", OPTIONAL if short else GOOD, found, advice)


def _gpus() -> Iterator[Finding]:
    """The CUDA devices that torch sees; without one, why it may be so."""
    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found = f"{about.name}, {_gigabytes(about.total_memory)}, {build}"
        yield Finding("machine", f"GPU {index}", GOOD, found)
    if torch.cuda.device_count():
        return
    if Path("/proc/driver/nvidia").is_dir():
        advice = "pytorch.org says which torch fits this machine's driver"
        yield Finding("machine", "GPU", MISSING, f"an NVIDIA driver, but no device; {build}", advice)
    else:
        advice = "the CPU does as well, mini in a second a photo, Stable Diffusion in about twelve"
        yield Finding("machine", "GPU", OPTIONAL, f"none; {build}", advice)


def _disk(results: Path) -> Iterator[Finding]:
    """Room where models, what can be made again, and results go."""
    places = {"models": _hub_cache(), "diffseg's cache": cache_folder(), "results": results.absolute()}
    for name, place in places.items():
        there = next(path for path in (place, *place.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        short = free < _ROOM_BYTES
        setting = "HF_HUB_CACHE" if name == "models" else "XDG_CACHE_HOME" if name != "results" else "--out or runs="
        advice = f"make room, or choose another place with {setting}" if short else ""
        found = f"{_gigabytes(free)} free in {place}"
        yield Finding("disk", name, MISSING if short else GOOD, found, advice)
    kept = presets.names()
    yield Finding("disk", "presets", GOOD, f"{len(kept)} in {presets.folder()}" + (f": {', '.join(kept)}" * bool(kept)))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


# --- models -----------------------------------------------------------------------------------------------------------


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _configured(group: str) -> dict[str, dict[str, Any]]:
    """{name: settings} of all YAML files of a group, without the package that Hydra puts them in."""
    import yaml

    files = sorted((_CONF / group).glob("*.yaml"))
    read = {file.stem: yaml.safe_load(file.read_text()) for file in files}
    return {name: content.get(group, content) for name, content in read.items()}


def _models() -> Iterator[Finding]:
    """The models of conf/model: the embedded one, those in the hub's cache, and in one line those that are not."""
    weights, absent = Path(__file__).parent / "mini" / "weights", []
    there = all(any((weights / part).glob("*.safetensors")) for part in _PARTS)
    yield Finding("models", "mini", GOOD if there else MISSING, "embedded", "" if there else "install diffseg again")
    for name, settings in _configured("model").items():
        hub_id = str(settings["name"])
        if "/" in hub_id:
            finding = _model(name, hub_id)
            absent += [name] if finding is None else []
            yield from [] if finding is None else [finding]
    if absent:
        advice = "each is fetched on first use, such as --model CompVis/stable-diffusion-v1-4"
        yield Finding("models", "not in the cache", OPTIONAL, ", ".join(absent), advice)
    if _version("spacy"):
        found = _version(TAGGER)
        advice = "" if found else f"python -m spacy download {TAGGER}: names from captions (label --caption)"
        yield Finding("models", "spaCy's", GOOD if found else OPTIONAL, f"{TAGGER} {found or 'is not there'}", advice)


_PARTS = ("unet", "vae", "text_encoder")


def _model(name: str, hub_id: str) -> Finding | None:
    """Whether a model in the hub's cache has its weights; None: it is not in the cache."""
    folder = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    if not snapshots:
        return None
    lacking = min((_lacking(snapshot) for snapshot in snapshots), key=len)
    if any((folder / "blobs").glob("*.incomplete")):
        lacking = lacking or ["all of a file"]
    if lacking:
        found = f"{hub_id}: begun, without {', '.join(lacking)}"
        return Finding("models", name, MISSING, found, f"it goes on at the next use: --model {hub_id}")
    size = sum(path.stat().st_size for path in (folder / "blobs").glob("*") if path.is_file())
    return Finding("models", name, GOOD, f"{hub_id}: {_gigabytes(size)}")


def _lacking(snapshot: Path) -> list[str]:
    """The parts of a model, of diffusers' layout or of transformers', that have no weights in safetensors."""
    if (snapshot / "config.json").exists() and not (snapshot / "model_index.json").exists():
        return [] if any(path.exists() for path in snapshot.glob("*.safetensors")) else ["weights"]
    network = "transformer" if (snapshot / "transformer").is_dir() else "unet"
    lacking = [] if (snapshot / "model_index.json").exists() else ["model_index.json"]
    for part in (network, "vae", "text_encoder"):
        if not any(path.exists() for path in (snapshot / part).glob("*.safetensors")):  # a link may lead nowhere
            lacking.append(part)
    return lacking


def _token() -> Iterator[Finding]:
    """Whether a token of the hub is set; never which."""
    from huggingface_hub import constants, get_token

    if get_token():
        yield Finding("models", "hub token", GOOD, "set")
    else:
        advice = "for models whose licence must be accepted (DINOv3, SD3, FLUX.1 dev): hf auth login, or HF_TOKEN"
        yield Finding("models", "hub token", OPTIONAL, "not set", advice)
    if constants.HF_HUB_OFFLINE:
        yield Finding("models", "hub", OPTIONAL, "offline", "unset HF_HUB_OFFLINE to fetch models")


# --- data sets and evaluations ----------------------------------------------------------------------------------------


def _data_sets(data: Path) -> Iterator[Finding]:
    """The known data sets below a folder, by their own checks."""
    for name, settings in _configured("dataset").items():
        root = str(settings.get("root", ""))
        if name == "scenes":
            yield Finding("data sets", name, GOOD, "generated, needs no files")
        elif root.startswith("${data}"):
            yield _data_set(name, settings, Path(root.replace("${data}", str(data))))


def _data_set(name: str, settings: Mapping[str, Any], root: Path) -> Finding:
    fetch = f"make {FETCHING[name]} DATA={root}"
    if not root.is_dir():
        return Finding("data sets", name, OPTIONAL, f"no folder {root}", fetch)
    large = root / _LARGE[name] if name in _LARGE else None
    if large is not None and large.is_file() and not (root / "stuffthingmaps").is_dir():
        return Finding("data sets", name, GOOD, f"{large} is there; not read here, it takes long")
    module, _, kind = settings["_target_"].rpartition(".")
    arguments = {key: value for key, value in settings.items() if key not in ("_target_", "root")}
    if name.startswith("coco"):
        arguments["split"] = "all"  # the paper's is derived from all labels once, which takes long
    try:
        found = getattr(import_module(module), kind)(root=root, **arguments)
    except (UserError, OSError) as error:
        return Finding("data sets", name, MISSING, str(error), fetch)
    note = "" if name.startswith("coco") or not found.note else f" ({found.note})"
    return Finding("data sets", name, GOOD, f"{len(found):,} images in {root}{note}")


def _targets(there: Mapping[str, bool]) -> Iterator[Finding]:
    """What each `make eval...` still needs here, and about how long it takes.

    there: whether models and data sets, by name, are.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, target in TARGETS.items():
        absent = [data for data in target.data if not there.get(data)]
        model = [] if there.get(target.model) else [f"{target.model} (fetched on first use)"]
        needs = f"needs {', '.join([*absent, *model])}" if absent or model else "ready"
        advice = f"make {' '.join(dict.fromkeys(FETCHING[data] for data in absent))}" if absent else ""
        state = OPTIONAL if absent or model else GOOD
        yield Finding("evaluations", f"make {name}", state, needs + _time(target, device), advice)


def _time(target: Target, device: str) -> str:
    """About how long it takes where that was measured, as the end of a sentence."""
    rate, where = RATES.get((target.model, device), (0.0, ""))
    if not (rate and target.images):
        return ""
    minutes = target.images / rate / 60
    told = f"{minutes / 60:.0f} h" if minutes >= 90 else f"{max(1, round(minutes))} min"
    return f"; {target.images:,} images, about {told} on {where}"
