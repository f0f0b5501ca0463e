"""What the stages of training share: files that are whole or not there, a step's random stream and learning rate.

They are called through the module, as `checkpoints.due`: a test that interrupts a training replaces them there.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffseg.devices import fast_half
from diffseg.errors import UserError

CHECKPOINT_EVERY = 250  # steps


def due(step: int, steps: int) -> bool:
    """Whether a checkpoint is to be written after `step` of `steps` steps."""
    return step % CHECKPOINT_EVERY == 0 or step == steps


def save(path: Path, **state) -> None:
    """Writes a checkpoint, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def load(path: Path, begun: str, device: torch.device) -> dict[str, Any] | None:
    """What `save` has written with the same `begun`; None: nothing yet.

    Raises:
        UserError: the checkpoint is of a training that began with other weights or another recipe.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    if state.get("begun") != begun:
        raise UserError(
            f"{path} is of a training that began with other weights or another recipe: "
            "choose another folder with --work"
        )
    return state


def fingerprint(*parts: object) -> str:
    """A hash of what a stage starts from: weights of modules, and the text of anything else."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            for tensor in part.parameters():
                digest.update(tensor.detach().cpu().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file, to read and write; zeros where there is none of that shape yet."""
    if path.exists() and (found := np.lib.format.open_memmap(path, "r+")).shape == shape:
        return found
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def write(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.rename(path)


def generator(*key: int) -> np.random.Generator:
    """The random stream of one training step: resuming at a step draws what an unbroken run would draw."""
    return np.random.default_rng(key)


def cosine(step: int, steps: int) -> float:
    """Learning-rate factor: linear warm-up over 100 steps, an eighth of all at most, then cosine down to 3 %."""
    rising = min(1.0, (step + 1) / min(100, max(1, steps / 8)))
    return rising * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def precision(device: torch.device) -> torch.dtype:
    """The precision of training: bfloat16 where it does no harm and the device is fast in it."""
    return torch.bfloat16 if fast_half(torch.bfloat16, device) else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Computes in the precision of training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
