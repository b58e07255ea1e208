"""Laws of interventions, for any features and values."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer import ReplacementModel
from circuit_tracer.interventions import CleanRun, Edit, Semantics, apply_each, apply_edits, set_to
from tests.support.kept import kept
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
PLACES = st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(0, 19))
EDITS = st.dictionaries(PLACES, st.floats(-5, 5), min_size=1, max_size=6).map(
    lambda values: [set_to(place, value) for place, value in values.items()]
)
SEMANTICS = st.builds(
    Semantics,
    st.sampled_from(["constrained", "iterative"]),
    st.just(None),
    st.booleans(),
    st.sampled_from([None, True, False]),
)


@kept
def clean() -> CleanRun:
    model = ReplacementModel.from_model(tiny_model("gemma3"), tiny_transcoder(skip=True), None, "gemma3")
    return CleanRun(model, IDS)


@settings(max_examples=25, deadline=None)
@given(EDITS)
def test_with_everything_frozen_effects_add_up(edits: list[Edit]) -> None:
    run = clean()
    together, *alone = apply_each(run.model, run, [edits, *([edit] for edit in edits)], "constrained", "none")
    total = sum((each.final - run.final for each in alone), torch.zeros_like(run.final))
    torch.testing.assert_close(together.final - run.final, total, rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(EDITS, SEMANTICS)
def test_nothing_moves_before_the_first_edit_and_order_does_not_matter(edits: list[Edit], semantics: Semantics) -> None:
    run = clean()
    first = min(edit.features[0].position or 0 for edit in edits)
    one = apply_edits(run.model, run, edits, semantics)
    other = apply_edits(run.model, run, edits[::-1], semantics, "none")
    torch.testing.assert_close(one.final, other.final)
    torch.testing.assert_close(one.final[:first], run.final[:first])
    assert one.features is not None
    early = one.features.position < first
    torch.testing.assert_close(one.features.after[early], one.features.before[early])


@settings(max_examples=25, deadline=None)
@given(EDITS)
def test_iterative_over_one_layer_is_constrained_where_nothing_else_reacts(edits: list[Edit]) -> None:
    """Edited in the last layer only, no other feature of the range has a changed input."""
    run = clean()
    last = [edit for edit in edits if edit.features[0].layer == 2]
    found = [apply_edits(run.model, run, last, Semantics(kind, [2]), "none") for kind in ("constrained", "iterative")]  # type: ignore[arg-type]
    torch.testing.assert_close(found[0].final, found[1].final)
