"""Two graphs compared: identities in float64 on every architecture, plain statements of every formula, and what is refused."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from dataclasses import replace
from functools import cache

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.graph import Graph, NodeKind
from circuit_tracer.many.aggregate.incidence import collect
from circuit_tracer.many.aggregate.profile import Setting
from circuit_tracer.many.comparison import Comparison, compare
from circuit_tracer.many.comparison.account import account_of
from circuit_tracer.many.comparison.alignment import Alignment, Positions
from circuit_tracer.many.comparison.similarity import rank_biased_overlap, similarity
from circuit_tracer.many.comparison.target import target_of
from circuit_tracer.models.capture import capture, logits_at
from circuit_tracer.models.parts import bind
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.attention_cases import with_attention
from tests.support.edge_cases import any_architecture, every_fifth
from tests.support.kept import kept
from tests.support.tiny import tiny_transcoder
from tests.support.tracing_cases import IDS, Case, build, one_each

OTHER = torch.tensor([3, 17, 5, 21, 40, 9])
LONGER = torch.tensor([3, 30, 17, 5, 17, 40, 8, 11])
TARGETS = [5, 9, 30]
CASE = Case("llama", "clt", True)


def tuned(model: ReplacementModel, scale: float, rank: int = 2) -> ReplacementModel:
    """The model with a low-rank change merged into every matrix, W + scale * B A, and the same dictionary."""
    made, chance = copy.deepcopy(model.parts.model), torch.Generator().manual_seed(7)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            a = torch.rand(rank, parameter.shape[1], generator=chance, dtype=torch.float64) - 0.5
            b = torch.rand(parameter.shape[0], rank, generator=chance, dtype=torch.float64) - 0.5
            parameter.data += scale * (b @ a)
    return ReplacementModel(bind(made, "tuned"), model.transcoders, None)


def demeaned(model: ReplacementModel, ids: torch.Tensor) -> float:
    """The logit of the first target before a softcap, less the mean, of the model by itself."""
    logits = logits_at(model.parts, capture(model.parts, ids).final[-1], softcap=False)
    return float(logits[TARGETS[0]] - logits.mean())


@kept
def traced(ids: tuple[int, ...], budget: int | None = None) -> Graph:
    return attribute(torch.tensor(ids), build(CASE), attribution_targets=TARGETS, max_feature_nodes=budget)


def pair() -> tuple[Graph, Graph]:
    """Two prompts of different lengths."""
    return traced(tuple(IDS.tolist())), traced(tuple(LONGER.tolist()))


@pytest.mark.few
@pytest.mark.parametrize(
    ("case", "change", "budget"),
    [(case, *how) for case in one_each() for how in (("prompt", 7), ("model", None))],
    ids=str,
)
def test_differences_of_edges_are_the_difference_of_the_logit(case: Case, change: str, budget: int | None) -> None:
    model = build(case)
    second, ids = (model, OTHER) if change == "prompt" else (tuned(model, 0.1), IDS)
    a = attribute(IDS, model, attribution_targets=TARGETS, max_feature_nodes=budget)
    b = attribute(ids, second, attribution_targets=TARGETS, max_feature_nodes=budget)
    found = compare(a, b, target=TARGETS[0], most=5)
    assert found.difference == pytest.approx(demeaned(second, ids) - demeaned(model, IDS), abs=1e-9)
    assert found.accounted == pytest.approx(found.difference, abs=1e-9)
    assert set(found.same) == {"dictionary", "edits", "model" if change == "prompt" else "prompt"}
    features = found.shares[0]
    parts = features.activation + features.weight + features.appeared + features.disappeared
    assert parts == pytest.approx(features.difference, abs=1e-9)
    for node in found.nodes:
        assert node.edge_b - node.edge_a == node.difference
        if node.activation is not None and node.weight is not None:
            assert node.activation + node.weight == pytest.approx(node.difference, abs=1e-9)
    listed = sum(node.difference for node in found.nodes) + found.rest.difference
    assert listed + sum(share.difference for share in found.shares[3:]) == pytest.approx(found.difference, abs=1e-9)


@pytest.mark.slow("traces of three models of a family: half a second each")
@every_fifth  # graphs of all are held by tests/models; what is said of two is made of their numbers
def test_families_are_accounted_for(number: int, name: str) -> None:
    model, _ = any_architecture(name, number)
    base, *others, same = (
        attribute(ids, each, attribution_targets=TARGETS, max_feature_nodes=6)
        for each, ids in ((model, IDS), (model, OTHER), (tuned(model, 0.1), IDS), (tuned(model, 0.0), IDS))
    )
    for other, (second, ids) in zip(others, ((model, OTHER), (tuned(model, 0.1), IDS)), strict=True):
        found = compare(base, other, target=TARGETS[0], most=5)
        assert found.difference == pytest.approx(demeaned(second, ids) - demeaned(model, IDS), abs=1e-9)
        assert found.accounted == pytest.approx(found.difference, abs=1e-9)
        part = found.shares[0]
        split = part.activation + part.weight + part.appeared + part.disappeared
        assert split == pytest.approx(part.difference, abs=1e-9)
        assert abs(found.difference) > 1e-6  # something changes
    nothing = compare(base, same)
    assert nothing.difference == nothing.accounted == 0.0
    assert all(share.mass == 0.0 for share in nothing.shares)


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_a_low_rank_change_merged_at_scale_0_changes_exactly_nothing(case: Case) -> None:
    model = build(case)
    a, b = (attribute(IDS, each, attribution_targets=TARGETS) for each in (model, tuned(model, 0.0)))
    found = compare(a, b)
    assert found.difference == found.accounted == 0.0
    assert all(share.mass == 0.0 for share in found.shares)
    assert all(link.a == link.b for link in found.links)
    assert {(each.weighted_jaccard, each.cosine, each.rank_biased_overlap) for each in found.similarity.values()} == {
        (1, 1, 1)
    }
    assert found.verdict[0].startswith("Nothing differs")


@pytest.mark.parametrize(
    "positions", ["same", "end", "pooled", {0: 0, 2: 3, 3: 4, 5: 6}], ids=["same", "end", "pooled", "map"]
)
def test_the_account_is_that_of_dictionaries_of_edges(positions: Positions) -> None:
    a, b = pair()
    to_b = {"same": {p: p for p in range(6)}, "end": {p: p + 2 for p in range(6)}}
    shift = positions if isinstance(positions, dict) else to_b.get(str(positions))

    def edges_onto_target(graph: Graph, of_a: bool) -> dict[tuple[int, int, int, object], float]:
        found: dict[tuple[int, int, int, object], float] = defaultdict(float)
        nodes, matrix = graph.nodes, graph.adjacency_matrix[graph.nodes.layout.target_start]
        for node in range(graph.nodes.layout.target_start):
            place: object = int(nodes.position[node])
            if shift is None:
                place = None
            elif of_a:
                place = shift.get(int(nodes.position[node]), f"only a's {place}")
            key = (int(nodes.kind[node]), int(nodes.layer[node]), int(nodes.feature[node]), place)
            found[key] += float(matrix[node])
        return found

    before, after = edges_onto_target(a, True), edges_onto_target(b, False)
    expected = sorted(after.get(key, 0.0) - before.get(key, 0.0) for key in {*before, *after})
    found = compare(a, b, target=TARGETS[0], positions=positions, most=10_000)
    differences = [node.difference for node in found.nodes if node.kind != "target"]
    nonzero = [value for value in expected if value]
    assert sorted(value for value in differences if value) == pytest.approx(nonzero, abs=1e-12)
    assert len(found.columns) == {"same": 8, "end": 8, "pooled": 1}.get(str(positions), 10)
    pairs = [(column.a, column.b) for column in found.columns if None not in (column.a, column.b)]
    assert pairs == sorted((shift or {}).items())


def test_pooled_nodes_split_as_their_sums_do() -> None:
    a, b = pair()
    for node in compare(a, b, positions="pooled").nodes:
        if node.kind == "feature" and node.within == "both":
            assert node.activation_a is not None and node.activation_b is not None  # noqa: PT018
            w_a, w_b = node.edge_a / node.activation_a, node.edge_b / node.activation_b
            assert node.activation == pytest.approx(
                (w_a + w_b) / 2 * (node.activation_b - node.activation_a), abs=1e-12
            )
            assert node.weight == pytest.approx((w_b - w_a) * (node.activation_a + node.activation_b) / 2, abs=1e-12)


def test_what_is_carried_is_the_sum_over_all_paths() -> None:
    a, b = traced(tuple(IDS.tolist())), traced(tuple(OTHER.tolist()))
    aligned = Alignment.of(a, b, "same")
    target, n = target_of(aligned, TARGETS[0]), len(aligned)
    dense = [side.edges.to_dense() for side in (aligned.a, aligned.b)]
    features = aligned.is_kind(NodeKind.FEATURE).tolist()

    @cache
    def midway(to: int, source: int) -> float:
        found = []
        for side, matrix in zip((aligned.a, aligned.b), dense, strict=True):
            if bool(side.present[to]) and bool(side.present[source]):
                found.append(float(matrix[to, source] / side.activation[source]))
        return sum(found) / len(found) if found else 0.0

    @cache
    def along_paths(source: int) -> float:
        through = (
            midway(node, source) * along_paths(node) for node in range(n) if features[node] and midway(node, source)
        )
        return midway(target, source) + sum(through)

    carried = account_of(aligned, target).carried
    for node in range(n):
        change = float(aligned.b.activation[node] - aligned.a.activation[node])
        assert float(carried[node]) == pytest.approx(along_paths(node) * change if features[node] else 0.0, abs=1e-9)


def test_a_common_feature_can_be_the_target() -> None:
    a, b = traced(tuple(IDS.tolist())), traced(tuple(OTHER.tolist()))
    both = set(a.nodes.ids()[: a.nodes.layout.n_features]) & set(b.nodes.ids()[: b.nodes.layout.n_features])
    name = max(name for name in both if name.startswith("2_"))
    found = compare(a, b, target=name)
    at = [graph.nodes.ids().index(name) for graph in (a, b)]
    assert found.difference == pytest.approx(float(b.activation_values[b.selected_features[at[1]]])
                                             - float(a.activation_values[a.selected_features[at[0]]]), abs=1e-9)  # fmt: skip
    assert abs(found.gap) <= 1e-9


def test_links_are_the_edges_of_both_graphs() -> None:
    a, b = pair()
    found = compare(a, b, positions="end")
    ids = {name: number for number, name in enumerate(a.nodes.ids())}, {name: n for n, name in enumerate(b.nodes.ids())}
    assert len(found.links) > len(found.nodes) // 2
    assert len({node.id for node in found.nodes}) == len(found.nodes)
    for link in found.links:
        source, to = found.nodes[link.source], found.nodes[link.target]
        for graph, names, ends, weight in (
            (a, ids[0], (to.a, source.a), link.a),
            (b, ids[1], (to.b, source.b), link.b),
        ):
            known = None not in ends
            expected = float(graph.adjacency_matrix[names[ends[0] or ""], names[ends[1] or ""]]) if known else 0.0
            assert weight == pytest.approx(expected, abs=1e-12)


def test_no_conclusion_where_errors_carry_most() -> None:
    model = build(CASE, n_features=1)
    found = compare(*(attribute(ids, model, attribution_targets=TARGETS) for ids in (IDS, OTHER)), target=TARGETS[0])
    mass = {share.kind: share.mass for share in found.shares}
    assert found.unexplained == pytest.approx((mass["error"] + mass["unselected"]) / sum(mass.values()))
    assert found.unexplained > 0.5
    assert not found.conclusive
    assert any(line.startswith("No conclusion") for line in found.verdict)


def test_similarities_are_those_of_hand_and_of_prefixes() -> None:
    a, b = torch.tensor([4.0, 2.0, 0.0, 1.0]).double(), torch.tensor([2.0, 3.0, 5.0, 0.0]).double()
    found = similarity(a, b)
    assert found.weighted_jaccard == pytest.approx((2 + 2) / (4 + 3 + 5 + 1))
    assert found.cosine == pytest.approx(14 / (21**0.5 * 38**0.5))

    def naive(first: list[int], second: list[int], p: float) -> float:
        short, long = sorted((first, second), key=len)
        s, n = len(short), len(long)
        x = {d: len(set(first[:d]) & set(second[:d])) for d in range(1, n + 1)}
        total = sum(x[d] / d * p**d for d in x) + sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
        return (1 - p) / p * total + ((x[n] - x[s]) / n + x[s] / s) * p**n

    chance = torch.Generator().manual_seed(3)
    for p in (0.9, 0.6):
        assert rank_biased_overlap(a, b, p) == pytest.approx(naive([0, 1, 3], [2, 1, 0], p))
        left, right = (
            torch.rand(30, generator=chance).double() * (torch.rand(30, generator=chance) > 0.3) for _ in "ab"
        )
        lists = [[i for i in each.argsort(descending=True).tolist() if each[i] > 0] for each in (left, right)]
        assert rank_biased_overlap(left, right, p) == pytest.approx(naive(*lists, p))
    nothing = torch.zeros(4).double()
    assert rank_biased_overlap(nothing, nothing) == 1.0
    assert similarity(a, nothing).rank_biased_overlap == similarity(a, nothing).cosine == 0.0


def test_a_comparison_is_read_back_and_a_later_one_refused() -> None:
    found = compare(*pair())
    values = json.loads(json.dumps(found.to_json()))
    assert Comparison.from_json(values) == found
    for wrong, words in (({**values, "version": 99}, "version 99"), ({**values, "nodes": 3}, "nodes")):
        with pytest.raises(FileFormatError, match=words):
            Comparison.from_json(wrong)


def test_features_of_two_dictionaries_of_attention_are_never_taken_for_one_another() -> None:
    """Both are numbered behind the transcoders' features, so that numbers alone would match."""
    case = Case("gemma2", "clt", True)
    one = with_attention(case, "attn.hook_z", layers=(0, 2))
    other, without = with_attention(case, "hook_attn_out", layers=(0, 2)), build(case)
    a, b, c = (attribute(IDS, model, attribution_targets=[7]) for model in (one, other, without))
    with pytest.raises(CompatibilityError, match="two dictionaries of attention outputs"):
        compare(a, b)
    assert compare(a, c).to_json()
    for second in (b, c):
        with pytest.raises(CompatibilityError, match="aggregate them apart"):
            collect([("a", a), ("b", second)], [Setting(0.8, 0.98)])


def test_graphs_that_cannot_be_compared_are_refused() -> None:
    a, b = pair()
    parts = build(CASE).parts
    other = attribute(IDS, ReplacementModel(parts, tiny_transcoder(seed=5), None), attribution_targets=TARGETS)
    with pytest.raises(CompatibilityError, match="two dictionaries"):
        compare(a, other)
    smaller = copy.copy(a)
    smaller.cfg = replace(a.cfg, n_layers=2)
    with pytest.raises(CompatibilityError, match="n_layers is 2"):
        compare(smaller, b)
    bare = copy.copy(a)
    bare.balance = None
    with pytest.raises(InputError, match=r"first graph.*holds no balance"):
        compare(bare, b)
    elsewhere = attribute(IDS, build(CASE), attribution_targets=[44])
    with pytest.raises(InputError, match="no target in common"):
        compare(elsewhere, b)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "nonsense"}, "'nonsense' is no target of both graphs"),
        ({"target": 44}, "44 is no target of both graphs"),
        ({"positions": "left"}, "positions"),
        ({"positions": {0: 8}}, "position 8 of the second prompt, whose tokens are 0 to 7"),
        ({"positions": {0: 1, 2: 1}}, "two positions to position 1"),
        ({"most": -1}, "most is -1"),
        ({"node_threshold": 2.0}, "node_threshold is 2.0"),
    ],
    ids=["target-label", "target-id", "positions-name", "position-outside", "position-twice", "most", "threshold"],
)
def test_bad_arguments_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(*pair(), **options)  # type: ignore[arg-type]
