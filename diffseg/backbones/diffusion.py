"""Latent diffusion models with a UNet (Stable Diffusion 1.x, 2.x, XL, SSD-1B, the embedded one) as backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffseg.attention import Look, Size, Tokens, unet_layers, unet_tokens
from diffseg.backbones.base import EMBEDDED
from diffseg.backbones.latent import LatentModel
from diffseg.backbones.loading import UNET, quiet
from diffseg.devices import resolve_device, resolve_dtype
from diffseg.errors import UserError

if TYPE_CHECKING:  # diffusers takes seconds to import: only when a model is loaded
    from diffusers import DiffusionPipeline


@dataclass
class DiffusionModel(LatentModel):
    """A latent diffusion model with a UNet (Stable Diffusion 1.x, 2.x, XL, SSD-1B, the embedded one)."""

    kind = UNET
    part = "unet"

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> DiffusionModel:
        """Loads a model: safetensors only, never pickle.

        Args:
            name: an embedded model ("mini"), a folder in diffusers' layout, or a Hugging Face hub id.
            revision: branch, tag or commit of a hub id.
            device: "auto" (CUDA where there is one, else the CPU), or any torch device.
            dtype: of the weights, as for `resolve_dtype`.

        Raises:
            UserError: unknown name, a folder that is no diffusers model, pickle-only weights, no such device or dtype.
            OSError: the hub cannot be reached or does not have the model.
        """
        return cls._loaded(name, revision, device, dtype)

    @classmethod
    def untrained(cls, name: str, *, seed: int = 0, **options: Any) -> DiffusionModel:
        """The model of this name with its UNet's weights drawn anew, as before training: a control.

        seed: of the weights. options: as for `from_pretrained`.
        """
        model = cls.from_pretrained(name, **options)
        unet = model.pipeline.unet
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(unet).from_config(unet.config)
        model.pipeline.unet = fresh.to(unet.device, unet.dtype)
        model._for_inference()
        return model

    @classmethod
    def random(
        cls,
        name: str = "sd14",
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> DiffusionModel:
        """A published architecture with random weights: it costs what the trained model costs, and needs no download.

        Args:
            name: "sd14", Stable Diffusion 1.4 (860 M parameters in the UNet). seed: of the weights.
            device, dtype: as for `from_pretrained`. The tokenizer is the embedded model's.

        Raises:
            UserError: no such architecture, device or dtype.
        """
        if name != "sd14":
            raise UserError(f"there is no architecture {name!r} to fill with random weights: use sd14")
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = _sd14().to(place, dtype)
        model = cls(pipeline, f"{name} with random weights")
        model._for_inference()
        return model

    def layers(self) -> Mapping[str, nn.Module]:
        """The UNet's self-attention (attn1) and attention to the prompt (attn2)."""
        return unet_layers(self.network)

    def grid(self, layer: str, size: Size) -> Size:
        """The size of the latents, halved at each level on the way down, rounding up."""
        place, _, level = layer.partition(".")
        deepest = len(self.pipeline.unet.config.block_out_channels) - 1
        number = int(level.partition(".")[0]) if place != "mid_block" else 0
        halvings = {"down_blocks": number, "up_blocks": deepest - number}.get(place, deepest)
        h, w = (side // self._shrinks for side in size)
        return -(-h // 2**halvings), -(-w // 2**halvings)

    def self_attention(self) -> Sequence[str]:
        """The UNet's attn1."""
        return [name for name in self.layers() if name.endswith(".attn1")]

    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """Row by row, at the size of the latents or halved."""
        return unet_tokens(layer, queries, keys, (size[0] // self._shrinks, size[1] // self._shrinks))

    def aliases(self) -> Mapping[str, str]:
        """The last self-attention of the encoder (what DiffCut takes features of), and its keys."""
        encoder = [name for name in self.layers() if name.startswith("down_blocks.") and name.endswith(".attn1")]
        return {"encoder": encoder[-1], "keys": f"{encoder[-1]}.to_k"} if encoder else {}

    @property
    def multiple(self) -> int:
        """Pixels that both sides of an image must be a multiple of, for every resolution of the UNet to be whole."""
        return self._shrinks * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def context(self, prompts: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Encoded prompts [B, tokens, d], and SDXL's added conditions for images of size (H, W), else None."""
        embeddings, pooled = self.encoded(prompts)
        if pooled is None:
            return embeddings, None
        time_ids = torch.tensor([[*size, 0, 0, *size]] * len(prompts), dtype=embeddings.dtype, device=self.device)
        return embeddings, {"text_embeds": pooled, "time_ids": time_ids}

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        encoded = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return encoded[0], encoded[2] if len(encoded) > 2 else None

    def forward(self, images: Tensor, look: Look, prompts: Sequence[str]) -> None:
        """Encode, add noise where the look asks for it, one pass of the UNet told that t = the look's."""
        assert look.timestep is not None
        latents = self.latents(images, look)
        t = torch.full((len(latents),), look.timestep, device=latents.device)
        context, added = self.context(prompts, (images.shape[2], images.shape[3]))
        self.network(latents, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)


def _sd14() -> DiffusionPipeline:
    """Stable Diffusion 1.4's architecture, untrained."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    widths = (320, 640, 1280, 1280)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, layers_per_block=2, cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED["mini"] / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
