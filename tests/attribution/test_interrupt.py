"""Ctrl-C ends a trace with what is there, and what is there is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph.balance import ReconstructionWarning
from tests.support.tracing_cases import IDS, Case, assert_equal, build

CASES = [Case("gemma3", "clt", True, "mlp.hook_in"), Case("gpt_neox", "plt")]


def after(rows: int, seen: list[int]) -> Callable[[str, int, int], None]:
    """A progress callback that interrupts once so many feature rows are done."""

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if done >= rows:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("budget", [None, 40], ids=lambda budget: f"budget={budget}")
@pytest.mark.parametrize("rows", [1, 4, 10])
def test_an_interrupted_trace_keeps_its_rows(case: Case, budget: int | None, rows: int) -> None:
    model, seen = build(case), []
    whole = attribute(IDS, model, max_n_logits=3)
    with pytest.warns(UserWarning, match="interrupted.*of"):
        graph = attribute(
            IDS, model, max_n_logits=3, max_feature_nodes=budget, batch_size=3, progress=after(rows, seen)
        )
    assert len(graph.selected_features) == seen[-1] >= rows
    assert graph.provenance["interrupted"] is True
    assert graph.residual is not None
    assert graph.residual <= 1e-10
    nodes, selected = graph.nodes.layout, graph.selected_features
    n_features = len(whole.selected_features)
    tail = torch.arange(n_features, whole.n_nodes)
    kept = torch.cat([selected, tail])
    assert_equal(graph.adjacency_matrix, whole.adjacency_matrix[kept][:, kept])
    assert nodes.n_targets == 3


def test_an_interrupt_before_all_targets_have_rows_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        attribute(IDS, build(CASES[0]), max_n_logits=3, batch_size=1, progress=after(0, []))


def test_an_interrupt_before_any_row_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuit_tracer.attribution.sweep import Sweep

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attribute(IDS, build(CASES[0]))


def test_a_finished_trace_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    graph = attribute(IDS, build(CASES[0]), max_feature_nodes=5)
    assert graph.provenance["interrupted"] is False
    assert all(issubclass(warned.category, ReconstructionWarning) for warned in recwarn)  # its dictionary is random
