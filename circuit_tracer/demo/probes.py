"""Which features stand for which entity, and what happens to an answer when they are swapped.

An entity's features are found on the token of its open cities; the reserved cities and the held-out statements are not
looked at. A feature belongs to an entity if it is active on enough of the prompts about the entity's cities (ACTIVE_ON) and
on few of those about other cities (ELSEWHERE); an entity may have several, each for some of its cities.

Shapes: E entities, L layers, F features, B prompts, P positions, D d_model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.capture import Rule, mlp_activations, mlp_rule
from circuit_tracer.demo.dictionary import write
from circuit_tracer.demo.world import Statement
from circuit_tracer.transcoders import CrossLayerTranscoder
from circuit_tracer.transcoders.base import Transcoders

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# (layer, feature) -> usual activation
Features = dict[tuple[int, int], float]

ACTIVE_ON = 0.3  # at least this share of the prompts about the entity's cities
ELSEWHERE = 0.05  # at most this share of the prompts about other entities' cities


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one length: ids (B, P), answer token (B,), position of the subject (B,)."""

    statements: tuple[Statement, ...]
    ids_BP: Tensor
    answer_B: Tensor
    subject_B: Tensor


def batches(
    tokenizer: PreTrainedTokenizerFast, statements: Iterable[Statement], size: int = 512
) -> Iterator[PromptBatch]:
    """The prompts (without answers) grouped by length, so that nothing is padded."""
    by_length: defaultdict[int, list[tuple[Statement, list[int]]]] = defaultdict(list)
    for one in statements:
        ids: list[int] = tokenizer(one.prompt).input_ids
        by_length[len(ids)].append((one, ids))
    for rows in by_length.values():
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            statements_B = tuple(one for one, _ in chosen)
            subjects = [token_id(tokenizer, one.subject) for one in statements_B]
            yield PromptBatch(
                statements_B,
                torch.tensor([ids for _, ids in chosen]),
                torch.tensor([token_id(tokenizer, one.answer) for one in statements_B]),
                torch.tensor([ids.index(subject) for (_, ids), subject in zip(chosen, subjects, strict=True)]),
            )


def token_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The id of one word or name of the vocabulary."""
    found: int | None = tokenizer.backend_tokenizer.token_to_id(word)  # `tokenizer.vocab` makes a dictionary each time
    if found is None:
        raise KeyError(word)
    return found


@torch.no_grad()
def predictions(model: LlamaForCausalLM, ids_BP: Tensor, rule: Rule | None = None) -> Tensor:
    """Logits (B, V) of the next token, with the MLPs' outputs changed by ``rule`` if one is given."""
    with nullcontext() if rule is None else mlp_rule(model, rule):
        logits_BPV: Tensor = model(input_ids=ids_BP, use_cache=False).logits
    return logits_BPV[:, -1]


def predict(model: LlamaForCausalLM, ids_BP: Tensor, rule: Rule | None = None) -> Tensor:
    """The most likely next token (B,), with the MLPs' outputs changed by ``rule`` if one is given."""
    return predictions(model, ids_BP, rule).argmax(-1)


def replacing(transcoder: Transcoders) -> Rule:
    """Every MLP's output is the transcoder's reconstruction, except at position 0, where it stays the model's own."""
    written: dict[int, Tensor] = {}

    def rule(layer: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        if layer == 0:
            written.clear()
        output_BPTD = write(transcoder, layer, transcoder.encode_layer(x_BPD, layer))
        for offset in range(output_BPTD.shape[2]):
            written[layer + offset] = written.get(layer + offset, 0) + output_BPTD[:, :, offset]
        y_hat_BPD = written[layer] + transcoder.decoder_bias(layer)
        y_hat_BPD[:, 0] = y_BPD[:, 0]
        return y_hat_BPD

    return rule


def setting(
    transcoder: CrossLayerTranscoder, position_B: Tensor, values: Sequence[Mapping[tuple[int, int], float]]
) -> Rule:
    """Set features at one position of each prompt; the model's MLPs stay, and what the change of each feature writes is
    added to the outputs of its own and all later layers. ``values[b]``: (layer, feature) -> activation."""
    rows_B = torch.arange(len(position_B))
    pending: dict[int, Tensor] = {}

    def rule(layer: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        if layer == 0:
            pending.clear()
        active_BF = transcoder.encode_layer(x_BPD[rows_B, position_B], layer)
        change_BF = torch.zeros_like(active_BF)
        for row, features in enumerate(values):
            for (at, feature), value in features.items():
                if at == layer:
                    change_BF[row, feature] = value - active_BF[row, feature]
        change_BTD = write(transcoder, layer, change_BF)
        for offset in range(change_BTD.shape[1]):
            pending[layer + offset] = pending.get(layer + offset, 0) + change_BTD[:, offset]
        y_BPD = y_BPD.clone()
        y_BPD[rows_B, position_B] += pending[layer]
        return y_BPD

    return rule


def subject_inputs(model: LlamaForCausalLM, batch: PromptBatch) -> Tensor:
    """What the MLPs read at the subject: (L, B, D)."""
    x_LBPD, _ = mlp_activations(model, model.model.embed_tokens(batch.ids_BP))
    return x_LBPD[:, torch.arange(len(batch.subject_B)), batch.subject_B]


def entity_features(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: CrossLayerTranscoder
) -> dict[str, Features]:
    """For each entity its features with their usual activation: the mean over its cities on which they are active."""
    names = [one.name for one in world.entities()]
    shape = (len(names), transcoder.n_layers, transcoder.d_transcoder)
    total_ELF, active_ELF, count_E = torch.zeros(shape), torch.zeros(shape), torch.zeros(len(names))
    for batch in batches(tokenizer, world.seen_two_hops()):
        x_LBD = subject_inputs(model, batch)
        activation_BLF = torch.stack([transcoder.encode_layer(x_BD, layer) for layer, x_BD in enumerate(x_LBD)], 1)
        entity_B = torch.tensor([names.index(str(one.entity)) for one in batch.statements])
        total_ELF.index_add_(0, entity_B, activation_BLF)
        active_ELF.index_add_(0, entity_B, (activation_BLF > 0).float())
        count_E.index_add_(0, entity_B, torch.ones(len(entity_B)))
    usual_ELF = total_ELF / active_ELF.clamp(min=1)
    rate_ELF = active_ELF / count_E[:, None, None]
    elsewhere_ELF = (active_ELF.sum(0) - active_ELF) / (count_E.sum() - count_E)[:, None, None]
    belongs_ELF = (rate_ELF >= ACTIVE_ON) & (elsewhere_ELF <= ELSEWHERE)
    found: dict[str, Features] = {name: {} for name in names}
    for which, layer, feature in belongs_ELF.nonzero().tolist():
        found[names[which]][layer, feature] = usual_ELF[which, layer, feature].item()
    return found


def swapped(features: Mapping[str, Features], true: str, other: str, strength: float) -> Features:
    """The edit that takes ``true`` away and puts ``other`` in its place at ``strength`` times its usual activation."""
    edit = dict.fromkeys(features[true], 0.0)
    edit.update({key: strength * value for key, value in features[other].items()})
    return edit
