"""Trains the embedded model from nothing but generated scenes: `make mini`, or `python -m diffseg.mini.train`.

The stages and all their numbers are `RECIPE` in `recipe.py`. Each continues from its checkpoint or cache, and is
deterministic by its seed on one device with one number of threads:

1. scenes: photo-like pictures with captions are generated. Labels are never used in training.
2. autoencoder: 8x down, 4 channels, on crops; L1 on pixels and, so that colour survives, on 8 x 8 means.
3. start: the tokenizer, made from the captions, and the untrained UNet and text encoder. The self-attention starts as
   non-local means: `to_k` is a copy of `to_q`, so similar features attend to each other before anything is learned;
   denoising then decides what "similar" has to mean.
4. unet: v-prediction on the latents, jointly with the text encoder. Most steps see whole scenes at 256 px and crops
   of scenes at 512 px (both 32 x 32 latents), every fifth whole scenes at 512 px (64 x 64 latents).
5. agreement: denoising goes on, while all self-attention layers learn to attend as the diffused attention of one of
   them does (`Walk`): one layer groups by itself, the others are made to follow.
6. regions, three times: the same, towards segmentations of the model's own: k-means of its attention, with as many
   regions as the scene's caption names things (`Regions`). Twice each layer learns them for itself, then all together.
7. words: a classifier learns from captions alone what noun each of the model's own segments is; cross-attention
   learns to attend from a segment to its noun. What it gives is held, self-attention is not touched.

Then the default time step and threshold are chosen on scenes that nothing else uses, with their labels, and the folder
of the model is written.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from diffseg.backbones.diffusion import DiffusionModel
from diffseg.backbones.loading import quiet
from diffseg.cli import one_sentence
from diffseg.datasets.scenes import TUNE_SEED, Scenes
from diffseg.devices import resolve_device
from diffseg.errors import UserError
from diffseg.eval.semantic import score
from diffseg.files import check_writable
from diffseg.mini import checkpoints
from diffseg.mini.autoencoder import latents, train_autoencoder
from diffseg.mini.denoiser import Latents, new_unet, train_unet
from diffseg.mini.evaluate import tune
from diffseg.mini.export import export
from diffseg.mini.pictures import pictures
from diffseg.mini.recipe import RECIPE, Autoencoding, Denoising, Drawing, Recipe, Start, Words, part
from diffseg.mini.text import new_text_encoder, token_ids, train_tokenizer
from diffseg.mini.words import train_words
from diffseg.segmenter import DiffSeg


def recommend(folder: Path, device: str, kept: Mapping[str, float] | None = None) -> None:
    """Writes a time step and a threshold, chosen on the tuning scenes, and the share of their segments whose names are
    right then ("names_right"), to folder/diffseg.json.

    The time step with the best mIoU; of the thresholds the largest whose mIoU is within one standard error of the best
    (Breiman's rule): what scenes cannot tell apart is decided for fewer segments, since photos have more surplus ones.

    Args:
        kept: "timestep" and "threshold" of a model that has learned nothing since but words, which stay.
    """
    print("choosing the time step and the threshold, and naming segments", file=sys.stderr)
    model = DiffusionModel.from_pretrained(str(folder), device=device)
    if kept is None:
        rough = tune(model, (100, 300, 500), [0.2 * 1.25**i for i in range(12)], 40)[0]
        kept = fewest(
            tune(model, [rough["timestep"]], [round(rough["threshold"] * 1.1**i, 2) for i in range(-2, 6)], 90)
        )
    chosen: dict[str, Any] = {name: kept[name] for name in ("threshold", "timestep")}
    seg = DiffSeg(model)
    named = score(seg, Scenes(90, TUNE_SEED), seg.settings(**chosen))["mean"]
    chosen["names_right"] = round(named["segment_accuracy"], 3)
    checkpoints.write(folder / "diffseg.json", json.dumps(chosen) + "\n")


def fewest(rows: Sequence[dict]) -> dict[str, float]:
    """{"threshold", "timestep"} of the row of `tune` with the largest threshold within a standard error of the best."""
    enough = rows[0]["miou"] - rows[0]["miou_error"]
    chosen = max((row for row in rows if row["miou"] >= enough), key=lambda row: row["threshold"])
    return {name: chosen[name] for name in ("threshold", "timestep")}


def _train(
    recipe: Recipe, out: Path, work: Path, place: torch.device, given: DiffusionModel | None = None, first: str = ""
) -> None:
    """Runs the stages of a recipe in order and writes the model to out.

    given: a model to begin with, of which autoencoder and tokenizer stay; then the stages of the UNet before the one
    called `first` are left out.
    """
    skipped = list(recipe)[: list(recipe).index(first)] if given else []
    for name, stage in recipe.items():
        if isinstance(stage, Drawing):
            small = pictures(work, stage.small, stage.small_size, 0)
            large = pictures(work, stage.large, stage.large_size, stage.small)
        elif isinstance(stage, Autoencoding):
            vae = given.pipeline.vae if given else train_autoencoder(work, stage, place, [small.images, large.images])
        elif isinstance(stage, Start):
            torch.manual_seed(stage.seed)
            tokenizer = (
                given.pipeline.tokenizer
                if given
                else train_tokenizer(work / "tokenizer", small.captions + large.captions)
            )
            unet = given.pipeline.unet if given else new_unet(stage.query_key_gain).to(place)
            text = given.pipeline.text_encoder if given else new_text_encoder(tokenizer).to(place)
            data = Latents(
                latents(work, vae, small.images, place),
                latents(work, vae, large.images, place),
                token_ids(tokenizer, small.captions),
                token_ids(tokenizer, large.captions),
                np.array([len(nouns) for nouns in large.nouns]),
            )
        elif isinstance(stage, Denoising) and name not in skipped:
            train_unet(work, name, stage, data, tokenizer, unet, text)
        elif isinstance(stage, Words):
            train_words(work, name, stage, data.large, large.nouns, tokenizer, unet, text)
    unfinished = work / "unfinished"  # until it is whole, out stays as it is
    with quiet():
        export(unfinished, vae, unet, text, tokenizer)
    only_words = given and all(isinstance(stage, Words) for name, stage in recipe.items() if name not in skipped)
    recommend(unfinished, str(place), given.defaults if given and only_words else None)
    shutil.copytree(unfinished, out, dirs_exist_ok=True)
    shutil.rmtree(unfinished)
    print(f"the model: {out}; try it with diffseg segment --demo --model {out}")


def main(
    out: Annotated[Path, typer.Option(help="Folder the model is written to.")] = Path("results/mini/model"),
    start: Annotated[
        Path | None, typer.Option(help="Begin with this model: its autoencoder and tokenizer stay, the rest goes on.")
    ] = None,
    first: Annotated[str, typer.Option(help="With --start: the first stage to run.")] = "agreement",
    work: Annotated[
        Path, typer.Option(help="Folder for caches and checkpoints; an interrupted training continues from it.")
    ] = Path("results/mini"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    share: Annotated[
        float, typer.Option(help="For a trial: this share of all scenes and steps of the recipe.", min=0.001, max=1.0)
    ] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the UNet, for those with a GPU. (default: the recipe's)", min=1)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Latents of 32 x 32 a step, a quarter as many of 64 x 64. (default: the recipe's)", min=4),
    ] = None,
) -> None:
    """Trains the embedded model (hours on two CPU cores)."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    recipe = dict(part(RECIPE, share))
    if isinstance(denoising := recipe["unet"], Denoising):
        recipe["unet"] = denoising.of(steps, batch)
    stages = [name for name, stage in RECIPE.items() if not isinstance(stage, Drawing | Autoencoding | Start)]
    with one_sentence("diffseg.mini.train"):
        if first not in stages:
            raise UserError(f"--first must be one of {', '.join(stages)}; got {first!r}")
        place = resolve_device(device)
        given = DiffusionModel.from_pretrained(str(start), device=place, dtype=torch.float32) if start else None
        check_writable(out, "choose another with --out")
        check_writable(work, "choose another with --work")
        _train(recipe, out, work, place, given, first)


if __name__ == "__main__":
    typer.run(main)
