"""What an intervention did: logits, features, top tokens, against the clean run.

Letters: P positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit
from circuit_tracer.interventions.features.observe import FeatureChanges
from circuit_tracer.interventions.heads.edits import HeadEdit
from circuit_tracer.models.capture import final_softcap, logits_at
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import token_strings


class TokenChange(NamedTuple):
    """One token of the vocabulary at one position. Ranks count from 0."""

    text: str
    token_id: int
    probability_before: float
    probability_after: float
    logit_before: float
    logit_after: float
    rank_before: int
    rank_after: int


@dataclass(frozen=True)
class Outcome:
    """An intervention beside the clean run.

    Attributes:
        edits: What was changed.
        clean: The run without.
        final: (P, D) output of the final norm, from which logits are made when asked for.
        features: What every observed feature did; None when none was watched.
        values: The activation that each edited feature was given, by (layer, position, feature).
    """

    edits: tuple[Edit | HeadEdit, ...]
    clean: CleanRun
    final: Tensor
    features: FeatureChanges | None
    values: dict[tuple[int, int, int], float]

    @property
    def logits(self) -> Tensor:
        """(P, V), in the compute dtype."""
        return logits_at(self.clean.model.parts, self.final)

    @property
    def clean_logits(self) -> Tensor:
        """(P, V) without the intervention."""
        return logits_at(self.clean.model.parts, self.clean.final)

    @plain_torch()
    def logit_change(self, position: int = -1, softcap: bool = True) -> Tensor:
        """(V,) change at a position; before a final softcap, minus its mean, it is what a graph's edges predict."""
        parts = self.clean.model.parts
        if softcap and final_softcap(parts):
            logits = logits_at(parts, torch.stack([self.clean.final[position], self.final[position]]))
            return logits[1] - logits[0]
        # the change by itself, not the difference of two logits, which are far larger
        weight = parts.unembed.weight
        return (weight @ (self.final[position] - self.clean.final[position]).to(weight)).to(parts.compute_dtype)

    @plain_torch()
    def tokens(self, count: int = 10, position: int = -1, others: tuple[int, ...] = ()) -> list[TokenChange]:
        """The most probable tokens of either run, the new favourites first, and `others` by id."""
        pair = torch.stack([self.clean.final[position], self.final[position]])
        logits = logits_at(self.clean.model.parts, pair)
        probability = torch.softmax(logits, dim=-1)
        order = torch.argsort(logits, dim=-1, descending=True, stable=True)
        rank = torch.argsort(order, dim=-1)
        ids = list(dict.fromkeys([*order[1, :count].tolist(), *order[0, :count].tolist(), *others]))
        texts = token_strings(torch.tensor(ids), self.clean.model.tokenizer)
        return [
            TokenChange(
                text,
                token,
                *probability[:, token].tolist(),
                *logits[:, token].tolist(),
                *rank[:, token].tolist(),
            )
            for text, token in zip(texts, ids, strict=True)
        ]

    @property
    def changed_top(self) -> bool:
        """Whether the most probable next token is another one."""
        return int(self.logits[-1].argmax()) != int(self.clean_logits[-1].argmax())

    def __repr__(self) -> str:
        first = self.tokens(1)
        shown = ", ".join(f"{t.text!r} {t.probability_before:.3f} -> {t.probability_after:.3f}" for t in first)
        return f"Outcome({'; '.join(map(str, self.edits)) or 'nothing edited'}: {shown})"
