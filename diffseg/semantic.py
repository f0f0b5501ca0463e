"""Semantic DiffSeg: the nouns of a caption name the segments, by the cross-attention of the same pass.

A noun's *map* is the attention that each pixel pays to the noun's tokens. Every segment takes the noun that its
pixels attend to most; segments of one noun become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffseg.images import load_image, overlay
from diffseg.methods.naming import VOTINGS, check_voting, noun_maps, vote
from diffseg.segmenter import DiffSeg, Segmentation, Settings, describe, save_results
from diffseg.words import caption_of, distinct, noun_tokens

__all__ = [
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

    def __repr__(self) -> str:
        taken = ", ".join(self.nouns[i] for i in np.unique(self.labels))
        return f"LabelledSegmentation({taken}; of {self.segmentation!r})"

    def overlay(self, opacity: float = 0.5, palette: str = "regions") -> Image.Image:
        """The photo with its segments in colour, outlined, each with its name; see `Segmentation.overlay`."""
        return overlay(self.segmentation.image, self.labels, opacity, palette, self.nouns)

    def save(self, folder: str | Path, name: str | None = None, **drawing: Any) -> Path:
        """Writes what `diffseg label` writes into a folder, as `Segmentation.save`; drawing: opacity, palette."""
        return save_results(self, folder, name, self.segmentation.source, drawing)

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
    source = str(image) if isinstance(image, str | Path) else None
    segmentation = replace(seg.segment_observed(photo, seen, settings), source=source)
    maps = noun_maps(seen.batch.seen().cross_attention, tokens, seen.size)
    scores = vote(segmentation.labels, maps, voting)
    merged = scores.argmax(1).astype(np.int32)[segmentation.labels]
    return LabelledSegmentation(merged, nouns, scores, segmentation, caption, voting)
