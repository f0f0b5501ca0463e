"""Types and ranges of everything that an override can set, checked before anything is made. By pydantic, strictly."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from diffseg.errors import UserError, did_you_mean

Word = Annotated[str, Field(min_length=1)]
Timestep = Annotated[int, Field(ge=0, le=999, description="a whole number, 0 to 999")]
Seed = Annotated[int | None, Field(ge=0, lt=2**63)]
Chosen = Annotated[  # of a network's self-attention layers
    list[Word | int] | None,
    Field(min_length=1, description="a list of names, patterns or positions of self-attention layers, or null"),
]


class Options(BaseModel):
    """The top level of conf/config.yaml. A description says what a value must be."""

    model_config = ConfigDict(strict=True, extra="ignore")

    stages: list[Literal["predict", "score", "report", "check"]] = Field(
        min_length=1, description="a list of some of predict, score, report, check"
    )
    timestep: Timestep
    usual_timestep: Timestep
    noise: Seed = Field(description="a seed, which is a whole number from 0, or null")
    layers: Chosen = None
    vary: dict[str, Any] | None = Field(description="a mapping of settings to lists of values, or null")
    runs: Word = Field(description="a folder")
    run: Word | None = Field(description="a folder, or null")
    prompts: Literal["classes", "captions"] = Field(description="classes or captions")
    labels: Word | None = Field(description="a folder, or null")
    labels_suffix: str = Field(description="what names end with after the key")
    reference: Word | None = Field(description="a name or a file, or null")
    device: Word = Field(description="auto, cpu, cuda or cuda:N; several GPUs share the images with workers=ray")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        description="one of float32, float16, bfloat16, or null"
    )
    batch_size: int = Field(ge=1, le=65536, description="a whole number, at least 1")
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["ray"] = Field(
        description="a whole number, at least 0, or ray"
    )
    streams: int = Field(ge=1, le=1024, description="a whole number, at least 1")
    ray: dict[str, Any] = Field(description="settings of a cluster: ray.address=... and others")
    shard: list[int] = Field(min_length=2, max_length=2, description="[i, n], two whole numbers with 0 <= i < n")
    on_error: Literal["stop", "skip"] = Field(description="stop or skip")
    score_size: int | None = Field(ge=1, le=16384, description="a whole number of pixels, or null")
    published: str | None = Field(description="a data set of results/reference/paper.yaml, or null")
    paper_threshold: float | None = Field(description="a number, or null")
    dataset: Any = Field(description="a data set: dataset=NAME")
    model: Any = Field(description="a model: model=NAME")
    segmenters: dict[str, Any] = Field(
        min_length=1, description="one segmenter or more, such as segmenter@segmenters.diffseg=diffseg"
    )
    protocols: dict[str, Any] = Field(min_length=1, description="one protocol or more, such as protocol=[diffseg]")
    tracker: Any = Field(description="a tracker: tracker=NAME")


class LookOptions(BaseModel):
    """How one segmenter looks, where it is not as the run does."""

    model_config = ConfigDict(strict=True)

    timestep: Timestep | None = Field(None, description="a whole number, 0 to 999, or null")
    noise: Seed = Field(None, description="a seed, which is a whole number from 0, or null")
    size: int | None = Field(None, ge=8, le=8192, description="a whole number of pixels, 8 to 8192, or null")
    layers: Chosen = None


class ClusterOptions(BaseModel):
    """Of `workers=ray`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    address: Word | None = Field(description="auto, HOST:PORT, ray://HOST:PORT, or null")
    gpus: float | None = Field(ge=0, description="a number, at least 0, or null")
    cpus: float = Field(gt=0, description="a number above 0")
    chunk: int | None = Field(ge=1, description="a whole number, at least 1, or null")
    retries: int = Field(ge=0, description="a whole number, at least 0")
    timeout_s: float = Field(gt=0, description="a number of seconds above 0")
    readers: int | None = Field(ge=0, le=1024, description="a whole number, at least 0, or null")
    write: Literal["driver", "workers"] = Field(description="driver or workers")


def check_options(config: Mapping[str, Any], form: type[BaseModel] = Options, where: str = "") -> None:
    """Checks the top level of a resolved configuration; or another part of it, by its form.

    Args:
        where: of these options in the configuration, with a dot at its end.

    Raises:
        UserError: names the first option that is not what it must be.
    """
    try:
        form.model_validate(dict(config))
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        if wrong["type"] == "extra_forbidden":
            known = list(form.model_fields)
            there = f"{did_you_mean(name, known)}; it has {', '.join(known)}"
            raise UserError(f"{where.rstrip('.')} has no {name}{there}") from None
        must = f"{where}{name} must be {form.model_fields[name].description}"
        if wrong["type"] == "missing":
            raise UserError(f"{must}; it is missing") from None
        raise UserError(f"{must}; got {config[name]!r}") from None


def check_arguments(made_by: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Checks arguments against the signature and annotations of what is to be called with them.

    Args:
        where: of these arguments in the configuration, for the sentence: "segmenters.diffseg".

    Raises:
        UserError: an argument that is not known, lacks, or is of another type.
    """
    parameters = parameters_of(made_by)
    if parameters is None:
        return
    names = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    for name in arguments:
        if not takes(made_by, name):
            raise UserError(f"{where} has no setting {name}{did_you_mean(name, names)}; it takes {', '.join(names)}")
    lacking = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in arguments
    ]
    if lacking:
        raise UserError(f"{where}.{lacking[0]} must be given")
    hints = _hints(made_by)
    for name, value in arguments.items():
        hint = hints.get(name)
        if hint is not None and not (isinstance(value, Mapping) and "_target_" in value) and not _fits(value, hint):
            raise UserError(f"{where}.{name} must be {_in_words(hint)}, got {value!r}")


def parameters_of(made_by: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """What a class or function takes; None: it does not say, as some built-ins."""
    try:
        return inspect.signature(made_by).parameters
    except ValueError:
        return None


def takes(made_by: Callable[..., Any], name: str) -> bool:
    """Whether a class or function takes, or may take, an argument of this name."""
    parameters = parameters_of(made_by)
    return parameters is None or name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _hints(made_by: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(made_by.__init__ if inspect.isclass(made_by) else made_by)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # names that only a type checker knows
        return {}


def _fits(value: Any, hint: Any) -> bool:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:
        try:
            adapter = TypeAdapter(hint)
        except PydanticUserError:
            return True
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "null", Path: ""}


def _in_words(hint: Any) -> str:
    """A type for people: "a number or a list of numbers"."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = dict.fromkeys(filter(None, map(_in_words, get_args(hint))))
        return " or ".join(parts)
    if get_origin(hint) in (list, Sequence, tuple):
        inner = get_args(hint)
        return f"a list of {_in_words(inner[0]).removeprefix('a ')}s" if inner else "a list"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
