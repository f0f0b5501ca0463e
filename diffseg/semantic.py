"""Semantic DiffSeg: the nouns of a caption name the segments, by the cross-attention of the same pass.

A noun's *map* is the attention that each pixel pays to the noun's tokens. Every segment takes the noun that its
pixels attend to most; segments of one noun become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffseg.attention import Maps
from diffseg.errors import UserError
from diffseg.images import load_image, overlay, write_names
from diffseg.segmenter import DiffSeg, Segmentation, Settings, describe

VOTINGS = ("mean", "majority")


@dataclass(frozen=True)
class LabelledSegmentation:
    """The segments of one photo, named.

    labels: int32 [H, W], index into nouns. nouns: in the order given; one that no segment took does not occur in
    labels. scores: float32 [segments, nouns], what the voting went by (see `vote`). segmentation: the segments before
    those of one noun were merged. caption: the prompt. voting: "mean" or "majority".
    """

    labels: np.ndarray
    nouns: tuple[str, ...]
    scores: np.ndarray
    segmentation: Segmentation
    caption: str
    voting: str

    def __len__(self) -> int:
        return len(np.unique(self.labels))

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The photo with its segments in colour, outlined, each with its name."""
        return write_names(overlay(self.segmentation.image, self.labels, opacity), self.labels, self.nouns)

    def segments(self) -> list[dict[str, Any]]:
        """Per noun that has pixels: id (index into nouns), noun, score, area, bbox and segmentation as `describe`."""
        areas = np.bincount(self.segmentation.labels.ravel())
        names = self.scores.argmax(1)
        found = []
        for index in np.unique(self.labels):
            parts = names == index
            score = np.average(self.scores[parts, index], weights=areas[parts])  # exactly that of the merged segment
            named = {"id": int(index), "noun": self.nouns[index], "score": round(float(score), 4)}
            found.append(named | describe(self.labels == index))
        return found

    def as_dict(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        words = {"caption": self.caption, "nouns": list(self.nouns), "voting": self.voting}
        return self.segmentation.as_dict() | words | {"segments": self.segments()}


def label(
    seg: DiffSeg,
    image: Image.Image | np.ndarray | str | Path,
    nouns: Sequence[str],
    caption: str | None = None,
    settings: Settings | None = None,
    voting: str = "mean",
) -> LabelledSegmentation:
    """Segments a photo and names the segments; one pass of the UNet, with the caption as its prompt.

    Args:
        image: PIL image, uint8 [H, W, 3], or a file.
        nouns: what the segments may be called, each of one or more words.
        caption: a sentence with all the nouns; None: "a photo of ..." them.
        settings: of the segmentation; None: the model's own.
        voting: "mean" or "majority", see `vote`.

    Raises:
        ImageError: the photo cannot be used. UserError: no nouns, a noun that the caption lacks or that lies beyond
            the text encoder's context, no such voting.
    """
    photo, settings = load_image(image), settings or seg.settings()
    nouns = distinct(nouns)
    caption = caption_of(nouns) if caption is None else caption
    tokens = noun_tokens(seg.model.tokenizer, caption, nouns)
    seen = seg.observe_as(photo, settings, caption)
    segmentation = seg.segment_observed(photo, seen, settings)
    maps = noun_maps(seen.batch.seen().cross_attention, tokens, seen.size)
    scores = vote(segmentation.labels, maps, voting)
    merged = scores.argmax(1).astype(np.int32)[segmentation.labels]
    return LabelledSegmentation(merged, nouns, scores, segmentation, caption, voting)


# --- words -> tokens --------------------------------------------------------------------------------------------------


def distinct(nouns: Iterable[str]) -> tuple[str, ...]:
    """Nouns without surrounding blanks and without repeats (small and capital letters are one), in order.

    Raises:
        UserError: no noun is left.
    """
    found: dict[str, str] = {}
    for noun in (" ".join(noun.split()) for noun in nouns):
        if noun:
            found.setdefault(noun.lower(), noun)
    if not found:
        raise UserError("no nouns given: name what the picture shows, for example dog,grass")
    return tuple(found.values())


def caption_of(nouns: Sequence[str]) -> str:
    """The caption that lists the nouns: "a photo of dog, grass and sky"."""
    *most, last = nouns
    return f"a photo of {', '.join(most)} and {last}" if most else f"a photo of {last}"


def noun_tokens(tokenizer: Any, caption: str, nouns: Sequence[str]) -> list[list[int]]:
    """Positions in the encoded caption (0 is the start token) of all tokens of all occurrences of each noun.

    Found by the characters that each token covers: counting words would be wrong as soon as one of them is split into
    several tokens. Nouns are whole words, small and capital letters are one, and where one noun is part of another
    ("light", "traffic light") the longer one has the words.

    Args:
        tokenizer: the text encoder's, a fast one.

    Raises:
        UserError: a noun that is not in the caption, or only beyond the text encoder's context.
    """
    spans = _occurrences(caption, nouns)
    encoded = tokenizer(
        caption, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True, verbose=False
    )
    covered = [(i, *span) for i, span in enumerate(encoded["offset_mapping"]) if span[0] < span[1]]  # no special tokens
    end = max((stop for _, _, stop in covered), default=0)
    found = []
    for noun in nouns:
        if not spans[noun.lower()]:
            raise UserError(f"the noun {noun!r} is not among the words of the caption {caption!r}")
        inside = [span for span in spans[noun.lower()] if span[1] <= end]
        if not inside:
            raise UserError(
                f"the caption is too long: the noun {noun!r} lies beyond the {tokenizer.model_max_length} tokens that "
                f"the text encoder reads"
            )
        found.append([i for i, start, stop in covered if any(start < b and stop > a for a, b in inside)])
    return found


def _occurrences(caption: str, nouns: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Character spans [start, stop) of each noun (in small letters) in the caption, longest nouns first."""
    longest = sorted({noun.lower() for noun in nouns}, key=len, reverse=True)
    patterns = [r"\s+".join(map(re.escape, noun.split())) for noun in longest]
    spans: dict[str, list[tuple[int, int]]] = {noun: [] for noun in longest}
    for match in re.finditer(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", caption, re.IGNORECASE):
        spans[" ".join(match.group().lower().split())].append(match.span())
    return spans


# --- tokens -> maps -> names ------------------------------------------------------------------------------------------


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
