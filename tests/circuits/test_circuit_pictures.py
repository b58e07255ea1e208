"""Pictures: every format, the same file each time, names in full, numbers that hide behind nothing, at any depth."""

from __future__ import annotations

import re
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from circuit_tracer.circuits.pictures import circuit_figure
from circuit_tracer.circuits.pictures.boxes import Box
from circuit_tracer.circuits.pictures.canvas import Rectangle, text_size, token_text, two_lines
from circuit_tracer.circuits.pictures.grouped import circuit_picture, strongest
from circuit_tracer.circuits.pictures.stages import stages
from circuit_tracer.circuits.supernodes import Grouping, Role, Supernode
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.palette import PALETTES
from circuit_tracer.graph.shares import group_shares
from tests.support.graph_cases import random_graph

MAGIC = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
_PERCENT = re.compile(r"[+−]\d+(\.\d)?%")
LONG = "detects the name of a large city in the southern United States of America"


def pinned(graph: Graph) -> View:
    ids, layout = graph.nodes.ids(), graph.nodes.layout
    features, tokens = ids[: layout.n_features], ids[layout.token_start : layout.target_start]
    groups = (("a supernode of $3 & <b>", tuple(features[:3])), ("two words", tuple(tokens[-2:])))
    return View((features[-1], ids[-1]), groups, {features[-1]: "my own label"})


def by_layer(graph: Graph) -> Grouping:
    """A group a layer, and every token and output."""
    ids, nodes = graph.nodes.ids(), graph.nodes
    rows = [
        (f"layer {layer}", "detects", (nodes.kind == 0) & (nodes.layer == layer)) for layer in range(graph.n_layers)
    ]
    groups = [Supernode(name, "detects", tuple(ids[at] for at in which.nonzero().flatten())) for name, _, which in rows]
    for role, start, stop in (
        ("token", nodes.layout.token_start, nodes.layout.target_start),
        ("logit", nodes.layout.target_start, nodes.layout.n_nodes),
    ):
        groups += [Supernode("", role, (name,)) for name in ids[start:stop]]  # type: ignore[arg-type]
    return Grouping(tuple(groups))


@pytest.mark.few
@pytest.mark.parametrize("suffix", sorted(MAGIC))
@pytest.mark.parametrize("options", [{}, {"style": "graph", "theme": "dark"}], ids=["circuit", "graph"])
def test_every_format_and_the_same_file_each_time(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        random_graph().plot(path, **options)
    assert first.read_bytes().startswith(MAGIC[suffix])
    assert first.read_bytes() == second.read_bytes()


def texts(figure: Any) -> set[str]:
    return {text.get_text().replace("\n", " ") for text in figure.axes[0].texts}


def test_boxes_carry_labels_of_the_view_the_caller_and_the_graph() -> None:
    graph = random_graph()
    view, ids = pinned(graph), graph.nodes.ids()
    labels = {(int(graph.nodes.layer[3]), int(graph.nodes.feature[3])): "outside"}
    shown = texts(graph.plot(view=View((*view.pinned, ids[3]), view.supernodes, view.labels), labels=labels))
    assert {"my own label", "outside", "two words", "a supernode", "of $3 & <b>"} <= shown


def test_numbers_are_shares_of_the_whole_row() -> None:
    graph = random_graph()
    grouping = by_layer(graph)
    place = {name: at for at, name in enumerate(graph.nodes.ids())}
    whole = group_shares(graph.edges, [[place[name] for name in group.members] for group in grouping])
    figure = circuit_figure(graph, grouping, node_threshold=1.0, edge_threshold=1.0, least_share=0.02)
    shown = sorted(text.get_text() for text in figure.axes[0].texts if _PERCENT.fullmatch(text.get_text()))
    wanted = [f"{share:+.0%}".replace("-", "−") for _, _, share in strongest(whole, 0.02)]
    assert shown == sorted(wanted)
    assert len(shown) > 8


def boxes_and_shares(case: str) -> tuple[list[Box], torch.Tensor]:
    """A prompt of some tokens, groups by layer and position, one output."""
    layers, wide, tokens, name = {
        "deep": (30, 1, 8, "a name"),
        "wide": (1, 12, 8, "say a capital"),
        "long-names": (4, 3, 3, LONG),
        "one-token": (3, 2, 1, "x"),
    }[case]
    boxes = [Box(f"t{at}", "token", (at,), -1, (-1, -1), at) for at in range(tokens)]
    roles: list[Role] = ["detects", "says", "mixed", "error"]
    for layer in range(layers):
        for slot in range(wide):
            node = 100 + layer * wide + slot
            boxes.append(
                Box(name, roles[node % 4], (node, 1000 + node), layer, (layer, layer + 1), slot * tokens / wide)
            )
    boxes += [Box(f"out {at}", "logit", (5000 + at,), layers, (layers, layers), tokens - 1) for at in range(2)]
    rng = torch.Generator().manual_seed(1)
    share = torch.randn(len(boxes), len(boxes), generator=rng).tril(-1) * 0.12
    layer_of = torch.tensor([box.layer for box in boxes])
    share[(layer_of[:, None] <= layer_of[None])] = 0
    return boxes, share


@pytest.mark.few
@pytest.mark.parametrize("case", ["deep", "wide", "long-names", "one-token"])
def test_nothing_hides_behind_anything(case: str) -> None:
    boxes, share = boxes_and_shares(case)
    figure = circuit_picture(boxes, share, "the prompt " * 9, ["a note " * 30], PALETTES["light"], 0.1)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    area = {text: text.get_window_extent(renderer) for text in axes.texts}
    numbers = [text for text in area if _PERCENT.fullmatch(text.get_text())]
    assert len(numbers) >= 6
    for one, other in combinations(axes.texts, 2):
        assert not _overlap(area[one], area[other]), (one.get_text(), other.get_text())
    outlines = [patch.get_window_extent(renderer) for patch in axes.patches if hasattr(patch, "get_boxstyle")]
    assert not [text for text in numbers for box in outlines if _overlap(area[text], box)]
    page = figure.bbox
    assert all(
        page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in area.values()
    )
    if case == "long-names":
        assert LONG in " ".join(text.get_text() for text in axes.texts)


def _overlap(one: Any, other: Any) -> bool:
    return Rectangle(one.x0, one.y0, one.x1, one.y1).overlap(Rectangle(other.x0, other.y0, other.x1, other.y1)) > 1


def test_stages_lead_up_and_keep_layers_together() -> None:
    boxes, share = boxes_and_shares("deep")
    lines = stages(boxes, strongest(share, 0.05))
    assert sorted(at for line in lines for at in line) == list(range(len(boxes)))
    assert [{boxes[at].role for at in line} for line in (lines[0], lines[-1])] == [{"token"}, {"logit"}]
    assert 4 <= len(lines) <= 11
    middle = [[boxes[at].layer for at in line] for line in lines[1:-1]]
    assert all(max(low) < min(high) for low, high in pairwise(middle))
    wide, sparse = boxes_and_shares("wide")
    assert sorted(map(len, stages(wide, strongest(sparse, 0.05)))) == [2, 8, 12]


def test_names_break_into_two_lines_and_only_what_cannot_fit_is_cut() -> None:
    assert two_lines("Texas", 8, 2.5) == ["Texas"]
    assert two_lines("say a capital city", 8, 2.5) == ["say a", "capital city"]
    cut = two_lines("one " * 60, 8, 2.5)
    assert [line.endswith("…") for line in cut] == [False, True]
    assert all(text_size(line, 8)[0] <= 2.5 for line in cut)
    assert [token_text(text) for text in (" Dallas", "  ", "\n", "\x00", "")] == ["Dallas", "␣␣", "⏎", "␀", "∅"]


def test_the_whole_graph_shows_every_node_token_and_output() -> None:
    graph = random_graph(n_layers=30, n_pos=12, n_active=200, n_selected=180, density=0.1)
    labels = {(int(graph.nodes.layer[node]), int(graph.nodes.feature[node])): "unmistakable" for node in range(180)}
    figure = graph.plot(style="graph", node_threshold=1.0, edge_threshold=1.0, labels=labels, most_names=7)
    width, height = figure.get_size_inches()
    marks = [each.get_offsets() for each in figure.axes[0].collections[1:5]]  # after the links, before the legend
    points = torch.tensor([point for each in marks for point in each.tolist()])
    assert len(points) == int(prune_graph(graph, 1.0, 1.0).node_mask.sum())
    assert bool(((points > 0) & (points < torch.tensor([width, height]))).all())
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names.count("unmistakable") == 7
    assert {token_text(token) for token in graph.token_texts} <= set(names)
    assert sum(name.startswith('"tok') for name in names) == 3


@pytest.mark.parametrize("kept", [("token", "logit"), ("token",), ("logit",)], ids=" and ".join)
def test_a_circuit_of_ends_alone_says_what_it_lacks(kept: tuple[str, ...]) -> None:
    graph = random_graph()
    ends = Grouping(tuple(group for group in by_layer(graph) if group.role in kept))
    figure = circuit_figure(graph, ends)
    notes = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "no feature and no error is in these boxes" in notes
    pruned = prune_graph(graph)
    inner = pruned.node_mask.clone()
    inner[graph.nodes.layout.token_start :] = False
    share = float(pruned.influence[inner].sum() / pruned.influence.sum())
    assert f"not drawn: {int(inner.sum())} nodes with {share:.1%} of the influence, in no group" in notes
    assert ("no arrows: every direct link" in notes) is not ("arrows: from" in notes)
    if len(kept) == 1:
        assert "no arrows" in notes
    whole = " ".join(text.get_text() for text in circuit_figure(graph, by_layer(graph)).axes[0].texts)
    assert "no feature and no error" not in whole


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph()
    for options, expected in (
        ({"view": View(("9_9_9",))}, "9_9_9', which this graph does not have"),
        ({"theme": "blue"}, "light or dark"),
        ({"grouping": Grouping(())}, "nothing to draw"),
        ({"style": "graph", "view": pinned(graph)}, "style"),
        ({"path": tmp_path / "graph.xyz"}, "no format of pictures"),
    ):
        with pytest.raises(InputError, match=expected):
            graph.plot(**options)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CircuitTracerError, match="pip install"):
        graph.plot()
