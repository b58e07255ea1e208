"""Planted weights: contexts far from each other, each with a feature that fires on it and writes most of its output."""

from __future__ import annotations

import torch

from circuit_tracer.demo.planting import SHARE, plant_, spread
from circuit_tracer.training.step.dictionary import Dictionary, row_norms


def test_contexts_are_drawn_once_from_every_cluster_before_any_twice() -> None:
    chance = torch.Generator().manual_seed(0)
    centre_CD = 10 * torch.eye(6, 8)
    y_ND = centre_CD.repeat_interleave(20, 0) + 1e-4 * torch.randn(120, 8, generator=chance)
    rows = spread(y_ND, torch.ones(120), 6, chance)
    assert sorted((rows // 20).tolist()) == list(range(6))
    assert len(spread(y_ND[:2], torch.ones(2), 5, chance)) == 5


def test_rows_without_weight_or_without_output_are_not_drawn() -> None:
    chance = torch.Generator().manual_seed(0)
    y_ND = torch.eye(4)
    y_ND[3] = 0
    rows = spread(y_ND, torch.tensor([1.0, 0.0, 1.0, 1.0]), 2, chance)
    assert set(rows.tolist()) == {0, 2}


def test_a_planted_feature_fires_on_its_context_and_writes_most_of_its_output() -> None:
    chance = torch.Generator().manual_seed(0)
    dictionary = Dictionary.initial("clt", 2, 4, 8)
    for rows in dictionary.W_dec:
        rows.zero_()  # leaves what is planted
    x_SND = 3 * torch.eye(4, 8).expand(2, 4, 8)
    y_SND = torch.randn(2, 4, 8, generator=chance)
    plant_(dictionary, x_SND, y_SND, torch.ones(4), seed=0)
    for source, (x_ND, y_ND) in enumerate(zip(x_SND, y_SND, strict=True)):
        activation_NF = torch.relu(x_ND @ dictionary.W_enc[source].T + dictionary.b_enc[source])
        assert (activation_NF > 0).sum(0).tolist() == [1, 1, 1, 1]
        written_ND = activation_NF @ dictionary.W_dec[source][:, :8]
        torch.testing.assert_close(written_ND, SHARE * y_ND)
        torch.testing.assert_close(dictionary.norms[source], row_norms(dictionary.W_dec[source]))
