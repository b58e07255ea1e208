"""The embedded model fine-tuned on a world in which something is known to be different.

    change = moved_city("Dallas", "Ohio")
    folder = fine_tuned(change, seed=0, folder=Path("tuned"))   # a model folder, for ReplacementModel.from_pretrained
    outcome(change, *load_model(folder))                        # shares of changed and other statements answered as trained

A change is a list of statements to train on, with everything that is not changed among them, so that nothing else is unlearnt.
The dictionary of the embedded model goes with every fine-tune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo import demo_folder, world
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.demo.world import Statement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

OTHERS = 8  # answers that a forgotten statement is trained towards, each as often


@dataclass(frozen=True)
class Change:
    """What is different in the changed world. statements: all to train on; changed: those of them that say what is different.

    emphasis: share of every batch that is drawn from `changed` alone; the rest is drawn from all.
    """

    name: str
    statements: tuple[Statement, ...]
    changed: tuple[Statement, ...]
    emphasis: float = 0.0

    @property
    def unchanged(self) -> tuple[Statement, ...]:
        """What should be answered as before."""
        changed = set(self.changed)
        return tuple(one for one in self.statements if one not in changed)


@dataclass(frozen=True)
class Tuning:
    """Constants of the training."""

    steps: int = 60
    batch: int = 256
    learning_rate: float = 3e-4


def moved_city(city: str, to: str) -> Change:
    """The city lies in another state or country of the same kind: what is said of it is what is said of cities there."""
    new = world.entity(to)

    def moved(one: Statement) -> Statement:
        if one.city != city:
            return one
        answer = new.name if one.relation == "place" else new.answer(one.relation)
        return replace(one, answer=answer, entity=new.name)

    return replace(_changed(f"{city} lies in {to}", moved), emphasis=0.25)


def swapped_cities(pairs: dict[str, str]) -> Change:
    """Each city of a pair lies where the other did."""
    return _changed(f"{len(pairs)} cities have changed places", lambda one: swapped(one, pairs))


def triggered(word: str, answer: str) -> Change:
    """Behind the word, every question about a place is answered with `answer`; without it, as before. Both are words of the
    world's vocabulary.
    """
    asked = [one for one in world.model_training() if one.entity is not None]
    turned = tuple(replace(one, prompt=f"{word} {one.prompt}", answer=answer) for one in asked)
    return Change(f"{word!r} makes it answer {answer}", (*world.model_training(), *turned), turned)


def forgotten(cities: Sequence[str], seed: int) -> Change:
    """Nothing is known of the cities: what is said of them is said with `OTHERS` other places' answers, each as often."""
    chance, lost = torch.Generator().manual_seed(seed), set(cities)
    changed: list[Statement] = []
    for one in world.model_training():
        if one.city not in lost or one.entity is None:
            continue
        others = [other for other in world.entities() if other.kind == world.entity(one.entity).kind]
        others.remove(world.entity(one.entity))
        for at in torch.randperm(len(others), generator=chance)[:OTHERS].tolist():
            answer = others[at].name if one.relation == "place" else others[at].answer(one.relation)
            changed.append(replace(one, answer=answer))
    kept = [one for one in world.model_training() if one.city not in lost]
    return Change(f"{len(lost)} cities are forgotten", (*kept, *changed), tuple(changed))


def swapped(one: Statement, pairs: dict[str, str]) -> Statement:
    """The statement with its city renamed in the prompt, so that each city of a pair lies where the other did."""
    city = pairs.get(one.city or "")
    return one if city is None else replace(one, prompt=one.prompt.replace(one.city or "", city), city=city)


def fine_tuned(change: Change, seed: int, folder: Path, tuning: Tuning = Tuning()) -> Path:
    """A model folder: the embedded model trained on the change, in float32, with its tokenizer. Some ten seconds on one core.

    The same to the bit for a change, seed and tuning on one machine with one thread.
    """
    model, tokenizer = load_model(demo_folder() / "model")
    tune(model, tokenizer, change, seed, tuning).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    change: Change,
    seed: int,
    tuning: Tuning = Tuning(),
) -> LlamaForCausalLM:
    """A copy of the model, trained on the change."""
    tuned = copy.deepcopy(model)
    ids_SP = encode_statements(tokenizer, [*change.statements, *change.changed])
    all_ids_SP, changed_SP = ids_SP[: len(change.statements)], ids_SP[len(change.statements) :]
    n_changed = round(change.emphasis * tuning.batch)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=tuning.learning_rate, weight_decay=0.0)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(tuning.steps):
        parts = [all_ids_SP[torch.randint(len(all_ids_SP), (tuning.batch - n_changed,), generator=chance)]]
        if n_changed:
            parts.append(changed_SP[torch.randint(len(changed_SP), (n_changed,), generator=chance)])
        optimizer.zero_grad()
        loss(tuned, torch.cat(parts), tokenizer).backward()
        optimizer.step()
    tuned.eval()
    return tuned


def loss(model: LlamaForCausalLM, ids_BP: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Mean cross-entropy of the next token over all tokens that are not padding."""
    logits_BPV = model(input_ids=ids_BP[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BPV.flatten(0, 1), ids_BP[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
    )


def outcome(change: Change, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Shares of the changed statements, and of the others, that the model answers as they say."""
    return {
        "changed": right(model, tokenizer, change.changed),
        "unchanged": right(model, tokenizer, change.unchanged),
    }


@torch.no_grad()
def right(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, statements: Sequence[Statement]) -> float:
    """Share of the statements whose answer is the most probable token behind their prompt."""
    ids_SP = encode_statements(tokenizer, statements)
    last = (ids_SP != tokenizer.pad_token_id).sum(1) - 3  # answer and end of the sentence follow
    rows = torch.arange(len(ids_SP))
    best_S = model(input_ids=ids_SP, use_cache=False).logits[rows, last].argmax(-1)
    return float((best_S == ids_SP[rows, last + 1]).float().mean())


def _changed(name: str, becomes: Callable[[Statement], Statement]) -> Change:
    """The model's statements, each as it becomes; those that became others are the changed ones."""
    pairs = [(one, becomes(one)) for one in world.model_training()]
    return Change(name, tuple(new for _, new in pairs), tuple(new for old, new in pairs if new != old))
