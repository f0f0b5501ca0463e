"""Any model by its name: its files say which class it is for. Of vision transformers, those in a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from diffseg.backbones.base import Backbone
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.backbones.dit import SD3, Flux, PixArt
from diffseg.backbones.loading import kind_of
from diffseg.backbones.vit import VisionTransformer

CLASSES = {model.kind: model for model in (DiffusionModel, PixArt, SD3, Flux)}


def from_pretrained(
    name: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
) -> Backbone:
    """Loads a model with the class that it is for, with that class's defaults; see `DiffusionModel.from_pretrained`.

    Raises:
        UserError: unknown name, a folder that is no diffusers model, a pipeline that no class is for, pickle-only
            weights, no such device or dtype.
        OSError: the hub cannot be reached or does not have the model.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").exists():  # transformers' layout
        return VisionTransformer.from_pretrained(name, revision=revision, device=device, dtype=dtype)
    return CLASSES[kind_of(name, revision)].from_pretrained(name, revision=revision, device=device, dtype=dtype)
