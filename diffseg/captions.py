"""Captions and their nouns: BLIP writes what a photo shows, spaCy finds the nouns. Both are optional."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from diffseg.backbones.loading import quiet
from diffseg.devices import resolve_device
from diffseg.errors import UserError

CAPTIONER = "Salesforce/blip-image-captioning-base"
TAGGER = "en_core_web_sm"

_PICTURE = frozenset({"photo", "photograph", "picture", "image"})
_MAX_TOKENS = 30  # of a caption: well within what a text encoder of 77 tokens reads


class CaptionError(UserError):
    """A caption that names nothing; the message says so."""


@dataclass
class Captioner:
    """BLIP: photos -> captions."""

    model: Any
    processor: Any
    tokenizer: Any

    @classmethod
    def from_pretrained(
        cls, name: str = CAPTIONER, *, revision: str | None = None, device: str | torch.device = "auto"
    ) -> Captioner:
        """Loads a BLIP captioner, a folder or a hub id: safetensors only, never pickle.

        Raises:
            UserError: a folder that is not there, a model that is no BLIP captioner, no such device.
            OSError: the hub cannot be reached or does not have the model.
        """
        place = resolve_device(device)
        if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
            raise UserError(
                f"there is no captioner {name!r}: give a Hugging Face hub id such as {CAPTIONER}, or a folder"
            )
        with quiet():
            try:
                kind, parts = _load(name, revision)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise OSError(
                    f"cannot load the captioner {name!r} ({reason}): check the id and the network, or name what the "
                    f"picture shows with --nouns or --caption"
                ) from error
        if parts is None:
            raise UserError(f"{name!r} is no BLIP captioner but {kind}: take one such as {CAPTIONER}")
        model, processor, tokenizer = parts
        return cls(model.to(place).eval(), processor, tokenizer)

    @torch.no_grad()
    def __call__(self, photo: np.ndarray) -> str:
        """The caption of a photo, uint8 [H, W, 3]; the likeliest word at every step, so always the same."""
        pixels = self.processor(photo, return_tensors="pt")["pixel_values"].to(self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=_MAX_TOKENS, do_sample=False, num_beams=1)
        # The first token is what starts a caption; not every BLIP tokenizer knows it as a special one.
        return self.tokenizer.decode(tokens[0, 1:], skip_special_tokens=True).strip()


def _load(name: str, revision: str | None) -> tuple[str, tuple[Any, Any, Any] | None]:
    """What kind of model it is and, of a BLIP captioner, model, image processor and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

    kind = AutoConfig.from_pretrained(name, revision=revision).architectures or ["unknown"]
    if kind != [BlipForConditionalGeneration.__name__]:  # it would be loaded all the same, with random weights
        return kind[0], None
    return kind[0], (
        BlipForConditionalGeneration.from_pretrained(name, revision=revision, use_safetensors=True),
        BlipImageProcessorPil.from_pretrained(name, revision=revision),  # Pillow's: torchvision is not needed
        AutoTokenizer.from_pretrained(name, revision=revision),
    )


def load_tagger() -> Any:
    """spaCy's small English model, which marks the nouns of a text.

    Raises:
        UserError: it is not installed; the message says how to install it.
    """
    try:
        import spacy

        return spacy.load(TAGGER, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        raise UserError(
            f"without --nouns, names come from a caption, given or a captioner's, and finding its nouns needs spaCy's "
            f"small English model: install it with pip install 'diffseg[semantic]' and python -m spacy download "
            f"{TAGGER}, or name what the picture shows with --nouns"
        ) from None


def nouns_of(words: Iterable[Any]) -> tuple[str, ...]:
    """The nouns of a tagged text, in order, without repeats; consecutive ones are one noun of several words.

    What names the picture itself ("a photo of ...") is left out.

    Args:
        words: a spaCy Doc.

    Raises:
        CaptionError: there is none.
    """
    runs = [(is_noun, "".join(w.text_with_ws for w in run).strip()) for is_noun, run in groupby(words, _is_noun)]
    after = [text.split()[:1] for _, text in runs[1:]] + [[]]
    found: dict[str, str] = {}
    for (is_noun, noun), following in zip(runs, after, strict=True):
        if is_noun and not (noun.lower() in _PICTURE and following == ["of"]):
            found.setdefault(noun.lower(), noun)
    if not found:
        raise CaptionError(f"there is no noun in the caption {' '.join(text for _, text in runs)!r}")
    return tuple(found.values())


def _is_noun(word: Any) -> bool:
    return word.pos_ in ("NOUN", "PROPN")
