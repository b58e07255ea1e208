"""Prompts whose attention patterns do not fit into memory: refused where attention is frozen, run where it is live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.interventions import (
    CleanRun,
    HeadEdit,
    Sampling,
    Semantics,
    activation_patching,
    apply_edits,
    approximate_edges,
    logit_difference,
    measure_patterns,
    set_to,
    steer,
    take_from,
    validate,
)
from circuit_tracer.interventions.features import passes
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
OTHER = torch.tensor([1, 17, 5, 33, 18, 9])
PATTERNS = 3 * 4 * 6**2 * 8  # bytes: layers, heads, pairs of positions, float64
LIVE = Semantics("direct", freeze_attention=False)
EDIT = set_to((0, 3), 2.0)


class Letters:
    """The least a tokenizer must do to generate."""

    bos_token_id, pad_token_id, eos_token_id, all_special_ids = 1, 0, 2, [0, 1, 2]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SMALL", 0)


@pytest.fixture
def model() -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), Letters(), "llama")


FROZEN: dict[str, Callable[[ReplacementModel, Any], Any]] = {
    "direct": lambda model, _: apply_edits(model, IDS, EDIT),
    "constrained": lambda model, _: apply_edits(model, IDS, EDIT, "constrained"),
    "iterative": lambda model, _: apply_edits(model, IDS, EDIT, "iterative"),
    "circuit-tracer's": lambda model, _: model.feature_intervention(IDS, [(0, 1, 3, 2.0)]),
    "a clean run": lambda model, _: CleanRun(model, IDS),
    "edges": lambda model, graph: approximate_edges(model, graph, semantics="direct"),
    "validation": lambda model, graph: validate(graph, model),
}


@pytest.mark.few
@pytest.mark.parametrize("case", FROZEN)
def test_frozen_attention_is_refused_with_the_numbers(
    model: ReplacementModel, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    graph = attribute(IDS, model)
    monkeypatch.setattr(passes, "free_bytes", lambda _: PATTERNS - 1)
    expected = r"6 tokens take 3\.46 kB \(3 layers of 4 heads\); 3\.46 kB are free on cpu. Shorten"
    with pytest.raises(ResourceError, match=expected):
        FROZEN[case](model, graph)
    monkeypatch.setattr(passes, "free_bytes", lambda _: PATTERNS)
    FROZEN[case](model, graph)


def test_live_attention_needs_no_patterns(model: ReplacementModel, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [EDIT, take_from((1, 4), OTHER, source_at=2)]
    heads = [HeadEdit(1, 2, "freeze"), HeadEdit(2, 0, "pattern", source=OTHER), HeadEdit(2, 1, "mean")]
    graph, sampling = attribute(IDS, model), Sampling(4, stop_at_eos=False)

    def results() -> list[torch.Tensor]:
        steered = steer(model, IDS, edits, sampling, keep_logits=True).steered.logits
        assert steered is not None
        metric = logit_difference(model, 3, 7)
        return [
            apply_edits(model, IDS, edits, LIVE).logits,
            apply_edits(model, IDS, [*edits, *heads], LIVE).logits,
            measure_patterns(model, IDS, edits, [(1, 2, 4)], LIVE).pattern_after,
            steered,
            activation_patching(model, IDS, OTHER, metric, sites=[], features=5).value,
            approximate_edges(model, graph, semantics=LIVE).estimate,
        ]

    expected = results()
    monkeypatch.setattr(passes, "free_bytes", lambda _: 0)
    assert not CleanRun(model, IDS, patterns=False).network.captured.patterns
    for found, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_clean_run_without_patterns_freezes_no_attention(
    model: ReplacementModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(passes, "free_bytes", lambda _: 0)
        clean = CleanRun(model, IDS, patterns=False)
    apply_edits(model, clean, EDIT, LIVE)
    with pytest.raises(InputError, match="holds no attention patterns"):
        apply_edits(model, clean, EDIT)


def test_small_patterns_are_kept_whatever_seems_free(model: ReplacementModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "free_bytes", lambda _: 0)
    monkeypatch.setattr(passes, "SMALL", PATTERNS)
    for patterns in (True, False):
        assert len(CleanRun(model, IDS, patterns).network.captured.patterns) == 3
