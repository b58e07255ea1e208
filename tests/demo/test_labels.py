"""What a feature is called: by the description that fits it, and mixed where none does."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.demo import labels
from circuit_tracer.demo.labels import describe


@pytest.mark.parametrize(
    ("sentence", "among"),
    [
        ("the capital", {"asked for: capital", "asked for: a fact", "a relation", '"capital"'}),
        ("the capital of the state", {"asked for: capital", "asked for: a fact", "a kind of place", '"state"'}),
        (
            "Dallas",
            {"Texas (cities)", "Texas (places)", "Texas", "US cities", "a place in the US", "a place", '"Dallas"'},
        ),
        ("Dallas is in", {"say Texas", "say a place", "Texas (question about it)", "Texas", '"in"'}),
        ("the capital of France is Paris", {"France (capital)", "a place abroad", "end of a sentence", '"Paris"'}),
    ],
)
def test_what_can_be_said_of_a_context(sentence: str, among: set[str]) -> None:
    assert among <= set(describe(sentence.split()))


def test_what_most_contexts_carry_needs_more_precision() -> None:
    member_NC = torch.zeros(100, 2)
    member_NC[:60, 0] = 1  # 60 %: needs 80 % of the activation
    member_NC[90:, 1] = 1  # 10 %: needs 55 %
    anywhere_N, mostly_N, rare_N = torch.ones(100), torch.zeros(100), torch.zeros(100)
    mostly_N[:50], mostly_N[60:65] = 1, 1
    rare_N[90:96], rare_N[:4] = 1, 1
    fits_CF = labels._fit(torch.stack([anywhere_N, mostly_N, rare_N], 1), member_NC)
    assert fits_CF[:, 0].tolist() == [0, 0]
    assert fits_CF[:, 1].tolist() == pytest.approx([2 * (50 / 55) * (50 / 60) / (50 / 55 + 50 / 60), 0])
    assert fits_CF[:, 2].tolist() == pytest.approx([0, 0.6])


@pytest.mark.parametrize(
    ("activation_N", "name"),
    [
        ([3.0, 2.0, 1.0, 0.0, 0.0], "say a capital: Austin, Boise, Lima"),
        ([3.0, 2.0, 0.0, 1.0, 0.0], "say a capital: Austin, Boise, TX"),  # five sixths are capitals
        ([3.0, 0.0, 0.0, 2.0, 1.0], "mixed: say Austin, say TX, a country"),
        ([0.0, 0.0, 0.0, 0.0, 1.0], "a country"),
    ],
)
def test_a_feature_of_several_answers_is_named_after_their_relation(activation_N: list[float], name: str) -> None:
    main_N = ["say Austin", "say Boise", "say Lima", "say TX", "a country"]
    said_NR = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 0]])
    found = labels._of_several(torch.tensor(activation_N), said_NR, ["say a capital", "say an abbreviation"], main_N)
    assert found == name
    assert (labels.is_mixed(found), labels.is_of_several_answers(found)) == (
        name.startswith("mixed"),
        name.startswith("say a capital"),
    )
