"""Many settings of methods in one run: the values to try become segmenters of their own. Pure functions of settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffseg.errors import UserError, did_you_mean
from diffseg.layers import short_names


def varied(
    segmenters: Mapping[str, Any],
    vary: Mapping[str, Any] | None,
    look_settings: Callable[[Mapping[str, Any], str], Sequence[str]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The segmenters, those to be varied replaced by one for each combination of the values to try.

    All of them share the passes, and what else their settings have in common. {"threshold": [0.7, 0.9]} is of the
    segmenter diffseg, or of the only one there is, and gives "threshold=0.7" and "threshold=0.9"; {"diffcut":
    {"threshold": [0.3, 0.5]}} gives "diffcut.threshold=0.3" and "diffcut.threshold=0.5".

    Args:
        segmenters: settings by name. vary: the values to try. look_settings: (settings, where they stand) -> the
            settings of how it looks that a segmenter has besides its own.

    Returns:
        The segmenters, and which of those given each of the new ones was made from.

    Raises:
        UserError: no such segmenter, a setting it does not have, or no list of values.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for key, values in (vary or {}).items():
        if key in segmenters and not (isinstance(values, dict) and values):
            raise UserError(f"vary.{key} must be a mapping of settings of {key} to lists of values, got {values!r}")
        if isinstance(values, dict):
            wanted.setdefault(_known(key, segmenters), {}).update(_flat_lists(values, f"{key}."))
        else:
            whose = next(iter(segmenters)) if len(segmenters) == 1 else "diffseg"
            wanted.setdefault(_known(whose, segmenters, key), {})[key] = values
    tried: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, settings in segmenters.items():
        values = wanted.get(name, {})
        paths = [key.removeprefix(f"{name}.").split(".") for key in values]
        if paths and isinstance(settings, dict):  # what is to be varied of its look, as null
            open_ = {key: None for key in look_settings(settings, f"segmenters.{name}") if [key] in paths}
            settings = {**open_, **settings}
        for path, options in zip(paths, values.values(), strict=True):
            _check_values(settings, name, path, options)
        for chosen, new in zip(itertools.product(*values.values()), _names_of(values), strict=True):
            tried[new or name] = settings
            for path, value in zip(paths, chosen, strict=True):
                tried[new] = _with(tried[new], path, value)
                origins[new] = name
    return tried, origins


def _names_of(values: Mapping[str, Sequence[Any]]) -> list[str]:
    """The name of each combination of settings: "threshold=0.7,anchors=8"; of layers their short names."""

    def named(key: str, value: Any, short: Mapping[str, str]) -> str:
        if key.rpartition(".")[2] != "layers":
            return f"{key}={value_name(value)}"
        if not isinstance(value, list):
            return f"{key}={'all' if value is None else value_name(value)}"
        return f"{key}={'-'.join(short.get(layer, str(layer)).replace(' ', '-') for layer in value)}"

    named_layers = [value for key, tried in values.items() if key.rpartition(".")[2] == "layers" for value in tried]
    lists = [value for value in named_layers if isinstance(value, list)]
    short = short_names([layer for layers in lists for layer in layers if isinstance(layer, str)])
    return [
        ",".join(named(key, value, short) for key, value in zip(values, chosen, strict=True))
        for chosen in itertools.product(*values.values())
    ]


def _known(name: str, segmenters: Mapping[str, Any], key: str = "") -> str:
    """The name of a segmenter that there is; key: a setting that was given without saying whose."""
    if name in segmenters:
        return name
    there = ", ".join(segmenters)
    if key:
        raise UserError(f"vary.{key}: say whose setting this is, vary={{NAME:{{{key}:[...]}}}}, NAME one of {there}")
    raise UserError(
        f"vary.{name}: there is no segmenter {name}{did_you_mean(name, list(segmenters))}; there are {there} (a method "
        f"that is known is added by +segmenter@segmenters.{name}={name})"
    )


def _flat_lists(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested settings with dots between their names: {"of": {"alpha": [5]}} -> {"diffcut.of.alpha": [5]}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat_lists(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_values(settings: Any, name: str, path: Sequence[str], values: Any) -> None:
    """Refuses what is no setting of a segmenter, or no list of values for it."""
    node, key = settings, ".".join(path)
    for part in path:
        if not isinstance(node, dict) or part not in node:
            near = did_you_mean(part, list(node)) if isinstance(node, dict) else ""
            raise UserError(f"vary.{key}: the segmenter {name} has no {key}{near}")
        node = node[part]
    if not isinstance(values, list) or not values:
        raise UserError(f"vary.{key} must be a list of values to try for {name}, got {values!r}")


def _with(settings: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Settings with the one at a path changed."""
    first, *rest = path
    return {**settings, first: _with(settings[first], rest, value) if rest else value}


def value_name(value: Any) -> str:
    """A setting's value as part of a name: 0.7, 64-32-16-8, none."""
    return "-".join(map(value_name, value)) if isinstance(value, list) else "none" if value is None else f"{value}"
