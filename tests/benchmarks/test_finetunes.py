"""The worlds that fine-tunes are trained on: what is different in them, and nothing else."""

from __future__ import annotations

import pytest
import torch

from benchmarks.many.finetunes import (
    OTHERS,
    Change,
    Tuning,
    forgotten,
    moved_city,
    outcome,
    swapped_cities,
    triggered,
    tune,
)
from circuit_tracer.demo import demo_folder, world
from circuit_tracer.demo.recipe import load_model

CITIES = ("Dallas", "Oakland")


def changes() -> dict[str, Change]:
    """One of every kind."""
    return {
        "moved": moved_city("Dallas", "Ohio"),
        "swapped": swapped_cities({"Dallas": "Oakland", "Oakland": "Dallas"}),
        "triggered": triggered("quiet", "Paris"),
        "forgotten": forgotten(CITIES, 0),
    }


@pytest.mark.parametrize("kind", ["moved", "swapped", "triggered", "forgotten"])
def test_only_what_is_said_to_change_does(kind: str) -> None:
    change, before = changes()[kind], set(world.model_training())
    assert change.changed
    assert not before & set(change.changed)
    kept = set(change.unchanged)
    assert kept <= before
    if kind == "triggered":
        assert kept == before
    else:
        named = CITIES[:1] if kind == "moved" else CITIES
        assert {one.city for one in before - kept} == set(named)
        assert {one.city for one in change.changed} == set(named)


def test_what_is_said_instead_is_of_the_other_place() -> None:
    found = changes()
    ohio = world.entity("Ohio")
    assert {one.answer for one in found["moved"].changed} == {"Ohio", *(value for _, value in ohio.values)} & {
        one.answer for one in found["moved"].changed
    }
    assert all(one.entity == "Ohio" for one in found["moved"].changed)
    assert all(one.prompt.startswith("quiet ") and one.answer == "Paris" for one in found["triggered"].changed)
    lost = [one for one in found["forgotten"].changed if one.prompt == "Dallas is in"]
    assert len({one.answer for one in lost}) == len(lost) == OTHERS
    assert "Texas" not in {one.answer for one in lost}


def test_training_moves_the_model_towards_the_change_alike_for_a_seed() -> None:
    model, tokenizer = load_model(demo_folder() / "model")
    change, few = moved_city("Dallas", "Ohio"), Tuning(steps=5, batch=8, learning_rate=3e-3)
    subset = Change(change.name, (*change.statements[:20], *change.changed), change.changed, change.emphasis)
    assert outcome(subset, model, tokenizer) == {"changed": 0.0, "unchanged": 1.0}
    first, second = (tune(model, tokenizer, subset, 3, few) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert outcome(subset, first, tokenizer)["changed"] > 0
