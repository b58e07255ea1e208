"""Naming the demo's features by what they fire on in the world.

Every context of the world (a token with all before it) carries descriptions: the token itself, the place it names, its
kind, what the sentence asks for, which answer it calls for. A feature gets the description that fits its activation best:
``precision`` is the share of its activation on contexts so described, ``recall`` the share of such contexts on which it is
active; the best harmonic mean wins. A feature that no description fits is named by its strongest tokens.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.train_clt import collect
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.demo.world import Entity, Statement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from circuit_tracer.demo.dictionary import DenseTranscoder

GOOD_FIT = 0.4  # harmonic mean below which a feature is called mixed
TOKENS_NAMED = 3

Labels = dict[str, dict[str, str]]


def label_features(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: DenseTranscoder) -> Labels:
    """{"layer": {"feature": label}} for every feature that fires on the transcoder's training statements."""
    statements = world.transcoder_training()
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(model, encode_statements(tokenizer, statements), stop)
    names, member_NC = _descriptions(tokenizer, data.contexts)
    labels: Labels = {}
    for layer in range(transcoder.n_layers):
        activation_NF = transcoder.encode(layer, data.x_LND[layer])
        fit_CF = _fit(activation_NF, member_NC)
        best_F = fit_CF.max(0)
        labels[str(layer)] = {}
        for feature in (activation_NF > 0).any(0).nonzero()[:, 0].tolist():
            if best_F.values[feature] >= GOOD_FIT:
                label = names[best_F.indices[feature]]
            else:
                label = "mixed: " + ", ".join(_strongest(tokenizer, data.contexts, activation_NF[:, feature]))
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
                kinds[value] += [f"{_article(relation)} word"]
    for statement in world.skills():
        kinds[statement.subject] += [f"{_article(statement.relation)} question's word"]
    return {word: sorted(set(found)) for word, found in kinds.items()}


def _descriptions(tokenizer: PreTrainedTokenizerFast, contexts: list[tuple[int, ...]]) -> tuple[list[str], Tensor]:
    """All descriptions and which contexts (N) carry which (C): names, (N, C) float."""
    index: dict[str, int] = {}
    pairs = []
    for row, context in enumerate(contexts):
        for name in describe([_word(tokenizer, token) for token in context[1:]]):
            pairs.append((row, index.setdefault(name, len(index))))
    member_NC = torch.zeros(len(contexts), len(index))
    member_NC[tuple(torch.tensor(pairs).T)] = 1.0
    return list(index), member_NC


def _fit(activation_NF: Tensor, member_NC: Tensor) -> Tensor:
    """Harmonic mean of precision and recall, (C, F)."""
    precision_CF = (member_NC.T @ activation_NF) / activation_NF.sum(0).clamp(min=1e-9)
    recall_CF = (member_NC.T @ (activation_NF > 0).float()) / member_NC.sum(0)[:, None]
    return 2 * precision_CF * recall_CF / (precision_CF + recall_CF).clamp(min=1e-9)


def _strongest(tokenizer: PreTrainedTokenizerFast, contexts: list[tuple[int, ...]], activation_N: Tensor) -> list[str]:
    """The tokens with the largest total activation."""
    total: defaultdict[int, float] = defaultdict(float)
    for row in activation_N.nonzero()[:, 0].tolist():
        total[contexts[row][-1]] += activation_N[row].item()
    strongest = sorted(total, key=lambda token: (-total[token], token))[:TOKENS_NAMED]
    return [_word(tokenizer, token) for token in strongest]


def _word(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))
