"""Attention that a model computes by itself, instead of calling transformers' interface: its softmax is the pattern.

While such a module runs, the softmax that it calls is answered here: recorded, replayed and visited as in
`models/attention.py`. Everything else is the module's own code, so its queries and keys are not seen, only its scores.

Letters: B sequences, H heads, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.attention import AttentionTape

_SOFTMAX = (torch.softmax, functional.softmax, Tensor.softmax)


def require_kept_patterns(tape: AttentionTape) -> None:
    """Refuse to make patterns tile by tile, which only attention by transformers' interface can."""
    if tape.recompute:
        raise UnsupportedModelError(
            "patterns of this model's attention, which does not call transformers' interface, cannot be recomputed, so it "
            "cannot be traced on prompts whose patterns do not fit into memory. Shorten the prompt"
        )


class OwnSoftmax(TorchFunctionMode):
    """Around one call of one attention module."""

    def __init__(self, tape: AttentionTape, layer: int) -> None:
        super().__init__()
        self.tape, self.layer = tape, layer
        require_kept_patterns(tape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The softmax of scores (B, H, P, P), and all else what it is."""
        if func not in _SOFTMAX:
            return func(*args, **(kwargs or {}))
        scores: Tensor = args[0] if args else (kwargs or {})["input"]
        return self._pattern(scores, (kwargs or {}).get("dtype") or scores.dtype)

    def _pattern(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        tape, layer = self.tape, self.layer
        scores = tape.visit("scores", layer, scores.to(torch.promote_types(dtype, torch.float32)))
        if tape.replay:
            pattern = tape.patterns[layer].to(scores.device, dtype).expand(len(scores), -1, -1, -1)
        else:
            pattern = torch.softmax(scores, dim=-1).to(dtype)
            if tape.keep:
                tape.patterns[layer] = (pattern if tape.several else pattern[0]).detach()
        return tape.visit("pattern", layer, pattern)
