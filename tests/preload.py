"""Imported once by a server whose forks are the processes that tests kill: they need not import everything again."""

import gc

import torch

import diffseg.eval.run  # noqa: F401
from diffseg.backbones.diffusion import DiffusionModel

torch.set_num_threads(1)  # forks of a process with a thread pool would wait for threads that they do not have
DiffusionModel.from_pretrained("mini", device="cpu")
gc.freeze()  # or every fork would copy it all to look for garbage in it
