"""What every backbone offers, and what is known of models by their names alone."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.attention import Look, Needs, Observation, Recorder, Size, Tokens
from diffseg.devices import free_bytes, full_float32
from diffseg.errors import UserError
from diffseg.files import content_hashes
from diffseg.layers import select

EMBEDDED = {"mini": Path(__file__).parents[1] / "mini" / "weights"}
PAPER_TIMESTEP = 300
ALIASES = frozenset({"encoder", "keys"})  # what `Backbone.aliases` may know
FLOW_TIMESTEP = 454  # of flow models, sigma * 1000: as much noise as t = 300 means to Stable Diffusion
# Pipelines with a transformer in place of a UNet -> the class of `diffseg.backbones.dit` for them.
TRANSFORMERS = {
    "PixArtAlphaPipeline": "PixArt",
    "PixArtSigmaPipeline": "PixArt",
    "StableDiffusion3Pipeline": "SD3",
    "FluxPipeline": "Flux",
}
FLOW = ("SD3", "Flux")


class Backbone(ABC):
    """A network that images are passed through and that is watched.

    `network`, `layers`, `tokens`, `forward` and `multiple` make one.

    name: what results call it. defaults: what the model's folder recommends (`recommended`).
    """

    name: str
    defaults: Mapping[str, float] = MappingProxyType({})

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Pixels that both sides of an image must be a multiple of."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that is watched; its modules' names are those of features."""

    @abstractmethod
    def layers(self) -> Mapping[str, nn.Module]:
        """The attention layers of the network by name; every one of them must be seen in a pass."""

    @abstractmethod
    def tokens(self, layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
        """How the tokens of a layer's attention lie, for images of size (H, W) in pixels; None: not of interest."""

    @abstractmethod
    def forward(self, images: Tensor, look: Look, prompts: Sequence[str]) -> None:
        """One pass. images: [B, 3, H, W] in [-1, 1]; look: its timestep is set; prompts: one for each image."""

    def grid(self, layer: str, size: Size) -> Size | None:
        """(h, w) of a self-attention layer's maps for images of size (H, W) in pixels; None: unknown before a pass."""
        return None

    def self_attention(self) -> Sequence[str]:
        """The names of the layers in which the image looks at itself, in the order of a pass: what `layers` means."""
        return list(self.layers())

    def aliases(self) -> Mapping[str, str]:
        """Layers that methods ask for without knowing the network -> their names in it.

        "encoder": the last self-attention of the encoder, where there is one. "keys": the projection to the keys of
        that layer, or of the last layer of all.
        """
        return {}

    @property
    def tokenizer(self) -> Any:
        """What cuts prompts into tokens.

        Raises:
            UserError: the backbone reads no prompts.
        """
        raise UserError(f"{self.name} reads no prompts, so it cannot name anything: use a diffusion model")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> str:
        """The precision of the network's weights: "float32", "float16" ..."""
        return str(next(self.network.parameters()).dtype).removeprefix("torch.")

    @torch.no_grad()
    def observe(
        self, images: Tensor, needs: Needs, look: Look = Look(), prompts: Sequence[str] | None = None, wait: bool = True
    ) -> Observation:
        """What one pass shows of images.

        Args:
            images: [B, 3, H, W] in [-1, 1]. needs: what to keep. look: how to ask; its timestep None is the model's
                own default, or the paper's. prompts: one for each image; None: the empty prompt. wait: for the device,
                and refuse what are no numbers; otherwise that is the caller's to do (`Observation.check`).

        Raises:
            UserError: a layer that does not exist, or attention that cannot be seen.

        Returns:
            What was seen of the look's layers; of other selections that are asked for, in its `selections`.
        """
        timestep = self.defaults.get("timestep", PAPER_TIMESTEP) if look.timestep is None else look.timestep
        look = replace(look, timestep=int(timestep))
        selections = list(dict.fromkeys([look.layers, *needs.selections]))
        groups = [None if layers is None else select(layers, self.self_attention()) for layers in selections]
        tokens = partial(self.tokens, size=(images.shape[2], images.shape[3]))
        if needs.attention:
            self._check_memory(groups, (images.shape[2], images.shape[3]), len(images))
        aliases = self.aliases() if needs.features else {}
        for asked in needs.features & ALIASES - aliases.keys():
            raise UserError(
                f"{self.name} has no {asked!r}, which a method asks features of: name a layer of this model for it, or "
                f"{' or '.join(aliases) or 'a module of the network'}, as in segmenters.diffcut.layer=... (with "
                f"refinement segmenters.diffcut_pamr.of.layer=...)"
            )
        names = {asked: aliases.get(asked, asked) for asked in needs.features}
        needs = replace(needs, features=frozenset(names.values()))
        with full_float32(), Recorder(self.network, self.layers(), tokens, needs, groups) as recorder:
            self.forward(images, look, prompts or [""] * len(images))
        seen = recorder.observations(wait)
        features = {asked: seen[0].features[name] for asked, name in names.items()}
        first, *rest = (replace(one, features=features) for one in seen)
        return replace(first, selections=dict(zip(selections[1:], rest, strict=True)))

    def streams(self, size: Size, selections: int = 1) -> int:
        """How many images (H, W) in pixels, each with a pass of its own, are worth working on at a time.

        On a CPU as many as torch has threads, up to four, and as half of the free memory holds; elsewhere one.
        selections: of layers, whose maps are kept apart.
        """
        if self.device.type != "cpu":
            return 1
        most = min(_STREAMS, torch.get_num_threads())
        needed = _OF_MAPS * maps_bytes(set(self._grids(size).values()), 1) * selections
        free = free_bytes(self.device)
        return max(1, most if free is None or not needed else min(most, free // 2 // needed))

    def _grids(self, size: Size) -> dict[str, Size]:
        """The sizes of the self-attention layers' maps for images (H, W) in pixels, where they are known before."""
        return {layer: grid for layer in self.self_attention() if (grid := self.grid(layer, size))}

    def _check_memory(self, groups: Sequence[frozenset[str] | None], size: Size, count: int) -> None:
        """Refuses a pass whose maps would not fit, where the backbone knows their sizes before.

        Args:
            groups: of layers, whose maps are kept apart. size: (H, W) of the images in pixels. count: of images.
        """
        grids = self._grids(size)
        free = free_bytes(self.device) if grids else None
        if free is None:
            return
        in_groups = ({grids[layer] for layer in grids if chosen is None or layer in chosen} for chosen in groups)
        needed = sum(maps_bytes(sizes, count) for sizes in in_groups)
        if needed > free:
            h, w = max(grids.values(), key=math.prod)
            raise UserError(
                f"attention at {h} x {w} positions of {count} image{'s' * (count > 1)} takes about "
                f"{needed / (1 << 30):.1f} GiB and {free / (1 << 30):.1f} GiB are free on {self.device}: choose a "
                f"smaller size (--size, or dataset.size of an evaluation) or batch_size, fewer selections of layers, "
                f"or another device"
            )


_STREAMS = 4  # 16 cores do most with four images in four threads each
_OF_MAPS = 4  # what an image takes in all, as a multiple of its maps


def maps_bytes(grids: Collection[Size], count: int) -> int:
    """What the maps [count, h*w, h*w] of each of these sizes, and their aggregate of the finest, take in float32."""
    positions = [h * w for h, w in grids]
    return 4 * count * (sum(n * n for n in positions) + max(positions, default=0) ** 2)


def recommended(name: str) -> dict[str, Any]:
    """What is recommended for a local model, "threshold", "timestep", and "names_right", the share of segments that it
    names right (`diffseg.eval.semantic`); {} where nothing is.

    Its folder may say so (diffseg.json). The time step of a flow model is another than the paper's in any case.

    Raises:
        UserError: the file is damaged.
    """
    root = Path(EMBEDDED.get(name, name))
    usual = {"timestep": FLOW_TIMESTEP} if TRANSFORMERS.get(pipeline_in(root)) in FLOW else {}
    file = root / "diffseg.json"
    if not file.is_file():
        return usual
    try:
        settings = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}): it holds the settings of a model as a JSON object") from None
    for key, value in settings.items():
        if type(value) not in (int, float) or not abs(value) < math.inf:
            raise UserError(f"{file}: {key} must be a number, got {value!r}")
    return usual | settings


def pipeline_in(folder: Path) -> str:
    """The class of the pipeline that a folder holds in diffusers' layout; "" where it says none."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever loads it is told
        return ""
    name = index.get("_class_name") if isinstance(index, dict) else None
    return name if isinstance(name, str) else ""


def fingerprint(name: str) -> str:
    """Hash of a local model's files, wherever they lie; of any other model its name."""
    root = Path(EMBEDDED.get(name, name))
    if not root.is_dir():
        return name
    files = {
        p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.suffix in (".json", ".safetensors", ".txt")
    }
    return hashlib.sha256(json.dumps(sorted(content_hashes(files).items())).encode()).hexdigest()[:16]
