"""Random attribution graphs with everything a graph can hold, and a hypothesis strategy of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from circuit_tracer.graph import Edges, Graph, LogitTarget, NodeTable, Reconstruction, RowBalance, TargetTable
from circuit_tracer.graph.attention_scores import AttentionScore, ScoreSide
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.validation import (
    Accounting,
    Agreement,
    CircuitTest,
    Curve,
    EdgeRows,
    Effects,
    Measures,
    NodeRows,
    Stability,
    ValidationReport,
    Variation,
)

WIDTH = 11


def random_graph(
    seed: int = 0,
    n_layers: int = 3,
    n_pos: int = 4,
    n_active: int = 20,
    n_selected: int = 14,
    n_targets: int = 3,
    density: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> Graph:
    """A causal, layered random graph in which every feature and target has input."""
    rng = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(torch.arange(n_layers), torch.arange(n_pos), torch.arange(WIDTH))
    active = grid[torch.randperm(len(grid), generator=rng)[:n_active].sort().values]
    selected = torch.randperm(len(active), generator=rng)[:n_selected].sort().values
    activation = torch.rand(len(active), generator=rng, dtype=dtype) + 0.1
    probabilities = torch.softmax(torch.randn(n_targets, generator=rng, dtype=dtype), 0).sort(descending=True).values
    logit_targets = [LogitTarget(f' "tok{i}"', 7 * i) for i in range(n_targets)]
    tokens = torch.randint(0, 90, (n_pos,), generator=rng)
    targets = TargetTable.from_logits(logit_targets, probabilities, n_layers, n_pos, 90)
    nodes = NodeTable.build(active[selected], activation[selected], tokens, n_layers, targets)
    matrix = _random_edges(nodes, density, rng, dtype)
    n_nodes = len(nodes)
    has_input = torch.cat([torch.arange(len(selected)), torch.arange(n_nodes - n_targets, n_nodes)])
    columns = torch.zeros(4, n_nodes, dtype=dtype)
    columns[:3, has_input] = torch.randn(3, len(has_input), generator=rng, dtype=dtype)
    columns[2].abs_()
    columns[3] = matrix.sum(1) + columns[0] + columns[1]
    return Graph(
        input_string="the prompt, \N{GREEK SMALL LETTER LAMDA}",
        input_tokens=tokens,
        active_features=active,
        adjacency_matrix=matrix,
        cfg={"n_layers": n_layers, "d_model": 16, "d_vocab": 90, "model_name": "some/model", "dtype": "float32"},
        selected_features=selected,
        activation_values=activation,
        logit_targets=logit_targets,
        logit_probabilities=probabilities,
        scan="some/transcoders",
        balance=RowBalance(*columns),
        targets=targets,
        token_strings=["<bos>", *(f" t{i}\n" for i in range(1, n_pos))],
        reconstruction=Reconstruction(torch.rand(n_layers, generator=rng), torch.rand(n_layers, generator=rng)),
        provenance={
            "settings": {"max_n_logits": 10, "desired_logit_prob": 0.95},
            "versions": {"torch": "x"},
            "device": None,
        },
    )


def _random_edges(nodes: NodeTable, density: float, rng: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    layout, n_nodes = nodes.layout, len(nodes)
    matrix = torch.randn(n_nodes, n_nodes, generator=rng, dtype=dtype)
    matrix *= torch.randn(n_nodes, n_nodes, generator=rng, dtype=dtype).exp()
    present = torch.rand(n_nodes, n_nodes, generator=rng) < density
    own_token = torch.arange(layout.token_start, layout.target_start)[nodes.position]
    present[torch.arange(n_nodes), own_token] = True
    possible = (nodes.layer[:, None] > nodes.layer) & (nodes.position[:, None] >= nodes.position)
    matrix *= possible & present
    matrix[layout.error_start : layout.target_start] = 0
    matrix[:, layout.targets] = 0
    return matrix


def graphs(dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Graph]:
    """Graphs of many shapes, among them ones without features, with one layer, one token or one target."""
    return st.builds(
        random_graph,
        seed=st.integers(0, 2**31),
        n_layers=st.integers(1, 5),
        n_pos=st.integers(1, 5),
        n_active=st.integers(0, 11),
        n_selected=st.integers(0, 30),
        n_targets=st.integers(1, 4),
        density=st.floats(0, 1),
        dtype=st.just(dtype),
    )


def dense_influence(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """w ((Id - M)^-1 - Id), literally."""
    normalised = matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10)
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    return weights.to(matrix) @ (torch.linalg.inv(identity - normalised) - identity)


def same_edges(a: Edges, b: Edges) -> bool:
    return all(torch.equal(x, y) for x, y in ((a.row_ptr, b.row_ptr), (a.source, b.source), (a.weight, b.weight)))


def random_edge_heads(graph: Graph, seed: int = 0, keep: int = 2, n_heads: int = 5) -> EdgeHeads:
    """Of every other edge of a graph; some have fewer heads than are kept."""
    rng = torch.Generator().manual_seed(seed)
    source, target, weight = (each[::2] for each in (graph.edges.source, graph.edges.target, graph.edges.weight))
    shape = len(source), keep
    columns = {}
    for name in ("first", "last"):
        layer = torch.randint(graph.n_layers, shape, generator=rng)
        head = torch.randint(n_heads, shape, generator=rng)
        there = torch.arange(keep) < torch.randint(keep + 1, (len(source), 1), generator=rng)
        columns[name] = torch.where(there[..., None], torch.stack([layer, head], -1), -1)
        columns[f"{name}_weight"] = torch.randn(shape, generator=rng, dtype=torch.float64) * there
    mean_hops = torch.rand(len(source), generator=rng, dtype=torch.float64)
    return EdgeHeads(source=source, target=target, direct=weight.double() / 2, mean_hops=mean_hops, **columns)


def random_score() -> AttentionScore:
    """A kept score of a graph of two layers and three tokens, with every kind of contributor."""
    side = ScoreSide(
        parts={"feature": 0.5, "error": -0.25, "token": 1.0, "bias": 0.25},
        mass={"feature": 1.0, "error": 0.25, "token": 1.0, "bias": 0.25},
        top=[("E_4_1", 1.0), ("0_3_1", 0.5), ("0_-1_0", -0.25), ("1_bias_left_out_1", 0.25)],
    )
    pairs = [("E_4_1", "0_3_1", -0.75), ("1_bias_own_2", "E_4_1", 0.5)]
    pattern = [0.125, 0.625, 0.25]
    return AttentionScore(1, 0, 2, 1, "rest", "L1H0 'a'@2 -> 'b'@1", 1.5, -0.47, pattern, side, side, pairs, 1e-8)


def random_validation() -> ValidationReport:
    """A report with every kind of value in it."""
    agreement = Agreement(count=3, spearman=0.5, slope=None, worst=0.25)
    effects = Effects(agreement, agreement, agreement, influence=None, divergence=1.0)
    test = CircuitTest(clean=0.9, without=0.1, without_others=None, only=0.6, nothing=0.01)
    measures = Measures(
        dictionary="some of 11 features a layer",
        n_features=2,
        n_nodes=5,
        n_edges=3,
        effects=dict.fromkeys(("constrained", "attention", "window", "live"), effects),
        curves=[Curve("feature", [2, 1], [0.8, None], [0.4, 0.5], [0.1, 0.2], [1.0, None])],
        circuit=dict.fromkeys(("constrained", "live"), test),
        accounting=Accounting(1e-7, 0.7, 0.2, None, 0.1),
    )
    variation = Variation(0.8, 0.98, 14, 0.5, None)
    return ValidationReport(
        prompt="the prompt",
        target="yes",
        node_threshold=0.8,
        edge_threshold=0.98,
        policy="paper",
        graph=measures,
        stability=Stability(0.75, None, [variation], []),
        controls={"random": measures},
        nodes=NodeRows([0, 3], [0.5, 0.25], [1.0, -2.0], {"live": [0.5, None]}, [1.0, 0.5]),
        edges=EdgeRows([0], [9], [1.5], {"live": [None]}, [1.0]),
        verdict=["It explains 70%."],
        distrust=[],
        seconds=1.5,
    )
