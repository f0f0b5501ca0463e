"""The recipe of the embedded model: everything that changes its weights, stage after stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Drawing:
    """Draws scenes with captions: how many small ones, and how many large ones, and their sides in pixels."""

    small: int
    large: int
    small_size: int = 256
    large_size: int = 512


@dataclass(frozen=True)
class Autoencoding:
    """Trains the autoencoder on crops of all scenes, `batch` a step, and makes the latents of the scenes."""

    seed: int = 0
    steps: int = 1600
    batch: int = 16


@dataclass(frozen=True)
class Start:
    """Makes the tokenizer from the captions, and the untrained UNet and text encoder."""

    seed: int = 0
    query_key_gain: float = 1.5


@dataclass(frozen=True)
class Denoising:
    """Trains UNet and text encoder by denoising and, where there is a teacher, self-attention towards agreement.

    A step sees `batch` latents of 32 x 32, every `fine_every`-th step `batch_fine` of 64 x 64.
    """

    seed: int = 0
    large: int = 2000  # that many of the scenes of 512 px are used
    steps: int = 3200
    batch: int = 16
    fine_every: int = 5
    batch_fine: int = 4
    learning_rate: float = 1e-3
    ema: float = 0.998
    caption_dropout: float = 0.3
    noise_power: float = 1.0  # t = 1000 u^noise_power with u uniform in [0, 1)
    clean: float = 0.0  # share of the latents that get no noise, as when segmenting; they only serve agreement
    teacher: str = ""  # of the self-attention layers: "walk", "regions", or none
    agreement: float = 0.5  # weight of the teacher's loss
    aggregated: bool = False  # the teacher's loss is of the layers' aggregate, not of each layer

    def of(self, steps: int | None = None, batch: int | None = None) -> Denoising:
        """This stage with other numbers of steps and of latents a step; None: as they are."""
        batch, batch_fine = (batch, batch // 4) if batch else (self.batch, self.batch_fine)
        return replace(self, steps=steps or self.steps, batch=batch, batch_fine=batch_fine)


@dataclass(frozen=True)
class Words:
    """Teaches cross-attention the nouns of captions, `batch` scenes of 512 px a step."""

    seed: int = 5
    large: int = 4000  # that many of the scenes of 512 px are used
    threshold: float = 0.5  # tau of the regions: rather too many than too few
    steps_classifier: int = 1500
    coverage: float = 15.0  # weight of "each noun has a region" beside "each region is one of the nouns"
    steps: int = 4000
    batch: int = 16
    learning_rate: float = 2e-3
    absent: int = 3  # nouns at most that a prompt has besides the caption's
    hold: float = 10.0  # weight of how far what cross-attention gives has moved under the empty prompt,
    hold_captioned: float = 0.3  # and under captions


Stage = Drawing | Autoencoding | Start | Denoising | Words
Recipe = Mapping[str, Stage]

_AGREEMENT = Denoising(
    seed=1,
    steps=800,
    batch=8,
    fine_every=2,
    batch_fine=2,
    learning_rate=6e-4,
    ema=0.99,
    noise_power=1.5,
    clean=0.3,
    teacher="walk",
)
_REGIONS = replace(_AGREEMENT, seed=2, steps=1000, fine_every=1, clean=0.5, teacher="regions")

# The stages by name, in order.
RECIPE: Recipe = {
    "scenes": Drawing(small=8000, large=4000),
    "autoencoder": Autoencoding(),
    "start": Start(),
    "unet": Denoising(),
    "agreement": _AGREEMENT,
    "regions": _REGIONS,
    "regions-2": replace(_REGIONS, seed=3),
    "regions-3": replace(_REGIONS, seed=4, steps=1500, aggregated=True),
    "words": Words(),
}

_AMOUNTS = {"small", "large", "steps", "steps_classifier"}  # of scenes and of steps


def part(recipe: Recipe, share: float) -> Recipe:
    """A trial of a recipe: the same stages with that share of all scenes and steps, at least one of each."""
    return {
        name: replace(
            stage,
            **{f.name: max(1, round(share * getattr(stage, f.name))) for f in fields(stage) if f.name in _AMOUNTS},
        )
        for name, stage in recipe.items()
    }
