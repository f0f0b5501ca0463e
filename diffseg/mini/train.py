"""Trains the embedded model from nothing but generated scenes: `make mini`, or `python -m diffseg.mini.train`.

Six stages, each resumable from its checkpoint and deterministic by seed on one device:

1. scenes: photo-like pictures with captions are generated and cached. Labels are never used in training.
2. autoencoder: 8x down, 4 channels, on crops; L1 on pixels and, so that colour survives, on 8 x 8 means.
3. unet: v-prediction on the latents, jointly with the text encoder. Most steps see whole scenes at 256 px and crops
   of scenes at 512 px (both 32 x 32 latents), every fifth whole scenes at 512 px (64 x 64 latents).
4. agreement: denoising goes on, while all self-attention layers learn to attend as the diffused attention of one of
   them does (`Walk`): one layer groups by itself, the others are made to follow.
5. regions, three times: the same, towards segmentations of the model's own: k-means of its attention, with as many
   regions as the scene's caption names things (`Regions`). Twice each layer learns them for itself, then all together.
6. tune: the default time step and threshold, on scenes that nothing else uses, with their labels; then the folder
   is written.

The self-attention starts as non-local means: `to_k` is a copy of `to_q`, so similar features attend to each other
before anything is learned; denoising then decides what "similar" has to mean.

The stages lie in `pictures`, `autoencoder`, `text` (tokenizer and text encoder) and `denoiser`; `recipe` has their
numbers, `export` writes the folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from diffseg.backbones.diffusion import DiffusionModel
from diffseg.cli import one_sentence
from diffseg.devices import resolve_device
from diffseg.errors import UserError
from diffseg.files import check_writable
from diffseg.mini import checkpoints
from diffseg.mini.autoencoder import latents, train_autoencoder
from diffseg.mini.denoiser import Latents, new_unet, train_unet
from diffseg.mini.evaluate import tune
from diffseg.mini.export import export
from diffseg.mini.pictures import pictures
from diffseg.mini.recipe import STAGES, Recipe
from diffseg.mini.text import named, new_text_encoder, token_ids, train_tokenizer


def recommend(folder: Path, device: str) -> None:
    """Stage 6: writes a time step and a threshold, chosen on the tuning scenes, to folder/diffseg.json.

    The time step with the best mIoU; of the thresholds the largest whose mIoU is within one standard error of the best
    (Breiman's rule): what scenes cannot tell apart is decided for fewer segments, since photos have more surplus ones.
    """
    model = DiffusionModel.from_pretrained(str(folder), device=device)
    rough = tune(model, (100, 300, 500), [0.2 * 1.25**i for i in range(12)], 40)[0]
    rows = tune(model, [rough["timestep"]], [round(rough["threshold"] * 1.1**i, 2) for i in range(-2, 6)], 90)
    checkpoints.write(folder / "diffseg.json", json.dumps(fewest(rows)) + "\n")


def fewest(rows: Sequence[dict]) -> dict[str, float]:
    """{"threshold", "timestep"} of the row of `tune` with the largest threshold within a standard error of the best."""
    enough = rows[0]["miou"] - rows[0]["miou_error"]
    chosen = max((row for row in rows if row["miou"] >= enough), key=lambda row: row["threshold"])
    return {name: chosen[name] for name in ("threshold", "timestep")}


def _train(out: Path, work: Path, place: torch.device, given: DiffusionModel | None, stages: dict[str, Recipe]) -> None:
    """Every stage, those of the UNet by their recipes; autoencoder and tokenizer stay where a model is given."""
    recipe = next(iter(stages.values()))
    small, small_captions = pictures(work, recipe.scenes_256, 256, 0)
    large, large_captions = pictures(work, recipe.scenes_512, 512, recipe.scenes_256)

    # The model to begin with
    torch.manual_seed(recipe.seed)
    if given:
        model = given.pipeline
        autoencoder, tokenizer = model.vae, model.tokenizer
        unet, text = model.unet, model.text_encoder
    else:
        autoencoder = train_autoencoder(work, recipe, place, [small, large])
        tokenizer = train_tokenizer(work / "tokenizer", small_captions + large_captions)
        unet, text = new_unet(recipe.query_key_gain).to(place), new_text_encoder(tokenizer).to(place)

    # The UNet's stages
    data = Latents(
        latents(work, "256", autoencoder, small, place),
        latents(work, "512", autoencoder, large, place),
        token_ids(tokenizer, small_captions),
        token_ids(tokenizer, large_captions),
        np.array([named(caption) for caption in large_captions]),
    )
    with one_sentence("diffseg.mini.train"):
        for name, stage in stages.items():
            unet, text = train_unet(work, name, stage, data, tokenizer, unet, text)

    export(out, autoencoder, unet, text, tokenizer)
    recommend(out, str(place))


def main(
    out: Annotated[Path, typer.Option(help="Folder the model is written to.")] = Path(__file__).parent / "weights",
    start: Annotated[
        Path | None,
        typer.Option(help="Begin with the UNet and text encoder of this model: only the stages after denoising."),
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for caches and checkpoints; an interrupted training continues from it.")
    ] = Path("results/mini"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    steps: Annotated[
        int | None, typer.Option(help="Steps of the UNet, for those with a GPU. (default: the recipe's)", min=1)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Latents of 32 x 32 a step, a quarter as many of 64 x 64. (default: the recipe's)", min=4),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="With --start: only the last of these stages.")] = False,
) -> None:
    """Trains the embedded model (an estimated four hours on two CPU cores)."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    names = list(STAGES)[(-1 if last else 1) if start else 0 :]
    stages = {name: STAGES[name] for name in names}
    stages[names[0]] = stages[names[0]].of(steps, batch)
    with one_sentence("diffseg.mini.train"):
        if last and not start:
            raise UserError("--last needs a model to begin with: name its folder with --start")
        place = resolve_device(device)
        given = DiffusionModel.from_pretrained(str(start), device=place, dtype=torch.float32) if start else None
        check_writable(out, "choose another with --out")
        check_writable(work, "choose another with --work")
    _train(out, work, place, given, stages)


if __name__ == "__main__":
    typer.run(main)
