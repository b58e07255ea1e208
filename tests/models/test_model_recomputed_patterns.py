"""A capture that keeps no attention patterns stands for the same frozen network, on every architecture."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models import attention
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.verify import replay
from tests.support.tiny import ARCHITECTURES, tiny_model

IDS = torch.tensor([3, 17, 5, 29, 11, 2, 40, 8])
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def parts_of(name: str) -> ModelParts:
    return bind(tiny_model(name, torch.float64, 0), name)


@pytest.fixture(params=[3, 512], ids=lambda rows: f"tile={rows}")
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_A_TILE", request.param)


@each_architecture
@pytest.mark.usefixtures("_tile")
def test_patterns_can_be_made_from_what_is_kept(name: str) -> None:
    parts = parts_of(name)
    kept, recomputed = capture(parts, IDS), capture(parts, IDS, keep_patterns=False)
    assert not recomputed.patterns
    assert not kept.scores
    torch.testing.assert_close(recomputed.final, kept.final, rtol=1e-9, atol=1e-12)
    for pattern, scores in zip(kept.patterns, recomputed.scores, strict=True):
        torch.testing.assert_close(scores.pattern(), pattern, rtol=1e-9, atol=1e-12)


@pytest.mark.few
@each_architecture
def test_the_frozen_network_is_the_same(name: str) -> None:
    parts = parts_of(name)
    kept, recomputed = capture(parts, IDS), capture(parts, IDS, keep_patterns=False)
    _, final = replay(parts, recomputed)
    torch.testing.assert_close(final, kept.final, rtol=1e-9, atol=1e-12)
    one, two = (FrozenNetwork(parts, captured, "hook_resid_mid", "mlp.hook_out") for captured in (kept, recomputed))
    g = torch.randn(3, len(IDS), 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for stored, made in zip(one.layers, two.layers, strict=True):
        for n_pos in (1, 5, len(IDS)):
            expected, found = g[:, :n_pos].clone(), g[:, :n_pos].clone()
            stored.attend_back_(expected)
            made.attend_back_(found)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hole", ["future", "gap", None])
def test_attention_that_is_not_causal_is_refused(hole: str | None) -> None:
    mask = torch.full((1, 1, 5, 5), float("-inf")).triu(1)
    if hole == "future":
        mask[0, 0, 1, 4] = 0
    if hole == "gap":
        mask[0, 0, 4, 2] = float("-inf")
    if hole is None:
        assert attention._first_keys(mask, 5).tolist() == [0] * 5
        return
    with pytest.raises(UnsupportedModelError, match="neither causal nor causal within a window"):
        attention._first_keys(mask, 5)
