"""Semantic DiffSeg: the nouns of a caption name the segments, by the cross-attention of the same pass.

A noun's *map* is the attention that each pixel pays to the noun's tokens. Every segment takes the noun that its
pixels attend to most; segments of one noun become one. A name is *unsure* where another noun's score is nearly as high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffseg.images import beside, heat, load_image, overlay
from diffseg.methods.naming import VOTINGS, check_voting, noun_maps, vote
from diffseg.segmenter import DiffSeg, Segmentation, Settings, describe, save_results
from diffseg.words import caption_of, distinct, noun_tokens

__all__ = [
    "UNSURE",
    "VOTINGS",
    "LabelledSegmentation",
    "caption_of",
    "check_voting",
    "distinct",
    "label",
    "noun_maps",
    "noun_tokens",
    "vote",
]


# A name is unsure where the runner-up has at least this share of its score. By mean voting on 90 tuning scenes, with
# `mini`, 86 % of the names below it are right, 48 % of those above.
UNSURE = 0.7


@dataclass(frozen=True)
class LabelledSegmentation:
    """The segments of one photo, named.

    labels: int32 [H, W], index into nouns. nouns: in the order given; one that no segment took does not occur in
    labels. scores: float32 [segments, nouns], what the voting went by (see `vote`). segmentation: the segments before
    those of one noun were merged. caption: the prompt. voting: "mean" or "majority". attention: float32 [nouns, h, w],
    the nouns' maps at the finest resolution of cross-attention, 1 is the mean over the picture.
    """

    labels: np.ndarray
    nouns: tuple[str, ...]
    scores: np.ndarray
    segmentation: Segmentation
    caption: str
    voting: str
    attention: np.ndarray

    def __len__(self) -> int:
        return len(np.unique(self.labels))

    def __repr__(self) -> str:
        taken = ", ".join(self.nouns[i] for i in np.unique(self.labels))
        return f"LabelledSegmentation({taken}; of {self.segmentation!r})"

    def overlay(self, opacity: float = 0.5, palette: str = "regions") -> Image.Image:
        """The photo with its segments in colour, outlined, each with its name, with "?" where it is unsure.

        See `Segmentation.overlay`.
        """
        return overlay(self.segmentation.image, self.labels, opacity, palette, self.titles())

    def titles(self) -> list[str]:
        """What is written on each noun's segment: the noun, where it is unsure with a question mark."""
        unsure = {name["id"] for name in self.named() if name["unsure"]}
        return [noun + "?" * (index in unsure) for index, noun in enumerate(self.nouns)]

    def sheet(self, side: int = 320) -> Image.Image:
        """The photo, its named segments, and the attention that each noun gets, side by side.

        Args:
            side: longest of each picture, in pixels. The colours of a noun's map begin at 0 and end at the largest
                value that any noun's map has on all but 1 % of the pixels.
        """
        height, width = self.labels.shape
        shape = round(width * side / max(height, width)), round(height * side / max(height, width))
        photo = Image.fromarray(self.segmentation.image).resize(shape)
        top = max(float(np.quantile(self.attention, 0.99)), 1e-9)
        maps = [heat(photo, noun / top) for noun in self.attention]
        titles = ["", "segments", *self.nouns]
        return beside([photo, self.overlay().resize(shape), *maps], titles)

    def save(self, folder: str | Path, name: str | None = None, **drawing: Any) -> Path:
        """Writes what `diffseg label` writes into a folder, as `Segmentation.save`; drawing: opacity, palette."""
        return save_results(self, folder, name, self.segmentation.source, drawing)

    def named(self) -> list[dict[str, Any]]:
        """Per noun that has pixels: id (index into nouns), noun, score, and whether it is unsure (`UNSURE`)."""
        areas = np.bincount(self.segmentation.labels.ravel())
        winners = self.scores.argmax(1)
        names = []
        for index in np.unique(self.labels):
            parts = winners == index
            scores = np.average(self.scores[parts], 0, weights=areas[parts])  # exactly those of the merged segment
            others = np.delete(scores, index)
            unsure = bool(others.size and others.max() >= UNSURE * scores[index])
            score = round(float(scores[index]), 4)
            names.append({"id": int(index), "noun": self.nouns[index], "score": score, "unsure": unsure})
        return names

    def segments(self) -> list[dict[str, Any]]:
        """As `named`, and of each area, bbox and segmentation as `describe`."""
        return [name | describe(self.labels == name["id"]) for name in self.named()]

    def as_dict(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        words = {"caption": self.caption, "nouns": list(self.nouns), "voting": self.voting}
        return self.segmentation.as_dict() | words | {"segments": self.segments()}


def warning(seg: DiffSeg) -> str:
    """How far a model's names can be trusted, where its card has a figure for it; "" where there is none."""
    right = seg.model.defaults.get("names_right")
    if right is None:
        return ""
    return (
        f"{seg.model.name} names {100 * right:.0f} % of the segments of 90 generated scenes right, fewer of photos: "
        "look before you believe a name, and use a larger model for names that matter"
    )


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
    source = str(image) if isinstance(image, str | Path) else None
    segmentation = replace(seg.segment_observed(photo, seen, settings), source=source)
    cross = seen.batch.seen().cross_attention
    scores = vote(segmentation.labels, noun_maps(cross, tokens, seen.size), voting)
    merged = scores.argmax(1).astype(np.int32)[segmentation.labels]
    attention = np.stack(list(noun_maps(cross, tokens, max(cross))))
    return LabelledSegmentation(merged, nouns, scores, segmentation, caption, voting, attention)
