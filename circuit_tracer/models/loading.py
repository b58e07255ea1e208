"""Load any causal LM that transformers loads: a hub id, a folder, or a GGUF file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.models.surroundings import plain_torch

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
    "fp64": torch.float64,
}


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or from its name (float32, fp32, bf16, ...)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the best one there is (cuda, mps, cpu)."""
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise InputError(f"device {device!r} is unknown; use cpu, cuda, cuda:1, mps, ...") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@plain_torch()
def load_language_model(
    model_name: str | Path, device: torch.device, dtype: torch.dtype, **kwargs: Any
) -> tuple[Any, Any]:
    """(model, tokenizer) in evaluation mode, without gradients. Further keyword arguments go to `from_pretrained`.

    Raises InputError when nothing is there and FileFormatError when it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, extra = pretrained_source(model_name)
    # a GGUF file is de-quantised in float32, so that no rounding is added before the cast
    options = {"dtype": torch.float32 if extra else dtype, **extra, **kwargs, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    except OSError as error:
        raise InputError(
            f"no language model at {str(model_name)!r}: {first_line(error)} "
            "Give a Hugging Face id (with network access or a filled cache), a folder with config.json, or a .gguf file."
        ) from error
    except (ValueError, KeyError, IndexError, RuntimeError, SafetensorError, struct.error) as error:
        if "Unrecognized" in str(error) or "does not recognize" in str(error) or "not supported" in str(error):
            raise InputError(f"transformers cannot load {str(model_name)!r}: {first_line(error)}") from error
        raise FileFormatError(f"the model at {str(model_name)!r} cannot be read: {first_line(error)}") from error
    model, report = loaded
    if absent := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise FileFormatError(
            f"the model at {str(model_name)!r} lacks {len(absent)} weights, {absent[0]!r} first, or holds them in another "
            "shape; transformers would draw them at random. Download it again, or correct its config.json."
        )
    return model.to(dtype).to(device).eval().requires_grad_(False), tokenizer


def pretrained_source(model_name: str | Path) -> tuple[str, dict[str, str]]:
    """(what from_pretrained takes, extra arguments): a GGUF file is named by its folder and file name."""
    path = Path(model_name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file at {path}")
        return str(path.parent), {"gguf_file": path.name}
    if path.exists():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {path} holds no config.json, so it is not a transformers model")
        return str(path), {}
    if path.is_absolute() or str(model_name).startswith((".", "~")):
        raise InputError(f"no language model at {path}: the path does not exist")
    return str(model_name), {}


def first_line(error: Exception) -> str:
    """What an error of a library says, without its long advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
