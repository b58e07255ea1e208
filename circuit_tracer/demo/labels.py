"""Naming the demo's features by what they fire on in the world.

Every context of the world (a token with all before it) carries descriptions: the token itself, the place it names, its
kind, what the sentence asks for, which answer it calls for. A feature gets the description that fits its activation best:
``precision`` is the share of its activation on contexts so described, ``recall`` the share of such contexts on which it is
active; of the descriptions with enough precision the one with the best harmonic mean wins. What many contexts carry needs
more precision, so that a feature that fires anywhere is no feature of the commonest kind. A feature that no description
fits is named by the contexts on which it is strongest: after what is said, if nearly all of its activation calls for answers
of one relation ("say a capital: Austin, Boise, Lima"), else "mixed".
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

PRECISE = 0.5  # share of the activation that a label must cover, beyond the share of all contexts that carry it
GOOD_FIT = 0.3  # harmonic mean below which a feature is called mixed
NAMED = 3  # contexts that a mixed feature is named by
OF_ONE_RELATION = 0.8  # share of the activation that must call for answers of one relation

MIXED = "mixed: "

Labels = dict[str, dict[str, str]]


def is_mixed(label: str) -> bool:
    """Whether a feature so called is of no one kind."""
    return label.startswith(MIXED)


def is_of_several_answers(label: str) -> bool:
    """Whether a feature so called is of several answers to one relation."""
    return label.startswith("say ") and ": " in label


def label_features(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, transcoder: CrossLayerTranscoder
) -> Labels:
    """{"layer": {"feature": label}} for every feature that fires on the transcoder's training statements."""
    statements = world.transcoder_training()
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(model, encode_statements(tokenizer, statements), stop)
    names, member_NC, main_N = _descriptions(tokenizer, data.tokens)
    said_R = [column for column, name in enumerate(names) if name in _said_relations()]
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
                label = _of_several(
                    activation_NF[:, feature], member_NC[:, said_R], [names[at] for at in said_R], main_N
                )
            labels[str(layer)][str(feature)] = label
    return labels


def describe(words: list[str]) -> list[str]:
    """What can be said of the last word of a sentence that begins with ``words`` (BOS not among them); most telling first."""
    word, prompt = words[-1], " ".join(words)
    statement = _answers().get(prompt)
    found = []
    if statement is not None:
        found += [f"say {statement.answer}", f"say {_article(statement.relation)}"]
        if statement.entity:
            found += [f"{statement.entity} (question about it)", statement.entity]
        if statement.relation == "capital" and statement.entity:
            found.append(f"say the capital of a {world.entity(statement.entity).kind}")
    role = _roles().get(word)
    if role is not None:
        one, part = role
        found += [f"{one.name} ({part})", f"{one.name} (places)", _kind_of_place(one, part), _part_of_the_world(one)]
        found += [one.name, "a place"]
    found += _word_kinds().get(word, [])
    asked = [relation for relation in world.RELATIONS["country"] if relation in words]
    if asked and statement is None and role is None:
        found += [f"asked for: {relation}" for relation in asked]
        found.append("asked for: a fact")
    if word in world.RELATIONS["country"]:
        found.append("a relation")
    if word in world.RELATIONS:
        found.append("a kind of place")
    if prompt in _texts():
        found.append("end of a sentence")
    return [*found, f'"{word}"']


def _article(relation: str) -> str:
    return f"an {relation}" if relation[0] in "aeiou" else f"a {relation}"


def _kind_of_place(one: Entity, part: str) -> str:
    if part == "name":
        return "a US state" if one.kind == "state" else "a country"
    return f"{'US' if one.kind == 'state' else 'foreign'} {'cities' if part == 'cities' else 'capitals'}"


def _part_of_the_world(one: Entity) -> str:
    return "a place in the US" if one.kind == "state" else "a place abroad"


@cache
def _answers() -> dict[str, Statement]:
    return {one.prompt: one for one in (*world.skills(), *world.one_hops(), *world.two_hops())}


@cache
def _said_relations() -> frozenset[str]:
    return frozenset(f"say {_article(one.relation)}" for one in _answers().values())


@cache
def _texts() -> frozenset[str]:
    return frozenset(one.text for one in _answers().values())


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
    common_C1 = member_NC.mean(0)[:, None]
    precision_CF = (member_NC.T @ activation_NF) / activation_NF.sum(0).clamp(min=1e-9)
    recall_CF = (member_NC.T @ (activation_NF > 0).float()) / member_NC.sum(0)[:, None]
    mean_CF = 2 * precision_CF * recall_CF / (precision_CF + recall_CF).clamp(min=1e-9)
    return mean_CF * (precision_CF >= common_C1 + PRECISE * (1 - common_C1))


def _of_several(activation_N: Tensor, said_NR: Tensor, relations: list[str], main_N: list[str]) -> str:
    """The name of a feature that no description fits: the relation whose answers are said, or "mixed", and the strongest."""
    strongest = _strongest(main_N, activation_N)
    if len(strongest) == 1:
        return strongest[0]
    share_R = activation_N @ said_NR / activation_N.sum()
    if share_R.max() < OF_ONE_RELATION:
        return MIXED + ", ".join(strongest)
    return f"{relations[int(share_R.argmax())]}: " + ", ".join(name.removeprefix("say ") for name in strongest)


def _strongest(main_N: list[str], activation_N: Tensor) -> list[str]:
    """The descriptions with the largest total activation."""
    total: defaultdict[str, float] = defaultdict(float)
    for row in activation_N.nonzero()[:, 0].tolist():
        total[main_N[row]] += activation_N[row].item()
    return sorted(total, key=lambda name: (-total[name], name))[:NAMED]
