"""The sequences on which heads are diagnosed: texts cut into windows, or random tokens that are said twice.

Letters: N sequences, T tokens of a sequence, n tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.models.model_pass import require_context
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.tokenization import special_ids, special_words, tokenize
from circuit_tracer.text.packing import sequence_length
from circuit_tracer.text.special import SpecialTokens

Document = str | Any  # text, or token ids: a list, a tensor or an array, (n,)
CONTEXT_LENGTH = 512  # HeadVis's
BLOCK = 32


@typed
@dataclass(frozen=True)
class RandomTokens:
    """How random tokens are drawn: sequences of a special token, `block` different tokens, and the same again.

    The first is the one that prompts begin with, without a tokenizer the bos of the model's configuration, or none.

    Attributes:
        block: None for 32, or as many as the model's context and vocabulary hold. The seed decides which tokens.
    """

    block: int | None = None
    sequences: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.block is not None and self.block < 2) or self.sequences < 1 or self.seed < 0:
            raise InputError(
                f"random tokens are {self.sequences} sequences of blocks of {self.block} (seed {self.seed}); expected at "
                "least 1 sequence, 2 tokens in a block, and a seed that is not negative"
            )

    def draw(self, parts: ModelParts, tokenizer: Any, prepend_bos: bool = True) -> Repeated:
        """The sequences. Raises InputError when the vocabulary or the model's context is too small for the block."""
        own = parts.model.config.bos_token_id if tokenizer is None else SpecialTokens.of(tokenizer).first
        first = own if prepend_bos else None
        usable, front = _ordinary(parts, tokenizer), 0 if first is None else 1
        room = len(usable) if parts.context_length is None else min(len(usable), (parts.context_length - front) // 2)
        block = min(BLOCK, room) if self.block is None else self.block
        if not 2 <= block <= room:
            raise InputError(
                f"a block of {max(block, 2)} different tokens, said twice, does not fit: the model's context length is "
                f"{parts.context_length}, and its vocabulary has {len(usable)} tokens to draw from"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = (torch.randperm(len(usable), generator=generator)[:block] for _ in range(self.sequences))
        blocks = torch.stack([usable[each] for each in order])
        ids = torch.cat([blocks.new_full((self.sequences, front), first or 0), blocks, blocks], dim=1)
        return Repeated(ids, block, self.seed)


@dataclass(frozen=True)
class Repeated:
    """Sequences ids_NT (N, T) that end in a block of `block` tokens said twice, and the seed that they were drawn with."""

    ids_NT: Tensor
    block: int
    seed: int

    def __str__(self) -> str:
        return f"{len(self.ids_NT)} times {self.block} random tokens, said twice (seed {self.seed})"


def _ordinary(parts: ModelParts, tokenizer: Any) -> Tensor:
    """Ids of tokens that stand for text; without a tokenizer, all but those that the configuration calls special."""
    if tokenizer is None:
        config = parts.model.config
        named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        special = {i for one in named for i in (one if isinstance(one, list) else [one])}
        return torch.tensor([i for i in range(parts.config.d_vocab) if i not in special])
    special, words = set(special_ids(tokenizer)), special_words(tokenizer)
    known = {i for word, i in tokenizer.get_vocab().items() if word not in words}
    return torch.tensor(sorted(i for i in known - special if i < parts.config.d_vocab))


def documents_of(text: Any) -> Iterable[Document]:
    """Of one text or one row of ids, that alone; of several, each. Raises InputError for what is neither."""
    if isinstance(text, str):
        return [text]
    if isinstance(text, Tensor) or hasattr(text, "__array__"):
        return [text] if text.ndim == 1 else list(text)
    if isinstance(text, list | tuple) and text and all(isinstance(each, Integral) for each in text):
        return [text]
    if not isinstance(text, Iterable):
        raise InputError(f"text is a {type(text).__name__}; expected a text, several, or token ids of them")
    return text


def windows(
    documents: Iterable[Document],
    parts: ModelParts,
    tokenizer: Any,
    prepend_bos: bool = True,
    context_length: int | None = None,
    max_tokens: int | None = None,
) -> Iterator[Tensor]:
    """Ids (T,) of the documents, cut into windows of `context_length` tokens, each with the document's special token in front.

    The last window of a document is shorter. It ends once there are `max_tokens`. Raises InputError for what no prompt may be.
    """
    length = sequence_length(context_length, parts.context_length, CONTEXT_LENGTH)
    require_context(parts, length)
    special = set() if tokenizer is None or not prepend_bos else set(special_ids(tokenizer))
    left = max_tokens
    for document in documents:
        ids = tokenize(document, tokenizer, prepend_bos)
        front = int(ids[:1].numel() > 0 and int(ids[0]) in special)
        for start in range(front, max(len(ids), front + 1), length - front):
            window = torch.cat([ids[:front], ids[start : start + length - front]])
            window = window if left is None else window[:left]
            yield window
            if left is not None:
                left -= len(window)
                if left <= 0:
                    return
