"""Work for `process_cases.together`: one trace shared by the ranks of a group."""

from __future__ import annotations

from typing import Any

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph.graph import Graph
from circuit_tracer.ranks import Ranks
from tests.support.tracing_cases import IDS, Case, build


def traces(ranks: Ranks, cases: list[tuple[Case, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The graphs of some traces, as plain values."""
    return [plain(attribute(IDS, build(case), ranks=ranks, **options)) for case, options in cases]


def refused(ranks: Ranks, case: Case) -> str:
    """What a trace says when one of its processes has too little memory."""
    model = build(case)
    try:
        attribute(IDS, model, ranks=ranks, memory=10 if ranks.rank == 1 else None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "traced"


def plain(graph: Graph) -> dict[str, Any]:
    """What must be equal of a graph, as arrays that can be sent."""
    assert graph.balance is not None
    return {
        "selected": graph.selected_features.numpy(),
        "row_ptr": graph.edges.row_ptr.numpy(),
        "source": graph.edges.source.numpy(),
        "weight": graph.edges.weight.numpy(),
        "unselected": graph.balance.unselected.numpy(),
        "unselected_mass": graph.balance.unselected_mass.numpy(),
        "bias": graph.balance.bias.numpy(),
        "pre_activation": graph.balance.pre_activation.numpy(),
        "influence": graph.target_weights.numpy(),
        "processes": graph.provenance["processes"],
        "residual": graph.residual,
    }
