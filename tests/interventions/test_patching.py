"""Activation patching between two prompts, and its approximation by gradients."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import (
    FeatureAt,
    PatchTable,
    activation_patching,
    attribution_patching,
    log_probability,
    logit_difference,
    probability,
)
from circuit_tracer.interventions.patching.attribution_patching import estimate_features, mean_gradients
from circuit_tracer.interventions.patching.pair import SITES, kept_activations, last_logits, pair_of
from circuit_tracer.models.run import Visit
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

CLEAN = torch.tensor([1, 17, 4, 33, 17, 9])
CORRUPTED = torch.tensor([1, 17, 5, 33, 18, 9])


def replacement(architecture: str = "llama", **transcoder: Any) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(**transcoder), None, architecture)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement()


@pytest.mark.few
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_whole_residual_stream_carries_everything(architecture: str) -> None:
    model = replacement(architecture)
    metric = logit_difference(model, 3, 7)
    table = activation_patching(model, CLEAN, CORRUPTED, metric, sites=["resid"], positions="together")
    torch.testing.assert_close(table.effect, torch.ones(3, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    logits = model.hf_model(input_ids=CLEAN[None]).logits[0, -1].double()
    assert table.donor == pytest.approx(float(logits[3] - logits[7]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "phi3"])
def test_both_outputs_of_a_layer_carry_what_the_layer_adds(architecture: str) -> None:
    """At the last position of the last layer: attention and MLP output with the stream give the donor's answer."""
    model = replacement(architecture)
    pair = pair_of(model, CLEAN, CORRUPTED, probability(model, 3), "noising")
    kept = kept_activations(model.parts, CORRUPTED, SITES.values())

    def replacing(site: str) -> Visit:
        return lambda layer, x: kept[SITES[site], layer][None] if layer == 2 else None

    for sites in (("resid", "mlp_out", "attn_out"), ("resid", "mlp_out", "head")):
        logits = last_logits(model.parts, CLEAN, {SITES[site]: replacing(site) for site in sites})
        assert float(pair.metric.of(logits)) == pytest.approx(pair.donor_value, rel=1e-9)
    resid, attn_out, mlp_out = (SITES[name] for name in ("resid", "attn_out", "mlp_out"))
    torch.testing.assert_close(kept[resid, 2], kept[resid, 1] + kept[attn_out, 1] + kept[mlp_out, 1])


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_batches_do_not_matter_and_what_comes_before_has_no_effect(model: ReplacementModel, mode: Any) -> None:
    metric = log_probability(model, 3)
    tables = [
        activation_patching(model, CLEAN, CORRUPTED, metric, mode=mode, sites=SITES, features=6, batch_size=size)
        for size in (1, 7, 64)
    ]
    for table in tables[1:]:
        torch.testing.assert_close(table.value, tables[0].value)
        assert table.rows() != []
    grid = tables[0].grid("resid")
    assert grid.shape == (3, 6)
    assert not grid[:, :2].any()
    assert grid[0, 2] != 0
    assert not grid[0, 3]
    assert tables[0].grid("head").shape == (3, 4, 6)
    assert len(tables[0]) == 3 * 6 * (3 + 4) + 6


def test_a_patch_is_what_a_plain_hook_does(model: ReplacementModel) -> None:
    table = activation_patching(model, CLEAN, CORRUPTED, logit_difference(model, 3, 7), sites=["resid"])
    states = model.hf_model(input_ids=CLEAN[None], output_hidden_states=True).hidden_states

    def swap(module: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[0, 4] = states[1][0, 4]
        return (changed, *args[1:])

    handle = model.parts.layers[1].module.register_forward_pre_hook(swap)
    logits = model.hf_model(input_ids=CORRUPTED[None]).logits[0, -1]
    handle.remove()
    (row,) = [row for row in table.rows() if (row["layer"], row["position"]) == (1, 4)]
    assert row["value"] == pytest.approx(float(logits[3] - logits[7]), abs=1e-5)


def test_noising_is_denoising_of_the_swapped_prompts(model: ReplacementModel) -> None:
    metric = logit_difference(model, 3, 7)
    one = activation_patching(model, CLEAN, CORRUPTED, metric, mode="noising", sites=SITES)
    other = activation_patching(model, CORRUPTED, CLEAN, metric, mode="denoising", sites=SITES)
    torch.testing.assert_close(one.value, other.value)
    assert (one.base, one.donor) == (other.base, other.donor)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_features_are_interventions_with_the_other_prompts_values(kind: str) -> None:
    model = replacement("gemma3", kind=kind)
    metric = logit_difference(model, 3, 7)
    _, activations = model.get_activations(CLEAN)
    features = [FeatureAt(0, 2, 6), FeatureAt(1, 4, 11), FeatureAt(2, 5, 3)]
    table = activation_patching(model, CLEAN, CORRUPTED, metric, sites=[], features=features)
    for feature, value in zip(features, table.value, strict=True):
        logits, _ = model.feature_intervention(
            CORRUPTED, [(*feature, activations[tuple(feature)])], freeze_attention=False
        )
        assert float(value) == pytest.approx(float(metric.of(logits[:, -1])), abs=1e-9)


@pytest.mark.parametrize("patching", [activation_patching, attribution_patching])
def test_features_are_those_of_the_positions(model: ReplacementModel, patching: Any) -> None:
    arguments = (model, CLEAN, CORRUPTED, logit_difference(model, 3, 7))
    everywhere = patching(*arguments, sites=[], features=10_000)
    chosen = patching(*arguments, sites=[], features=5, positions=iter([-1, 3]), layers=iter([1, 2]))
    inside = torch.isin(everywhere.position, torch.tensor([3, 5])) & (everywhere.layer > 0)
    assert int(inside.sum()) > 5
    assert len(chosen) == 5
    for name in ("layer", "position", "unit", "value"):
        torch.testing.assert_close(getattr(chosen, name), getattr(everywhere, name)[inside][:5])
    with pytest.raises(InputError, match="one position at a time"):
        patching(*arguments, features=5, positions="together")
    with pytest.raises(InputError, match="positions is 'last'; expected 'together'"):
        patching(*arguments, positions="last")


def test_named_features_are_patched_at_the_positions(model: ReplacementModel) -> None:
    metric = logit_difference(model, 3, 7)
    table = activation_patching(
        model, CLEAN, CORRUPTED, metric, sites=[], features=[(0, 6), (1, 2, 4)], positions=[5, 3]
    )
    assert list(zip(table.layer.tolist(), table.position.tolist(), table.unit.tolist(), strict=True)) == [
        (0, 5, 6),
        (0, 3, 6),
        (1, 2, 4),
    ]
    with pytest.raises(InputError, match="one position at a time"):
        activation_patching(model, CLEAN, CORRUPTED, metric, features=[(0, 6)], positions="together")


# ---- gradients


@pytest.mark.few
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "gpt_oss"])
def test_gradients_are_those_of_small_changes(architecture: str) -> None:
    model = replacement(architecture)
    pair = pair_of(model, CLEAN, CORRUPTED, logit_difference(model, 3, 7), "denoising")
    gradient = mean_gradients(pair, set(SITES.values()), 1)
    generator = torch.Generator().manual_seed(0)
    for (site, layer), here in gradient.items():
        way = torch.randn(here.shape, generator=generator, dtype=torch.float64)

        def moved(step: float, site: str = site, layer: int = layer, way: Tensor = way) -> float:
            push: dict[str, Visit] = {site: lambda depth, x: x + step * way if depth == layer else None}
            return float(pair.metric.of(last_logits(model.parts, pair.base, push)))

        found = (moved(1e-4) - moved(-1e-4)) / 2e-4
        assert found == pytest.approx(float((here * way).sum()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("transcoder", [{"kind": "clt"}, {"kind": "plt", "output_hook": "mlp.hook_out"}])
def test_estimates_of_features_are_those_of_small_changes(transcoder: dict[str, Any]) -> None:
    model = replacement("gemma2", **transcoder)
    pair = pair_of(model, CLEAN, CORRUPTED, logit_difference(model, 3, 7), "denoising")
    patches, estimate = estimate_features(pair, 1, None, list(range(6)))
    (_, base), (_, donor) = (model.get_activations(ids) for ids in (pair.base, pair.donor))
    for number in torch.argsort(estimate.abs(), descending=True)[:5].tolist():
        patch, step = patches[number], 1e-4
        place = (patch.layer, patch.position, patch.unit)
        value = torch.lerp(base[place], donor[place], step)
        logits, _ = model.feature_intervention(pair.base, [(*place, value)], freeze_attention=False)
        found = (float(pair.metric.of(logits[:, -1])) - pair.base_value) / step
        assert found == pytest.approx(float(estimate[number]), rel=1e-2)


@pytest.mark.slow("takes 1.5 s")
def test_integrated_gradients_add_up(model: ReplacementModel) -> None:
    metric = logit_difference(model, 3, 7)
    one, many = (
        attribution_patching(
            model, CLEAN, CORRUPTED, metric, sites=["resid"], layers=[0], positions="together", steps=steps
        )
        for steps in (1, 200)
    )
    assert float(many.effect) == pytest.approx(1, abs=0.02)
    assert many.estimated
    assert abs(float(one.effect) - 1) > abs(float(many.effect) - 1)


def test_an_estimate_has_the_shape_of_the_measurement(model: ReplacementModel) -> None:
    arguments: dict[str, Any] = {"sites": SITES, "features": 4}
    measured = activation_patching(model, CLEAN, CORRUPTED, logit_difference(model, 3, 7), **arguments)
    estimated = attribution_patching(model, CLEAN, CORRUPTED, logit_difference(model, 3, 7), **arguments)
    for name in ("layer", "position", "unit"):
        assert torch.equal(getattr(measured, name), getattr(estimated, name))
    assert measured.site == estimated.site
    assert "estimated" in repr(estimated)


# ---- files


@pytest.mark.slow("takes 1.5 s")
def test_table_and_pictures(model: ReplacementModel, tmp_path: Path) -> None:
    table = activation_patching(model, CLEAN, CORRUPTED, sites=("resid", "head"), features=2)
    with open(table.to_csv(tmp_path / "t.csv"), encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(table)
    pytest.importorskip("matplotlib")
    for name in ("t.png", "t.svg"):
        assert table.draw(tmp_path / name).stat().st_size > 1000
    first = (tmp_path / "t.svg").read_bytes()
    assert table.draw(tmp_path / "again.svg").read_bytes() == first
    assert table.tokens[2] == "<4> / <5>"
    together = activation_patching(model, CLEAN, CORRUPTED, sites=["head"], positions="together")
    assert together.grid("head").shape == (3, 4, 1)
    assert together.draw(tmp_path / "heads.png").exists()
    with pytest.raises(InputError, match="no grid"):
        table.grid("mlp_out")
    only = activation_patching(model, CLEAN, CORRUPTED, sites=[], features=2)
    with pytest.raises(InputError, match="features only"):
        only.draw(tmp_path / "no.png")


def test_the_default_metric_compares_the_two_answers(model: ReplacementModel) -> None:
    table = activation_patching(model, CLEAN, CORRUPTED, sites=["resid"], layers=[1], positions=[-1])
    assert isinstance(table, PatchTable)
    assert table.metric.startswith("logit of")
    assert table.donor > 0 > table.base


# ---- bad input


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "length": (CORRUPTED[:5], {}, "6 and 5 tokens"),
    "same prompt": (CLEAN, {}, "same tokens"),
    "site": (CORRUPTED, {"sites": ["keys"]}, "unknown"),
    "layer": (CORRUPTED, {"layers": [3]}, "layers 0 to 2"),
    "position": (CORRUPTED, {"positions": [6]}, "positions 0 to 5"),
    "mode": (CORRUPTED, {"mode": "both"}, "'denoising' or 'noising'"),
    "batch": (CORRUPTED, {"batch_size": 0}, "batch_size"),
    "feature": (CORRUPTED, {"features": [(0, 20)]}, "features 0 to 19"),
    "count of features": (CORRUPTED, {"features": -1}, "features is -1"),
    "position of a feature": (CORRUPTED, {"features": [(0, 9, 2)]}, "positions are 0 to 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(model: ReplacementModel, case: str) -> None:
    corrupted, options, expected = BAD[case]
    with pytest.raises(InputError, match=expected):
        activation_patching(model, CLEAN, corrupted, logit_difference(model, 3, 7), **options)


def test_bad_metrics(model: ReplacementModel) -> None:
    with pytest.raises(InputError, match="with itself"):
        logit_difference(model, 3, 3)
    with pytest.raises(InputError, match="outside the vocabulary"):
        probability(model, 47)
    with pytest.raises(InputError, match="no tokenizer"):
        probability(model, "Austin")
    with pytest.raises(InputError, match="steps"):
        attribution_patching(model, CLEAN, CORRUPTED, steps=0)
