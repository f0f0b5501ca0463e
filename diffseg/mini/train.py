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
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffseg.attention import DiffusionModel, resolve_device
from diffseg.cli import one_sentence
from diffseg.datasets.scenes import TRAIN_SEED, scene
from diffseg.files import check_writable
from diffseg.mini.agreement import Agreement, Batch, Regions, Walk, partitions
from diffseg.mini.evaluate import tune

CHECKPOINT_EVERY = 250  # steps


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


# --- stage 1: pictures ------------------------------------------------------------------------------------------------


def _picture(args: tuple[int, int]) -> tuple[np.ndarray, str]:
    made = scene(TRAIN_SEED, *args)
    return made.image, made.caption


def pictures(work: Path, count: int, size: int, first: int) -> tuple[np.ndarray, list[str]]:
    """`count` training scenes, uint8 [count, size, size, 3] (memory-mapped), and their captions; cached in work."""
    images, captions = work / f"scenes-{size}-{count}.npy", work / f"scenes-{size}-{count}.json"
    if not captions.exists():
        partial = images.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, size, size, 3))
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(_picture, ((first + i, size) for i in range(count)), chunksize=32)
            texts = []
            for i, (image, caption) in enumerate(tqdm(made, f"scenes {size} px", count)):
                out[i] = image
                texts.append(caption)
        out.flush()
        partial.rename(images)
        _write(captions, json.dumps(texts))
    return np.load(images, mmap_mode="r"), json.loads(captions.read_text())


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.rename(path)


def _generator(*key: int) -> np.random.Generator:
    """The random stream of one training step: resuming at a step draws what an unbroken run would draw."""
    return np.random.default_rng(key)


def _tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _save(path: Path, **state) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def _cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then cosine down to 3 %."""
    return min(1.0, (step + 1) / warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _autocast(device: torch.device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


# --- stage 2: autoencoder ---------------------------------------------------------------------------------------------


def new_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder: purely convolutional, so that crops train it for any size.

    Its skip path starts as the identity (a latent is the colour of a pixel of its cell) and its residual branches
    start small: otherwise the group normalisations make colour the last thing that is learned.
    """
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=512,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and name.endswith("conv2"):
                module.weight.mul_(0.1)
            elif isinstance(module, torch.nn.Conv2d) and not name.endswith("conv1"):
                module.weight.copy_(0.1 * module.weight + torch.nn.init.dirac_(torch.empty_like(module.weight)))
                module.bias.zero_()  # type: ignore[union-attr]
        model.quant_conv.bias[4:] = -4.0  # log-variance: little noise at first
    return model


def train_autoencoder(work: Path, recipe: Recipe, device: torch.device, sources: list[np.ndarray]) -> AutoencoderKL:
    """Returns the trained autoencoder with its scaling factor (1 / standard deviation of the latents) set."""
    torch.manual_seed(recipe.seed)
    model, checkpoint, first = new_autoencoder().to(device), work / "autoencoder.pt", 0
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        model.register_to_config(scaling_factor=state["scaling_factor"])
    steps = recipe.steps_autoencoder
    for step in (bar := tqdm(range(first, steps), "autoencoder", steps, initial=first, mininterval=5)):
        rng = _generator(recipe.seed, 1, step)
        crops = []
        for _ in range(recipe.batch_autoencoder):
            source = sources[rng.integers(len(sources))]
            image = source[rng.integers(len(source))]
            y, x = rng.integers(0, image.shape[0] - 128 + 1, 2)
            crop = image[y : y + 128, x : x + 128]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        x = _tensor(np.stack(crops), device)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * _cosine(step, steps)
        with _autocast(device):
            posterior = model.encode(x).latent_dist
            noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(device)
            y = model.decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        pixels, colour = F.l1_loss(y, x), F.l1_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = pixels + 2 * colour + 1e-3 * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        bar.set_postfix(pixels=f"{pixels.item():.4f}", colour=f"{colour.item():.4f}", kl=f"{kl.item():.2f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            scale = 1 / posterior.mean.float().std().item()
            _save(
                checkpoint,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step + 1,
                scaling_factor=scale,
            )
            model.register_to_config(scaling_factor=scale)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def latents(work: Path, name: str, autoencoder: AutoencoderKL, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Scaled latents of images, float16 [count, 4, h, w] (memory-mapped); cached in work."""
    path = work / f"latents-{name}-{len(images)}.npy"
    if not path.exists():
        side = images.shape[1] // 8
        partial = path.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.float16, (len(images), 4, side, side))
        for i in tqdm(range(0, len(images), 16), f"latents {name}", mininterval=5):
            x = _tensor(images[i : i + 16], device)
            with _autocast(device):
                mean = autoencoder.encode(x).latent_dist.mean
            out[i : i + 16] = (mean.float() * autoencoder.config.scaling_factor).cpu().numpy()
        out.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")


# --- stage 3: tokenizer, text encoder, UNet ---------------------------------------------------------------------------


def train_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format: whole words of the captions, pieces or bytes for all other text."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    trained = json.loads(bpe.to_str())["model"]
    # CLIP's own order: bytes, bytes that end a word, merges, the two special tokens.
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    words = alphabet + [b + "</w>" for b in alphabet]
    words += list(dict.fromkeys("".join(m) for m in merges if "".join(m) not in set(words)))
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False))
    _write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> np.ndarray:
    """int64 [count, 77]: start, tokens, then the end token up to the full length."""
    return np.array(tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: CLIP's, two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(query_key_gain: float = 1.0) -> UNet2DConditionModel:
    """The untrained UNet: SD 1.x's blocks (self-attention 5/5/5/1 at 64/32/16/8), narrow."""
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 96, 96, 80),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=(1, 2, 2, 2),
    )
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.to_q.weight.mul_(query_key_gain)
                module.to_k.weight.copy_(module.to_q.weight)
    return unet


def schedule() -> DDIMScheduler:
    """SD's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Ema:
    """Exponential moving average of the parameters of some modules, with a warm-up."""

    def __init__(self, modules: list[torch.nn.Module], decay: float):
        self.modules, self.decay = modules, decay
        self.shadow = [p.detach().clone() for m in modules for p in m.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the parameters after optimiser step `step`."""
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.shadow, [p.detach() for m in self.modules for p in m.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, modules: list[torch.nn.Module]) -> None:
        """Writes the average into modules of the same architecture."""
        for p, s in zip((p for m in modules for p in m.parameters()), self.shadow, strict=True):
            p.copy_(s)


@dataclass(frozen=True)
class Latents:
    """Training latents [count, 4, h, w] at 256 and 512 px; token ids [count, 77] of the captions; how many things the
    captions at 512 px name [count]."""

    small: np.ndarray
    large: np.ndarray
    small_ids: np.ndarray
    large_ids: np.ndarray
    large_named: np.ndarray


def named(caption: str) -> int:
    """How many things a scene's caption names: 3 in "a photo of sky, grass and dog"."""
    return len(caption.removeprefix("a photo of ").replace(" and ", ", ").split(", "))


def _batch(data: Latents, recipe: Recipe, step: int, empty: np.ndarray, device: torch.device) -> Batch:
    """The batch of one step. Crops get no caption: they may lack what it names."""
    rng = _generator(recipe.seed, 2, step)
    fine = step % recipe.fine_every == 0
    x, ids, large = [], [], []
    for _ in range(recipe.batch_fine if fine else recipe.batch_unet):
        if fine or rng.random() < 0.4:
            i = rng.integers(len(data.large))
            z = data.large[i]
            text = data.large_ids[i]
            large.append(int(i))
            if not fine:
                top, left = rng.integers(0, z.shape[1] - 32 + 1, 2)
                z, text = z[:, top : top + 32, left : left + 32], empty
        else:
            i = rng.integers(len(data.small))
            z, text = data.small[i], data.small_ids[i]
            large.append(-1)
        x.append(z)
        ids.append(empty if rng.random() < recipe.caption_dropout else text)
    latents = torch.from_numpy(np.stack(x).astype(np.float32)).to(device)
    return Batch(latents, torch.from_numpy(np.stack(ids)).to(device), np.array(large), rng)


def _noised(x: torch.Tensor, recipe: Recipe, rng: np.random.Generator, signal: torch.Tensor):
    """Latents to denoise, their time steps, the velocities to predict, and which latents were left clean, at t = 100.

    x: [B, 4, n, n]; signal [1000]: the schedule's cumulative alphas.
    """
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    t = torch.from_numpy((1000 * rng.random(len(x)) ** recipe.noise_power).astype(np.int64)).to(x.device)
    a = signal[t].view(-1, 1, 1, 1)
    noisy, velocity = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
    clean = torch.from_numpy(rng.random(len(x)) < recipe.clean).to(x.device)
    return torch.where(clean.view(-1, 1, 1, 1), x, noisy), torch.where(clean, 100, t), velocity, clean


def _fingerprint(recipe: Recipe, *parts: torch.nn.Module) -> str:
    """What a stage of training starts from: its recipe, but for its length, and the weights before it."""
    digest = hashlib.sha256(repr(replace(recipe, steps_unet=0)).encode())
    for tensor in (p for part in parts for p in part.parameters()):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _teacher(recipe: Recipe, cache: Path, data: Latents, unet: UNet2DConditionModel, context: torch.Tensor):
    """What a stage's recipe has the self-attention layers taught by, made from the model that the stage begins with."""
    if recipe.teacher == "walk":
        return Walk(unet, context)
    if recipe.teacher == "regions":
        return Regions(partitions(cache, unet, context, data.large, data.large_named))
    return None


class Training:
    """One stage's training of UNet and text encoder: what a checkpoint keeps, and the curve."""

    def __init__(
        self, unet: UNet2DConditionModel, text: CLIPTextModel, recipe: Recipe, checkpoint: Path, losses: list[str]
    ):
        """Continues from checkpoint if it is there. losses: the names of those that the curve has.

        Raises:
            ValueError: the checkpoint is of a training that began with other weights or another recipe.
        """
        self.begun = _fingerprint(recipe, unet, text)
        self.unet, self.text, self.checkpoint = unet, text, checkpoint
        for module in (unet, text):
            module.requires_grad_(True).train()
        self.parameters = [*unet.parameters(), *text.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.ema, self.step = Ema([unet, text], recipe.ema), 0
        self.curve: list[list[float]] = []
        self.losses: dict[str, list[float]] = {name: [] for name in losses}
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, map_location=unet.device, weights_only=True)
        if state.get("begun") != self.begun:
            raise ValueError(
                f"{checkpoint} is of a training that began with other weights or another recipe: "
                "choose another folder with --work"
            )
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.shadow, self.step, self.curve, self.losses = (state[k] for k in ("ema", "step", "curve", "losses"))

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        """One step down the gradient of loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.ema.update(self.step)
        self.step += 1

    def means(self) -> dict[str, float]:
        """The mean of the latest 50 of each loss; nan where there is none."""
        return {name: round(float(np.mean(v[-50:])), 5) if v else math.nan for name, v in self.losses.items()}

    def save(self) -> None:
        """Writes the checkpoint, and beside it the curve."""
        rows = [",".join(["step", *self.losses]), *(",".join(map(str, row)) for row in self.curve)]
        _write(self.checkpoint.with_name(f"{self.checkpoint.stem}-curve.csv"), "\n".join(rows) + "\n")
        _save(
            self.checkpoint,
            begun=self.begun,
            unet=self.unet.state_dict(),
            text=self.text.state_dict(),
            optimiser=self.optimiser.state_dict(),
            ema=self.ema.shadow,
            step=self.step,
            curve=self.curve,
            losses={name: values[-50:] for name, values in self.losses.items()},
        )


def train_unet(
    work: Path,
    stage: str,
    recipe: Recipe,
    data: Latents,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains unet and text encoder by denoising, and for agreement where the recipe says so; returns their exponential
    moving averages. The checkpoint is work/STAGE.pt, the losses are in work/STAGE-curve.csv.

    Raises:
        ValueError: the checkpoint is of a training that began with other weights or another recipe.
    """
    device = unet.device
    empty = token_ids(tokenizer, [""])[0]
    with torch.no_grad():
        context = text(torch.from_numpy(empty)[None].to(device))[0]
    teacher = _teacher(recipe, work / f"regions-{_fingerprint(recipe, unet, text)[:12]}.npy", data, unet, context)
    agreement = Agreement(unet, recipe.aggregated) if teacher else None
    names = ["loss_32"] * (recipe.fine_every > 1) + ["loss_64"] + ["agreement"] * bool(teacher)
    training = Training(unet, text, recipe, work / f"{stage}.pt", names)
    signal = schedule().alphas_cumprod.to(device)
    first, steps = training.step, recipe.steps_unet
    for step in (bar := tqdm(range(first, steps), stage, steps, initial=first, mininterval=5)):
        batch = _batch(data, recipe, step, empty, device)
        noisy, t, velocity, clean = _noised(batch.latents, recipe, batch.rng, signal)
        with _autocast(device):
            predicted = unet(noisy, t, text(batch.ids)[0]).sample
        errors = (predicted.float() - velocity).square().flatten(1).mean(1) * ~clean
        loss = denoising = errors.sum() / (~clean).sum().clamp_min(1)
        if not clean.all():
            training.losses[f"loss_{batch.latents.shape[-1]}"].append(denoising.item())
        if teacher and agreement:
            positions = teacher.draw(batch)
            apart = agreement.loss(teacher.targets(batch, positions), positions)
            loss = denoising + recipe.agreement * apart
            training.losses["agreement"].append(apart.item())
        training.update(loss, recipe.learning_rate * _cosine(step, steps))
        if training.step % 50 == 0:
            means = training.means()
            bar.set_postfix(means)
            training.curve.append([training.step, *means.values()])
        if training.step % CHECKPOINT_EVERY == 0 or training.step == steps:
            training.save()
    if agreement:
        agreement.close()
    training.ema.copy_to([unet, text])
    return unet.eval(), text.eval()


# --- the folder -------------------------------------------------------------------------------------------------------


def export(
    folder: Path, autoencoder: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Writes a folder that diffusers' own classes load: half-precision safetensors, configs, tokenizer, scheduler."""
    for name, model in {"vae": autoencoder, "unet": unet, "text_encoder": text}.items():
        copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(folder / name, safe_serialization=True)
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("_name_or_path", None)  # the folder that the model was loaded from
        _write(folder / name / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(folder / "tokenizer")
    schedule().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    _write(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def recommend(folder: Path, device: str) -> None:
    """Stage 6: writes a time step and a threshold, chosen on the tuning scenes, to folder/diffseg.json.

    The time step with the best mIoU; of the thresholds the largest whose mIoU is within one standard error of the best
    (Breiman's rule): what scenes cannot tell apart is decided for fewer segments, since photos have more surplus ones.
    """
    model = DiffusionModel.from_pretrained(str(folder), device=device)
    rough = tune(model, (100, 300, 500), [0.2 * 1.25**i for i in range(12)], 40)[0]
    rows = tune(model, [rough["timestep"]], [round(rough["threshold"] * 1.1**i, 2) for i in range(-2, 6)], 90)
    _write(folder / "diffseg.json", json.dumps(fewest(rows)) + "\n")


def fewest(rows: Sequence[dict]) -> dict[str, float]:
    """{"threshold", "timestep"} of the row of `tune` with the largest threshold within a standard error of the best."""
    enough = rows[0]["miou"] - rows[0]["miou_error"]
    chosen = max((row for row in rows if row["miou"] >= enough), key=lambda row: row["threshold"])
    return {name: chosen[name] for name in ("threshold", "timestep")}


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
    recipe = stages[names[0]] = stages[names[0]].of(steps, batch)
    with one_sentence("diffseg.mini.train"):
        if last and not start:
            raise ValueError("--last needs a model to begin with: name its folder with --start")
        place = resolve_device(device)
        given = DiffusionModel.from_pretrained(str(start), device=place, dtype=torch.float32) if start else None
        check_writable(out, "choose another with --out")
        check_writable(work, "choose another with --work")
    small, small_captions = pictures(work, recipe.scenes_256, 256, 0)
    large, large_captions = pictures(work, recipe.scenes_512, 512, recipe.scenes_256)
    torch.manual_seed(recipe.seed)
    if given:
        model = given.pipeline
        autoencoder, tokenizer = model.vae, model.tokenizer
        unet, text = model.unet, model.text_encoder
    else:
        autoencoder = train_autoencoder(work, recipe, place, [small, large])
        tokenizer = train_tokenizer(work / "tokenizer", small_captions + large_captions)
        unet, text = new_unet(recipe.query_key_gain).to(place), new_text_encoder(tokenizer).to(place)
    data = Latents(
        latents(work, "256", autoencoder, small, place),
        latents(work, "512", autoencoder, large, place),
        token_ids(tokenizer, small_captions),
        token_ids(tokenizer, large_captions),
        np.array([named(caption) for caption in large_captions]),
    )
    with one_sentence("diffseg.mini.train"):
        for name in names:
            unet, text = train_unet(work, name, stages[name], data, tokenizer, unet, text)
    export(out, autoencoder, unet, text, tokenizer)
    recommend(out, str(place))


if __name__ == "__main__":
    typer.run(main)
