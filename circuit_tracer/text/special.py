"""Which tokens separate documents and are never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuit_tracer.models.tokenization import special_ids


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a tokenizer's special tokens; None where it has none.

    Sequences begin as prompts do when they are traced (models/tokenization.py): with the first that exists of bos, pad, eos
    and other special tokens. A model without a bos token (Qwen) is thus trained as it is read, and a tokenizer
    without any special token gives sequences that begin with text; position 0 is left out of training in all cases.
    """

    first: int | None
    end: int | None
    pad: int | None
    dropped: tuple[int, ...]  # rows of these tokens are not trained on: they are sinks of attention, or say nothing

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        """Read off a tokenizer; None (token files may come without one) has no special tokens."""
        if tokenizer is None:
            return cls(None, None, None, ())
        prefix = next(iter(special_ids(tokenizer)), None)
        end = prefix if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        named = {prefix, end, tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}
        return cls(prefix, end, tokenizer.pad_token_id, tuple(sorted(named)))
