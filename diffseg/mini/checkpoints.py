"""What the stages of training share: files that are whole or not there, a step's random stream and learning rate.

They are called through the module, as `checkpoints.due`: a test that interrupts a training replaces them there.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

CHECKPOINT_EVERY = 250  # steps


def due(step: int, steps: int) -> bool:
    """Whether a checkpoint is to be written after `step` of `steps` steps."""
    return step % CHECKPOINT_EVERY == 0 or step == steps


def save(path: Path, **state) -> None:
    """Writes a checkpoint, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def write(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.rename(path)


def generator(*key: int) -> np.random.Generator:
    """The random stream of one training step: resuming at a step draws what an unbroken run would draw."""
    return np.random.default_rng(key)


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then cosine down to 3 %."""
    return min(1.0, (step + 1) / warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def autocast(device: torch.device) -> torch.autocast:
    """The precision of training: bfloat16 where it does no harm."""
    return torch.autocast(device.type, dtype=torch.bfloat16)
