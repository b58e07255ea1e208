"""Semantics by name, edits of every kind, what is reported, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.interventions import (
    CleanRun,
    Edit,
    FeatureAt,
    Semantics,
    Supernode,
    ablate,
    add,
    apply_each,
    apply_edits,
    nodes_of,
    scale,
    set_to,
    take_from,
)
from circuit_tracer.models.capture import capture
from circuit_tracer.transcoders.base import Transcoders
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
OTHER = torch.tensor([1, 5, 6, 7, 8, 9, 10])


def replacement(architecture: str = "llama", **transcoder: Any) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(**transcoder), None, architecture)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement()


@pytest.fixture(scope="module")
def active(model: ReplacementModel) -> list[FeatureAt]:
    table = CleanRun(model, IDS).active
    return [
        FeatureAt(*row) for row in zip(*(c.tolist() for c in (table.layer, table.position, table.index)), strict=True)
    ]


def inactive(active: list[FeatureAt], position: int = 3, layer: int = 1) -> FeatureAt:
    taken = {each.feature_idx for each in active if (each.layer, each.position) == (layer, position)}
    return FeatureAt(layer, position, next(index for index in range(20) if index not in taken))


# ---- semantics


PEER: list[tuple[Semantics, dict[str, Any]]] = [
    (Semantics("direct"), {}),
    (Semantics("direct", freeze_attention=False), {"freeze_attention": False}),
    (Semantics("constrained"), {"constrained_layers": range(3)}),
    (Semantics("constrained", range(1, 3)), {"constrained_layers": range(1, 3)}),
]


@pytest.mark.few
@pytest.mark.parametrize(("semantics", "options"), PEER, ids=[str(semantics) for semantics, _ in PEER])
@pytest.mark.parametrize("transcoder", [{"kind": "clt"}, {"kind": "plt", "skip": True}], ids=["clt", "plt-skip"])
def test_direct_and_constrained_are_circuit_tracers(
    semantics: Semantics, options: dict[str, Any], transcoder: dict[str, Any]
) -> None:
    model = replacement("gemma3", **transcoder)
    logits, activations = model.feature_intervention(IDS, [(1, 3, 5, 4.0), (2, 5, 7, 1.5)], **options)
    outcome = apply_edits(model, IDS, [set_to((1, 3, 5), 4.0), set_to((2, 7), 1.5, at=-1)], semantics)
    torch.testing.assert_close(outcome.logits, logits[0])
    assert activations is not None
    found = outcome.features
    assert found is not None
    torch.testing.assert_close(found.after, activations[found.layer, found.position, found.feature_idx])
    assert int((activations > 0).sum()) == int((found.after > 0).sum())


@pytest.mark.parametrize("transcoder", [{"kind": "clt", "skip": True}, {"kind": "plt"}], ids=["clt-skip", "plt"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_iterative_is_the_replacement_model_with_its_errors(architecture: str, transcoder: dict[str, Any]) -> None:
    """The network is run by its definition: dense encode, edit, decode, error, layer by layer."""
    model = replacement(architecture, **transcoder)
    captured, transcoders = capture(model.parts, IDS), model.transcoders
    network = CleanRun(model, IDS).network
    clean_x = torch.stack([network.transcoder_input(layer) for layer in range(3)])
    clean_a = torch.stack([transcoders.encode_layer(clean_x[layer], layer) for layer in range(3)])
    clean_a[:, 0] = 0
    seen = torch.zeros_like(clean_a)

    def writes(layer: int, x: Tensor) -> Tensor:
        seen[layer] = transcoders.encode_layer(x, layer)
        seen[layer, 0] = 0
        if layer == 1:
            seen[1, 3, 5] = 4.0
        delta = torch.zeros_like(x)
        for source in range(layer + 1):
            if layer in transcoders.target_layers(source):
                rows = transcoders.decoder_rows(source, torch.arange(20), layer)
                delta += (seen[source] - clean_a[source]) @ rows
        skip = transcoders.skip_matrix(layer)
        passed = 0 if skip is None else (x - clean_x[layer]) @ skip
        return network.transcoder_output(layer) + delta + passed

    embedding = captured.embedding
    _, final = network.propagate(embedding, writes, constants=True)
    outcome = apply_edits(model, IDS, set_to((1, 3, 5), 4.0), Semantics("iterative", freeze_norms=True))
    torch.testing.assert_close(outcome.final, final, rtol=1e-9, atol=1e-9)


def test_constrained_layers_hold_and_others_react(model: ReplacementModel, active: list[FeatureAt]) -> None:
    first = next(each for each in active if each.layer == 0 and each.position == 2)
    results = {
        kind: apply_edits(model, IDS, scale(first, 5.0), Semantics(kind, range(2)))
        for kind in ("constrained", "iterative")
    }
    clean = apply_edits(model, IDS, scale(first, 5.0), Semantics("direct"))
    assert not torch.allclose(results["constrained"].logits, results["iterative"].logits)
    assert not torch.allclose(results["constrained"].logits, clean.logits)


@pytest.mark.parametrize("kind", ["direct", "constrained", "iterative"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_ablating_nothing_changes_nothing_bitwise(architecture: str, kind: Any) -> None:
    model = replacement(architecture, skip=True)
    clean = CleanRun(model, IDS)
    table = clean.active
    active = [
        FeatureAt(*row) for row in zip(*(c.tolist() for c in (table.layer, table.position, table.index)), strict=True)
    ]
    for edits in ([], [ablate(inactive(active))], [scale(active[5], 1.0)]):
        outcome = apply_edits(model, clean, edits, kind)
        assert torch.equal(outcome.logits, outcome.clean_logits)
        assert outcome.features is not None
        assert torch.equal(outcome.features.before, outcome.features.after)


# ---- edits


def test_every_kind_of_edit_gives_its_value(model: ReplacementModel, active: list[FeatureAt]) -> None:
    feature = next(each for each in active if each.layer == 1)
    place = tuple(feature)
    _, dense = model.get_activations(IDS)
    value = float(dense[place])
    _, other = model.get_activations(OTHER)
    edits: list[tuple[Edit, float]] = [
        (set_to(feature, 2.5), 2.5),
        (scale(feature, -1), -value),
        (ablate(feature), 0.0),
        (add(feature, 0.25), value + 0.25),
        (take_from(feature, OTHER), float(other[place])),
        (take_from(feature, OTHER, source_at=-1), float(other[feature.layer, -1, feature.feature_idx])),
    ]
    outcomes = apply_each(model, IDS, [[edit] for edit, _ in edits], watch="none")
    for (_, expected), outcome in zip(edits, outcomes, strict=True):
        assert outcome.values == {place: pytest.approx(expected, abs=1e-12)}
        assert outcome.features is None


def test_places(model: ReplacementModel) -> None:
    def reached(edit: Edit) -> list[int]:
        return [position for _, position, _ in apply_edits(model, IDS, edit, watch="none").values]

    assert reached(set_to((0, 3), 1.0)) == [1, 2, 3, 4, 5]
    assert reached(set_to((0, 3), 1.0, at="all")) == [1, 2, 3, 4, 5]
    assert reached(set_to((0, 3), 1.0, at=slice(None))) == [0, 1, 2, 3, 4, 5]
    assert reached(set_to((0, 3), 1.0, at=slice(-2, None))) == [4, 5]
    assert reached(set_to((0, 4, 3), 1.0)) == [4]
    assert reached(set_to((0, 4, 3), 1.0, at=[2, -1])) == [2, 5]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
        (torch.tensor([2, -1]), [2, 5]),
        (np.array([2, -1]), [2, 5]),
        ((np.int64(2), torch.tensor(-1)), [2, 5]),
        (range(2, 4), [2, 3]),
        (slice(torch.tensor(2), np.int64(4)), [2, 3]),
    ],
)
def test_any_kind_of_whole_number_is_a_position(model: ReplacementModel, at: Any, expected: list[int]) -> None:
    outcome = apply_edits(model, IDS, set_to((0, 3), 1.0, at=at), watch="none")
    assert [position for _, position, _ in outcome.values] == expected
    taken = take_from((0, 3), OTHER, at=2, source_at=np.int64(1))
    assert apply_edits(model, IDS, taken, watch="none").edits[0].source_at == 1


def test_a_supernode_acts_as_its_features(model: ReplacementModel, active: list[FeatureAt]) -> None:
    node = Supernode("three", active[10:13])
    together = apply_edits(model, IDS, scale(node, 2))
    apart = apply_edits(model, IDS, [scale(each, 2) for each in active[10:13]])
    assert torch.equal(together.logits, apart.logits)
    assert "three scaled by 2" in repr(together)


def test_only_what_is_asked_for_is_encoded(model: ReplacementModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded a whole layer")

    monkeypatch.setattr(Transcoders, "encode_layer", refuse)
    monkeypatch.setattr(Transcoders, "encode_positions", refuse)
    for kind in ("direct", "constrained"):
        outcome = apply_edits(model, IDS, set_to((0, 3), 1.0), kind, watch=[FeatureAt(2, 5, 7), FeatureAt(1, None, 2)])  # type: ignore[arg-type]
        assert outcome.features is not None
        assert len(outcome.features) == 7


def test_what_is_reported(model: ReplacementModel) -> None:
    outcome = apply_edits(model, IDS, set_to((0, 3), 9.0))
    assert outcome.features is not None
    changes = outcome.features.largest(5)
    sizes = [abs(after - before) for _, before, after in changes]
    assert sizes == sorted(sizes, reverse=True)
    tokens = outcome.tokens(3)
    assert tokens[0].rank_after == 0
    assert any(token.rank_before == 0 for token in tokens)
    probability = torch.softmax(outcome.logits[-1], 0)
    assert tokens[0].probability_after == pytest.approx(float(probability.max()))
    assert outcome.changed_top == (tokens[0].rank_before != 0)


# ---- bad input


BAD: dict[str, tuple[list[Edit], str]] = {
    "no layer": ([set_to((3, 1), 1.0)], "layers: 0 to 2"),
    "no feature": ([set_to((0, 20), 1.0)], "features 0 to 19"),
    "no position": ([set_to((0, 6, 1), 1.0)], "positions 0 to 5"),
    "empty slice": ([set_to((0, 1), 1.0, at=slice(4, 4))], "reaches no position"),
    "generated": ([set_to((0, 1), 1.0, at="generated")], "steering"),
    "contradiction": ([set_to((0, 1), 1.0), set_to((0, 2, 1), 2.0)], "contradictory"),
    "position of the other prompt": ([take_from((0, 5, 1), OTHER[:3])], "outside the other prompt's 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_edits_say_what_is_wrong(model: ReplacementModel, case: str) -> None:
    edits, expected = BAD[case]
    with pytest.raises(InputError, match=expected):
        apply_edits(model, IDS, edits)


def test_an_inactive_feature_cannot_be_scaled(model: ReplacementModel, active: list[FeatureAt]) -> None:
    with pytest.raises(InputError, match="0 times anything is 0"):
        apply_edits(model, IDS, scale(inactive(active), 5))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Semantics("naive"), "expected 'direct' or"),  # type: ignore[arg-type]
        (lambda: Semantics("direct", range(2)), "no range"),
        (lambda: Semantics("iterative", []), "over no layer"),
        (lambda: set_to([], 1.0), "names no feature"),
        (lambda: set_to((0, 1), float("nan")), "finite"),
        (lambda: set_to("0/1", 1.0), "is no feature"),  # type: ignore[arg-type]
        (lambda: set_to((0, 1), 1.0, at="later"), "generated"),  # type: ignore[arg-type]
        (lambda: set_to((0, 1), 1.0, at=2.0), "2.0 is no position"),  # type: ignore[arg-type]
        (lambda: set_to((0, 1), 1.0, at=torch.tensor([True])), "True is no position"),  # type: ignore[arg-type]
        (lambda: take_from((0, 1), IDS, source_at="1"), "'1' is no position"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make()


def test_a_range_that_the_feature_does_not_write_to() -> None:
    model = replacement(kind="plt")
    with pytest.raises(InputError, match="write to layers 0 to 0"):
        apply_edits(model, IDS, set_to((0, 3), 1.0), Semantics("constrained", [1, 2]))
    with pytest.raises(InputError, match="layers: 0 to 2"):
        apply_edits(model, IDS, set_to((0, 3), 1.0), Semantics("constrained", [1, 5]))


def test_a_graph_of_another_model_or_dictionary(model: ReplacementModel) -> None:
    graph = attribute(IDS, model)
    apply_edits(model, graph, ablate(nodes_of(graph, [3])))
    others = {
        "other transcoders": (tiny_model("llama"), tiny_transcoder(seed=5), "other transcoders"),
        "other weights": (tiny_model("llama", seed=7), tiny_transcoder(), "another model"),
        "smaller dictionary": (tiny_model("llama"), tiny_transcoder(n_features=10), "other transcoders"),
        "other size": (tiny_model("llama", num_hidden_layers=2), tiny_transcoder(n_layers=2), "n_layers 3"),
    }
    for language_model, transcoder, expected in others.values():
        wrong = ReplacementModel.from_model(language_model, transcoder, None, "llama")
        with pytest.raises(CompatibilityError, match=expected):
            apply_edits(wrong, graph, [])
    with pytest.raises(InputError, match="is no feature"):
        nodes_of(graph, [graph.n_nodes - 1])


def test_a_clean_run_of_another_model(model: ReplacementModel) -> None:
    clean = CleanRun(replacement(), IDS)
    for intervene in (lambda: apply_edits(model, clean, []), lambda: apply_each(model, clean, [[]])):
        with pytest.raises(CompatibilityError, match="another model object"):
            intervene()
