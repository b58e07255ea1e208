"""From a prompt to token ids, by one rule used everywhere (attribution, interventions, the command line).

A string is tokenised without special tokens; if the first id is then not a special one, the first usable of the tokenizer's
bos, pad, eos and other special tokens is put in front, unless `prepend_bos` is False. Ids (tensor or list) get the same rule.
Id 0 is an id like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.models.token_text import TokenTexts

Prompt = str | Tensor | Sequence[int]
GEMMA3_CHAT_PREFIX = (2, 105, 2364, 107)  # <bos><start_of_turn>user\n
TOKENIZER_ADVICE = (
    "Pass the tokenizer (tokenizer=); to trace token ids without one, load the model yourself and pass it to "
    "ReplacementModel.from_model with tokenizer None."
)
_GEMMA3_TURN = "<start_of_turn>"


def tokenize(prompt: Prompt, tokenizer: Any, prepend_bos: bool = True) -> Tensor:
    """Ids (P,) int64 of a prompt, with a special token in front. Raises InputError for an empty or oddly shaped prompt."""
    ids = _ids(prompt, tokenizer)
    if tokenizer is None or not prepend_bos:
        return ids
    special = special_ids(tokenizer)
    if special and (ids.numel() == 0 or int(ids[0]) not in special):
        ids = torch.cat([torch.tensor([special[0]]), ids])
    return ids


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokenizer's special tokens, best prefix first: bos, pad, eos, then the others."""
    named = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    ordered = [i for i in (*named, *tokenizer.all_special_ids) if i is not None]
    return list(dict.fromkeys(ordered))


def encode(text: str, tokenizer: Any) -> list[int]:
    """Ids of a text, without special tokens. Raises InputError without a tokenizer, and for bytes that are not UTF-8."""
    if tokenizer is None:
        raise InputError(f"this model has no tokenizer, so {shortened(text)} cannot be read; give token ids")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{shortened(text)} is no text: character {error.start} is {text[error.start]!r}, half of a character or a "
            "byte that is not UTF-8. Correct the text or its encoding."
        ) from error
    # not verbose: whether a prompt is too long is said here, and of all tokens (`models/capture.py`)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def single_token(text: str, tokenizer: Any) -> int:
    """The id of a text that is exactly one known token; InputError otherwise."""
    ids = encode(text, tokenizer)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if len(ids) != 1 or (ids[0] == unknown and text != tokenizer.unk_token):
        pieces = token_strings(torch.tensor(ids, dtype=torch.int64), tokenizer)
        raise InputError(
            f"{text!r} is {len(ids)} tokens {pieces}, not one known token; a leading space often matters, or name it by its id"
        )
    return int(ids[0])


def token_strings(ids: Tensor, tokenizer: Any) -> list[str]:
    """One string a token, as it reads in the text; parts of characters by their bytes (token_text.py)."""
    texts = TokenTexts.of(tokenizer)
    return [texts.alone(int(i)) for i in ids]


def zero_positions(ids: Tensor, tokenizer: Any, model_type: str) -> list[int]:
    """Positions that circuit-tracer leaves out: 0, and the whole chat prefix of a Gemma 3 prompt that begins with it.

    model_type: that of the model's configuration. The prefix is read from the tokenizer, and is Gemma's own without one; what
    a model or its folder is called makes no difference.
    """
    prefix = gemma3_chat_prefix(tokenizer) if model_type == "gemma3_text" else ()
    return list(range(len(prefix))) if prefix and tuple(ids[: len(prefix)].tolist()) == prefix else [0]


def gemma3_chat_prefix(tokenizer: Any) -> tuple[int, ...]:
    """Ids with which Gemma 3's chat template begins a conversation; none for a tokenizer without its turns."""
    if tokenizer is None:
        return GEMMA3_CHAT_PREFIX
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    if _GEMMA3_TURN not in vocabulary or tokenizer.bos_token is None:
        return ()
    return tuple(tokenizer(f"{tokenizer.bos_token}{_GEMMA3_TURN}user\n", add_special_tokens=False).input_ids)


def check_tokenizer(tokenizer: Any, rows: int) -> None:
    """Refuse what is no tokenizer, and one whose words have ids beyond the embedding's `rows`; None is no tokenizer at all."""
    if tokenizer is None:
        return
    if not hasattr(tokenizer, "decode"):
        raise InputError(f"a transformers tokenizer is expected, got {type(tokenizer).__name__}")
    if not hasattr(tokenizer, "get_vocab"):
        return
    special = special_words(tokenizer)
    words = {word: number for word, number in tokenizer.get_vocab().items() if word not in special}
    word = max(words, key=lambda word: words[word], default=None)
    if word is not None and words[word] >= rows:
        raise InputError(
            f"the tokenizer gives {word!r} the id {words[word]}, but the model's vocabulary is 0..{rows - 1}: they do not "
            "belong together. Use the model's own tokenizer."
        )


def special_words(tokenizer: Any) -> set[str]:
    """Tokens that stand beside a tokenizer's vocabulary: special ones, and those that were added."""
    return {*tokenizer.all_special_tokens, *getattr(tokenizer, "added_tokens_encoder", {})}


def _ids(prompt: Prompt, tokenizer: Any) -> Tensor:
    if isinstance(prompt, str):
        return torch.tensor(encode(prompt, tokenizer), dtype=torch.int64)
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"a prompt is text or one row of token ids (list or tensor), got {shortened(prompt)}"
        ) from error
    ids = ids.long() if ids.numel() == 0 else ids
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(
            f"token ids must be one row of integers, got shape {tuple(ids.shape)} and dtype {ids.dtype}; "
            "trace prompts one by one, or give a list of them to attribute_together"
        )
    return ids.detach().cpu().to(torch.int64)
