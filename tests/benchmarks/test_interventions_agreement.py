"""The comparison of interventions sees what it should, on records made here."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.comparison.interventions import compare
from benchmarks.comparison.interventions_run import CASES, GENERATIONS, STEERED

THRESHOLD = torch.full((2, 3), 0.5)


def record() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {"p/clean/logits": torch.randn(4, 9, generator=generator)}
    for name in CASES:
        found[f"p/{name}/logits"] = torch.randn(4, 9, generator=generator)
    for name in GENERATIONS:
        found[f"p/{name}/logits"] = torch.randn(5, 9, generator=generator)
        found[f"p/{name}/ids"] = torch.arange(9)
    found[f"p/{STEERED}/steer ids"] = torch.arange(9)
    for name in (*CASES, *GENERATIONS):
        activations = 1 + torch.rand(2, 4, 3, generator=generator)
        activations[0, 0] = 0
        found[f"p/{name}/activations"] = activations
    return found


def test_equal_records_agree_and_count_their_tokens() -> None:
    found = compare(record(), record(), ["p"], THRESHOLD)
    assert all(line["agrees"] and line["logits"] == 0 and line["logits moved by"] > 0 for line in found.values())
    assert found[STEERED]["tokens"] == 10
    assert found["generated, attention frozen"]["tokens"] == 5


def test_other_logits_tokens_and_activations_disagree() -> None:
    for name, key, change in (
        ("attention frozen", "logits", 0.01),
        ("attention live", "activations", 0.1),
        (STEERED, "ids", 1),
        (STEERED, "steer ids", 1),
    ):
        ours = record()
        ours[f"p/{name}/{key}"][-1] += change
        found = compare(record(), ours, ["p"], THRESHOLD)
        assert [case for case, line in found.items() if not line["agrees"]] == [name]


def test_a_feature_may_be_on_in_one_engine_only_at_its_threshold() -> None:
    for value, agrees in ((0.5001, True), (0.6, False)):
        ours = record()
        ours["p/attention live/activations"][0, 0, 1] = value
        line = compare(record(), ours, ["p"], THRESHOLD)["attention live"]
        assert line["agrees"] is agrees
        assert line["features at their threshold"] == int(agrees)
