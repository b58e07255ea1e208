"""A probe as a target: its row sums to its score, on every architecture; and what it reads, batched, is what it reads alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from circuit_tracer import DirectionSum, DirectionTarget, FeatureTarget, attribute
from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.models.run import read
from circuit_tracer.probes.explain import explain, probe_target
from circuit_tracer.probes.probe import Pool, Probe
from circuit_tracer.probes.reading import Reads, Subject, Tokens, batches, read_batch
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tracing_cases import IDS, Case, build, one_each

FEATURES = tuple((layer, feature) for layer in (0, 2) for feature in range(0, 10, 2))
COUNTED = np.arange(len(IDS)) > 0


def tokens(ids: Tensor) -> Tokens:
    nowhere = np.zeros(len(ids), int)
    return Tokens("", ids, nowhere, nowhere, np.arange(len(ids)) > 0)


def drawn(name: str, pool: Pool, d_stream: int, features: tuple[tuple[int, int], ...] = ()) -> Probe:
    weight = torch.randn(d_stream + len(features), generator=torch.Generator().manual_seed(len(name)))
    place = ("hook_resid_post", 1) if d_stream else ("features", None)
    return Probe(name, *place, weight, 0.25, 0.0, pool, features)


PROBES = (drawn("stream", "last", 16), drawn("features", "mean", 0, FEATURES), drawn("both", "max", 16, FEATURES))


def naive_score(probe: Probe, model: ReplacementModel) -> float:
    """From dense activations of every feature and the stream."""
    parts = []
    if probe.place is not None:
        parts.append(read(model.parts, IDS, [probe.place])[probe.place][0].double())
    if probe.features:
        _, dense_LPF = model.get_activations(IDS)
        parts.append(torch.stack([dense_LPF[layer, :, feature] for layer, feature in probe.features], 1).double())
    values_nD = torch.cat(parts, 1)[1:]
    of_text = {"last": values_nD[-1], "mean": values_nD.mean(0), "max": values_nD.max(0).values}[probe.pool]
    return float(of_text @ probe.weight.double()) + probe.bias


def require_rows_sum_to_scores(model: ReplacementModel) -> None:
    subject = Subject(model.parts, None, model.transcoders)
    targets = []
    for probe in PROBES:
        found = read_batch(subject, [tokens(IDS)], Reads.of(probe))[0]
        targets.append(probe_target(probe, model, found, len(IDS) - 1 if probe.pool == "last" else None))
    graph = attribute(IDS, model, attribution_targets=targets, zero_positions=[0])
    assert graph.balance is not None
    rows = graph.nodes.layout.targets
    summed = graph.edges.row_sum(graph.edges.weight)[rows] + graph.balance.bias[rows] + graph.balance.unselected[rows]
    for probe, value in zip(PROBES, summed.tolist(), strict=True):
        assert value == pytest.approx(naive_score(probe, model), rel=1e-9, abs=1e-9)


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_a_row_sums_to_the_score(case: Case) -> None:
    require_rows_sum_to_scores(build(case))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_row_sums_to_the_score_of_neurons(architecture: str) -> None:
    """What they read depends on the prompt."""
    model = build(Case(architecture)).hf_model
    require_rows_sum_to_scores(ReplacementModel.from_model(model, "neurons", None, architecture))


@pytest.mark.parametrize("case", one_each(), ids=str)
def test_what_is_read_side_by_side_is_what_is_read_alone(case: Case) -> None:
    model = build(case)
    subject = Subject(model.parts, None, model.transcoders)
    texts, reads = [tokens(IDS), tokens(IDS[:3]), tokens(IDS[2:])], Reads(("hook_resid_mid", 2), (0, 1))
    for text, found in zip(texts, read_batch(subject, texts, reads), strict=True):
        (alone,) = read_batch(subject, [text], reads)
        assert found.stream is not None
        torch.testing.assert_close(found.stream, alone.stream, rtol=1e-12, atol=1e-12)
        for layer in reads.layers:
            for mine, other in zip(found.features[layer], alone.features[layer], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
            assert 0 not in found.features[layer][0]


def test_a_probe_that_is_an_encoder_row_is_the_feature() -> None:
    model = build(Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"))
    rows, bias = model.transcoders.encoder_rows(1, torch.tensor([4]))
    probe = Probe("row", "mlp.hook_in", 1, rows[0], float(bias), 0.0, "token")
    graph = attribute(IDS, model, attribution_targets=[FeatureTarget(1, 3, 4), probe.target(3)])
    feature, direction = graph.edges.to_dense()[graph.nodes.layout.target_start :]
    torch.testing.assert_close(direction, feature, rtol=1e-13, atol=1e-13)


def test_a_probe_of_one_active_feature_is_the_feature_and_its_share_of_a_mean_less() -> None:
    model = build(Case("llama"))
    subject = Subject(model.parts, None, model.transcoders)
    found = read_batch(subject, [tokens(IDS)], Reads(None, (1,)))[0]
    position, index, _ = (int(column[0]) for column in found.features[1])
    probe = Probe("one", "features", None, torch.ones(1), 0.0, 0.0, "token", ((1, index),))
    target = probe_target(probe, model, found, position)
    graph = attribute(IDS, model, attribution_targets=[FeatureTarget(1, position, index), target])
    feature, own = graph.edges.to_dense()[graph.nodes.layout.target_start :]
    torch.testing.assert_close(own, feature, rtol=1e-13, atol=1e-13)


def test_a_sum_of_directions_is_the_sum_of_their_rows() -> None:
    model = build(Case("qwen3"))
    ones = torch.ones(16)
    each = (DirectionTarget(ones, "mlp.hook_in", 1, 2, 0.5), DirectionTarget(ones, "hook_resid_pre", 2, 4, -2))
    graph = attribute(IDS, model, attribution_targets=[*each, DirectionSum(each, 3.0)])
    assert graph.balance is not None
    start = graph.nodes.layout.target_start
    first, second, both = graph.edges.to_dense()[start:]
    torch.testing.assert_close(both, 0.5 * first - 2 * second, rtol=1e-12, atol=1e-12)
    value = graph.balance.pre_activation[start:]
    assert float(value[2]) == pytest.approx(float(0.5 * value[0] - 2 * value[1]) + 3)
    with pytest.raises(InputError, match="names none"):
        attribute(IDS, model, attribution_targets=[DirectionSum(())])


def test_batches_hold_all_texts_once_and_no_more_tokens_than_asked() -> None:
    lengths = [5, 1, 9, 3, 3, 40, 2]
    found = list(batches(lengths, 12))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= 12 for batch in found)
    assert list(batches([])) == []


def test_activations_that_are_not_finite_are_said() -> None:
    model = build(Case("llama"))
    broken = ReplacementModel.from_model(model.hf_model, model.transcoders, None, "broken")
    weight = broken.parts.layers[1].mlp.down_proj.weight  # type: ignore[union-attr]
    before = weight.data.clone()
    try:
        weight.data[0, 0] = torch.nan
        with pytest.raises(NumericalError, match="not finite"):
            read_batch(Subject(broken.parts, None), [tokens(IDS)], Reads(("hook_resid_post", 2)))
    finally:
        weight.data.copy_(before)


def test_what_does_not_fit_is_refused() -> None:
    model = build(Case("llama"))
    with pytest.raises(InputError, match="reads features"):
        PROBES[1].target()
    with pytest.raises(CompatibilityError, match="there is no dictionary"):
        read_batch(Subject(model.parts, None), [tokens(IDS)], Reads(None, (1,)))
    wide = Probe("wide", "hook_resid_post", 1, torch.ones(17), 0.0, 0.0, "last")
    with pytest.raises(CompatibilityError, match=r"reads 17 numbers .* d_model 16"):
        explain(model, wide, "text")
    other = Probe("other", "features", None, torch.ones(1), 0.0, 0.0, "last", ((1, 99),))
    with pytest.raises(CompatibilityError, match="feature 99 of layer 1"):
        other.check(model.parts, model.transcoders)
    with pytest.raises(InputError, match="reads 16 numbers"):
        PROBES[0].score(torch.ones(3, 15))
