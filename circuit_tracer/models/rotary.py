"""Rotary embeddings whose frequencies depend on the prompt's length (dynamic, longrope).

transformers writes the frequencies of the prompt at hand into the module, where another thread's pass may find them instead of
its own. While a run is under way, such a module answers from a copy made for the call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def depends_on_length(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model that are such."""
    for module in model.modules():
        kinds = vars(module).get("rope_type")  # asked of every module in every run: `getattr` costs five times as much
        for kind in kinds.values() if isinstance(kinds, Mapping) else [kinds]:
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                yield module
                break


def answer_alone(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the module gives when nobody else writes in it; None under torch.compile, which traces one pass alone."""
    if torch.compiler.is_dynamo_compiling():
        return None
    own = copy.copy(module)
    own._buffers = {name: None if each is None else each.clone() for name, each in module._buffers.items()}
    return own.forward(*args, **kwargs)
