"""What is published about the demo: every number of its metrics.json and of its card.

Shapes: L layers, N contexts, D d_model, B prompts.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.capture import Rule
from circuit_tracer.demo.contexts import Contexts, collect
from circuit_tracer.demo.dictionary import reconstruct
from circuit_tracer.demo.probes import (
    Features,
    PromptBatch,
    batches,
    entity_features,
    predict,
    predictions,
    replacing,
    setting,
    subject_inputs,
    swapped,
    token_id,
)
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.demo.world import Entity, Statement
from circuit_tracer.transcoders import CrossLayerTranscoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

STRENGTHS = (1, 2)  # times the other entity's usual activation
OTHERS = 2  # other entities tried for each question of a swap test
SHOWN_SWAPS = (("Dallas", "California"), ("Oakland", "Texas"))  # (city of the prompt, entity put in its place)

Metrics = dict[str, Any]


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: CrossLayerTranscoder) -> Metrics:
    """All metrics, as plain data. Deterministic; the random choices of the swap test have a fixed seed."""
    features = entity_features(model, tokenizer, transcoder)
    groups: dict[str, Sequence[Statement]] = {
        "one_hop": world.one_hops(),
        "two_hop": world.seen_two_hops(),
        "two_hop_held_out": world.held_out(),
        "two_hop_reserved_cities": world.reserved(),
        "skills": world.skills(),
    }
    counts = [len(one) for one in features.values()]
    return {
        "accuracy": {name: accuracy(model, tokenizer, group) for name, group in groups.items()},
        "answer_kept_with_all_mlps_replaced": {
            name: agreement(model, tokenizer, transcoder, group) for name, group in groups.items()
        },
        "kl_with_all_mlps_replaced": {
            name: divergence(model, tokenizer, transcoder, group) for name, group in groups.items()
        },
        "reconstruction": {
            "held_out_statements": reconstruction(model, tokenizer, transcoder, world.held_out()),
            "reserved_cities": reconstruction(model, tokenizer, transcoder, world.reserved()),
            "training_statements": reconstruction(model, tokenizer, transcoder, world.transcoder_training()),
        },
        "features_never_active_by_layer": never_active(model, tokenizer, transcoder),
        "entity_features": {
            "mean_number": sum(counts) / len(counts),
            "entities_without": [name for name, found in features.items() if not found],
            "prompts_with_one_active": {
                name: coverage(model, tokenizer, transcoder, features, group)
                for name, group in groups.items()
                if name.startswith("two_hop")
            },
        },
        "swap_reserved_cities": {
            str(strength): swap_test(model, tokenizer, transcoder, features, world.reserved(), strength)
            for strength in STRENGTHS
        },
        "swap_other_cities": {
            str(strength): swap_test(model, tokenizer, transcoder, features, world.seen_two_hops(), strength)
            for strength in STRENGTHS
        },
        "answer_kept_without_a_random_entitys_features": ablation_test(
            model, tokenizer, transcoder, features, world.reserved()
        ),
        "shown": [shown(model, tokenizer, transcoder, features, city, other) for city, other in SHOWN_SWAPS],
    }


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, statements: Iterable[Statement]) -> float:
    """Share of the statements whose answer is the model's most likely next token."""
    right = [predict(model, batch.ids_BP) == batch.answer_B for batch in batches(tokenizer, statements)]
    return _mean(right)


def agreement(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    statements: Iterable[Statement],
) -> float:
    """Share of the prompts whose most likely next token stays when the transcoder replaces all MLPs, without errors."""
    rule = replacing(transcoder)
    same = [
        predict(model, batch.ids_BP, rule) == predict(model, batch.ids_BP) for batch in batches(tokenizer, statements)
    ]
    return _mean(same)


def divergence(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    statements: Iterable[Statement],
) -> float:
    """KL divergence, in nats, of the next token's distribution with all MLPs replaced from the model's own; mean of prompts."""
    rule = replacing(transcoder)
    parts = []
    for batch in batches(tokenizer, statements):
        own_BV = predictions(model, batch.ids_BP).log_softmax(-1)
        replaced_BV = predictions(model, batch.ids_BP, rule).log_softmax(-1)
        parts.append((own_BV.exp() * (own_BV - replaced_BV)).sum(-1))
    return _mean(parts)


def reconstruction(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    statements: Sequence[Statement],
) -> dict[str, list[float]]:
    """NMSE and L0 by layer over every token of the statements but position 0; and NMSE with each context counted once.

    NMSE = sum |y_hat - y|^2 / sum |y - mean y|^2, mean over the same tokens.
    """
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(model, encode_statements(tokenizer, statements), stop)
    y_hat_LND = reconstruct(transcoder, data.x_LND)
    share_N = data.count_N / data.count_N.sum()
    l0 = [((transcoder.encode_layer(x_ND, layer) > 0).sum(1) * share_N).sum() for layer, x_ND in enumerate(data.x_LND)]
    return {
        "nmse_by_layer": _nmse(data, y_hat_LND, share_N),
        "nmse_by_layer_each_context_once": _nmse(data, y_hat_LND, torch.full_like(share_N, 1 / len(share_N))),
        "l0_by_layer": [round(one.item(), 3) for one in l0],
    }


def never_active(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: CrossLayerTranscoder
) -> list[int]:
    """Features of each layer that no token of the training statements activates."""
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(model, encode_statements(tokenizer, world.transcoder_training()), stop)
    return [
        int((transcoder.encode_layer(x_ND, layer) == 0).all(0).sum().item()) for layer, x_ND in enumerate(data.x_LND)
    ]


def coverage(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    features: Mapping[str, Features],
    statements: Iterable[Statement],
) -> float:
    """Share of the two-hop prompts at whose city a feature of the entity in between is active."""
    found = []
    for batch in batches(tokenizer, statements):
        active_LBF = transcoder.encode(subject_inputs(model, batch)) > 0
        for row, one in enumerate(batch.statements):
            found.append(any(bool(active_LBF[layer, row, feature]) for layer, feature in features[str(one.entity)]))
    return _mean([torch.tensor(found)])


def swap_test(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    features: Mapping[str, Features],
    statements: Sequence[Statement],
    strength: float,
) -> dict[str, float]:
    """`answers_turned` when an entity's features are swapped for the other's. One without features counts like any other."""

    def swap(batch: PromptBatch, others: Sequence[Entity]) -> Rule:
        pairs = zip(batch.statements, others, strict=True)
        edits = [swapped(features, str(one.entity), other.name, strength) for one, other in pairs]
        return setting(transcoder, batch.subject_B, edits)

    return answers_turned(model, tokenizer, statements, swap)


def answers_turned(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    statements: Sequence[Statement],
    intervene: Callable[[PromptBatch, Sequence[Entity]], Rule],
) -> dict[str, float]:
    """Share of the answers that an intervention at the city turns into the other entity's, by relation and all.

    For each question ``OTHERS`` entities of its kind with another answer are drawn (fixed seed); ``intervene`` is given the
    questions and the entity drawn for each.
    """
    chance = random.Random(0)
    turned: defaultdict[str, list[bool]] = defaultdict(list)
    for batch in batches(tokenizer, statements):
        for _ in range(OTHERS):
            others = [_another(one, chance) for one in batch.statements]
            wanted = [other.answer(one.relation) for one, other in zip(batch.statements, others, strict=True)]
            found_B = predict(model, batch.ids_BP, intervene(batch, others))
            wanted_B = torch.tensor([token_id(tokenizer, word) for word in wanted])
            for one, hit in zip(batch.statements, (found_B == wanted_B).tolist(), strict=True):
                turned[one.relation].append(hit)
    every = [hit for hits in turned.values() for hit in hits]
    return {name: round(sum(hits) / len(hits), 4) for name, hits in [*sorted(turned.items()), ("all", every)]}


def ablation_test(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    features: Mapping[str, Features],
    statements: Sequence[Statement],
) -> float:
    """Share of the answers that stay when the features of a random other entity are set to zero at the city."""
    chance = random.Random(0)
    kept = []
    for batch in batches(tokenizer, statements):
        edits = [dict.fromkeys(features[_another(one, chance).name], 0.0) for one in batch.statements]
        kept.append(predict(model, batch.ids_BP, setting(transcoder, batch.subject_B, edits)) == batch.answer_B)
    return _mean(kept)


def shown(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    features: Mapping[str, Features],
    city: str,
    other: str,
) -> Metrics:
    """One prompt of the README: its answer, its entity's active features at the city, and the answer after a swap.

    ``passes``: the answer is right, a feature of the entity is active, and the swap at usual strength gives the other's.
    """
    statement = next(one for one in world.two_hops() if one.city == city and one.relation == "capital")
    batch = next(batches(tokenizer, [statement]))
    active: dict[tuple[int, int], float] = {}

    def watch(layer: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        for feature, value in enumerate(transcoder.encode_layer(x_BPD[0, batch.subject_B[0]], layer).tolist()):
            if value != 0:
                active[layer, feature] = value
        return y_BPD

    answer = tokenizer.decode(predict(model, batch.ids_BP, watch))
    edits = {
        str(strength): setting(transcoder, batch.subject_B, [swapped(features, str(statement.entity), other, strength)])
        for strength in STRENGTHS
    }
    after = {strength: tokenizer.decode(predict(model, batch.ids_BP, rule)) for strength, rule in edits.items()}
    own = {key: value for key, value in active.items() if key in features[str(statement.entity)]}
    return {
        "prompt": statement.prompt,
        "answer": answer,
        "entity": statement.entity,
        "active_features_of_entity": {f"{layer}/{feature}": round(value, 3) for (layer, feature), value in own.items()},
        "active_features_at_city": len(active),
        "swapped_for": other,
        "answer_after_swap": after,
        "passes": bool(own) and answer == statement.answer and after["1"] == world.entity(other).answer("capital"),
    }


def _another(statement: Statement, chance: random.Random) -> Entity:
    one = world.entity(str(statement.entity))
    alike = [other for other in world.entities() if other.kind == one.kind]
    return chance.choice([other for other in alike if other.answer(statement.relation) != statement.answer])


def _nmse(data: Contexts, y_hat_LND: Tensor, share_N: Tensor) -> list[float]:
    weight_N1 = share_N[:, None]
    mean_L1D = (weight_N1 * data.y_LND).sum(1, keepdim=True)
    error_L = (weight_N1 * (y_hat_LND - data.y_LND).square()).sum((1, 2))
    spread_L = (weight_N1 * (data.y_LND - mean_L1D).square()).sum((1, 2))
    return [round(value, 5) for value in (error_L / spread_L).tolist()]


def _mean(parts: Sequence[Tensor]) -> float:
    return round(torch.cat(list(parts)).float().mean().item(), 4)
