"""Prompts traced together have the graphs that they have one by one, and one that fails is nobody else's trouble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution import rows_together, side_by_side, together
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.plan import plan_memory
from circuit_tracer.attribution.targets import Aim, DirectionTarget, FeatureTarget, LogitDifference
from circuit_tracer.attribution.task import Options, Task
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import Case, assert_equal, build, one_each

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
CASES = [case for case in one_each() if case.architecture in ("gemma2", "gpt_neox", "gpt2", "gpt_oss")]


def drawn(count: int, seed: int, longest: int = 9) -> list[Tensor]:
    """Prompts of 2 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 46, (length,), generator=generator) for length in lengths]


def assert_same(found: object, expected: Graph, tolerance: float | None = None) -> None:
    """Same nodes; edges within rounding of the largest of their row, sums within rounding of their terms."""
    assert isinstance(found, Graph), found
    for name in ("input_tokens", "active_features", "selected_features"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert [target.token_str for target in found.logit_targets] == [
        target.token_str for target in expected.logit_targets
    ]
    tolerance = tolerance or TOLERANCE[expected.adjacency_matrix.dtype]
    assert_equal(found.activation_values, expected.activation_values, tolerance)
    largest = expected.adjacency_matrix.abs().amax(1).clamp_min(1e-30)
    assert float(((found.adjacency_matrix - expected.adjacency_matrix).abs().amax(1) / largest).max()) <= tolerance
    assert found.balance is not None
    assert expected.balance is not None
    for name in ("bias", "unselected", "unselected_mass", "pre_activation"):
        assert_equal(getattr(found.balance, name), getattr(expected.balance, name), tolerance)
    assert found.reconstruction is not None
    assert expected.reconstruction is not None
    assert_equal(found.reconstruction.nmse, expected.reconstruction.nmse, tolerance)
    predicted = [graph.provenance["prediction"] for graph in (found, expected)]
    assert predicted[0]["tokens"] == predicted[1]["tokens"]
    assert predicted[0]["probabilities"] == pytest.approx(predicted[1]["probabilities"], rel=10 * tolerance)
    assert found.provenance["dropped_mass"] == pytest.approx(expected.provenance["dropped_mass"], rel=10 * tolerance)
    known = {"seconds", "memory_plan", "prediction", "dropped_mass"}
    assert {k: v for k, v in found.provenance.items() if k not in known} == {
        k: v for k, v in expected.provenance.items() if k not in known
    }


@pytest.mark.few
@pytest.mark.parametrize("budget", [None, 11], ids=lambda budget: f"budget={budget}")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_graphs_are_those_of_single_prompts(case: Case, budget: int | None) -> None:
    model, prompts = build(case), drawn(3, seed=len(str(case)))
    options: dict[str, Any] = {"max_feature_nodes": budget, "max_n_logits": 3, "batch_size": 64 if budget else 512}
    for prompt, found in zip(prompts, attribute_together(prompts, model, **options), strict=True):
        assert_same(found, attribute(prompt, model, **options))


@pytest.mark.parametrize("seed", range(2))
def test_graphs_in_float32_are_those_of_single_prompts(seed: int) -> None:
    model, prompts = build(CASES[seed], torch.float32), drawn(5, seed, longest=20)
    for prompt, found in zip(prompts, attribute_together(prompts, model), strict=True):
        assert_same(found, attribute(prompt, model))


def test_prompts_with_rows_enough_go_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(rows_together._bunches({0: 200, 1: 5, 2: 100, 3: 60, 4: 128, 5: 3}, 128)) == [[0], [1, 2, 3], [4], [5]]
    model, prompts = build(CASES[0]), drawn(3, seed=4)
    pooled = attribute_together(prompts, model)
    monkeypatch.setattr(rows_together, "ENOUGH_ON_CPU", 1)
    for found, one in zip(attribute_together(prompts, model), pooled, strict=True):
        assert isinstance(one, Graph)
        assert_same(found, one)


def test_each_prompt_has_its_own_targets_and_the_options_of_all() -> None:
    model, prompts = build(CASES[0]), drawn(5, seed=5)
    stream = DirectionTarget(torch.ones(16), "hook_resid_mid", 1)
    targets: list[Any] = [[5, 7], None, torch.tensor([9]), [FeatureTarget(1, -1, 3), LogitDifference(4, 6)], [stream]]
    options: dict[str, Any] = {"zero_positions": [], "keep_edge_mass": 0.9, "position": -1}
    together_ = attribute_together(prompts, model, attribution_targets=targets, **options)
    for prompt, aim, found in zip(prompts, targets, together_, strict=True):
        assert_same(found, attribute(prompt, model, attribution_targets=aim, **options))


ODD: dict[str, tuple[list[int], list[Any] | None, dict[str, Any]]] = {  # lengths, targets, options
    "one-token": ([1, 5, 1], None, {"zero_positions": []}),
    "one-prompt": ([5], None, {}),
    "lengths": ([2, 60, 3], None, {"max_feature_nodes": 5}),
    "position": ([4, 7, 3], None, {"position": 1}),
    "from-the-end": ([4, 7, 3], None, {"position": -2}),
    "differences": ([4, 7], [[LogitDifference(4, 6), 3], [LogitDifference(7, 3)]], {}),
    "least": ([4, 7], None, {"max_feature_nodes": 1, "batch_size": 1}),
}


@pytest.mark.few
@pytest.mark.parametrize(("lengths", "targets", "options"), ODD.values(), ids=ODD)
def test_odd_prompts_and_options(lengths: list[int], targets: list[Any] | None, options: dict[str, Any]) -> None:
    model, generator = build(Case("llama", activation="topk")), torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 46, (length,), generator=generator) for length in lengths]
    prompts.append(prompts[0])  # twice the same
    aims = [None] * len(prompts) if targets is None else [*targets, targets[0]]
    found = attribute_together(prompts, model, attribution_targets=aims, **options)
    for prompt, aim, one in zip(prompts, aims, found, strict=True):
        assert_same(one, attribute(prompt, model, attribution_targets=aim, **options))


def test_graphs_of_bfloat16_weights_are_those_of_single_prompts() -> None:
    model, prompts = build(CASES[0], torch.bfloat16), drawn(4, seed=2)
    for prompt, found in zip(prompts, attribute_together(prompts, model), strict=True):
        # the model's own pass is in bfloat16, and CPUs with products of it round them by the shape of a batch
        assert_same(found, attribute(prompt, model), tolerance=2**-8)


def single(prompt: Any, model: ReplacementModel, targets: Any) -> Graph | CircuitTracerError:
    try:
        return attribute(prompt, model, attribution_targets=targets)
    except CircuitTracerError as error:
        return error


def test_a_prompt_that_fails_gives_what_it_raises_alone_and_disturbs_no_other() -> None:
    network = tiny_model("llama", torch.float32)
    network.model.embed_tokens.weight[1] = float("inf")  # activations are not finite behind it
    model = ReplacementModel.from_model(network, tiny_transcoder(dtype=torch.float32), None, "llama")
    good = drawn(3, seed=1)
    bad: list[Any] = [torch.tensor([4, 1, 5]), [], [3], list(range(3, 40)) * 2, [3, 99], "text", good[0]]
    prompts, targets = [*bad, *good], [*[None] * 6, [1000], *[None] * 3]  # no such token as 1000
    found = attribute_together(prompts, model, attribution_targets=targets)
    for number, (prompt, aim, one) in enumerate(zip(prompts, targets, found, strict=True)):
        expected = single(prompt, model, aim)
        if number < len(bad):
            assert (type(one), str(one)) == (type(expected), str(expected))
            assert isinstance(one, CircuitTracerError)
        else:
            assert isinstance(expected, Graph)
            assert_same(one, expected)


def test_a_group_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(CASES[0]), torch.tensor([3, 17, 5, 17, 40, 8])
    alone, groups, encode = attribute(ids, model), [], together.encode_prompts
    monkeypatch.setattr(together, "encode_prompts", lambda *given: groups.append(len(given[2])) or encode(*given))
    task = Task(model, ids, [0], Aim(), Options(), held=0, budget=0)
    counts = encode(model.parts, model.transcoders, [ids], [[0]]).counts_Ln
    peak = plan_memory(task.sizes(counts), 0, 2**40, 512, keep_patterns=True).peak
    for parts_of_memory, expected in ((20, [4]), (1.5, [4, 2, 2])):
        groups.clear()
        for found in together._together([replace(task, budget=int(parts_of_memory * peak))] * 4):
            assert_same(found, alone)
        assert groups == expected


def test_the_dictionary_is_read_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, reads = build(CASES[0]), drawn(6, seed=3), []
    read = side_by_side.read_decoder_rows
    monkeypatch.setattr(side_by_side, "read_decoder_rows", lambda *given, **how: reads.append(1) or read(*given, **how))
    attribute_together(prompts, model)
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompts": "one text"}, "expected a list"),
        ({"attribution_targets": [None]}, "2 prompts and 1 entries"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"max_n_logits": 0}, "max_n_logits is 0"),
    ],
    ids=["text", "targets", "batch", "logits"],
)
def test_wrong_options_are_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    given = {"prompts": drawn(2, seed=0), **wrong}
    with pytest.raises(InputError, match=said):
        attribute_together(model=build(CASES[0]), **given)


def test_no_prompts_have_no_graphs() -> None:
    assert attribute_together([], build(CASES[0])) == []
