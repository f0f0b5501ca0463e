"""Images -> attention maps, by one pass of a pretrained latent diffusion model (the paper's section 3.1).

The only module that imports diffusers, but for the training of the embedded model. `attention_maps` works on any
diffusers UNet with transformer blocks; `DiffusionModel` adds the autoencoder and the text encoders around it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffseg.segmentation import slice_bytes

if TYPE_CHECKING:  # diffusers takes seconds to import: only when a model is loaded
    from diffusers import DiffusionPipeline

EMBEDDED = {"mini": Path(__file__).parent / "mini" / "weights"}

Maps = dict[tuple[int, int], Tensor]


@dataclass(frozen=True)
class AttentionMaps:
    """Head- and layer-averaged attention of one pass, by resolution (h, w), float32 (float64 if the UNet's).

    self_attention: {(h, w): [B, h*w, h*w]}. cross_attention: {(h, w): [B, h*w, tokens]}, empty unless asked for.
    Every row sums to 1.
    """

    self_attention: Maps
    cross_attention: Maps


def attention_maps(unet: nn.Module, latents: Tensor, timestep: int, context: Tensor) -> Maps:
    """Self-attention of one pass of a diffusers UNet; see `capture`.

    Args:
        unet: any diffusers UNet with transformer blocks; it is left as it was.
        latents: [B, c, h, w]. timestep: t, 0..999. context: [B, tokens, d], the encoded prompts.

    Returns:
        {(h, w): [B, h*w, h*w]} for each resolution that has self-attention, each row a distribution over keys.
    """
    return capture(unet, latents, timestep, context).self_attention


@torch.no_grad()
def capture(
    unet: nn.Module,
    latents: Tensor,
    timestep: int,
    context: Tensor,
    added: dict[str, Tensor] | None = None,
    cross: bool = False,
) -> AttentionMaps:
    """One pass of a UNet; mean over heads and layers of softmax(q k^T * scale) at each resolution.

    The queries and keys that each layer computes anyway are taken from it by hooks, which come off again, also when
    the pass fails; the UNet runs with whatever processors it has. Maps are accumulated in place: no layer's per-head
    probabilities are ever held.

    Args:
        unet, latents, timestep, context: as for `attention_maps`.
        added: SDXL's added conditions ("text_embeds", "time_ids").
        cross: also capture the cross-attention (`attn2`) over the context's tokens.

    Raises:
        ValueError: the UNet has no self-attention in transformer blocks.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sums: dict[str, Maps] = {"attn1": {}, "attn2": {}}
    layers: dict[str, dict[tuple[int, int], int]] = {"attn1": {}, "attn2": {}}
    size = (0, 0)
    asking: tuple[Tensor, Tensor] | None = None  # what the layer's queries are made of, and they themselves

    def enter_transformer(module, args, kwargs):
        nonlocal size
        hidden = args[0] if args else kwargs["hidden_states"]
        size = (hidden.shape[-2], hidden.shape[-1])

    def hold_queries(module, args, queries):
        nonlocal asking
        asking = args[0], queries

    def add(kind: str, attn: Any):
        def hook(module, args, keys):
            assert asking is not None
            source, queries = asking
            if kind == "attn1" and args[0] is not source:  # a block whose "self"-attention looks at the prompt
                return
            if size not in sums[kind]:
                dtype = torch.promote_types(queries.dtype, torch.float32)
                shape = (len(queries), queries.shape[1], keys.shape[1])
                sums[kind][size] = torch.zeros(shape, dtype=dtype, device=queries.device)
            _head_mean_for(queries)(sums[kind][size], queries, keys, attn.heads, attn.scale)
            layers[kind][size] = layers[kind].get(size, 0) + 1

        return hook

    hooks = []
    try:
        for name, module in unet.named_modules():
            if isinstance(module, Transformer2DModel):
                hooks.append(module.register_forward_pre_hook(enter_transformer, with_kwargs=True))
            elif name.endswith(".attn1") or (cross and name.endswith(".attn2")):
                if module.norm_q is not None:
                    raise ValueError(f"{name} of this UNet normalises its queries, which is not supported")
                hooks.append(module.to_q.register_forward_hook(hold_queries))
                hooks.append(module.to_k.register_forward_hook(add(name[-5:], module)))
        t = torch.full((len(latents),), timestep, device=latents.device)
        unet(latents, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not sums["attn1"]:
        raise ValueError(f"{type(unet).__name__} has no self-attention in transformer blocks: nothing to segment with")
    for kind, maps in sums.items():
        for resolution, total in maps.items():
            total.div_(layers[kind][resolution])
    return AttentionMaps(sums["attn1"], sums["attn2"])


def add_head_mean(total: Tensor, q: Tensor, k: Tensor, heads: int, scale: float) -> None:
    """Adds the mean over heads of softmax(q k^T * scale) to total, slice by slice, in at least float32.

    Args:
        total: [B, R, T]. q: [B, R, heads * d], queries. k: [B, T, heads * d], keys.
    """
    queries = (q.to(total.dtype) * scale).unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()  # [B, heads, R, d]
    keys = k.to(total.dtype).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).contiguous()  # [B, heads, d, T]
    step = max(1, slice_bytes(q.device) // (k.shape[1] * total.element_size()))
    room = total.new_empty(min(step, q.shape[1]), k.shape[1])
    for b in range(len(q)):
        for start in range(0, q.shape[1], step):
            rows = total[b, start : start + step]
            probabilities = room[: len(rows)]
            for head in range(heads):
                torch.mm(queries[b, head, start : start + step], keys[b, head], out=probabilities)
                torch.softmax(probabilities, -1, out=probabilities)
                rows.add_(probabilities, alpha=1 / heads)


def _head_mean_for(queries: Tensor) -> Callable[[Tensor, Tensor, Tensor, int, float], None]:
    """What adds the head-mean of such queries: on a CUDA device the fused kernel, elsewhere the plain way."""
    if queries.is_cuda and queries.dtype != torch.float64 and torch.version.cuda and find_spec("triton"):
        from diffseg.fused import add_head_mean as fused

        return fused
    return add_head_mean


# --- the whole model --------------------------------------------------------------------------------------------------


@dataclass
class DiffusionModel:
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
            ValueError: unknown name, a folder that is no diffusers model, pickle-only weights, no such device or dtype.
            OSError: the hub cannot be reached or does not have the model.
        """
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        source = str(EMBEDDED.get(name, name))
        if Path(source).is_dir():
            _check_folder(Path(source))
        elif name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise ValueError(
                f"there is no model or folder {name!r}: give an embedded model ({', '.join(EMBEDDED)}), "
                f"a Hugging Face hub id such as CompVis/stable-diffusion-v1-4, or a folder in diffusers' layout"
            )
        with quiet():  # diffusers believes that no CPU can do float16
            pipeline = _load(name, source, revision, dtype).to(place)
        if dtype == torch.float16 and pipeline.vae.config.force_upcast:  # its activations overflow half precision
            pipeline.vae.to(torch.float32)
        _for_inference(pipeline)
        recommended = Path(source) / "diffseg.json"
        defaults = json.loads(recommended.read_text()) if recommended.is_file() else {}
        return cls(pipeline, name, defaults)

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
            ValueError: no such architecture, device or dtype.
        """
        if name != "sd14":
            raise ValueError(f"there is no architecture {name!r} to fill with random weights: use sd14")
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = _sd14().to(place, dtype)
        _for_inference(pipeline)
        return cls(pipeline, f"{name} with random weights")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pipeline.unet.device

    @property
    def dtype(self) -> str:
        """The precision of the UNet's weights: "float32", "float16" ..."""
        return str(self.pipeline.unet.dtype).removeprefix("torch.")

    @property
    def multiple(self) -> int:
        """Pixels that both sides of an image must be a multiple of, for every resolution of the UNet to be whole."""
        autoencoder = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        return autoencoder * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

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

    def attention(
        self, images: Tensor, timestep: int, prompts: Sequence[str] | None = None, cross: bool = False
    ) -> AttentionMaps:
        """Attention maps of images [B, 3, H, W] in [-1, 1]: encode, one UNet pass at t without noise, capture.

        Args:
            timestep: t, what the UNet is told; no noise is added.
            prompts: one per image; None: the empty prompt.
            cross: also capture the cross-attention over the prompts' tokens.
        """
        latents = self.encode(images)
        context, added = self.context(prompts or [""] * len(images), (images.shape[2], images.shape[3]))
        return capture(self.pipeline.unet, latents, timestep, context, added, cross)


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


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device that "auto", "cpu", "cuda", "cuda:1" ... means here.

    Raises:
        ValueError: not a device, or one that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    try:
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"device {device!r} is not there ({torch.cuda.device_count()} CUDA devices found): use cpu or auto"
        ) from None
    return place


def resolve_dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    """The precision of a model's weights on `place`; None: float32 on the CPU, float16 elsewhere.

    Raises:
        ValueError: a name other than float32, float16 and bfloat16.
    """
    if dtype is None:
        return torch.float32 if place.type == "cpu" else torch.float16
    allowed = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if isinstance(dtype, str) and dtype not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
    return allowed[dtype] if isinstance(dtype, str) else dtype


def _check_folder(folder: Path) -> None:
    for part in ("unet", "vae"):
        if not (folder / "model_index.json").is_file() or not (folder / part / "config.json").is_file():
            raise ValueError(
                f"the folder {folder} is not a diffusers model: it needs model_index.json and a {part}/config.json "
                f"(a single checkpoint file is converted by diffusers' from_single_file(...).save_pretrained(...))"
            )
        if not any((folder / part).glob("*.safetensors")):
            raise ValueError(
                f"{folder / part} has no .safetensors weights; pickled ones (.bin, .ckpt) are not loaded because they "
                f"can run code: convert them with diffusers' save_pretrained(..., safe_serialization=True)"
            )


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
                raise ValueError(
                    f"the model in {source} cannot be loaded ({reason}); are all its files complete?"
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


__all__ = [
    "EMBEDDED",
    "AttentionMaps",
    "DiffusionModel",
    "Maps",
    "add_head_mean",
    "attention_maps",
    "capture",
    "resolve_device",
    "resolve_dtype",
]
