"""Held-out token sequences, and which of their tokens count.

Letters: B sequences, P positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.special import SpecialTokens

# Positions at the start of a sequence that do not count and keep the model's own MLP outputs, as in tracing.
LEFT_OUT = 1


@dataclass(frozen=True)
class Sequences:
    """Token sequences (P,) int64, sorted by a hash of their ids.

    So the order they came in has no effect on any result, and any start of them is a sample.
    """

    ids: list[Tensor]
    dropped: tuple[int, ...] = ()  # special ids: sinks of attention, or they say nothing

    @classmethod
    def of(cls, ids: Sequence[Tensor], parts: ModelParts, tokenizer: Any, tokens: int) -> Sequences:
        """The first of ``ids`` with up to ``tokens`` tokens in all, at least one of them.

        Raises InputError for what is no sequence, is longer than the model's context, or when no token counts;
        CompatibilityError for ids outside the model's vocabulary.
        """
        for number, one in enumerate(ids):
            _check(number, one, parts)
        chosen = [one.long().cpu() for one in whole([one for one in ids if len(one)], tokens)]
        ordered = sorted(chosen, key=lambda one: hashlib.sha256(one.numpy().tobytes()).digest())
        made = cls(ordered, SpecialTokens.of(tokenizer).dropped)
        if not any(made.counted(one[None]).any() for one in ordered):
            raise InputError(
                f"there is no held-out token to evaluate on: {len(ordered)} sequence(s) were given, in which position 0 and "
                "special tokens do not count. Give longer text."
            )
        return made

    def first(self, tokens: int) -> Sequences:
        """The first ones with up to ``tokens`` tokens, at least one."""
        return Sequences(whole(self.ids, tokens), self.dropped)

    def sample(self, tokens: int) -> Sequences:
        """The first ones in which at least ``tokens`` tokens count; all, if there are fewer."""
        chosen, total = list[Tensor](), 0
        for one in self.ids:
            if total >= tokens:
                break
            chosen.append(one)
            total += int(self.counted(one[None]).sum())
        return Sequences(chosen, self.dropped)

    def counted(self, ids_BP: Tensor) -> Tensor:
        """Mask (B, P) of the tokens that count: neither at the start of the sequence nor special."""
        mask = torch.ones_like(ids_BP, dtype=torch.bool)
        mask[:, :LEFT_OUT] = False
        for special in self.dropped:
            mask &= ids_BP != special
        return mask

    def batches(self, tokens: int) -> Iterator[Tensor]:
        """Sequences of one length together, (B, P) with at most ``tokens`` tokens (or one sequence); nothing is padded."""
        waiting: dict[int, list[Tensor]] = {}
        for one in self.ids:
            group = waiting.setdefault(len(one), [])
            group.append(one)
            if (len(group) + 1) * len(one) > tokens:
                yield torch.stack(waiting.pop(len(one)))
        yield from (torch.stack(group) for group in waiting.values())

    @property
    def n_tokens(self) -> int:
        """All tokens, those that do not count included."""
        return sum(len(one) for one in self.ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all sequences."""
        digest = hashlib.sha256()
        for one in self.ids:
            digest.update(len(one).to_bytes(8, "little") + one.numpy().tobytes())
        return digest.hexdigest()


def whole(ids: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """The longest start of ``ids`` with at most ``tokens`` tokens; the first sequence in any case."""
    chosen, total = list[Tensor](), 0
    for one in ids:
        total += len(one)
        if chosen and total > tokens:
            break
        chosen.append(one)
    return chosen


def _check(number: int, ids: Tensor, parts: ModelParts) -> None:
    if ids.ndim != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise InputError(
            f"held-out sequence {number} is {ids.dtype} of shape {tuple(ids.shape)}; expected token ids (P,)"
        )
    limit, vocabulary = parts.context_length, parts.config.d_vocab
    if limit is not None and len(ids) > limit:
        raise InputError(f"held-out sequence {number} has {len(ids)} tokens; the model reads at most {limit}. Cut it.")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise CompatibilityError(
            f"held-out sequence {number} has ids {int(ids.min())}..{int(ids.max())}; the model's vocabulary is "
            f"0..{vocabulary - 1}. Use the model's own tokenizer."
        )
