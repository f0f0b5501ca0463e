"""What cross-attention is taught last: the meaning of words, from captions alone.

A caption says which nouns belong to a picture, never where.

A classifier learns which class each of the model's own regions is of, because a region must be one of the things that
the caption names, and each of these must be some region. Its answers are what cross-attention then learns: to attend
from a region to the tokens of its noun. Only its queries and keys and the text encoder move, and what it gives is held
where it was, under captions and under the empty prompt: segments, and what denoising does, stay as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from diffseg.attention import Needs, Recorder, unet_layers, unet_tokens
from diffseg.mini import checkpoints
from diffseg.mini.recipe import Words
from diffseg.mini.text import token_ids
from diffseg.segmentation import aggregate, merge, to_labels
from diffseg.words import caption_of, noun_tokens

REGIONS, DRAWN = 16, 3  # the largest regions of a scene; positions of each that are kept besides its mean
TIMESTEP = 100  # as when segmenting

Nouns = Sequence[tuple[str, int]]  # (noun, class) of what a caption names


def _cross_attention(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The cross-attention layers by name, in the order of a pass."""
    return {name: layer for name, layer in unet_layers(unet).items() if name.endswith("attn2")}  # type: ignore[misc]


def _labels(unet: UNet2DConditionModel, latent: Tensor, context: Tensor, threshold: float) -> Tensor:
    """The model's own regions of a latent [1, 4, n, n], int64 [n, n], 0..K-1: DiffSeg with all but the finest level,
    whose share of the time is the largest by far."""
    n = latent.shape[-1]
    coarse = [name for name in unet_layers(unet) if name.endswith("attn1") and not name.startswith(_FINEST)]
    tokens = partial(unet_tokens, size=(n, n))
    with Recorder(unet, unet_layers(unet), tokens, Needs(attention=True), [frozenset(coarse)]) as recorder:
        unet(latent, torch.full((1,), TIMESTEP, device=latent.device), context, return_dict=False)
    attention = aggregate(recorder.observation().self_attention)[0]
    merged = merge(attention, min(16, *attention.shape[:2]), [threshold] * 3)
    return torch.unique(to_labels(merged, (n, n)), return_inverse=True)[1]


_FINEST = ("down_blocks.0", "up_blocks.3")


@torch.no_grad()
def observe(
    path: Path, unet: UNet2DConditionModel, context: Tensor, latents: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the queries of all cross-attention layers are made from, in each region; cached in path.

    Args:
        path: of the cache. context: [1, 77, C] of the empty prompt. latents: [count, 4, n, n]. threshold: tau.

    Returns:
        features: float16 [count, REGIONS, 1 + DRAWN, channels of all layers], the mean over a region, then at positions
        drawn from it. areas: float32 [count, REGIONS], share of the picture; 0: no such region.
    """
    layers, count = _cross_attention(unet), len(latents)
    channels = sum(layer.to_q.in_features for layer in layers.values())
    features = checkpoints.array(path.with_suffix(".features.npy"), np.float16, (count, REGIONS, 1 + DRAWN, channels))
    areas = checkpoints.array(path.with_suffix(".areas.npy"), np.float32, (count, REGIONS))
    seen: dict[str, Tensor] = {}

    def watch(name: str):
        return lambda layer, args: seen.__setitem__(name, args[0][0])

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    for i in tqdm(np.flatnonzero(areas[:, 0] == 0), "regions and features", mininterval=5):
        latent = torch.from_numpy(latents[i].astype(np.float32))[None].to(unet.device)
        with checkpoints.autocast(unet.device):
            labels = _labels(unet, latent, context, threshold)
        sizes = torch.bincount(labels.flatten())
        largest = sizes.argsort(descending=True, stable=True)[:REGIONS]
        masks = (labels == largest[:, None, None]).float()
        rng = checkpoints.generator(int(i), 4)
        drawn = np.stack([rng.choice(np.flatnonzero(mask), DRAWN) for mask in masks.flatten(1).cpu().numpy()])
        found = [_within(seen[name].float(), masks, torch.from_numpy(drawn).to(masks.device)) for name in layers]
        features[i, : len(largest)] = torch.cat(found, -1).cpu().numpy()
        areas[i, : len(largest)] = (sizes[largest] / labels.numel()).cpu().numpy()  # last: it says that all is there
    for hook in hooks:
        hook.remove()
    return features, areas


def _within(hidden: Tensor, masks: Tensor, drawn: Tensor) -> Tensor:
    """Features of one layer, [side * side, C], in regions: their means and those at drawn positions, [K, 1 + DRAWN, C].

    masks: [K, n, n], 0 or 1. drawn: [K, DRAWN], row * n + column.
    """
    n, side = masks.shape[-1], math.isqrt(len(hidden))
    cell = n // side
    weights = F.avg_pool2d(masks[None], cell)[0].flatten(1)
    means = weights @ hidden / weights.sum(1, keepdim=True)
    return torch.cat([means[:, None], hidden[drawn // n // cell * side + drawn % n // cell]], 1)


def classify(features: Tensor, areas: Tensor, nouns: Sequence[Nouns], recipe: Words) -> Tensor:
    """How likely each region is which of its caption's nouns, by a classifier that has seen nothing but captions.

    A region is one of the classes that the caption names ("partial labels"), and each of these has a region.

    Args:
        features, areas: as of `observe`. nouns: of each scene.

    Returns:
        float32 [count, REGIONS, most nouns], sums to 1; 0 beyond a scene's nouns.
    """
    torch.manual_seed(recipe.seed)
    classes = 1 + max(index for scene in nouns for _, index in scene)
    own = torch.zeros(len(nouns), classes, device=features.device)
    for row, scene in zip(own, nouns, strict=True):
        row[[index for _, index in scene]] = 1
    there = areas > 0
    sample = features[:, :, 0][there].float()
    mean, deviation = sample.mean(0), sample.std(0) + 1e-3
    classifier = nn.Sequential(
        nn.Dropout(0.2), nn.Linear(len(mean), 128), nn.GELU(), nn.Dropout(0.5), nn.Linear(128, classes)
    ).to(features.device)
    optimiser = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.05)
    for step in (bar := tqdm(range(recipe.steps_classifier), "classifier", mininterval=5)):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / recipe.steps_classifier)
        rng = checkpoints.generator(recipe.seed, 5, step)
        chosen = torch.from_numpy(rng.integers(len(own), size=2 * recipe.batch)).to(own.device)
        x, named, present = features[chosen, :, rng.integers(1 + DRAWN)], own[chosen], there[chosen].float()
        log_p = classifier((x.float() - mean) / deviation).log_softmax(-1)

        # Each region is one of the caption's, each of the caption's is a region
        inside = log_p.masked_fill(named[:, None] == 0, -torch.inf).logsumexp(-1)
        partial_labels = -(inside * present).sum() / present.sum()
        nowhere = (torch.log1p(-log_p.exp().clamp(max=0.999)) * present[..., None]).sum(1).exp()
        coverage = -(torch.log1p(-nowhere.clamp(max=1 - 1e-6)) * named).sum() / named.sum()
        loss = partial_labels + recipe.coverage * coverage
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        bar.set_postfix(partial_labels=f"{partial_labels.item():.3f}", coverage=f"{coverage.item():.3f}", refresh=False)

    # What it says of the caption's nouns
    classifier.eval()
    out = torch.zeros(*areas.shape, max(map(len, nouns)), device=features.device)
    with torch.no_grad():
        for x, scene, into in zip(features[:, :, 0], nouns, out, strict=True):
            scores = classifier((x.float() - mean) / deviation)
            into[:, : len(scene)] = scores[:, [index for _, index in scene]].softmax(-1)
    return out


def _attend(layer: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """Attention [B, heads, N, T] of hidden [B, N, C] to the tokens of context [B, T, D]."""
    q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (layer.to_q(hidden), layer.to_k(context)))
    return (q @ k.transpose(-1, -2) * layer.scale).softmax(-1)


def _output(layer: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """What a cross-attention layer adds at hidden [B, N, C] under context [B, T, D]: [B, N, C]."""
    values = layer.to_v(context).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    return layer.to_out[0]((_attend(layer, hidden, context) @ values).transpose(1, 2).flatten(2))


def _prompts(
    rng: np.random.Generator, scenes: Sequence[Nouns], vocabulary: Sequence[str], tokenizer: CLIPTokenizer, absent: int
) -> tuple[np.ndarray, Tensor]:
    """Prompts with the nouns of scenes and up to `absent` others, shuffled: order is to mean nothing.

    Returns:
        ids: int64 [B, 77]. tokens: float32 [B, most nouns, 77], 1 where a token is one of the scene's noun.
    """
    prompts, tokens = [], torch.zeros(len(scenes), max(map(len, scenes)), tokenizer.model_max_length)
    for scene, into in zip(scenes, tokens, strict=True):
        present = list(dict.fromkeys(noun for noun, _ in scene))
        others = [str(noun) for noun in rng.permutation(vocabulary) if noun not in present][: rng.integers(absent + 1)]
        prompts.append(caption_of([str(noun) for noun in rng.permutation([*present, *others])]))
        for row, positions in zip(into, noun_tokens(tokenizer, prompts[-1], [n for n, _ in scene]), strict=False):
            row[positions] = 1
    return token_ids(tokenizer, prompts), tokens


def train_words(
    work: Path,
    stage: str,
    recipe: Words,
    latents: np.ndarray,
    nouns: Sequence[Nouns],
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
) -> None:
    """Teaches unet and text the nouns of scenes at 512 px; the checkpoint is work/STAGE.pt.

    Args:
        latents: [count, 4, n, n]. nouns: of each scene.

    Raises:
        UserError: the checkpoint is of a training that began with other weights or another recipe.
    """
    # What there is to learn from: regions, their features, and what they likely are
    device, begun = unet.device, checkpoints.fingerprint(replace(recipe, steps=0), unet, text)
    empty = torch.from_numpy(token_ids(tokenizer, [""])).to(device)
    with torch.no_grad():
        context = text(empty)[0]
    features, areas = (
        torch.from_numpy(np.array(x)).to(device)
        for x in observe(work / f"{stage}-{begun[:12]}", unet, context, latents[: recipe.large], recipe.threshold)
    )
    nouns = nouns[: len(features)]
    targets = classify(features, areas, nouns, recipe)
    vocabulary = sorted({noun for scene in nouns for noun, _ in scene})

    learning = _Learning(unet, text)
    optimiser = torch.optim.AdamW(learning.parameters, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first, checkpoint = 0, work / f"{stage}.pt"
    if state := checkpoints.load(checkpoint, begun, device):
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]

    for step in (bar := tqdm(range(first, recipe.steps), stage, recipe.steps, initial=first, mininterval=5)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * checkpoints.cosine(step, recipe.steps)
        rng = checkpoints.generator(recipe.seed, 6, step)
        scenes = rng.integers(len(features), size=recipe.batch)
        prompts, tokens = _prompts(rng, [nouns[i] for i in scenes], vocabulary, tokenizer, recipe.absent)
        ids, tokens = torch.from_numpy(prompts).to(device), tokens.to(device)
        x, there = learning.inputs(features[scenes, :, rng.integers(1 + DRAWN)]), areas[scenes]

        # From each region to the tokens of its noun; what cross-attention gives is to stay: under the empty prompt,
        # and roughly under captions
        named, each = learning.unlike(x, ids, tokens, targets[scenes][:, :, : tokens.shape[1]], there.sqrt())
        part = slice(min(4, recipe.batch))
        few, regions = [one[part] for one in x], there[part] > 0
        moved, moved_captioned = (learning.moved(few, p, regions) for p in (empty.expand(part.stop, -1), ids[part]))

        loss = named + 0.5 * each + recipe.hold * moved + recipe.hold_captioned * moved_captioned
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning.parameters, 1.0)
        optimiser.step()
        shown = {"named": named, "each": each, "moved": moved, "moved_captioned": moved_captioned}
        bar.set_postfix({name: f"{value.item():.4f}" for name, value in shown.items()}, refresh=False)
        if checkpoints.due(step + 1, recipe.steps):
            checkpoints.save(
                checkpoint,
                begun=begun,
                unet=unet.state_dict(),
                text=text.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step + 1,
            )


class _Learning:
    """The cross-attention layers and the text encoder while they learn words: what moves, and what it was.

    `parameters` move: the layers' queries and keys, and the text encoder.
    """

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel):
        layers = _cross_attention(unet)
        self.text, self.layers, self.levels = text, list(layers.values()), list(map(_level, layers))
        self.before, self.text_before = copy.deepcopy(self.layers), copy.deepcopy(text)
        for module in (unet, text):
            module.requires_grad_(False)
        self.parameters = [weight for layer in self.layers for weight in (layer.to_q.weight, layer.to_k.weight)]
        self.parameters += text.parameters()
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def inputs(self, features: Tensor) -> list[Tensor]:
        """What each layer's queries see, [B, K, C], of the features of regions [B, K, channels of all layers]."""
        return list(features.float().split([layer.to_q.in_features for layer in self.layers], -1))

    def unlike(
        self, x: list[Tensor], ids: Tensor, tokens: Tensor, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropies of what regions are and how much they attend to it: of the mean of the levels, which names
        are made from, and of each layer, mean over the layers.

        Args:
            x: as of `inputs`. ids: of the prompts, [B, 77]. tokens: [B, nouns, 77], 1 where one is of a noun. target:
                what the regions are, [B, K, nouns]. weight: of the regions [B, K].
        """
        weight, prompted = weight / weight.sum(), self.text(ids)[0]
        maps = [_attend(layer, h, prompted).mean(1) @ tokens.mT for layer, h in zip(self.layers, x, strict=True)]
        together = torch.stack([torch.stack(level).mean(0) for level in _by(self.levels, maps)]).mean(0)
        each = torch.stack([_cross_entropy(target, one, weight) for one in maps]).mean()
        return _cross_entropy(target, together, weight), each

    def moved(self, x: list[Tensor], ids: Tensor, there: Tensor) -> Tensor:
        """How far what the layers add under prompts has moved, as a share of its mean square, mean over the layers.

        Args:
            x: as of `inputs`. ids: of the prompts, [B, 77]. there: bool [B, K], the regions that count.
        """
        now = self.text(ids)[0]
        with torch.no_grad():
            then = self.text_before(ids)[0]
        layers = zip(self.layers, self.before, x, strict=True)
        return torch.stack([_change(layer, old, h, there, now, then) for layer, old, h in layers]).mean()


def _level(name: str) -> str:
    """What layers of one resolution have in common, by a layer's name."""
    place, index = name.split(".")[:2]
    return {"down_blocks": index, "up_blocks": str(3 - int(index) if index.isdigit() else 0)}.get(place, "mid")


def _by(levels: Sequence[str], maps: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The maps of each level."""
    for level in dict.fromkeys(levels):
        yield [one for one, of in zip(maps, levels, strict=True) if of == level]


def _cross_entropy(target: Tensor, attention: Tensor, weight: Tensor) -> Tensor:
    """Of what regions are [B, K, nouns] and how much they attend to it, mean by weight [B, K], which sums to 1."""
    return -((target * attention.clamp_min(1e-6).log()).sum(-1) * weight).sum()


def _change(layer: Attention, before: Attention, hidden: Tensor, there: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """How far what a layer adds has moved, as a share of its mean square.

    hidden: [B, N, C]. there: bool [B, N], what counts. now, then: contexts [B, T, D], of the text encoders.
    """
    with torch.no_grad():
        old = _output(before, hidden, then)[there]
    return (_output(layer, hidden, now)[there] - old).square().mean() / old.square().mean()
