"""The tokens that a group makes likelier directly, all of its features together, as active as they are on the prompt.

effect_v = sum over features of activation * (decoder rows, summed over the layers written to) . (gain * W_U[v]), less its mean:
`features/logits.py` of the sum instead of each. Without the model, the same sum over what the records of features keep: their
strongest tokens. A token counts if its effect stands out from what so many tokens of this spread would give by chance, and
is nearly that of the strongest one; or if it is the strongest of all and an output of the prompt, which by chance it is once
in V.

Letters: n features of a group, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.features.labels import STANDS_OUT, WORDS, shown_token
from circuit_tracer.features.logits import vocabulary_effects, vocabulary_of
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import token_strings

BESIDE = 0.9  # of the strongest token's effect: others of more are named beside it

Place = tuple[int, int]


class Active(NamedTuple):
    """A feature (layer, index) as active as on the prompt, what it counts in its group, the id of its node and its token."""

    place: Place
    activation: float
    weight: float
    node: str = ""
    token: str = ""


class Records(Protocol):
    """Records of features by (layer, index): a mapping, or a ``FeatureFolder``."""

    def get(self, place: Place, /) -> Mapping[str, Any] | None:
        """The record, or None."""


@plain_torch()
@torch.no_grad()
def promoted_by(members: Sequence[Active], model: Traceable, outputs: Collection[int] = ()) -> list[str]:
    """At most ``WORDS`` tokens, strongest first; [] if none counts. outputs: token ids of the prompt's outputs."""
    first = model.transcoders.d_transcoder
    members = [
        member for member in members if member.place[1] < first
    ]  # what attention writes goes through its projection
    layers = sorted({member.place[0] for member in members})
    written = torch.zeros(model.parts.config.d_model, device=model.parts.device)
    for layer in layers:
        here = [member for member in members if member.place[0] == layer]
        rows_nTD = model.transcoders.decoder_rows(layer, torch.tensor([member.place[1] for member in here]))
        activation_n = torch.tensor([member.activation for member in here]).to(written)
        written = written + activation_n @ rows_nTD.sum(1).to(written)
    effect_V = vocabulary_effects(model.parts, written[None], vocabulary_of(model))[0]
    values, ids = effect_V.topk(min(WORDS, len(effect_V)))
    chance = _by_chance(float(effect_V.std(correction=0)), len(effect_V))
    least = max(chance, BESIDE * float(values[0]))
    texts = [shown_token(text) for text in token_strings(ids.cpu(), model.tokenizer)]
    standing = [text for text, value in zip(texts, values.tolist(), strict=True) if value > least]
    return standing or (texts[:1] if int(ids[0]) in outputs and values[0] > 0 else [])


def promoted_in(members: Sequence[Active], records: Records) -> list[str]:
    """The same from records; [] for records that do not say by how much."""
    effects: defaultdict[str, float] = defaultdict(float)
    variance, vocabulary = 0.0, 0
    for member in members:
        record = records.get(member.place)
        if record is None or record.get("top_logit_values") is None or record.get("logit_spread") is None:
            continue
        variance += (member.activation * record["logit_spread"]) ** 2
        vocabulary = max(vocabulary, record.get("n_vocabulary") or 0)
        for token, value in zip(record["top_logits"], record["top_logit_values"], strict=True):
            effects[token] += member.activation * value
    chance = _by_chance(math.sqrt(variance), vocabulary)
    strongest = sorted(effects, key=lambda token: (-effects[token], token))[:WORDS]
    if not vocabulary or not strongest:
        return []
    least = max(chance, BESIDE * effects[strongest[0]])
    return [shown_token(token) for token in strongest if effects[token] > least]


def _by_chance(spread: float, vocabulary: int) -> float:
    return STANDS_OUT * spread * math.sqrt(2 * math.log(max(2, vocabulary)))
