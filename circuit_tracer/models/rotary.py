"""Rotary embeddings whose frequencies depend on the prompt's length (dynamic, longrope).

transformers writes the frequencies of the prompt at hand into the module, where another thread's pass may find them instead of
its own. While a run is under way, such a module answers from a copy made for the call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

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
    """What the module gives when nobody else writes in it. It is left as it is, whatever the prompt's length."""
    own = copy.copy(module)
    buffers = module._buffers.copy()  # at once: a pass that began before the run may be writing there
    own._buffers = {name: None if each is None else each.clone() for name, each in buffers.items()}
    return own.forward(*args, **kwargs)
