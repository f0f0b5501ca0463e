"""Settings kept under a name, for photos of one kind: `diffseg tune --save NAME`, `diffseg segment --preset NAME`.

A preset is a small YAML file that may be written by hand: `model`, and any of `OPTIONS`. In Python:

>>> holiday = load("holiday")
>>> seg = DiffSeg.from_pretrained(holiday.model, revision=holiday.revision)
>>> out = seg("photo.jpg", **holiday.options)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffseg.errors import UserError, did_you_mean
from diffseg.files import check_writable, is_file_name, write


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


# What each option of a call of `diffseg.DiffSeg` may be in the file; the ranges are checked where they are used.
OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "threshold": ("a number or a list of numbers", lambda value: _is_number(value) or _is_numbers(value)),
    "anchors": ("a whole number", lambda value: type(value) is int),
    "iterations": ("a whole number", lambda value: type(value) is int),
    "weights": ("a list of numbers", _is_numbers),
    "timestep": ("a whole number", lambda value: type(value) is int),
    "refine": ("true or false", lambda value: type(value) is bool),
    "size": ("a whole number", lambda value: type(value) is int),
}


@dataclass(frozen=True)
class Preset:
    """What is kept: a model and how it is asked.

    model, revision: as for `DiffSeg.from_pretrained`. options: some of OPTIONS, as a call of `DiffSeg` takes them.
    made: how it came to be, for people to read.
    """

    model: str
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)


def folder() -> Path:
    """Where presets lie: $DIFFSEG_PRESETS, $XDG_CONFIG_HOME/diffseg/presets, or ~/.config/diffseg/presets."""
    if os.environ.get("DIFFSEG_PRESETS"):
        return Path(os.environ["DIFFSEG_PRESETS"])
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "diffseg" / "presets"


def names() -> list[str]:
    """The presets that there are, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml")) if folder().is_dir() else []


def check_name(name: str) -> None:
    """Raises UserError where no preset can have this name, OSError where none can be written."""
    if not is_file_name(name) or name.startswith("."):
        raise UserError(f"a preset cannot be called {name!r}: take a word that a file may be named, such as holiday")
    check_writable(folder(), "set DIFFSEG_PRESETS to a folder of yours")


def save(name: str, preset: Preset) -> Path:
    """Writes a preset, in place of one of the same name; returns its file.

    Raises:
        UserError: a name that no file can have. OSError: it cannot be written.
    """
    import yaml

    check_name(name)
    content = {"model": preset.model, "revision": preset.revision, **preset.options, "made": dict(preset.made)}
    kept = {key: value for key, value in content.items() if value is not None}
    path = folder() / f"{name}.yaml"
    write(path, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    return path


def load(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UserError: there is none, or its file is damaged.
    """
    import yaml

    known = names()
    if name not in known:
        there = f"known: {', '.join(known)}" if known else "there are none yet: diffseg tune --save NAME makes one"
        raise UserError(f"there is no preset {name!r} in {folder()}{did_you_mean(name, known)}; {there}")
    path = folder() / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the preset {path} is no YAML ({reason}): mend it, or save it anew") from None
    return _checked(path, content)


def _checked(path: Path, content: Any) -> Preset:
    """What a file holds, as a Preset."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise UserError(f"the preset {path} names no model: it needs a line such as model: mini")
    rest = {key: value for key, value in content.items() if value is not None}
    model, revision, made = rest.pop("model"), rest.pop("revision", None), rest.pop("made", {})
    unknown = next((str(key) for key in rest if key not in OPTIONS), None)
    if unknown is not None:
        near = did_you_mean(unknown, list(OPTIONS))
        raise UserError(f"the preset {path} has {unknown!r}{near}; settings are {', '.join(OPTIONS)}")
    for key, value in rest.items():
        form, fits = OPTIONS[key]
        if not fits(value):
            raise UserError(f"the preset {path}: {key} must be {form}, got {value!r}")
    if not isinstance(revision, str | None):
        raise UserError(f"the preset {path}: revision must be a text in quotes, got {revision!r}")
    return Preset(model, revision, rest, made if isinstance(made, dict) else {"by": str(made)})


def named_model(name: str) -> str:
    """A model's name that means the same from everywhere: of a folder its full path."""
    from diffseg.backbones.base import EMBEDDED

    return str(Path(name).resolve()) if name not in EMBEDDED and Path(name).is_dir() else name
