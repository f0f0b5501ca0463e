"""Diffusion transformers as backbones: PixArt-alpha and -Sigma, Stable Diffusion 3 and 3.5, FLUX.1.

All tokens are 2 x 2 latents, 16 x 16 pixels, in one resolution. Stable Diffusion 3 and FLUX attend to image and text
under one softmax; the image's part of each row is made a distribution again (`diffseg.attention`).

Features are outputs of any module. A block's own output has a few channels of huge values, which decide any cosine
between its tokens. In Stable Diffusion 3 and FLUX, `transformer_blocks.N.norm1` is what block N's attention is given:
normalised and scaled by AdaLN, which is to tame these channels (arXiv 2505.18584). PixArt scales outside of
its modules: its norm1 only normalises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg.attention import Look, Size, Tokens, unet_layers
from diffseg.backbones.base import FLOW_TIMESTEP
from diffseg.backbones.latent import LatentModel
from diffseg.errors import UserError


@dataclass
class DiT(LatentModel):
    """A diffusion transformer; `_encode` and `_denoise` make one."""

    part = "transformer"

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Loads a model: safetensors only, never pickle. See `DiffusionModel.from_pretrained`."""
        return cls._loaded(name, revision, device, dtype)

    @property
    def multiple(self) -> int:
        """Pixels a side of a token, which both sides of an image must be a multiple of: 16."""
        return self._shrinks * 2

    def layers(self) -> Mapping[str, nn.Module]:
        """The attention of each block; of Stable Diffusion 3.5 medium's first ones also attn2, of the image alone."""
        return {
            name: module
            for name, module in self.network.named_modules()
            if name.endswith((".attn", ".attn2")) and "transformer_blocks." in name
        }

    def grid(self, layer: str, size: Size) -> Size:
        """The same for every layer: one token for 2 x 2 latents."""
        return size[0] // self.multiple, size[1] // self.multiple

    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """Row by row; the prompt's tokens, where there are some, after the image's."""
        h, w = self.grid(layer, size)
        image = slice(0, h * w)
        return Tokens((h, w), image, image, slice(h * w, keys) if keys > h * w else None)

    def aliases(self) -> Mapping[str, str]:
        """The keys of the image in the last block. A transformer has no encoder: methods are to name a layer."""
        last = [name for name in self.layers() if not name.endswith(".attn2")][-1]
        return {"keys": f"{last}.to_k"}

    def forward(self, images: Tensor, look: Look, prompts: Sequence[str]) -> None:
        """Encode, add noise where the look asks for it, one pass of the transformer told the look's time step."""
        assert look.timestep is not None
        self._denoise(self.latents(images, look), look.timestep, self.encoded(prompts))

    @abstractmethod
    def _denoise(self, latents: Tensor, timestep: int, encoded: tuple[Any, ...]) -> None:
        """One pass. latents: [B, c, H/8, W/8]; timestep: 0..999; encoded: prompts as `_encode` gives them."""


@dataclass
class PixArt(DiT):
    """PixArt-alpha and -Sigma: in each block self-attention (attn1), then attention to the prompt (attn2), like a UNet.

    The prompt's only encoder is T5-XXL (19 GB in float32). It is needed for the empty prompt, too: that is T5's own
    encoding of "", which the model's files do not hold.
    """

    kind = "PixArt"

    def layers(self) -> Mapping[str, nn.Module]:
        """Self-attention (attn1) and attention to the prompt (attn2)."""
        return unet_layers(self.network)

    def self_attention(self) -> Sequence[str]:
        """Each block's attn1."""
        return [name for name in self.layers() if name.endswith(".attn1")]

    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """Row by row."""
        grid = self.grid(layer, size)
        kind = {"image" if layer.endswith(".attn1") else "text": slice(0, keys)}
        return Tokens(grid, slice(0, queries), **kind)

    @property
    def tokenizer(self) -> Any:
        """T5's, which cuts off where this model does."""
        tokenizer = self.pipeline.tokenizer
        tokenizer.model_max_length = self._longest
        return tokenizer

    @property
    def _longest(self) -> int:
        """Tokens that prompts are padded to."""
        return 120 if type(self.pipeline).__name__ == "PixArtAlphaPipeline" else 300

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """T5's hidden states [B, tokens, d], and which of them count [B, tokens]."""
        encoded = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, max_sequence_length=self._longest
        )
        return encoded[0], encoded[1]

    def _denoise(self, latents: Tensor, timestep: int, encoded: tuple[Any, ...]) -> None:
        """t as in DDPM. PixArt-alpha at 1024 is told the size of the image in pixels, and its height by width."""
        context, mask = encoded
        conditions = dict.fromkeys(("resolution", "aspect_ratio"))
        if self.network.use_additional_conditions:
            height, width = (side * self._shrinks for side in latents.shape[2:])
            sizes = {"resolution": [height, width], "aspect_ratio": [height / width]}
            conditions = {key: latents.new_tensor([size] * len(latents)) for key, size in sizes.items()}
        self.network(
            latents,
            encoder_hidden_states=context,
            timestep=torch.full((len(latents),), timestep, device=latents.device),
            added_cond_kwargs=conditions,
            encoder_attention_mask=mask,
            return_dict=False,
        )


@dataclass
class FlowDiT(DiT):
    """A transformer that was trained by flow matching: time step t is sigma = t / 1000 of noise, 1 - sigma of image."""

    usual = MappingProxyType({"timestep": FLOW_TIMESTEP})

    def noisy(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """(1 - sigma) x + sigma eps."""
        sigma = timestep / 1000
        return (1 - sigma) * latents + sigma * noise


@dataclass
class SD3(FlowDiT):
    """Stable Diffusion 3 and 3.5: image and text under one softmax, the image's tokens first."""

    kind = "SD3"

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
        t5: bool = False,
    ) -> Self:
        """Loads a model: safetensors only, never pickle. See `DiffusionModel.from_pretrained`.

        t5: with the third text encoder, T5-XXL (19 GB in float32). The model was trained to do without it at times; it
            is given zeros then, as in training.
        """
        left_out = () if t5 else ("text_encoder_3", "tokenizer_3")
        return cls._loaded(name, revision, device, dtype, left_out)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Both CLIPs' hidden states and T5's, [B, 77 + 256, d], and the CLIPs' pooled ones [B, d]."""
        context, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, device=self.device
        )
        return context, pooled

    def _denoise(self, latents: Tensor, timestep: int, encoded: tuple[Any, ...]) -> None:
        """Told sigma * 1000.

        Raises:
            UserError: an image of more tokens a side than the model has places for.
        """
        most = self.pipeline.transformer.config.pos_embed_max_size * self.multiple
        height, width = (side * self._shrinks for side in latents.shape[2:])
        if max(height, width) > most:
            raise UserError(
                f"{self.name} takes images of up to {most} pixels a side, and this one is {height} x {width}: choose a "
                f"smaller size"
            )
        context, pooled = encoded
        self.network(
            latents,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=torch.full((len(latents),), float(timestep), device=latents.device),
            return_dict=False,
        )


@dataclass
class Flux(FlowDiT):
    """FLUX.1: image and text under one softmax, the text's tokens first, with rotary embeddings of their places.

    The prompt's tokens are T5-XXL's (19 GB in float32), and CLIP's pooled one is added to the time step. T5 is needed
    for the empty prompt, too: in training the model has always been given T5's encoding, if only of "".

    guidance: the scale that the dev model is told; 1 is none.
    """

    kind = "Flux"
    guidance: float = 1.0

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
        guidance: float = 1.0,
    ) -> Self:
        """Loads a model: safetensors only, never pickle. See `DiffusionModel.from_pretrained`.

        guidance: the scale that the dev model is told; 1 is none. schnell is told nothing.
        """
        return cls._loaded(name, revision, device, dtype, guidance=guidance)

    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """Row by row, after the prompt's tokens."""
        h, w = self.grid(layer, size)
        text = keys - h * w
        return Tokens((h, w), slice(queries - h * w, queries), slice(text, keys), slice(0, text))

    @property
    def tokenizer(self) -> Any:
        """T5's, which cuts off where this model does."""
        tokenizer = self.pipeline.tokenizer_2
        tokenizer.model_max_length = self._longest
        return tokenizer

    @property
    def _longest(self) -> int:
        """Tokens that prompts are padded to: as the model was trained."""
        return 512 if self.pipeline.transformer.config.guidance_embeds else 256

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """T5's hidden states [B, tokens, d], and CLIP's pooled one [B, d]."""
        context, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self._longest
        )
        return context, pooled

    def _denoise(self, latents: Tensor, timestep: int, encoded: tuple[Any, ...]) -> None:
        """Told sigma, of 2 x 2 latents as one token, with the row and column of each; the text is at 0, 0."""
        context, pooled = encoded
        packed = F.pixel_unshuffle(latents, 2)  # [B, 4c, h, w]
        rows, columns = (torch.arange(side, device=latents.device) for side in packed.shape[2:])
        places = torch.cartesian_prod(rows.new_zeros(1), rows, columns)  # [h*w, 3]
        guided = self.pipeline.transformer.config.guidance_embeds
        self.network(
            packed.flatten(2).transpose(1, 2),
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=latents.new_full((len(latents),), timestep / 1000),
            img_ids=places,
            txt_ids=places.new_zeros(context.shape[1], 3),
            guidance=latents.new_full((len(latents),), self.guidance) if guided else None,
            return_dict=False,
        )
