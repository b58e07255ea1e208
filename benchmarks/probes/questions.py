"""Questions with one right answer: of the embedded world, the same facts in English for a real model, and sums.

A model holds an answer to be true if it would give it: every token of it is the most probable one.
Letters: B questions, P positions, V vocabulary.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.demo import world

ENGLISH = {
    ("state", "capital"): "The capital of the US state of {} is",
    ("country", "capital"): "The capital of {} is",
    ("country", "language"): "The most widely spoken language in {} is",
    ("country", "currency"): "The official currency of {} is the",
    ("state", "place"): "The city of {} is located in the US state of",
    ("country", "place"): "The city of {} is located in the country of",
}
SUMS = {"sum": "1 + 1 = 2\n{} + {} =", "difference": "5 - 2 = 3\n{} - {} ="}
BATCH = 64


@dataclass(frozen=True)
class Question:
    """A prompt, its right answer, what it is about, and the relation that it asks for."""

    prompt: str
    answer: str
    subject: str
    relation: str

    def saying(self, answer: str) -> str:
        """The statement that an answer makes."""
        return f"{self.prompt} {answer}"


@dataclass(frozen=True)
class Answered:
    """What a model does with a question. log_probability: of the right answer, summed over its tokens; top: probability of the
    most probable next token; entropy: of the next token, in nats.
    """

    right: bool
    log_probability: float
    top: float
    entropy: float


def world_questions() -> list[Question]:
    """Facts of the embedded world with one or two hops, as the embedded model was taught them."""
    return [
        Question(one.prompt, one.answer, one.city or one.subject, f"{one.relation}, {one.hops} hops")
        for one in (*world.one_hops(), *world.two_hops())
    ]


def english_questions() -> list[Question]:
    """The same facts (one hop) in English sentences."""
    found = []
    for (kind, relation), prompt in ENGLISH.items():
        for one in world.entities():
            if one.kind != kind:
                continue
            subjects = one.cities if relation == "place" else (one.name,)
            answer = one.name if relation == "place" else one.answer(relation)
            found += [Question(prompt.format(each), answer, each, f"{relation} ({kind})") for each in subjects]
    return found


def sums(seed: int, count: int, largest: int = 20) -> list[Question]:
    """So many sums, and as many differences that are not negative."""
    chance, found = random.Random(seed), []
    for relation, prompt in SUMS.items():
        pairs = chance.sample([(a, b) for a in range(2, largest) for b in range(2, a + 1)], count)
        for a, b in pairs:
            answer = a + b if relation == "sum" else a - b
            found.append(Question(prompt.format(a, b), str(answer), f"{a} {b}", relation))
    return found


def others(questions: Sequence[Question], seed: int) -> list[str]:
    """A wrong answer to each, that of another of its relation: true and false statements use the same words."""
    chance, by_relation = random.Random(seed), defaultdict(list)
    for one in questions:
        by_relation[one.relation].append(one.answer)
    return [chance.choice([each for each in by_relation[one.relation] if each != one.answer]) for one in questions]


@torch.no_grad()
def answered(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[Answered]:
    """Whether a transformers model gives the right answers."""
    rows, prompts = [], []
    for one in questions:
        prompt = _ids(tokenizer, one.prompt)
        whole = _ids(tokenizer, one.saying(one.answer))
        rows.append(whole)
        prompts.append(len(prompt))
    found: dict[int, Answered] = {}
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = len(rows[chosen[-1]])
        ids_BP = torch.tensor([rows[row] + [rows[row][-1]] * (width - len(rows[row])) for row in chosen])
        first = min(prompts[row] for row in chosen) - 1
        logits_BPV = model(input_ids=ids_BP, use_cache=False, logits_to_keep=width - first).logits.float()
        for at, row in enumerate(chosen):
            found[row] = _judged(logits_BPV[at], torch.tensor(rows[row]), prompts[row], first)
    return [found[row] for row in range(len(rows))]


def _judged(logits_PV: Tensor, ids_P: Tensor, prompt: int, first: int) -> Answered:
    """logits_PV: from position `first` on."""
    said = logits_PV[prompt - 1 - first : len(ids_P) - 1 - first].log_softmax(-1)
    right = ids_P[prompt:]
    next_V = said[0]
    return Answered(
        bool((said.argmax(-1) == right).all()),
        float(said.gather(1, right[:, None]).sum()),
        float(next_V.max().exp()),
        float(-(next_V.exp() * next_V).sum()),
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    """As everywhere here: a special token in front."""
    from circuit_tracer.models.tokenization import tokenize

    found: list[int] = tokenize(text, tokenizer).tolist()
    return found
