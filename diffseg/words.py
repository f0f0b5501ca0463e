"""Captions, the nouns in them, and the tokens of these. Pure functions of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffseg.errors import UserError


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
                f"the prompt is too long: the noun {noun!r} lies beyond the {tokenizer.model_max_length} tokens that "
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


def nouns_in(caption: str, vocabulary: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The words of a vocabulary that a caption names, as they stand there (also in the plural), with what they mean.

    Args:
        vocabulary: {word or words, in small letters: what it means}.

    Returns:
        (noun, meaning) in the order of the caption, each noun once.
    """
    singular = {f"{noun}{ending}": noun for ending in ("es", "s", "") for noun in vocabulary}
    spans = _occurrences(caption, list(singular))
    first = sorted((found[0], noun) for noun, found in spans.items() if found)
    return tuple((caption[start:stop], vocabulary[singular[noun]]) for (start, stop), noun in first)
