"""Small random diffusion transformers of the architectures that users load, made on the spot."""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from diffseg.backbones.base import EMBEDDED
from tests.models import _text_encoder

PIXART = {
    "num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 8, "cross_attention_dim": 24,
    "caption_channels": 32,
}  # fmt: skip
SD3 = {
    "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 64,
    "caption_projection_dim": 16, "pooled_projection_dim": 64, "sample_size": 16, "pos_embed_max_size": 12,
}  # fmt: skip
FLUX = {
    "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32, "pooled_projection_dim": 32,
}  # fmt: skip
TRANSFORMERS = {
    "pixart_alpha": {**PIXART, "sample_size": 128},
    "pixart_sigma": {**PIXART, "sample_size": 16},
    "sd3": SD3,
    "sd35": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "flux_dev": {**FLUX, "guidance_embeds": True},
    "flux_schnell": FLUX,
}


def sharpened(network: torch.nn.Module) -> torch.nn.Module:
    """The same, with attention that is far from uniform."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "add_q_proj.weight", "add_k_proj.weight")):
                weight.mul_(5)
            elif "norm_q" in name or "norm_k" in name or "norm_added" in name:
                weight.copy_(2 + torch.rand_like(weight))
    return network.eval()


def vae(channels: int, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=channels,
        scaling_factor=1.5, shift_factor=shift,
    )  # fmt: skip


def t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """An encoder of this width, and a tokenizer of letters."""
    letters = [(f"{start}{letter}", -2.0) for start in ("", "▁") for letter in string.ascii_lowercase]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    tokenizer = T5Tokenizer(vocab=specials + letters, extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def save_dit(name: str, folder: Path, **options) -> Path:
    """Writes a whole random model of that architecture, as a user would have it from the hub."""
    torch.manual_seed(2)
    clip = CLIPTokenizer.from_pretrained(EMBEDDED["mini"] / "tokenizer")
    settings = TRANSFORMERS[name]
    if name.startswith("pixart"):
        encoder, tokenizer = t5(32)
        pipeline = {"pixart_alpha": PixArtAlphaPipeline, "pixart_sigma": PixArtSigmaPipeline}[name](
            tokenizer, encoder, vae(4, None), sharpened(PixArtTransformer2DModel(**settings)),
            DPMSolverMultistepScheduler(),
        )  # fmt: skip
    elif name.startswith("sd3"):
        encoder, tokenizer = t5(64)
        pipeline = StableDiffusion3Pipeline(
            sharpened(SD3Transformer2DModel(**settings)), FlowMatchEulerDiscreteScheduler(shift=3.0), vae(16, 0.06),
            _text_encoder(clip, True), clip, _text_encoder(clip, True), clip, encoder, tokenizer,
        )  # fmt: skip
    else:
        encoder, tokenizer = t5(32)
        pipeline = FluxPipeline(
            FlowMatchEulerDiscreteScheduler(), vae(16, 0.1), _text_encoder(clip, False), clip, encoder, tokenizer,
            sharpened(FluxTransformer2DModel(**settings)),
        )  # fmt: skip
    pipeline.save_pretrained(folder, **options)
    return folder
