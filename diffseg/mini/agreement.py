"""What the self-attention layers of the embedded model are taught after denoising: to agree on a grouping of its own.

A teacher (`Walk`, then `Regions`) says where positions of a latent should attend to; `Agreement` is how far the layers
are from it. No teacher sees a label.
"""

from __future__ import annotations

import copy
import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from diffseg.attention import capture
from diffseg.mini import checkpoints
from diffseg.segmentation import aggregate

POSITIONS = 192  # that are taught a latent and training step


@dataclass
class Batch:
    """What one step of training sees: latents [B, 4, n, n], token ids [B, 77], which of the scenes at 512 px each is
    (-1: of those at 256 px), and the step's random stream."""

    latents: torch.Tensor
    ids: torch.Tensor
    large: np.ndarray
    rng: np.random.Generator


def _self_attention(unet: UNet2DConditionModel) -> tuple[dict[str, tuple], list]:
    """The self-attention layers of unet by name, each with its input [B, n * n, C] of the latest forward pass, and
    the hooks that put it there."""
    seen: dict[str, tuple] = {}

    def watch(name: str):
        return lambda layer, args: seen.__setitem__(name, (layer, args[0]))

    layers = [(name, module) for name, module in unet.named_modules() if name.endswith("attn1")]
    return seen, [module.register_forward_pre_hook(watch(name)) for name, module in layers]


def _attend(layer, hidden: torch.Tensor, positions: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
    """Attention [B, Q, n * n] of some positions [B, Q], mean over the heads; float32."""
    heads = (len(hidden), hidden.shape[1], layer.heads, -1)
    q = layer.to_q(hidden).view(heads).transpose(1, 2).float()
    k = layer.to_k(hidden).view(heads).transpose(1, 2).float()
    q = q.gather(2, positions[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    return (q @ k.transpose(-1, -2) * (layer.scale * sharpness)).softmax(-1).mean(1)


class Walk:
    """A teacher of self-attention: the diffused attention of one layer, the `most_modular`.

    The attention A of that layer, frozen as it is at the start, sharpened and applied POWER times, is a random walk
    that spreads within a region and seldom leaves it: each layer is to attend where that walk arrives. No label is
    involved: the grouping is the one that denoising gave to the frozen layer.
    """

    SHARPNESS, POWER = 2.0, 8  # of the logits; steps of the walk
    SCENES = 32  # that the layer is chosen with

    def __init__(self, unet: UNet2DConditionModel, context: torch.Tensor, latents: np.ndarray, counts: np.ndarray):
        """unet: the one to train; context [1, 77, C] of the empty prompt, which segmenting uses as well; latents and
        counts: as for `partitions`."""
        self.frozen, self.context = copy.deepcopy(unet).eval().requires_grad_(False), context
        self.taught, _ = _self_attention(self.frozen)
        self.scenes = latents[: self.SCENES], counts[: self.SCENES]

    @cached_property
    def layer(self) -> str:
        """Its name; found when it is first asked for, which a stage that is done never does."""
        return most_modular(self.frozen, self.context, *self.scenes)

    def draw(self, batch: Batch) -> torch.Tensor:
        """Positions [B, Q] (row * n + column) to teach in this step, without repetition."""
        cells = batch.latents.shape[-1] ** 2
        drawn = [batch.rng.choice(cells, min(cells, POSITIONS), replace=False) for _ in batch.latents]
        return torch.from_numpy(np.stack(drawn)).to(batch.latents.device)

    @torch.no_grad()
    def targets(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Where the walks from positions [B, Q] of latents [B, 4, n, n] arrive: [B, Q, n, n]."""
        clean, name = batch.latents, self.layer  # which may take passes of its own
        with checkpoints.autocast(clean.device):
            self.frozen(
                clean, torch.full((len(clean),), 100, device=clean.device), self.context.expand(len(clean), -1, -1)
            )
        layer, hidden = self.taught[name]
        n, everywhere, walks = clean.shape[-1], torch.arange(hidden.shape[1], device=clean.device)[None], []
        for one, starts in zip(hidden.float(), positions, strict=True):  # one by one: A is [n * n, n * n]
            attention = _attend(layer, one[None], everywhere, self.SHARPNESS)[0].to(checkpoints.precision(clean.device))
            walk = attention[starts]
            for _ in range(self.POWER - 1):
                walk = walk @ attention
            walks.append(walk.float() / walk.float().sum(-1, keepdim=True))
        return torch.stack(walks).view(*positions.shape, n, n)


@torch.no_grad()
def most_modular(unet: UNet2DConditionModel, context: torch.Tensor, latents: np.ndarray, counts: np.ndarray) -> str:
    """The self-attention layer of the finest level that parts scenes best, by its attention alone.

    That is the layer of the largest modularity (Newman and Girvan 2004), mean over the scenes: its attention is grouped
    by k-means, as in `partitions`, and what counts is how much of it stays within the groups. Which layer denoising
    makes the best one differs from training to training.

    Args: as for `partitions`.
    """
    seen, hooks = _self_attention(unet)
    found: dict[str, list[float]] = {}
    for latent, count in zip(tqdm(latents, "layers", mininterval=5), counts, strict=True):
        clean = torch.from_numpy(latent.astype(np.float32))[None].to(unet.device)
        unet(clean, torch.full((1,), 100, device=unet.device), context)
        everywhere = torch.arange(clean[0, 0].numel(), device=unet.device)[None]
        for name, (layer, hidden) in seen.items():
            if hidden.shape[1] == everywhere.numel():
                attention = _attend(layer, hidden.float(), everywhere)[0]
                clusters = _clusters(_coarse(attention, clean.shape[-1]), int(count))
                found.setdefault(name, []).append(modularity(attention.cpu(), clusters))
    for hook in hooks:
        hook.remove()
    return max(found, key=lambda name: np.mean(found[name]))


def modularity(attention: torch.Tensor, groups: np.ndarray) -> float:
    """How much more of an attention [N, N], whose rows sum to 1, stays within groups [N] than would by chance: 0 where
    attention tells nothing of them, up to 1 - 1 / groups."""
    one = F.one_hot(torch.from_numpy(groups).long()).to(attention.dtype)
    to = attention @ one
    return float((to * one).sum(1).mean() - to.mean(0) @ one.mean(0))


def _coarse(attention: torch.Tensor, n: int) -> np.ndarray:
    """Rows [N, n * n] of attention, summed (up to a factor) over 4 x 4 cells, for k-means."""
    return F.avg_pool2d(attention.view(-1, 1, n, n), 4).flatten(1).cpu().numpy()


class Regions:
    """A teacher of self-attention: the regions that the model, as it is at the start, sees in the scenes at 512 px.

    They are the clusters of k-means over its aggregated attention, summed over 4 x 4 cells, as many as the scene's
    caption names things; each position is to attend evenly to its own region. The caption says how many, never where:
    no label is involved. What the model learns is when to part and when to join without being told the number.
    """

    def __init__(self, regions: np.ndarray):
        """regions: uint8 [count, n, n] from `partitions`, of the scenes at 512 px."""
        self.regions = regions

    def draw(self, batch: Batch) -> torch.Tensor:
        """Positions [B, Q] to teach in this step. The likelihood is the inverse root of the region's area, so that
        small regions have their say, too."""
        drawn = []
        for i in batch.large:
            region = self.regions[i].ravel()
            likely = np.bincount(region)[region] ** -0.5
            drawn.append(batch.rng.choice(region.size, min(region.size, POSITIONS), False, likely / likely.sum()))
        return torch.from_numpy(np.stack(drawn)).to(batch.latents.device)

    def targets(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Evenly over the region that each position lies in: [B, Q, n, n]."""
        regions = torch.from_numpy(self.regions[batch.large]).to(positions.device)
        own = regions.flatten(1).gather(1, positions)[:, :, None, None] == regions[:, None]
        return own / own.sum((-2, -1), keepdim=True)


@torch.no_grad()
def partitions(
    path: Path, unet: UNet2DConditionModel, context: torch.Tensor, latents: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """What `Regions` teaches, uint8 [count, n, n]; cached in path, continues where it broke off.

    Args:
        latents: [count, 4, n, n]. counts: the number of regions of each [count]. context [1, 77, C]: of no prompt.
    """
    unfinished, todo = path.with_suffix(".partial.npy"), 255
    if not path.exists():
        shape = (len(latents), *latents.shape[2:])
        if not unfinished.exists():
            np.save(unfinished, np.full(shape, todo, np.uint8))
        out = np.load(unfinished, mmap_mode="r+")
        left = np.flatnonzero(out[:, 0, 0] == todo)
        cores = os.cpu_count() or 1
        with ThreadPoolExecutor(cores) as pool:  # k-means is compiled, and lets other threads go on
            clustering: deque[tuple[int, Future[np.ndarray]]] = deque()
            for i in tqdm(left, "regions of scenes", mininterval=5):
                latent = torch.from_numpy(latents[i].astype(np.float32))[None].to(unet.device)
                attention = aggregate(capture(unet, latent, 100, context, None).self_attention)[0].flatten(0, 1)
                points = _coarse(attention, shape[-1])
                clustering.append((i, pool.submit(_clusters, points, int(counts[i]))))
                while len(clustering) > 2 * cores or (clustering and i == left[-1]):
                    scene, clusters = clustering.popleft()
                    out[scene] = clusters.result().reshape(shape[1:])
        out.flush()
        unfinished.rename(path)
    return np.load(path)


def _clusters(points: np.ndarray, count: int) -> np.ndarray:
    """k-means of points [N, D]: their clusters int32 [N], the same whatever the number of cores."""
    with threadpool_limits(1, "openmp"):  # of this thread alone
        return KMeans(count, n_init=10, random_state=0).fit(points).labels_


class Agreement:
    """Makes the self-attention of a UNet attend as a teacher does: every layer for itself, or their aggregate."""

    def __init__(self, unet: UNet2DConditionModel, aggregated: bool = False):
        """aggregated: what is compared is what a segmentation sees (the paper's equation 1, weights proportional to the
        resolution), so that layers may divide the work; otherwise each layer, at its own resolution."""
        self.layers, self.hooks = _self_attention(unet)
        self.aggregated = aggregated

    def loss(self, targets: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """KL(target || attention), mean over positions (and layers), after a forward pass of the UNet on the latents.

        targets: [B, Q, n, n], positive or 0, of sum 1. positions: [B, Q], row * n + column.
        """
        n = targets.shape[-1]
        by_side: dict[int, list[torch.Tensor]] = {}
        for layer, hidden in self.layers.values():
            side = math.isqrt(hidden.shape[1])
            cell = n // side
            here = positions // n // cell * side + positions % n // cell
            by_side.setdefault(side, []).append(_attend(layer, hidden.float(), here))
        if self.aggregated:
            return _divergence(targets, _aggregated(by_side, n))
        sums = {side: F.avg_pool2d(targets, n // side) * (n // side) ** 2 for side in by_side}
        return torch.stack([_divergence(sums[side], layer) for side in by_side for layer in by_side[side]]).mean()

    def close(self) -> None:
        """Takes the hooks off the UNet."""
        for hook in self.hooks:
            hook.remove()


def _divergence(targets: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """KL(targets [B, Q, n, n] || attention [B, Q, n * n]), mean over the positions."""
    return F.kl_div(attention.clamp_min(1e-12).log(), targets.flatten(2), reduction="none").sum(-1).mean()


def _aggregated(by_side: dict[int, list[torch.Tensor]], n: int) -> torch.Tensor:
    """`diffseg.segmentation.aggregate` of some positions alone: {side: [[B, Q, side^2], ...]} -> [B, Q, n^2]."""
    parts = []
    for side, layers in by_side.items():
        maps = torch.stack(layers).mean(0).unflatten(-1, (side, side))
        maps = F.interpolate(maps, (n, n), mode="bilinear").flatten(2)
        parts.append(maps * (side / maps.sum(-1, keepdim=True)))
    return torch.stack(parts).sum(0) / sum(by_side)
