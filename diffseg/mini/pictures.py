"""Stage 1 of training: generated scenes with captions, cached."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffseg.datasets.scenes import TRAIN_SEED, scene
from diffseg.mini import checkpoints


def _picture(args: tuple[int, int]) -> tuple[np.ndarray, str]:
    drawn = scene(TRAIN_SEED, *args)
    return drawn.image, drawn.caption


def pictures(work: Path, count: int, size: int, first: int) -> tuple[np.ndarray, list[str]]:
    """`count` training scenes, uint8 [count, size, size, 3] (memory-mapped), and their captions; cached in work."""
    images, captions = work / f"scenes-{size}-{count}.npy", work / f"scenes-{size}-{count}.json"
    if not captions.exists():
        partial = images.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, size, size, 3))
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            drawn = pool.map(_picture, ((first + i, size) for i in range(count)), chunksize=32)
            texts = []
            for i, (image, caption) in enumerate(tqdm(drawn, f"scenes {size} px", count)):
                out[i] = image
                texts.append(caption)
        out.flush()
        partial.rename(images)
        checkpoints.write(captions, json.dumps(texts))
    return np.load(images, mmap_mode="r"), json.loads(captions.read_text())


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Pictures uint8 [count, h, w, 3] as float32 [count, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
