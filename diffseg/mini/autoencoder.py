"""Training of the autoencoder, and the latents it makes of the pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from diffseg.mini import checkpoints
from diffseg.mini.pictures import to_tensor
from diffseg.mini.recipe import Autoencoding


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


def _crops(rng: np.random.Generator, sources: list[np.ndarray], count: int) -> np.ndarray:
    """`count` crops of 128 x 128 pixels, half of them mirrored, from pictures of any of the sources."""
    crops = []
    for _ in range(count):
        source = sources[rng.integers(len(sources))]
        image = source[rng.integers(len(source))]
        y, x = rng.integers(0, image.shape[0] - 128 + 1, 2)
        crop = image[y : y + 128, x : x + 128]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(crops)


def train_autoencoder(
    work: Path, recipe: Autoencoding, device: torch.device, sources: list[np.ndarray]
) -> AutoencoderKL:
    """Returns the trained autoencoder with its scaling factor (1 / standard deviation of the latents) set."""
    torch.manual_seed(recipe.seed)
    model, checkpoint, first = new_autoencoder().to(device), work / "autoencoder.pt", 0
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    begun = checkpoints.fingerprint(replace(recipe, steps=0), [source.shape for source in sources])
    if state := checkpoints.load(checkpoint, begun, device):
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        model.register_to_config(scaling_factor=state["scaling_factor"])

    steps = recipe.steps
    for step in (bar := tqdm(range(first, steps), "autoencoder", steps, initial=first, mininterval=5)):
        rng = checkpoints.generator(recipe.seed, 1, step)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * checkpoints.cosine(step, steps)

        # Forward: pixels, and colour on 8 x 8 means
        x = to_tensor(_crops(rng, sources, recipe.batch), device)
        with checkpoints.autocast(device):
            posterior = model.encode(x).latent_dist
            noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(device)
            y = model.decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        pixels, colour = F.l1_loss(y, x), F.l1_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()

        # Backward
        loss = pixels + 2 * colour + 1e-3 * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

        # The curve and the checkpoint
        bar.set_postfix(pixels=f"{pixels.item():.4f}", colour=f"{colour.item():.4f}", kl=f"{kl.item():.2f}")
        if checkpoints.due(step + 1, steps):
            scale = 1 / posterior.mean.float().std().item()
            checkpoints.save(
                checkpoint,
                begun=begun,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step + 1,
                scaling_factor=scale,
            )
            model.register_to_config(scaling_factor=scale)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def latents(work: Path, autoencoder: AutoencoderKL, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Scaled latents of images, float16 [count, 4, h, w] (memory-mapped); cached in work."""
    name = f"{images.shape[1]}-{len(images)}-{checkpoints.fingerprint(autoencoder)[:12]}"
    path = work / f"latents-{name}.npy"
    if not path.exists():
        side = images.shape[1] // 8
        partial = path.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.float16, (len(images), 4, side, side))
        for i in tqdm(range(0, len(images), 16), f"latents {name}", mininterval=5):
            x = to_tensor(images[i : i + 16], device)
            with checkpoints.autocast(device):
                mean = autoencoder.encode(x).latent_dist.mean
            out[i : i + 16] = (mean.float() * autoencoder.config.scaling_factor).cpu().numpy()
        out.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")
