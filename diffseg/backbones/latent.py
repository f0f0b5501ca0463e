"""What all latent diffusion models share, whatever their network: loading, the autoencoder, noise, encoded prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from diffseg.attention import Look
from diffseg.backbones.base import Backbone, recommended
from diffseg.backbones.loading import load, quiet
from diffseg.devices import full_float32, resolve_device, resolve_dtype
from diffseg.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class LatentModel(Backbone):
    """A network on an autoencoder's latents, with text encoders and a noise schedule: one of diffusers' pipelines.

    name: what it was loaded from. defaults: the settings that are recommended for it ("threshold", "timestep").
    """

    kind: ClassVar[str]  # the name of this class in errors, also of classes that are made from it
    part: ClassVar[str]  # the network's name in the pipeline
    usual: ClassVar[Mapping[str, float]] = MappingProxyType({})  # defaults where the model's folder recommends none

    pipeline: DiffusionPipeline
    name: str
    defaults: Mapping[str, float] = field(default_factory=dict)
    _encoded: dict[tuple[str, ...], tuple[Any, ...]] = field(default_factory=dict, repr=False, kw_only=True)
    _encoding: Lock = field(default_factory=Lock, repr=False, kw_only=True)  # tokenizers are for one thread at a time

    @classmethod
    def _loaded(
        cls,
        name: str,
        revision: str | None,
        device: str | torch.device,
        dtype: torch.dtype | str | None,
        left_out: Sequence[str] = (),
        **fields: Any,
    ) -> Self:
        """A model as `from_pretrained` has it. left_out: parts of the pipeline; fields: more of this class."""
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        pipeline = load(name, cls.kind, cls.part, revision, dtype, left_out)
        with quiet():  # diffusers believes that no CPU can do float16
            pipeline = pipeline.to(place)
        if dtype == torch.float16 and pipeline.vae.config.force_upcast:  # its activations overflow half precision
            pipeline.vae.to(torch.float32)
        model = cls(pipeline, name, {**cls.usual, **recommended(name)}, **fields)
        model._for_inference()
        return model

    def _for_inference(self) -> None:
        """No dropout, no gradients; the layout in which convolutions are fastest: channels last on CUDA and, of the
        autoencoder in float32, on a CPU."""
        for module in (self.pipeline.vae, getattr(self.pipeline, self.part)):
            module.eval().requires_grad_(False)
            if self.device.type == "cuda":
                module.to(memory_format=torch.channels_last)
                _fuse_blocks(module)
        if self.device.type == "cpu" and self.pipeline.vae.dtype == torch.float32:
            self.pipeline.vae.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The UNet or the transformer."""
        return getattr(self.pipeline, self.part)

    @property
    def tokenizer(self) -> Any:
        """What cuts prompts into tokens; where there are two (SDXL, SD3), both cut alike."""
        return self.pipeline.tokenizer or self.pipeline.tokenizer_2

    @property
    def _shrinks(self) -> int:
        """How many times smaller the autoencoder's latents are than the image, a side."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    @full_float32()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, H/8, W/8] of images [B, 3, H, W] in [-1, 1]: the autoencoder's mean, scaled as it says."""
        vae = self.pipeline.vae
        mean = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return ((mean - shift) * vae.config.scaling_factor).to(next(self.network.parameters()).dtype)

    def latents(self, images: Tensor, look: Look) -> Tensor:
        """`encode`, with noise as of the look's time step where the look asks for it."""
        latents = self.encode(images)
        if look.noise is None:
            return latents
        assert look.timestep is not None
        return self.noisy(latents, noise_like(latents, look.noise), look.timestep)

    def noisy(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """sqrt(a) x + sqrt(1 - a) eps, where a is the schedule's product of alphas at t (DDPM, equation 4).

        From the schedule itself: some samplers' `add_noise` means another t, or leaves x unscaled, until it is told
        how many steps are to be made.
        """
        alphas = getattr(self.pipeline.scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise UserError(
                f"{self.name} has a {type(self.pipeline.scheduler).__name__}, whose noise is not known here: leave "
                f"noise out (noise=null)"
            )
        alpha = float(alphas[timestep])
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    @torch.no_grad()
    def encoded(self, prompts: Sequence[str]) -> tuple[Any, ...]:
        """`_encode` of the prompts; one batch is worth keeping: the empty one, image after image."""
        key = tuple(prompts)
        with self._encoding:
            if key not in self._encoded:
                self._encoded = {key: self._encode(list(prompts))}
            return self._encoded[key]

    @abstractmethod
    def _encode(self, prompts: list[str]) -> tuple[Any, ...]:
        """What the network is given of prompts, each tensor with one row for each prompt."""


def _fuse_blocks(network: nn.Module) -> None:
    """Residual blocks without the passes over memory between their convolutions, where Triton is there and right."""
    if not torch.version.cuda or find_spec("triton") is None:
        return
    from diffseg.backbones.resnet import fuse, right

    weight = next(network.parameters())
    if right(weight.device, weight.dtype):
        fuse(network)


def noise_like(latents: Tensor, seed: int) -> Tensor:
    """N(0, 1) of one image's shape from a generator with this seed, the same for every image and on every device."""
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed))
    return noise.to(latents.device, latents.dtype).expand_as(latents)
