"""The folder of a trained model, as diffusers' own classes load it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffseg.mini import checkpoints
from diffseg.mini.denoiser import schedule


def export(
    folder: Path, autoencoder: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Writes a folder that diffusers' own classes load: half-precision safetensors, configs, tokenizer, scheduler."""
    # Weights, and configs without the place they were loaded from
    for name, model in {"vae": autoencoder, "unet": unet, "text_encoder": text}.items():
        copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(folder / name, safe_serialization=True)
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("_name_or_path", None)
        checkpoints.write(folder / name / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")

    tokenizer.save_pretrained(folder / "tokenizer")
    schedule().save_pretrained(folder / "scheduler")

    # What the pipeline is made of
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    checkpoints.write(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
