"""Training of the UNet, jointly with the text encoder, by denoising and later for agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from diffseg.mini import checkpoints
from diffseg.mini.agreement import Agreement, Batch, Regions, Walk, partitions
from diffseg.mini.recipe import Denoising
from diffseg.mini.text import token_ids


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


@dataclass(frozen=True)
class Latents:
    """Training latents [count, 4, h, w] at 256 and 512 px; token ids [count, 77] of the captions; how many things the
    captions at 512 px name [count]."""

    small: np.ndarray
    large: np.ndarray
    small_ids: np.ndarray
    large_ids: np.ndarray
    large_named: np.ndarray


def _batch(data: Latents, recipe: Denoising, step: int, empty: np.ndarray, device: torch.device) -> Batch:
    """The batch of one step. Crops get no caption: they may lack what it names."""
    rng = checkpoints.generator(recipe.seed, 2, step)
    fine = step % recipe.fine_every == 0
    x, ids, large = [], [], []
    for _ in range(recipe.batch_fine if fine else recipe.batch):
        if fine or rng.random() < 0.4:
            i = rng.integers(min(recipe.large, len(data.large)))
            z = data.large[i]
            text = data.large_ids[i]
            large.append(int(i))
            if not fine:
                side = data.small.shape[-1]
                top, left = rng.integers(0, z.shape[-1] - side + 1, 2)
                z, text = z[:, top : top + side, left : left + side], empty
        else:
            i = rng.integers(len(data.small))
            z, text = data.small[i], data.small_ids[i]
            large.append(-1)
        x.append(z)
        ids.append(empty if rng.random() < recipe.caption_dropout else text)
    latents = torch.from_numpy(np.stack(x).astype(np.float32)).to(device)
    return Batch(latents, torch.from_numpy(np.stack(ids)).to(device), np.array(large), rng)


def _noised(x: torch.Tensor, recipe: Denoising, rng: np.random.Generator, signal: torch.Tensor):
    """Latents to denoise, their time steps, the velocities to predict, and which latents were left clean, at t = 100.

    x: [B, 4, n, n]; signal [1000]: the schedule's cumulative alphas.
    """
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    t = torch.from_numpy((1000 * rng.random(len(x)) ** recipe.noise_power).astype(np.int64)).to(x.device)
    a = signal[t].view(-1, 1, 1, 1)
    noisy, velocity = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
    clean = torch.from_numpy(rng.random(len(x)) < recipe.clean).to(x.device)
    return torch.where(clean.view(-1, 1, 1, 1), x, noisy), torch.where(clean, 100, t), velocity, clean


def _begun(recipe: Denoising, *parts: torch.nn.Module) -> str:
    """What a stage of training starts from: its recipe, but for its length, and the weights before it."""
    return checkpoints.fingerprint(replace(recipe, steps=0), *parts)


def _teacher(recipe: Denoising, cache: Path, data: Latents, unet: UNet2DConditionModel, context: torch.Tensor):
    """What a stage's recipe has the self-attention layers taught by, made from the model that the stage begins with."""
    if recipe.teacher == "walk":
        return Walk(unet, context, data.large, data.large_named)
    if recipe.teacher == "regions":
        return Regions(partitions(cache, unet, context, data.large[: recipe.large], data.large_named))
    return None


class Training:
    """One stage's training of UNet and text encoder: what a checkpoint keeps, and the curve."""

    def __init__(
        self, unet: UNet2DConditionModel, text: CLIPTextModel, recipe: Denoising, checkpoint: Path, losses: list[str]
    ):
        """Continues from checkpoint if it is there. losses: the names of those that the curve has.

        Raises:
            UserError: the checkpoint is of a training that began with other weights or another recipe.
        """
        self.begun = _begun(recipe, unet, text)
        self.unet, self.text, self.checkpoint = unet, text, checkpoint
        for module in (unet, text):
            module.requires_grad_(True).train()
        self.parameters = [*unet.parameters(), *text.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.ema, self.step = EMAModel(self.parameters, recipe.ema, foreach=True), 0
        self.curve: list[list[float]] = []
        self.losses: dict[str, list[float]] = {name: [] for name in losses}

        # What the checkpoint kept
        state = checkpoints.load(checkpoint, self.begun, unet.device)
        if state is None:
            return
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.load_state_dict(state["ema"])
        self.step, self.curve, self.losses = (state[k] for k in ("step", "curve", "losses"))

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        """One step down the gradient of loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.ema.step(self.parameters)
        self.step += 1

    def means(self) -> dict[str, float]:
        """The mean of the latest 50 of each loss; nan where there is none."""
        return {name: round(float(np.mean(v[-50:])), 5) if v else math.nan for name, v in self.losses.items()}

    def save(self) -> None:
        """Writes the checkpoint, and beside it the curve."""
        rows = [",".join(["step", *self.losses]), *(",".join(map(str, row)) for row in self.curve)]
        checkpoints.write(self.checkpoint.with_name(f"{self.checkpoint.stem}-curve.csv"), "\n".join(rows) + "\n")
        checkpoints.save(
            self.checkpoint,
            begun=self.begun,
            unet=self.unet.state_dict(),
            text=self.text.state_dict(),
            optimiser=self.optimiser.state_dict(),
            ema=self.ema.state_dict(),
            step=self.step,
            curve=self.curve,
            losses={name: values[-50:] for name, values in self.losses.items()},
        )


def train_unet(
    work: Path,
    stage: str,
    recipe: Denoising,
    data: Latents,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains unet and text encoder by denoising, and for agreement where the recipe says so; returns their exponential
    moving averages. The checkpoint is work/STAGE.pt, the losses are in work/STAGE-curve.csv.

    Raises:
        UserError: the checkpoint is of a training that began with other weights or another recipe.
    """
    # The teacher, if any, is made from the model that the stage begins with
    device = unet.device
    empty = token_ids(tokenizer, [""])[0]
    with torch.no_grad():
        context = text(torch.from_numpy(empty)[None].to(device))[0]
    teacher = _teacher(recipe, work / f"regions-{_begun(recipe, unet, text)[:12]}.npy", data, unet, context)
    agreement = Agreement(unet, recipe.aggregated) if teacher else None

    coarse, fine = (f"loss_{latents.shape[-1]}" for latents in (data.small, data.large))
    names = [coarse] * (recipe.fine_every > 1) + [fine] + ["agreement"] * bool(teacher)
    training = Training(unet, text, recipe, work / f"{stage}.pt", names)
    signal = schedule().alphas_cumprod.to(device)
    first, steps = training.step, recipe.steps
    for step in (bar := tqdm(range(first, steps), stage, steps, initial=first, mininterval=5)):
        # Denoising
        batch = _batch(data, recipe, step, empty, device)
        noisy, t, velocity, clean = _noised(batch.latents, recipe, batch.rng, signal)
        with checkpoints.autocast(device):
            predicted = unet(noisy, t, text(batch.ids)[0]).sample
        errors = (predicted.float() - velocity).square().flatten(1).mean(1) * ~clean
        loss = denoising = errors.sum() / (~clean).sum().clamp_min(1)
        if not clean.all():
            training.losses[f"loss_{batch.latents.shape[-1]}"].append(denoising.item())

        # Agreement
        if teacher and agreement:
            positions = teacher.draw(batch)
            apart = agreement.loss(teacher.targets(batch, positions), positions)
            loss = denoising + recipe.agreement * apart
            training.losses["agreement"].append(apart.item())

        # The step, the curve and the checkpoint
        training.update(loss, recipe.learning_rate * checkpoints.cosine(step, steps))
        if training.step % 50 == 0:
            means = training.means()
            bar.set_postfix(means)
            training.curve.append([training.step, *means.values()])
        if checkpoints.due(training.step, steps):
            training.save()
    if agreement:
        agreement.close()
    training.ema.copy_to(training.parameters)
    return unet.eval(), text.eval()
