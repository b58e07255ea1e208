"""The graph of an intervened pass: exact, with the logits of `apply_edits`, and with what is set fed by nothing."""

from __future__ import annotations

import pytest

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph import prune_graph
from circuit_tracer.interventions import (
    Edit,
    HeadEdit,
    Semantics,
    ablate,
    apply_edits,
    attribute_edited,
    scale,
    set_to,
    validate,
)
from circuit_tracer.many.comparison import compare
from circuit_tracer.models.capture import logits_at
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tracing_cases import IDS, Case, assert_equal, build, one_each

TARGETS = [5, 9, 30]
CASES = [(case, number % 2 == 0) for number, case in enumerate(one_each())]  # attention frozen or not, in turn


def interrupting(stage: str, done: int, total: int) -> None:
    """A progress callback that interrupts once a feature has its row."""
    if done >= 1:
        raise KeyboardInterrupt


def edits_of(model: ReplacementModel) -> list[Edit]:
    """One active feature taken out, one scaled, and one switched on that is not active."""
    active = attribute(IDS, model, max_n_logits=1).active_features.tolist()
    first, second = active[0], next(each for each in active[1:] if each[0] == 1)
    places = {tuple(each) for each in active}
    idle = next((1, 3, index) for index in range(10) if (1, 3, index) not in places)
    return [ablate(tuple(first)), scale(tuple(second), -1.5), set_to(idle, 0.7)]


@pytest.mark.few
@pytest.mark.parametrize(
    ("case", "frozen"), CASES, ids=[f"{case}-{'frozen' if held else 'reacts'}" for case, held in CASES]
)
def test_the_graph_is_exact_and_of_the_pass_that_the_edits_make(case: Case, frozen: bool) -> None:
    model = build(case)
    meaning, edits = Semantics(freeze_attention=frozen), edits_of(model)
    after = attribute_edited(IDS, model, edits, meaning, attribution_targets=TARGETS)
    assert (after.residual or 0.0) <= 1e-10
    logits = logits_at(model.parts, apply_edits(model, IDS, edits, meaning).final[-1], softcap=False)
    layout = after.nodes.layout
    assert after.balance is not None
    assert_equal(after.balance.pre_activation[layout.targets], logits[TARGETS] - logits.mean())

    before = attribute(IDS, model, attribution_targets=TARGETS)
    found = compare(before, after, target=5)
    assert abs(found.gap) <= 1e-9
    assert found.difference == pytest.approx(float(logits[5] - logits.mean()) - found.a.value, abs=1e-9)
    assert found.same == ["prompt", "model", "dictionary"]
    assert len(found.b.edits) == 3


@pytest.mark.parametrize("case", one_each()[:3], ids=str)
def test_what_is_set_is_fed_by_nothing_and_stays_when_pruned(case: Case) -> None:
    model = build(case)
    out, scaled, on = edits_of(model)
    graph = attribute_edited(IDS, model, [out, scaled, on], max_n_logits=3)
    plain = attribute(IDS, model, max_n_logits=1)
    clean = dict(zip(map(tuple, plain.active_features.tolist()), plain.activation_values.tolist(), strict=True))
    places = [tuple(each) for each in graph.active_features.tolist()]
    assert tuple(out.features[0]) not in places
    pruned = prune_graph(graph, 1.0, 1.0)
    place = tuple(scaled.features[0])
    for feature, value in ((place, -1.5 * clean[place]), (tuple(on.features[0]), 0.7)):
        node = places.index(feature)
        assert len(graph.edges.row(node)[0]) == 0
        assert float(graph.nodes.activation[node]) == pytest.approx(value)
        assert bool(pruned.node_mask[node]) == bool(pruned.influence[node] > 0)


def test_an_intervention_that_leaves_all_as_it_is_changes_no_logit() -> None:
    model = build(Case("gemma3", "clt", True, "mlp.hook_in", "hook_mlp_out"))
    before = attribute(IDS, model, attribution_targets=TARGETS)
    place = tuple(before.active_features[0].tolist())
    after = attribute_edited(IDS, model, set_to(place, float(before.activation_values[0])), attribution_targets=TARGETS)
    found = compare(before, after, target=5)
    assert abs(found.difference) <= 1e-12
    assert max(share.mass for share in found.shares) <= 1e-9


def test_a_feature_where_the_graph_leaves_nothing_out_is_edited_in_the_pass_too() -> None:
    model = build(one_each()[0])
    before = attribute(IDS, model, attribution_targets=TARGETS, zero_positions=[])
    place = next(tuple(each) for each in before.active_features.tolist() if each[1] == 0)
    after = attribute_edited(IDS, model, ablate(place), attribution_targets=TARGETS, zero_positions=[])
    assert place not in map(tuple, after.active_features.tolist())
    assert after.balance is not None
    logits = logits_at(model.parts, apply_edits(model, before, ablate(place)).final[-1], softcap=False)
    assert_equal(after.balance.pre_activation[after.nodes.layout.targets], logits[TARGETS] - logits.mean())
    assert abs(compare(before, after, target=5).difference) > 1e-6


def test_what_cannot_be_traced_is_refused() -> None:
    model = build(one_each()[0])
    edit = edits_of(model)[0]
    for given, meaning, words in (
        ([edit], "iterative", "direct semantics"),
        ([], "direct", "no edit is given"),
        ([HeadEdit(0, 0, "zero")], "direct", "is no edit"),
        ([ablate((0, 1, 99))], "direct", "features 0 to 9"),
    ):
        with pytest.raises(InputError, match=words):
            attribute_edited(IDS, model, given, meaning)
    graph = attribute_edited(IDS, model, edit, max_n_logits=1)
    with pytest.warns(UserWarning, match="interrupted"):
        left = attribute_edited(IDS, model, edits_of(model)[1], max_n_logits=1, batch_size=3, progress=interrupting)
    with pytest.raises(CompatibilityError, match=r"edits is '.* scaled by -1.5' there and None here"):
        attribute(IDS, model, max_n_logits=1, resume=left)
    with pytest.raises(InputError, match="traced under an intervention"):
        validate(graph, model)
    with pytest.raises(InputError, match="cannot be resumed"):
        attribute_edited(IDS, model, edit, resume=graph)
