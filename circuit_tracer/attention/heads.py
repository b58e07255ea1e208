"""What every head of a model does, in numbers: previous-token, induction and other scores, and what its loss costs.

    table = diagnose_heads(model)                                  # on random tokens that are said twice
    table = diagnose_heads(model, open("book.txt").read(), max_tokens=10_000)
    table.strongest("induction", 5); table["entropy"]; table.draw("heads.svg"); table.to_json("heads.json")

docs/how-to/heads.md has the formulas. No dictionary is needed: a model is a `ReplacementModel`, or a transformers model and its
tokenizer.

Letters: N sequences, T tokens of a sequence, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attention.head_ablation import How, Losses, checked_heads, repeated_losses
from circuit_tracer.attention.head_table import HeadTable
from circuit_tracer.attention.ov_copying import ov_copying
from circuit_tracer.attention.pattern_scores import SCORES, PatternSums, rows_at_once
from circuit_tracer.attention.sequences import RandomTokens, documents_of, windows
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.capture import check_length
from circuit_tracer.models.indices import Head
from circuit_tracer.models.loading import bind_loaded
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sources import public_name
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import check_tokenizer
from circuit_tracer.models.verify import verify
from circuit_tracer.progress import Progress, silent

ABLATED = 5  # heads, where nothing else is asked for
BATCH_TOKENS = 2048


@typed
@plain_torch()
def diagnose_heads(
    model: Any,
    text: Any = None,
    *,
    tokenizer: Any = None,
    prepend_bos: bool = True,
    context_length: int | None = None,
    max_tokens: int | None = None,
    random: RandomTokens | None = None,
    ablate: int | Literal["all"] | Iterable[Head] = ABLATED,
    how: How = "zero",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
) -> HeadTable:
    """Scores of every head, by the formulas of docs/how-to/heads.md.

    Args:
        model: A `ReplacementModel`, or a transformers causal LM with its `tokenizer` (and prepend_bos, which a
            `ReplacementModel` brings with it).
        text: A text, several, or token ids of them; an iterable is read as far as max_tokens. They are cut into windows of
            context_length tokens (512, or what the model reads at most), each behind the special token that prompts begin
            with. None: `random` tokens, said twice.
        tokenizer: Where `model` is a transformers model.
        prepend_bos: Whether sequences begin with the special token.
        context_length: Tokens of a window; None: 512, or what the model reads at most.
        max_tokens: Tokens that are read; None: all.
        random: How random tokens are drawn; None: `RandomTokens()`.
        ablate: Of which heads the effect on the loss is measured: so many of the highest induction scores, (layer, head)
            pairs, or "all"; always on `random` tokens.
        how: Their outputs are "zero", or their "mean" over tokens. One pass over these tokens a head; 0: none.
        batch_tokens: Read at once; does not change the result.
        progress: Called with (stage, done, total).

    Returns:
        The scores of every head, (L, H) each.

    Raises:
        InputError: Where no sequence has two tokens, and for heads that do not exist.
        NumericalError: Where patterns are not finite.
        UnsupportedModelError: Where layers differ in their heads.

    Examples:
        >>> from circuit_tracer.attention import diagnose_heads
        >>> table = diagnose_heads(model, ablate=0)
        >>> table.scores["induction"].shape
        torch.Size([4, 2])
    """
    if batch_tokens < 1 or (max_tokens is not None and max_tokens < 2):
        raise InputError(f"batch_tokens is {batch_tokens} and max_tokens {max_tokens}; at least 1 and 2 are needed")
    parts, tokenizer, prepend_bos = opened(model, tokenizer, prepend_bos)
    _require_a_table(parts)
    asked = _asked(parts, ablate)
    drawn = (random or RandomTokens()).draw(parts, tokenizer, prepend_bos) if text is None or asked != 0 else None
    if drawn is not None and text is None:
        found, said = list(drawn.ids_NT), str(drawn)
    else:
        cut = windows(documents_of(text), parts, tokenizer, prepend_bos, context_length, max_tokens)
        found, said = list(cut), "text"
    sequences = [ids for ids in found if len(ids) > 1]
    if not sequences:
        raise InputError(f"none of {len(found)} texts has two tokens, so no head looks back in them; give a longer one")
    sums = _read(parts, sequences, batch_tokens, progress)
    scores = {**sums.scores(), "ov_copying": ov_copying(parts)}
    scores["ablation"] = torch.full_like(scores["induction"], torch.nan)
    table = HeadTable(
        model=public_name(parts.config.model_name),
        dtype=parts.config.dtype,
        text=said,
        scores={name: scores[name] for name in SCORES},
        sequences=sequences,
        skipped=len(found) - len(sequences),
        repeated=sums.repeated,
        peaks=torch.stack(sums.peaks),
    )
    if drawn is None or asked == 0:
        return table
    heads = asked if isinstance(asked, list) else table.strongest("induction", asked)
    losses = repeated_losses(parts, drawn, [[head] for head in heads], how, batch_tokens, progress)
    for (layer, head), change in zip(heads, losses.change.tolist(), strict=True):
        scores["ablation"][layer, head] = change
    return replace(table, losses={"first copy": losses.first, "second copy": losses.second}, ablated=how)


@typed
@plain_torch()
def ablate_heads(
    model: Any,
    groups: Sequence[Any],
    *,
    tokenizer: Any = None,
    prepend_bos: bool = True,
    random: RandomTokens | None = None,
    how: How = "zero",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
) -> Losses:
    """Losses on repeated random tokens without groups of heads, each an iterable of (layer, head) that go together.

    Arguments as those of `diagnose_heads`; one pass a group.

    Args:
        model: As `diagnose_heads` takes it.
        groups: Of heads, each an iterable of (layer, head) that go together.
        tokenizer: Where `model` is a transformers model.
        prepend_bos: Whether sequences begin with the special token.
        random: The tokens; None: `RandomTokens()`.
        how: Outputs become "zero", or their "mean" over tokens.
        batch_tokens: Read at once; changes no result.
        progress: Called with (stage, done, total).

    Returns:
        Losses in nats: of the whole model, and without each group.

    Raises:
        InputError: For heads that do not exist.
    """
    parts, tokenizer, prepend_bos = opened(model, tokenizer, prepend_bos)
    drawn = (random or RandomTokens()).draw(parts, tokenizer, prepend_bos)
    return repeated_losses(parts, drawn, groups, how, batch_tokens, progress)


def opened(model: Any, tokenizer: Any, prepend_bos: bool) -> tuple[ModelParts, Any, bool]:
    """(parts, tokenizer, whether texts get a special token in front) of a `ReplacementModel`, or of a transformers model."""
    if isinstance(model, Traceable):
        model.ensure_tokenized([0])  # its parts are those of its present weights
        check_tokenizer(tokenizer, len(model.parts.unembed.weight))
        return model.parts, model.tokenizer if tokenizer is None else tokenizer, model.prepend_bos
    parts = bind_loaded(model, tokenizer)
    verify(parts)
    return parts, tokenizer, prepend_bos


def _require_a_table(parts: ModelParts) -> None:
    """Refuse layers that do not all have the same number of softmax attention heads, which are the rows of the table."""
    if (linear := next((layer.attention for layer in parts.layers if layer.linear is not None), None)) is not None:
        why = f"some layers have none ({type(linear).__name__})"
    elif len(counts := {layer.n_heads for layer in parts.layers}) > 1:
        why = f"layers have {' or '.join(map(str, sorted(counts)))} of them"
    else:
        return
    raise UnsupportedModelError(f"heads of this {parts.architecture.model_type} cannot be put in one table: {why}")


def _asked(parts: ModelParts, ablate: int | Literal["all"] | Iterable[Head]) -> int | list[Head]:
    """How many heads of the strongest induction, or which."""
    if isinstance(ablate, int):
        if ablate < 0:
            raise InputError(f"ablate is {ablate}; expected how many heads, 0 for none")
        return ablate
    if isinstance(ablate, str):
        return [(layer, head) for layer in range(len(parts.layers)) for head in range(parts.config.n_heads)]
    return checked_heads(parts, ablate)


def _read(parts: ModelParts, sequences: list[Tensor], batch_tokens: int, progress: Progress) -> PatternSums:
    """Neighbours of one length are read together, so that nothing is padded."""
    for ids in sequences:
        check_length(parts, ids)
    sums = PatternSums(len(parts.layers), parts.config.n_heads)
    for length, same in groupby(sequences, len):
        for batch in torch.stack(list(same)).split(rows_at_once(parts, length, batch_tokens)):
            sums.read(parts, batch)
            progress("reading patterns", sums.sequences, len(sequences))
    return sums
