"""The recipes of the embedded model's training: everything that changes its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the weights. steps_* are optimiser steps, batch_* images per step."""

    seed: int = 0
    scenes_256: int = 6000
    scenes_512: int = 1500
    steps_autoencoder: int = 1600
    batch_autoencoder: int = 16
    steps_unet: int = 3200
    batch_unet: int = 16
    fine_every: int = 5
    batch_fine: int = 4
    learning_rate: float = 1e-3
    ema: float = 0.998
    caption_dropout: float = 0.3
    query_key_gain: float = 1.5
    noise_power: float = 1.0  # t = 1000 u^noise_power with u uniform in [0, 1)
    clean: float = 0.0  # share of the latents that get no noise, as when segmenting; they only serve agreement
    teacher: str = ""  # of the self-attention layers: "walk", "regions", or none
    agreement: float = 0.5  # weight of the teacher's loss
    aggregated: bool = False  # the teacher's loss is of the layers' aggregate, not of each layer

    def of(self, steps: int | None = None, batch: int | None = None) -> Recipe:
        """This recipe with other numbers of UNet steps and of images a step; None: as they are."""
        batch_unet, batch_fine = (batch, batch // 4) if batch else (self.batch_unet, self.batch_fine)
        return replace(self, steps_unet=steps or self.steps_unet, batch_unet=batch_unet, batch_fine=batch_fine)


# The stages after denoising. With `--start` their own numbers of scenes count, else those of Recipe are at hand.
AGREEMENT = Recipe(
    seed=1,
    scenes_256=8000,
    scenes_512=3000,
    steps_unet=800,
    batch_unet=8,
    fine_every=2,
    batch_fine=2,
    learning_rate=6e-4,
    ema=0.99,
    noise_power=1.5,
    clean=0.3,
    teacher="walk",
)
REGIONS = replace(AGREEMENT, seed=2, scenes_512=2000, steps_unet=1000, fine_every=1, clean=0.5, teacher="regions")
STAGES = {
    "unet": Recipe(),
    "agreement": AGREEMENT,
    "regions": REGIONS,
    "regions-2": replace(REGIONS, seed=3),
    "regions-3": replace(REGIONS, seed=4, steps_unet=1500, aggregated=True),
}
