"""DiffSeg: unsupervised zero-shot segmentation from the self-attention of a diffusion model (arXiv 2308.12469)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffseg.segmenter import DiffSeg, Segmentation, Settings

__version__ = "0.2.0"
__all__ = ["DiffSeg", "Segmentation", "Settings"]


def __getattr__(name: str):
    """Imports torch and diffusers only when one of the names is used: `diffseg --help` stays quick."""
    if name in __all__:
        return getattr(import_module("diffseg.segmenter"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
