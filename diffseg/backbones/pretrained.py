"""Any latent diffusion model by its name: its files say which class it is for."""

from __future__ import annotations

import torch

from diffseg.backbones.diffusion import DiffusionModel
from diffseg.backbones.dit import SD3, Flux, PixArt
from diffseg.backbones.latent import LatentModel
from diffseg.backbones.loading import kind_of

CLASSES = {model.kind: model for model in (DiffusionModel, PixArt, SD3, Flux)}


def from_pretrained(
    name: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
) -> LatentModel:
    """Loads a model with the class that it is for, with that class's defaults; see `DiffusionModel.from_pretrained`.

    Raises:
        UserError: unknown name, a folder that is no diffusers model, a pipeline that no class is for, pickle-only
            weights, no such device or dtype.
        OSError: the hub cannot be reached or does not have the model.
    """
    return CLASSES[kind_of(name, revision)].from_pretrained(name, revision=revision, device=device, dtype=dtype)
