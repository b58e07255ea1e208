"""What a comparison is of: a target, or a feature, that both graphs have a row for."""

from __future__ import annotations

import torch

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.many.comparison.alignment import Alignment

_NAMED = 10


def targets_of(aligned: Alignment) -> dict[str, int]:
    """The targets of both graphs by label, the one with the largest weight in both together first. Of a label that several
    targets have, the first.
    """
    both = torch.nonzero(aligned.is_kind(NodeKind.TARGET) & aligned.common).flatten()
    weight, label = torch.zeros(len(both), dtype=torch.float64), [""] * len(both)
    for side in (aligned.b, aligned.a):
        table = side.graph.targets
        rows = side.node[both] - side.graph.nodes.layout.target_start
        weight += table.weight.cpu().double().abs()[rows]
        label = [table.label[row] for row in rows.tolist()]
    found: dict[str, int] = {}
    for row in weight.argsort(descending=True, stable=True).tolist():
        found.setdefault(label[row], int(both[row]))
    return found


def target_of(aligned: Alignment, wanted: str | int | None) -> int:
    """The number of a node of both graphs: by the label of a target, a token's id, or a feature's id in the first graph.
    Raises InputError, which says what there is, for another.
    """
    both = targets_of(aligned)
    if wanted is None:
        if not both:
            raise InputError(f"the graphs have no target in common{_sides(aligned)}. {_ADVICE}")
        return next(iter(both.values()))
    by_token = {int(aligned.feature[node]): node for node in both.values()}
    if isinstance(wanted, int):
        found = by_token.get(wanted)
    else:
        found = both.get(wanted, {label.strip(): node for label, node in both.items()}.get(wanted.strip()))
        found = _feature(aligned, wanted) if found is None else found
    if found is None:
        known = ", ".join(map(repr, list(both)[:_NAMED])) or "none"
        raise InputError(
            f"{shortened(wanted)} is no target of both graphs{_sides(aligned)}; both have {known}. {_ADVICE}"
        )
    return found


def _feature(aligned: Alignment, name: str) -> int | None:
    """The feature of that id in the first graph, if it is a node of both."""
    graph = aligned.a.graph
    layout = graph.nodes.layout
    ids = graph.nodes.ids(torch.arange(layout.n_features, device=graph.device))
    place = int(aligned.a.place[ids.index(name)]) if name in ids else None
    return place if place is not None and bool(aligned.common[place]) else None


def _sides(aligned: Alignment) -> str:
    """What each graph explains."""
    labels = [", ".join(map(repr, side.graph.targets.label[:_NAMED])) for side in (aligned.a, aligned.b)]
    return f": the first has {labels[0]}, the second {labels[1]}"


_ADVICE = "Trace both with the same targets (attribution_targets; --target of attribute and run)"
