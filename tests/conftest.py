"""Shared by all tests: no network, one thread (the tensors are tiny, and threads only wait for each other).

Triton kernels are compiled where there is a GPU, and interpreted elsewhere: decided before anything imports triton.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
