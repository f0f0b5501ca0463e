"""Small random models of the architectures that users load, made on the spot (nothing is downloaded)."""

from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffseg.backbones.base import EMBEDDED

SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (16, 32, 32, 32),
}
XL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32, 32),
    "use_linear_projection": True,
    "attention_head_dim": (2, 4, 4),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "cross_attention_dim": 64,
}
UNETS = {
    "sd1": {**SD_BLOCKS, "attention_head_dim": 8, "cross_attention_dim": 32},
    "sd2": {**SD_BLOCKS, "attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True, "cross_attention_dim": 32},
    "sdxl": {**XL_BLOCKS, "transformer_layers_per_block": (1, 2, 3)},
    # SSD-1B: layers per block listed one by one, other numbers on the way up, no middle block.
    "ssd1b": {
        **XL_BLOCKS,
        "transformer_layers_per_block": [[1, 1], [2, 2], [3, 3]],
        "reverse_transformer_layers_per_block": [[3, 3, 4], [2, 1, 1], [1, 1, 1]],
        "mid_block_type": None,
    },
}


@cache
def unet(name: str) -> UNet2DConditionModel:
    """A random UNet; its query and key weights are scaled up so that attention is far from uniform."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(sample_size=16, layers_per_block=2, norm_num_groups=8, **UNETS[name]).eval()
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if module_name.endswith(("attn1", "attn2")):
                module.to_q.weight.mul_(4)
                module.to_k.weight.mul_(4)
    return model


def _text_encoder(tokenizer, projected: bool):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def save_pipeline(name: str, folder: Path, **options) -> Path:
    """Writes a whole random model of that architecture, as a user would have it from the hub."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["mini"] / "tokenizer")
    parts = {
        "vae": vae,
        "unet": unet(name),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if name in ("sdxl", "ssd1b"):
        parts |= {
            "text_encoder": _text_encoder(tokenizer, False),
            "text_encoder_2": _text_encoder(tokenizer, True),
            "tokenizer_2": tokenizer,
        }
        pipeline = StableDiffusionXLPipeline(**parts)
    else:
        parts |= {"text_encoder": _text_encoder(tokenizer, False), "safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder, **options)
    return folder
