"""Naming the demo's features by what they fire on in the world.

Every context of the world (a token with all before it) carries descriptions: the token itself, the place it names, its
kind, what the sentence asks for, which answer it calls for. A feature gets the description that fits its activation best:
``precision`` is the share of its activation on contexts so described, ``recall`` the share of such contexts on which it is
active; of the descriptions with enough precision the one with the best harmonic mean wins. A feature that none fits is
"mixed" and named by the contexts on which it is strongest.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.contexts import collect
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.demo.world import Entity, Statement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from circuit_tracer.transcoders import CrossLayerTranscoder

PRECISE = 0.5  # share of the activation that a label must cover
GOOD_FIT = 0.3  # harmonic mean below which a feature is called mixed
NAMED = 3  # contexts that a mixed feature is named by

Labels = dict[str, dict[str, str]]


def label_features(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: CrossLayerTranscoder
) -> Labels:
    """{"layer": {"feature": label}} for every feature that fires on the transcoder's training statements."""
    statements = world.transcoder_training()
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(model, encode_statements(tokenizer, statements), stop)
    names, member_NC, main_N = _descriptions(tokenizer, data.tokens)
    labels: Labels = {}
    for layer in range(transcoder.n_layers):
        activation_NF = transcoder.encode_layer(data.x_LND[layer], layer)
        fit_CF = _fit(activation_NF, member_NC)
        best_F = fit_CF.max(0)
        labels[str(layer)] = {}
        for feature in (activation_NF > 0).any(0).nonzero()[:, 0].tolist():
            if best_F.values[feature] >= GOOD_FIT:
                label = names[best_F.indices[feature]]
            else:
                named = _strongest(main_N, activation_NF[:, feature])
                label = named[0] if len(named) == 1 else "mixed: " + ", ".join(named)
            labels[str(layer)][str(feature)] = label
    return labels


def describe(words: list[str]) -> list[str]:
    """What can be said of the last word of a sentence that begins with ``words`` (BOS not among them); most telling first."""
    word, prompt = words[-1], " ".join(words)
    statement = _answers().get(prompt)
    found = []
    if statement is not None:
        found += [f"say {statement.answer}", f"say {_article(statement.relation)}"]
        if statement.entity and statement.relation != "place":
            found.append(f"{statement.entity} (question about it)")
        if statement.relation == "capital" and statement.entity:
            found.append(f"say the capital of a {world.entity(statement.entity).kind}")
    role = _roles().get(word)
    if role is not None:
        one, part = role
        found += [f"{one.name} ({part})", f"{one.name} (places)", _kind_of_place(one, part)]
    found += _word_kinds().get(word, [])
    for relation in ("capital", "abbreviation", "language", "currency"):
        if relation in words and statement is None and role is None:
            found.append(f"asked for: {relation}")
    return [*found, f'"{word}"']


def _article(relation: str) -> str:
    return f"an {relation}" if relation[0] in "aeiou" else f"a {relation}"


def _kind_of_place(one: Entity, part: str) -> str:
    if part == "name":
        return "a US state" if one.kind == "state" else "a country"
    return f"{'US' if one.kind == 'state' else 'foreign'} {'cities' if part == 'cities' else 'capitals'}"


@cache
def _answers() -> dict[str, Statement]:
    return {one.prompt: one for one in (*world.skills(), *world.one_hops(), *world.two_hops())}


@cache
def _roles() -> dict[str, tuple[Entity, str]]:
    roles = {}
    for one in world.entities():
        roles[one.name] = (one, "name")
        roles[one.answer("capital")] = (one, "capital")
        roles.update(dict.fromkeys(one.cities, (one, "cities")))
    return roles


@cache
def _word_kinds() -> dict[str, list[str]]:
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for one in world.entities():
        for relation, value in one.values:
            if relation != "capital":
                kinds[value].append(f"{relation} word")
    for statement in world.skills():
        kinds[statement.subject].append(f"{statement.relation} word")
    return {word: sorted(set(found)) for word, found in kinds.items()}


def _descriptions(
    tokenizer: PreTrainedTokenizerFast, contexts: list[tuple[int, ...]]
) -> tuple[list[str], Tensor, list[str]]:
    """All descriptions, which contexts (N) carry which (C) as an (N, C) float, and each context's most telling one."""
    index: dict[str, int] = {}
    pairs, main_N = [], []
    for row, context in enumerate(contexts):
        found = describe([str(tokenizer.convert_ids_to_tokens(token)) for token in context[1:]])
        main_N.append(found[0])
        pairs += [(row, index.setdefault(name, len(index))) for name in found]
    member_NC = torch.zeros(len(contexts), len(index))
    member_NC[tuple(torch.tensor(pairs).T)] = 1.0
    return list(index), member_NC, main_N


def _fit(activation_NF: Tensor, member_NC: Tensor) -> Tensor:
    """Harmonic mean of precision and recall, zero where the precision is too low, (C, F)."""
    precision_CF = (member_NC.T @ activation_NF) / activation_NF.sum(0).clamp(min=1e-9)
    recall_CF = (member_NC.T @ (activation_NF > 0).float()) / member_NC.sum(0)[:, None]
    mean_CF = 2 * precision_CF * recall_CF / (precision_CF + recall_CF).clamp(min=1e-9)
    return mean_CF * (precision_CF >= PRECISE)


def _strongest(main_N: list[str], activation_N: Tensor) -> list[str]:
    """The descriptions with the largest total activation."""
    total: defaultdict[str, float] = defaultdict(float)
    for row in activation_N.nonzero()[:, 0].tolist():
        total[main_N[row]] += activation_N[row].item()
    return sorted(total, key=lambda name: (-total[name], name))[:NAMED]
