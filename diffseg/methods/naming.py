"""Semantic DiffSeg as a method: another method's segments, named by cross-attention (the paper's section 3.4).

A noun's *map* is the attention that each pixel pays to the noun's tokens. Every segment takes the noun that its
pixels attend to most; segments of one class become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from diffseg.attention import Look, Maps, Needs
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter
from diffseg.observed import Observed

VOTINGS = ("mean", "majority")


class Naming(Segmenter):
    """Names the segments of another method with the classes of a data set, in a second pass with a prompt.

    What the prompt says, and what class each of its nouns means, comes with the image (`Observed.prompt`). Labels are
    numbers of classes, so that the protocol `names` scores them. Of an image whose prompt has no noun, all is unnamed.

    of: the method. voting: "mean" or "majority", see `vote`.
    """

    names = True

    def __init__(self, of: Segmenter, voting: str = "mean"):
        if not isinstance(of, Segmenter):
            raise UserError(f"of must be a method whose segments are to be named, got {type(of).__name__}")
        check_voting(voting)
        self.of, self.voting = of, voting
        self.look, self.needs = of.look, of.needs
        self.prompted = replace(of.look, prompted=True)  # the second look, which names come from

    def passes(self) -> Mapping[Look, Needs]:
        """Those of the method, and one with the prompt."""
        asked = dict(self.of.passes())
        return asked | {self.prompted: asked.get(self.prompted, Needs()) | Needs(cross=True)}

    @torch.no_grad()
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W]: numbers of classes; the number of classes where nothing is named."""
        prompt = image.prompt
        if not prompt.tokens:
            return np.full(image.size, prompt.unnamed)
        segments = np.unique(self.of.segment(image), return_inverse=True)[1].reshape(image.size)
        scores = vote(segments, noun_maps(image.cross_attention(self.prompted), prompt.tokens, image.size), self.voting)
        return np.array(prompt.classes)[scores.argmax(1)][segments]


def noun_maps(cross: Maps, tokens: Sequence[Sequence[int]], size: tuple[int, int]) -> Iterable[np.ndarray]:
    """The map of each noun, float32 [H, W], one after the other (of a large photo there is no room for many).

    Each resolution is upsampled bilinearly and all weigh the same. Each position's attention sums to 1 over the
    tokens, also after interpolation and averaging, so there is nothing to normalise over tokens. A noun's map is the
    sum over its tokens, the probability that the position attends to the noun; their mean would be the same map,
    because each is then divided by its sum over the pixels: nouns are compared by where they are attended to, not by
    how much.

    Args:
        cross: {(h, w): [1, h*w, tokens]}. tokens: positions of each noun. size: (H, W) in pixels.
    """
    for positions in tokens:
        total = torch.zeros(size)
        for (h, w), attention in cross.items():
            column = attention[0][:, list(positions)].sum(1).view(1, 1, h, w).float()
            total += F.interpolate(column, size, mode="bilinear", align_corners=False)[0, 0].cpu()
        yield (total / total.mean()).numpy()


def vote(labels: np.ndarray, maps: Iterable[np.ndarray], voting: str = "mean") -> np.ndarray:
    """How much each segment is of each noun; the largest names it (the first, if equal).

    "mean": the mean of the noun's map within the segment, where 1 is the map's mean over the picture. "majority": the
    fraction of the segment's pixels at which the noun's map is the largest of all.

    Args:
        labels: int [H, W], 0..K-1, compact. maps: [H, W] for each noun.

    Returns:
        float32 [K, nouns].

    Raises:
        UserError: no such voting.
    """
    check_voting(voting)
    flat = labels.ravel()
    areas = np.bincount(flat)
    if voting == "mean":
        sums = [np.bincount(flat, m.ravel()) for m in maps]
    else:
        best, winner = np.full(flat.shape, -np.inf, np.float32), np.zeros(flat.shape, np.int32)
        count = 0
        for count, m in enumerate(maps, start=1):
            better = m.ravel() > best
            best[better], winner[better] = m.ravel()[better], count - 1
        sums = [np.bincount(flat[winner == noun], minlength=len(areas)) for noun in range(count)]
    return (np.stack(sums, 1) / areas[:, None]).astype(np.float32)


def check_voting(voting: str) -> None:
    """Raises UserError if there is no such voting."""
    if voting not in VOTINGS:
        raise UserError(f"voting must be {' or '.join(VOTINGS)}, got {voting!r}")
