"""Vision transformers (DINOv2, with registers or without, and DINOv3) as backbones, in transformers' layout."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from torch import Tensor, nn

from diffseg.attention import Look, Size, Tokens
from diffseg.backbones.base import Backbone, recommended
from diffseg.backbones.loading import quiet
from diffseg.devices import resolve_device, resolve_dtype
from diffseg.errors import UserError

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # model_type in config.json
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of red, green, blue, of 0..1

Colours = tuple[float, float, float]

if TYPE_CHECKING:  # transformers takes seconds to import: only when a model is loaded
    from transformers import PreTrainedModel


@dataclass
class VisionTransformer(Backbone):
    """A DINOv2 or DINOv3 as a source of attention and features; it knows no time step, no noise and no prompt.

    Photos whose sides are no multiples of the patch are resized, bilinearly, to the nearest that are.

    model: the transformer. name: what it was loaded from. mean, std: of the photos' colours (0..1), as it was trained.
    """

    model: PreTrainedModel
    name: str
    mean: Colours = IMAGENET[0]
    std: Colours = IMAGENET[1]
    defaults: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> VisionTransformer:
        """Loads a model: safetensors only, never pickle.

        Args:
            name: a folder in transformers' layout, or a Hugging Face hub id. revision: branch, tag or commit of an id.
            device: "auto" (CUDA where there is one, else the CPU), or any torch device.
            dtype: of the weights, as for `resolve_dtype`.

        Raises:
            UserError: unknown name, another kind of model, pickle-only or incomplete weights, no such device or dtype.
            OSError: the hub cannot be reached, does not have the model, or wants a licence accepted.
        """
        place = resolve_device(device)
        dtype = resolve_dtype(dtype, place)
        if Path(name).is_dir():
            _check_folder(Path(name))
        elif name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(
                f"there is no folder {name!r}: give a Hugging Face hub id such as facebook/dinov2-base, or a folder in "
                f"transformers' layout"
            )
        with quiet():
            model = _load(name, revision, dtype)
            mean, std = _colours(name, revision)
        model.eval().requires_grad_(False)
        return cls(model.to(place), name, mean, std, recommended(name))

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self.model

    @property
    def multiple(self) -> int:
        """The side of a patch in pixels."""
        return self.model.config.patch_size

    def layers(self) -> Mapping[str, nn.Module]:
        """All of them are self-attention."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if name.endswith(".attention") and _key_projection(module)
        }

    def aliases(self) -> Mapping[str, str]:
        """The last layer, and its keys: the usual features of such a model."""
        name, last = list(self.layers().items())[-1]
        return {"encoder": name, "keys": f"{name}.{_key_projection(last)}"}

    def grid(self, layer: str, size: Size) -> Size:
        """Patches, the same in every layer."""
        return max(1, round(size[0] / self.multiple)), max(1, round(size[1] / self.multiple))

    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """The class token and registers first, then the patches row by row."""
        h, w = self.grid(layer, size)
        image = slice(queries - h * w, queries)
        return Tokens((h, w), image, image)

    def forward(self, images: Tensor, look: Look, prompts: Sequence[str]) -> None:
        """One pass of the photos, in the colours that the model was trained on."""
        if look.prompted:
            _ = self.tokenizer  # says that there is none
        if look.noise is not None:
            warnings.warn(f"{self.name} is no diffusion model: it is shown the photos without noise", stacklevel=2)
        h, w = (patches * self.multiple for patches in self.grid("", (images.shape[2], images.shape[3])))
        if images.shape[2:] != (h, w):
            images = F.interpolate(images.float(), (h, w), mode="bilinear", align_corners=False)
        mean, std = (images.new_tensor(colour)[:, None, None] for colour in (self.mean, self.std))
        self.model(pixel_values=(((images + 1) / 2 - mean) / std).to(self.model.dtype))


def _check_folder(folder: Path) -> None:
    if (folder / "model_index.json").is_file():
        raise UserError(f"the folder {folder} is a diffusers model, no vision transformer: use model=pretrained for it")
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} is no model in transformers' layout: it needs config.json and weights")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no .safetensors weights; pickled ones (.bin, .pth) are not loaded because they can run "
            f"code: convert them with transformers' save_pretrained(...)"
        )


def _key_projection(attention: nn.Module) -> str:
    """What a layer of attention calls that part; "": it has none of its own, as a wrapper around the layer."""
    return next((name for name, _ in attention.named_children() if name in ("k_proj", "key")), "")


def _load(name: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model; what goes wrong in one sentence."""
    from transformers import AutoConfig, AutoModel

    try:
        kind = AutoConfig.from_pretrained(name, revision=revision).model_type
        if kind not in KINDS:
            raise UserError(f"{name} is a model of the kind {kind!r}, none of those used here: {', '.join(KINDS)}")
        model, found = AutoModel.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _explained(error, name) from error
    lacking = sorted(key for key in found["missing_keys"] if not key.endswith("mask_token"))  # of training alone
    if lacking:
        raise UserError(
            f"the model {name!r} lacks {len(lacking)} weights, such as {lacking[0]}: its files are incomplete or of "
            f"another version; fetch it again"
        )
    return model


def _explained(error: Exception, name: str) -> Exception:
    """The sentence for an error of loading."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].removesuffix(".")
    if Path(name).is_dir():
        return UserError(f"the model in {name} cannot be loaded ({reason}); are all its files complete?")
    if isinstance(error.__cause__, GatedRepoError):
        return OSError(
            f"{name} is given only to those who accept its licence: do so on https://huggingface.co/{name}, and set "
            f"HF_TOKEN to a token of that account"
        )
    return OSError(
        f"cannot load {name!r} from the Hugging Face hub ({reason}): check the id and the network, or give a folder; "
        f"only .safetensors weights are loaded"
    )


def _colours(name: str, revision: str | None) -> tuple[Colours, Colours]:
    """Mean and standard deviation of the colours in training: the model's own, else ImageNet's.

    Raises:
        UserError: the model's file of them is damaged.
    """
    from transformers.utils import cached_file

    try:
        file = cached_file(name, "preprocessor_config.json", revision=revision)
    except OSError:  # there is none, or the network is gone since the weights were there
        return IMAGENET
    try:
        stored: dict[str, Any] = json.loads(Path(str(file)).read_bytes())
        keys = ("image_mean", "image_std")
        mean, std = (tuple(map(float, stored.get(key, usual))) for key, usual in zip(keys, IMAGENET, strict=True))
        if not (len(mean) == len(std) == 3 and all(-10 < x < 10 for x in mean) and all(0 < x < 10 for x in std)):
            raise ValueError(f"image_mean {list(mean)}, image_std {list(std)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): it holds image_mean and image_std, three numbers each") from None
    return mean, std  # type: ignore[return-value]
