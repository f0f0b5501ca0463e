"""Generated scenes with captions to train on, cached."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffseg.datasets.scenes import TRAIN_SEED, scene
from diffseg.mini import checkpoints


@dataclass(frozen=True)
class Pictures:
    """Training scenes, uint8 [count, size, size, 3] (memory-mapped), their captions, and of each caption its nouns:
    (noun, class) in order."""

    images: np.ndarray
    captions: list[str]
    nouns: list[list[tuple[str, int]]]


def _picture(args: tuple[int, int]) -> tuple[np.ndarray, str, tuple[tuple[str, int], ...]]:
    drawn = scene(TRAIN_SEED, *args)
    return drawn.image, drawn.caption, drawn.nouns


def pictures(work: Path, count: int, size: int, first: int) -> Pictures:
    """`count` training scenes, from number `first` on; cached in work."""
    images, captions = work / f"scenes-{size}-{count}.npy", work / f"scenes-{size}-{count}.json"
    if not captions.exists():
        partial = images.with_suffix(".partial.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, size, size, 3))
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            drawn = pool.map(_picture, ((first + i, size) for i in range(count)), chunksize=32)
            texts = []
            for i, (image, *words) in enumerate(tqdm(drawn, f"scenes {size} px", count)):
                out[i] = image
                texts.append(words)
        out.flush()
        partial.rename(images)
        checkpoints.write(captions, json.dumps(texts))
    texts = json.loads(captions.read_text())
    nouns = [[(noun, index) for noun, index in named] for _, named in texts]
    return Pictures(np.load(images, mmap_mode="r"), [caption for caption, _ in texts], nouns)


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Pictures uint8 [count, h, w, 3] as float32 [count, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
