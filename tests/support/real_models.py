"""Real weights: SmolLM2-135M-Instruct and Gemma 3 270M, GGUF files in the folder CIRCUIT_TRACER_TEST_MODELS.

A file is read once a process: Gemma's takes most of a minute, its tokenizer of 262,144 tokens above all.
"""

from __future__ import annotations

import copy
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.inputs.prepare_models import save
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_transcoder

FOLDER = Path(os.environ.get("CIRCUIT_TRACER_TEST_MODELS", "gone")).absolute()  # before a test leaves this folder
FILES = {"smollm2": "SmolLM2-135M*.gguf", "gemma3": "gemma-3-270m*.gguf"}


def weights(name: str) -> Path:
    """The file of a model; the test is skipped where it is not."""
    paths = sorted(FOLDER.glob(FILES[name]))
    if not paths:
        pytest.skip(f"no {FILES[name]}: name the folder with the weights in CIRCUIT_TRACER_TEST_MODELS")
    return paths[0]


@lru_cache
def language_model(name: str) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    from circuit_tracer.models.loading import load_language_model

    return load_language_model(weights(name), torch.device("cpu"), torch.float32)


def saved(name: str, folder: Path) -> Path:
    """The model as a Hugging Face folder, which is read in a second."""
    save(*language_model(name), folder)
    return folder


def real_model(name: str, dtype: torch.dtype = torch.float32, **transcoder: Any) -> ReplacementModel:
    """The model with small random transcoders.

    Their skip connections are weak: random ones of full size would grow the signal to 1e28 through Gemma's 18 layers.
    """
    model, tokenizer = language_model(name)
    model = model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)
    sizes = {"n_layers": model.config.num_hidden_layers, "d_model": model.config.hidden_size}
    transcoders = tiny_transcoder(dtype=dtype, **sizes, **transcoder)
    for holder in (transcoders,) if transcoders.kind == "cross_layer_transcoder" else transcoders:
        if holder.W_skip is not None:
            holder.W_skip = 0.01 * holder.W_skip
    return ReplacementModel.from_model(model, transcoders, tokenizer, name)
