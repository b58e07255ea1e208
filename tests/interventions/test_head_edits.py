"""Edits of heads do what they say: against the bare model with its weights or inputs changed, and by what must be equal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import (
    CleanRun,
    HeadEdit,
    Semantics,
    ablate,
    apply_each,
    apply_edits,
    measure_patterns,
    set_to,
    steer,
)
from circuit_tracer.interventions.steering.schedule import SteeringPlan
from circuit_tracer.models.run import ModelRun, read
from tests.support.kept import kept
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
OTHER = torch.tensor([1, 5, 8, 33, 20, 11, 2])
LIVE = Semantics("direct", freeze_attention=False)
LAYER, HEAD, HEADS = 1, 2, range(4)
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@kept
def model_of(name: str) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(name), tiny_transcoder(skip=True), None, name)


@kept
def clean_of(name: str) -> CleanRun:
    return CleanRun(model_of(name), IDS)


def edited(name: str, edits: Any, semantics: Semantics = LIVE) -> Tensor:
    return apply_edits(model_of(name), clean_of(name), edits, semantics, "none").final


def bare_logits(name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits (P, V) as transformers runs the model, but for norms in float32, with what enters an output projection changed."""
    model = model_of(name)
    hook = model.parts.layers[LAYER].output.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        with ModelRun(model.parts).active():
            logits: Tensor = model.hf_model(input_ids=IDS[None]).logits[0]
        return logits
    finally:
        hook.remove()


def heads_at(name: str, ids: Tensor) -> Tensor:
    """(P, H, d) of a live pass."""
    site = "attn.hook_z"
    z_BPN = read(model_of(name).parts, ids, [(site, LAYER)])[site, LAYER]
    each: Tensor = z_BPN[0].unflatten(-1, (4, -1))
    return each


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- each action against the bare model


@pytest.mark.few
@each_architecture
def test_a_head_at_zero_is_one_whose_output_weights_are_missing(name: str) -> None:
    """All heads of a layer: what attention adds is its bias, and what a norm behind it makes of that."""
    less = ReplacementModel.from_model(tiny_model(name), tiny_transcoder(), None, name)
    output, d_head = less.parts.layers[LAYER].output, less.parts.config.d_head
    weight = output.weight.T if type(output).__name__ == "Conv1D" else output.weight
    for heads in ([HEAD], HEADS):
        for head in heads:
            weight.data[:, head * d_head : (head + 1) * d_head] = 0
        same(edited(name, [HeadEdit(LAYER, head, "zero") for head in heads]), CleanRun(less, IDS).final)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_means_and_other_prompts_at_positions(name: str) -> None:
    own, other = heads_at(name, IDS), heads_at(name, OTHER)
    both = torch.cat([own[1:], other[1:]])  # attribution leaves out position 0
    cases: list[tuple[HeadEdit, list[int], Tensor]] = [
        (HeadEdit(LAYER, HEAD, "mean"), [1, 2, 3, 4, 5], own[1:, HEAD].mean(0)),
        (HeadEdit(LAYER, HEAD, "mean", at=[-1, 2], source=OTHER), [2, 5], other[1:, HEAD].mean(0)),
        (HeadEdit(LAYER, HEAD, "mean", at=3, source=[IDS, OTHER.tolist()]), [3], both[:, HEAD].mean(0)),
        (HeadEdit(LAYER, HEAD, "patch", source=OTHER), [*range(6)], other[:6, HEAD]),
        (HeadEdit(LAYER, HEAD, "patch", at=slice(2, 4), source=OTHER.tolist()), [2, 3], other[2:4, HEAD]),
        (HeadEdit(LAYER, HEAD, "patch", at=4, value=own[1, 0]), [4], own[1, 0]),
        (HeadEdit(LAYER, HEAD, "zero", at=0), [0], torch.zeros_like(own[0, 0])),
    ]
    outcomes = apply_each(model_of(name), clean_of(name), [[edit] for edit, _, _ in cases], LIVE, "none", batch_size=3)
    for (_, positions, value), outcome in zip(cases, outcomes, strict=True):

        def change(z_BPN: Tensor, positions: list[int] = positions, value: Tensor = value) -> Tensor:
            written = z_BPN.clone()
            written.unflatten(-1, (4, -1))[0, positions, HEAD] = value
            return written

        same(outcome.logits, bare_logits(name, change))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_a_head_that_looks_at_one_key_gives_its_value(name: str) -> None:
    key, value = 2, read(model_of(name).parts, IDS, [("attn.hook_v", LAYER)])["attn.hook_v", LAYER][0, HEAD // 2]
    looks = HeadEdit(LAYER, HEAD, "pattern", at=slice(3, None), value=torch.eye(6)[key])
    gives = HeadEdit(LAYER, HEAD, "patch", at=slice(3, None), value=value[key])
    for semantics in (LIVE, Semantics("constrained")):
        same(edited(name, looks, semantics), edited(name, gives, semantics))
    rows = [(LAYER, HEAD, 4), (LAYER, HEAD, 1), (LAYER, 0, 4)]
    found = measure_patterns(model_of(name), clean_of(name), looks, rows, LIVE)
    assert found.pattern_after[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert torch.equal(found.pattern_after[1:], found.pattern_before[1:])
    taken = HeadEdit(LAYER, HEAD, "pattern", source=OTHER)
    there = measure_patterns(model_of(name), OTHER, [], rows, LIVE)
    same(measure_patterns(model_of(name), IDS, taken, rows, LIVE).pattern_after[0], there.pattern_before[0, :6])


# ---- what must be equal


@pytest.mark.few
@each_architecture
def test_all_heads_frozen_is_frozen_attention(name: str) -> None:
    edit = set_to((0, 2, 3), 4.0)
    every = [HeadEdit(layer, head, "freeze") for layer in range(3) for head in HEADS]
    same(edited(name, [edit, *every]), edited(name, edit, Semantics("direct")))
    assert torch.equal(edited(name, every), clean_of(name).final)
    some = edited(name, [edit, *every[4:6]])
    assert not torch.allclose(some, edited(name, edit))
    assert not torch.allclose(some, edited(name, edit, Semantics("direct")))


@pytest.mark.few
@each_architecture
def test_with_everything_frozen_heads_of_a_layer_add_up_with_each_other_and_with_features(name: str) -> None:
    """Edits of other layers' heads do not: what one gives, the other hears."""
    last = set_to((1, 2, 3), 4.0)  # writes behind the heads of its layer
    edits: list[Any] = [*(HeadEdit(LAYER, head, "zero") for head in HEADS), HeadEdit(0, 1, "mean"), last]
    together, *alone = apply_each(
        model_of(name), clean_of(name), [edits[:4], *([edit] for edit in edits)], "constrained", "none"
    )
    clean = clean_of(name).final
    same(together.final - clean, sum((each.final - clean for each in alone[:4]), torch.zeros_like(clean)))
    both = edited(name, [edits[0], edits[-1]], Semantics("constrained"))
    same(both - clean, alone[0].final + alone[-1].final - 2 * clean)
    chained = edited(name, [edits[0], edits[4]], Semantics("constrained"))
    assert not torch.allclose(chained - clean, alone[0].final + alone[4].final - 2 * clean)


@pytest.mark.few
@each_architecture
def test_what_a_head_does_already_changes_nothing_at_all(name: str) -> None:
    own = heads_at(name, IDS)
    for edit in (
        HeadEdit(LAYER, HEAD, "patch", source=IDS),
        HeadEdit(LAYER, HEAD, "patch", value=own[:, HEAD]),
        HeadEdit(LAYER, HEAD, "pattern", source=IDS),
    ):
        for semantics in (LIVE, Semantics("constrained")):
            assert torch.equal(edited(name, edit, semantics), clean_of(name).final)
    short = CleanRun(model_of(name), IDS[:2])  # of one position, the mean is that position
    outcome = apply_edits(model_of(name), short, HeadEdit(LAYER, HEAD, "mean"), LIVE, "none")
    assert torch.equal(outcome.final, short.final)


@pytest.mark.parametrize(
    "semantics", [LIVE, Semantics("direct"), Semantics("constrained"), Semantics("iterative", range(1, 3))], ids=str
)
def test_a_batch_of_edits_of_heads_and_features_does_what_single_passes_do(semantics: Semantics) -> None:
    model, clean = model_of("gemma3"), clean_of("gemma3")
    experiments = [
        [HeadEdit(0, 3, "zero", at=[1, -1]), HeadEdit(0, 3, "patch", at=2, source=OTHER), ablate((1, 4, 3))],
        [set_to((0, 2, 3), 4.0)],
        [],
        [HeadEdit(2, 0, "pattern", source=OTHER), HeadEdit(1, 0, "mean"), set_to((1, 2, 7), 2.0)],
    ]
    together = apply_each(model, clean, experiments, semantics)
    for edits, outcome in zip(experiments, together, strict=True):
        alone = apply_edits(model, clean, edits, semantics)
        same(outcome.final, alone.final)
        assert outcome.features is not None
        assert alone.features is not None
        same(outcome.features.after, alone.features.after)


def test_other_passes_of_the_model_are_as_ever_meanwhile() -> None:
    model, clean = model_of("llama"), clean_of("llama")
    before, seen, done = model.hf_model(input_ids=IDS[None]).logits, [], threading.Event()

    def others() -> None:
        while not done.is_set():
            seen.append(model.hf_model(input_ids=IDS[None]).logits)

    thread = threading.Thread(target=others)
    thread.start()
    edits = [HeadEdit(0, 1, "zero"), HeadEdit(1, 1, "pattern", source=OTHER)]
    found = [apply_edits(model, clean, edits, LIVE, "none").final for _ in range(5)]
    done.set()
    thread.join()
    assert seen
    assert all(torch.equal(each, before) for each in seen)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_in_other_number_formats(dtype: torch.dtype) -> None:
    model = ReplacementModel.from_model(tiny_model("gemma2", dtype), tiny_transcoder(dtype=dtype), None, "gemma2")
    edits = [HeadEdit(0, 1, "mean"), HeadEdit(1, 2, "zero"), HeadEdit(2, 0, "pattern", source=OTHER)]
    expected = edited("gemma2", [HeadEdit(1, 2, "zero")])
    assert torch.isfinite(apply_edits(model, IDS, edits, LIVE, "none").logits).all()
    found = apply_edits(model, IDS, edits[1], LIVE, "none").final.double()
    assert float((found - expected).norm() / expected.norm()) < {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]


# ---- where heads look


@each_architecture
def test_rows_of_patterns_before_and_after(name: str) -> None:
    edit, rows = set_to((0, 1, 3), 4.0), [(LAYER, HEAD, 4), (2, 0, -1)]
    live = measure_patterns(model_of(name), clean_of(name), edit, rows, LIVE)
    kept = clean_of(name).network.captured.patterns
    same(live.pattern_before, torch.stack([kept[LAYER][HEAD, 4], kept[2][0, 5]]))
    assert not torch.allclose(live.pattern_after, live.pattern_before)
    if name != "gpt_oss":  # a sink
        same(torch.softmax(live.score_after, -1), live.pattern_after)
    for measured, pattern in zip(live.contrast(0, 4, 3), (live.pattern_before, live.pattern_after), strict=True):
        assert measured == pytest.approx(float((pattern[0, 4] / pattern[0, 3]).log()), abs=1e-9)
    weight = live.pattern_before[0].clone()
    weight[3] = 0
    mean = (weight * live.score_after[0].where(weight > 0, 0)).sum() / weight.sum()
    assert live.contrast(0, 3, "rest")[1] == pytest.approx(float(live.score_after[0, 3] - mean), abs=1e-9)
    held = measure_patterns(model_of(name), clean_of(name), edit, rows, Semantics("constrained"))
    assert torch.equal(held.pattern_after, held.pattern_before)
    same(held.score_before, live.score_before)
    assert not torch.allclose(held.score_after, held.score_before)


def test_a_row_that_is_asked_for_is_there_whatever_is_edited() -> None:
    found = measure_patterns(model_of("mistral"), IDS, [HeadEdit(0, 0, "zero")], [(0, 0, 5), (0, 1, 2)], LIVE)
    assert torch.isfinite(found.score_before).tolist() == [[False, False, *[True] * 4], [True] * 3 + [False] * 3]
    assert torch.equal(found.score_after, found.score_before)  # of the layer that is edited
    with pytest.raises(InputError, match="query 5 of L0H0 does not see key 1; it sees 2 to 5"):
        found.contrast(0, 4, 1)
    with pytest.raises(InputError, match="does not see key 6"):
        found.contrast(0, 6, "rest")
    assert measure_patterns(model_of("mistral"), IDS, [], []).pattern_after.shape == (0, 6)


# ---- bad input


def refused(*edits: Any, semantics: Semantics = LIVE) -> Callable[[], Any]:
    return lambda: apply_edits(model_of("llama"), clean_of("llama"), list(edits), semantics, "none")


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "layer": (refused(HeadEdit(3, 0, "zero")), "there is no head L3H0; the model has layers 0 to 2"),
    "head": (refused(HeadEdit(0, 4, "zero")), "there is no head L0H4; .* each with heads 0 to 3"),
    "negative-head": (refused(HeadEdit(0, -1, "zero")), "there is no head L0H-1"),
    "position": (refused(HeadEdit(0, 0, "zero", at=6)), r"position 6: the prompt's 6 tokens are positions 0 to 5"),
    "no-position": (refused(HeadEdit(0, 0, "zero", at=slice(6, None))), "reaches no position"),
    "generated": (refused(HeadEdit(0, 0, "zero", at="generated")), "reaches no position"),
    "place": (lambda: HeadEdit(0, 0, "zero", at="later"), "an edit's place is 'later'"),  # type: ignore[arg-type]
    "action": (lambda: HeadEdit(0, 0, "kill"), "action is 'kill'; use zero, mean, patch"),  # type: ignore[arg-type]
    "word": (lambda: HeadEdit("0", 0, "zero"), "the layer of a head's edit is '0'"),  # type: ignore[arg-type]
    "no-source": (lambda: HeadEdit(0, 0, "patch"), "give the other prompt"),
    "both": (lambda: HeadEdit(0, 0, "patch", source="a", value=torch.ones(1)), "not both"),
    "number": (lambda: HeadEdit(0, 0, "patch", source=5), "the source is 5; give text"),  # type: ignore[arg-type]
    "needless": (lambda: HeadEdit(0, 0, "freeze", source="a"), "takes neither a source nor a value"),
    "mean-of-a-value": (lambda: HeadEdit(0, 0, "mean", value=torch.ones(4)), "takes reference prompts"),
    "not-finite": (lambda: HeadEdit(0, 0, "patch", value=torch.tensor([torch.nan])), "finite floating point"),
    "twice": (refused(HeadEdit(0, 0, "zero"), HeadEdit(0, 0, "freeze", at=2)), "two edits of head L0H0 at position 2"),
    "the-same-twice": (refused(*[HeadEdit(0, 0, "zero", at=2)] * 2), "two edits of head L0H0"),
    "held": (refused(HeadEdit(0, 0, "freeze"), semantics=Semantics("direct")), "all patterns are held"),
    "short": (refused(HeadEdit(0, 0, "patch", source=IDS[:4])), "position 5 is outside the other prompt's 4 tokens"),
    "empty": (refused(HeadEdit(0, 0, "mean", source=[])), "is empty"),
    "only-the-first": (refused(HeadEdit(0, 0, "mean", source=IDS[:1])), "no token but the first"),
    "several": (refused(HeadEdit(0, 0, "patch", source=[IDS, OTHER])), "one row of token ids"),
    "vocabulary": (refused(HeadEdit(0, 0, "patch", source=[1, 99, 2, 3, 4, 5])), "vocabulary"),
    "shape": (refused(HeadEdit(0, 0, "patch", at=2, value=torch.ones(5))), r"shape \(5,\); expected \(1, 4\)"),
    "ahead": (refused(HeadEdit(0, 0, "pattern", at=2, value=torch.ones(6) / 6)), "weight on key 3, which comes later"),
    "row": (lambda: measure_patterns(model_of("llama"), IDS, [], [(0, 0)]), r"give \(layer, head, query\)"),  # type: ignore[list-item]
    "row-head": (lambda: measure_patterns(model_of("llama"), IDS, [], [(0, 9, 1)]), "there is no head L0H9"),
    "row-query": (lambda: measure_patterns(model_of("llama"), IDS, [], [(0, 0, 6)]), "positions 0 to 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, expected = BAD[case]
    with pytest.raises(InputError, match=expected):
        call()


def test_steering_says_where_heads_are_edited() -> None:
    with pytest.raises(InputError, match="apply_edits"):
        SteeringPlan(model_of("llama"), clean_of("llama"), [HeadEdit(0, 0, "zero")])  # type: ignore[list-item]
    with pytest.raises(InputError, match="interventions is HeadEdit"):
        steer(model_of("llama"), IDS, HeadEdit(0, 0, "zero"))  # type: ignore[arg-type]
