"""The picture of a grouped graph: which groups and arrows are drawn, and what is said of those that are not.

Letters: N nodes of the graph, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.circuits.pictures.boxes import Box, Labels, boxes_of_grouping, boxes_of_view
from circuit_tracer.circuits.pictures.grouped import MOST_ARROWS, WEAKEST, circuit_picture, strongest
from circuit_tracer.circuits.quotient import pruned_as
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.errors import InputError
from circuit_tracer.graph.figures import require_matplotlib
from circuit_tracer.graph.files.keeping import keep_nodes
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.palette import palette_of
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.shares import group_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PERCENT = "percent: share of the target’s whole input (features, errors and tokens), as on the page"


def circuit_figure(
    graph: Graph,
    groups: Grouping | View,
    labels: Labels | None = None,
    *,
    theme: str = "light",
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    most_boxes: int = 24,
    least_share: float = 0.05,
) -> Figure:
    """Groups of a graph, and the arrows among them, as a matplotlib figure.

    The thresholds prune the graph; default: those that the grouping was made with, else the usual ones. Nodes of groups
    stay.

    Args:
        graph: The attribution graph.
        groups: A grouping, of which the most influential ``most_boxes`` groups of features and errors are drawn, with the
            tokens that they or the outputs read; or what a person pinned, all of which is drawn.
        labels: Text by (layer, feature index), for groups without a name.
        theme: "light" or "dark".
        node_threshold: Share of the influence that kept nodes hold; None: that of the grouping, else the usual.
        edge_threshold: Share of the influence that kept edges hold; None: that of the grouping, else the usual.
        most_boxes: Groups of features and errors that are drawn.
        least_share: Weaker arrows are left out, except each box's strongest, and of many the weaker ones.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: For nodes that the graph does not have.
        CircuitTracerError: Without matplotlib.
    """
    require_matplotlib()
    palette = palette_of(theme)
    made_with = groups.settings if isinstance(groups, Grouping) else {}
    pruned = pruned_as(graph, made_with, node_threshold=node_threshold, edge_threshold=edge_threshold)
    influence = pruned.influence.cpu()
    left_out: list[Box] = []
    if isinstance(groups, View):
        boxes = boxes_of_view(graph, groups, labels or {})
    else:
        everything = boxes_of_grouping(graph, groups, labels or {}, influence)
        boxes, left_out = _most_influential(everything, influence, most_boxes)
    if not boxes:
        raise InputError("there is nothing to draw: no group and no pinned node")
    share_GG = _shares(graph, pruned, boxes)
    if isinstance(groups, Grouping):
        kept = _leading_on(boxes, share_GG, least_share)
        left_out += [box for at, box in enumerate(boxes) if at not in kept and box.role != "token"]
        boxes, share_GG = [boxes[at] for at in kept], share_GG[kept][:, kept]
    alone = _in_no_group(graph, pruned, [*boxes, *left_out]) if isinstance(groups, Grouping) else []
    notes = [_PERCENT, *_arrows(boxes, share_GG, least_share), *_left_out(left_out, alone, influence)]
    return circuit_picture(boxes, share_GG, graph.input_string, notes, palette, least_share)


def _most_influential(boxes: list[Box], influence: Tensor, most: int) -> tuple[list[Box], list[Box]]:
    """Tokens, outputs and the most influential others; and the rest."""
    inner = [box for box in boxes if box.role not in ("token", "logit")]
    inner.sort(key=lambda box: -_influence(box, influence))
    rest = {id(box) for box in inner[most:]}
    return [box for box in boxes if id(box) not in rest], inner[most:]


def _influence(box: Box, influence: Tensor) -> float:
    return float(influence[list(box.nodes)].sum())


def _shares(graph: Graph, pruned: PruneResult, boxes: Sequence[Box]) -> Tensor:
    """(G, G), of the links that a page with these boxes shows."""
    chosen = torch.zeros(graph.n_nodes, dtype=torch.bool, device=graph.device)
    chosen[[node for box in boxes for node in box.nodes]] = True
    edges = keep_nodes(graph, pruned, chosen).pruned_edges
    return group_shares(edges, [box.nodes for box in boxes], row_mass(graph.edges)).cpu()


def _leading_on(boxes: Sequence[Box], share_GG: Tensor, least: float) -> list[int]:
    """Numbers of the boxes from which arrows that are drawn lead to an output; all, if that leaves no more than outputs."""
    kept = {at for at, box in enumerate(boxes) if box.role == "logit"}
    arrows = strongest(share_GG, least)
    while more := {source for source, target, _ in arrows if target in kept} - kept:
        kept |= more
    return sorted(kept) if any(boxes[at].role != "logit" for at in kept) else list(range(len(boxes)))


def _in_no_group(graph: Graph, pruned: PruneResult, boxes: Sequence[Box]) -> list[int]:
    """Features and errors that pruning kept and that no group holds."""
    alone = pruned.node_mask.cpu().clone()
    alone[graph.nodes.layout.token_start :] = False
    alone[[node for box in boxes for node in box.nodes]] = False
    return [int(node) for node in alone.nonzero().flatten()]


def _arrows(boxes: Sequence[Box], share_GG: Tensor, least_share: float) -> list[str]:
    """Which arrows there are, or why there is none."""
    inner = any(box.role not in ("token", "logit") for box in boxes)
    notes = [] if inner else ["no feature and no error is in these boxes: what leads through them is not drawn"]
    if strongest(share_GG, least_share):
        return [*notes, f"arrows: from {least_share:.0%} up, at most {MOST_ARROWS}, and the strongest of each box"]
    return [*notes, f"no arrows: every direct link among these boxes is weaker than {min(WEAKEST, least_share):.1%}"]


def _left_out(boxes: Sequence[Box], alone: Sequence[int], influence: Tensor) -> list[str]:
    """Groups that are not drawn and nodes of no group, with their influence."""
    found = [_with_influence("group", len(boxes), [node for box in boxes for node in box.nodes], influence)] * bool(
        boxes
    )
    found += [_with_influence("node", len(alone), alone, influence) + ", in no group"] * bool(alone)
    return [f"not drawn: {'; '.join(found)}"] if found else []


def _with_influence(noun: str, count: int, nodes: Sequence[int], influence: Tensor) -> str:
    share = float(influence[list(nodes)].sum()) / max(float(influence.sum()), 1e-30)
    return f"{count} {noun}{'s' * (count > 1)} with {share:.1%} of the influence"
