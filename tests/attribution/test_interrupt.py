"""Ctrl-C ends a trace with what is there, and what is there is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import trace
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph import Graph
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


@pytest.mark.few
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


@pytest.mark.few
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"max_feature_nodes": 40}, {"max_feature_nodes": 40, "keep_edge_mass": 0.8}], ids=str
)
@pytest.mark.filterwarnings("ignore:interrupted")
def test_a_trace_interrupted_again_and_again_ends_as_one_that_was_not(
    case: Case, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build(case, torch.float32)
    whole = attribute(IDS, model, max_n_logits=3, batch_size=3, **options)
    left: Graph | Path | None = None
    for rows in (1, 9, 31):
        graph = attribute(IDS, model, max_n_logits=3, batch_size=3, progress=after(rows, []), resume=left, **options)
        assert graph.provenance["interrupted"] is True
        assert graph.provenance["features"][1] == len(whole.selected_features)
        left = graph if rows == 9 else graph.save(tmp_path / f"{rows}.safetensors")
    found = attribute(IDS, model, max_n_logits=3, batch_size=3, resume=left, **options)
    for name in ("weight", "source", "row_ptr"):
        assert torch.equal(getattr(found.edges, name), getattr(whole.edges, name))
    assert torch.equal(found.selected_features, whole.selected_features)
    assert found.balance is not None
    assert whole.balance is not None
    assert torch.equal(found.balance.unselected, whole.balance.unselected)
    assert (found.provenance["interrupted"], found.unfinished) == (False, None)
    other = attribute(
        IDS, model, max_n_logits=3, batch_size=50, resume=left, **options
    )  # other blocks: beyond rounding
    assert_equal(other.adjacency_matrix, whole.adjacency_matrix, 1e-5)


@pytest.mark.filterwarnings("ignore:interrupted")
def test_only_the_same_trace_is_gone_on_with() -> None:
    model = build(CASES[0])
    left = attribute(IDS, model, max_n_logits=3, progress=after(1, []))
    for options, said in (
        ({"max_n_logits": 2}, "targets is"),
        ({"max_feature_nodes": 20}, "max_feature_nodes is 66 there and 20 here"),
        ({"zero_positions": [0, 1]}, "zero_positions is"),
        ({"keep_edge_mass": 0.5}, "keep_edge_mass is 1.0 there and 0.5 here"),
    ):
        with pytest.raises(CompatibilityError, match=said):
            attribute(IDS, model, resume=left, **{"max_n_logits": 3, **options})
    with pytest.raises(CompatibilityError, match="prompt is"):
        attribute(IDS[:-1], model, max_n_logits=3, resume=left)
    with pytest.raises(CompatibilityError, match=r"model is .* transcoders is"):
        attribute(IDS, build(CASES[0], seed=1), max_n_logits=3, resume=left)
    whole = attribute(IDS, model, max_n_logits=3)
    with pytest.raises(InputError, match="is complete"):
        attribute(IDS, model, max_n_logits=3, resume=whole)


def test_an_interrupt_while_the_graph_is_made_loses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, genuine, calls = build(CASES[0]), trace.assemble, []

    def assemble(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(trace, "assemble", assemble)
    with pytest.warns(UserWarning, match="once more"):
        found = attribute(IDS, model)
    monkeypatch.undo()
    assert torch.equal(found.edges.weight, attribute(IDS, model).edges.weight)


def test_a_finished_trace_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    graph = attribute(IDS, build(CASES[0]), max_feature_nodes=5)
    assert graph.provenance["interrupted"] is False
    assert all(issubclass(warned.category, ReconstructionWarning) for warned in recwarn)  # its dictionary is random
