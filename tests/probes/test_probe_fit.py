"""Probes on the embedded model: fitted, kept, scored, and asked why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer.demo import MODEL, TRANSCODER, load_labels, world
from circuit_tracer.errors import CircuitTracerError, CompatibilityError, FileFormatError, InputError
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.explain import explain
from circuit_tracer.probes.fit import Fit, fit
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Subject, activations
from circuit_tracer.probes.score import score
from circuit_tracer.replacement_model import ReplacementModel

ENTITIES = [one for one in world.entities() if one.kind == "state"][:12] + [
    one for one in world.entities() if one.kind == "country"
][:12]
PLACES = [
    Example(f"{city} is in", label=one.kind == "state", group=one.name)
    for one in ENTITIES
    for city in one.open_cities[:3]
]
SPANS = [
    Example(text, label=bool(spans), spans=spans, group=one.name)
    for one in ENTITIES[::2]
    for city in one.open_cities[:2]
    for text in [f"the {one.kind} containing {city} is"]
    for spans in [((text.index(city), text.index(city) + len(city)),) if one.kind == "state" else ()]
]
FAST: dict[str, Any] = {"folds": 3, "draws": 30}


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu")


@pytest.fixture(scope="module")
def places(model: ReplacementModel) -> Fit:
    return fit(model, PLACES, layer=2, method="mean", name="state", **FAST)


def test_a_fit_stands_beside_all_baselines_and_its_probe_scores_alike(places: Fit, model: ReplacementModel) -> None:
    names = [each.name for each in places.scores]
    assert names == ["stream", "features", "both", "random dictionary", "bag of words"]
    assert places.scores[0].auc.value > 0.8
    probe, card = places.probe, places.probe.card
    assert card["data"] == {
        "examples": 72, "positive": 36, "groups": 24, "rows": 72, "positive_rows": 36, "spans": False, "negatives": 0,
    }  # fmt: skip
    assert card["alarm"]["threshold"] == probe.threshold
    assert card["alarm"]["rate"] == 1 / (1 + card["alarm"]["negatives"])  # too few for 1 %
    assert any("cannot set a threshold at 0.01" in note for note in places.notes)
    assert "recall at 0.1% of rows is not measured" in "\n".join(places.lines())
    found = score(model, probe, PLACES, draws=30)
    stream = activations(model, PLACES, "resid_post", 2)
    naive = [float(each.stream[-1] @ probe.weight + probe.bias) for each in stream if each.stream is not None]
    np.testing.assert_allclose([each.score for each in found.texts], naive, rtol=1e-4, atol=1e-3)
    assert found.report is not None
    fires = np.array(naive) > probe.threshold
    positive = np.array([example.label for example in PLACES])
    assert found.report.recall.value == pytest.approx(fires[positive].mean())
    assert found.report.false.value == pytest.approx(fires[~positive].mean())


def test_the_closed_form_is_what_the_probe_holds(model: ReplacementModel) -> None:
    """Learned from all folds but the one that sets the threshold: here without any other choice."""
    made = fit(model, PLACES, layer=1, method="mean", seed=4, **FAST)
    stream = torch.stack([each.stream[-1] for each in activations(model, PLACES, "hook_resid_post", 1)])  # type: ignore[index]
    from circuit_tracer.classify.folds import grouped_folds

    positive = np.array([bool(example.label) for example in PLACES])
    group = np.repeat(np.arange(len(ENTITIES)), 3)
    learned = grouped_folds(positive, group, 3, 4) > 0
    up, down = (stream[torch.from_numpy(learned & which)].double().mean(0) for which in (positive, ~positive))
    torch.testing.assert_close(made.probe.weight.double(), up - down, rtol=1e-4, atol=1e-4)
    assert made.probe.bias == pytest.approx(float(-(up - down) @ (up + down) / 2), rel=1e-3)


def test_tokens_and_spans(model: ReplacementModel) -> None:
    made = fit(model, SPANS, layer=1, columns="features", pool="token", method="l1", **FAST)
    own = made.scores[0]
    assert own.texts is not None
    assert own.f1 is not None
    assert own.f1_spans is not None
    assert made.scores[-1].name == "bag of words"
    assert made.scores[-1].auc.value > 0.99  # "state" stands in front of the name
    assert 0 < len(made.probe.features) < 448
    assert {layer for layer, _ in made.probe.features} == {1}
    scored = score(model, made.probe, SPANS, draws=30)
    assert scored.report is not None
    assert (scored.report.rows, scored.report.positive) == ("tokens", 12)
    assert scored.report.f1_spans is not None
    assert "F1 spans" in "\n".join(scored.report.lines())


def test_files_come_back_and_damage_is_said(places: Fit, tmp_path: Path, model: ReplacementModel) -> None:
    both = replace(places.probe, weight=torch.cat([places.probe.weight, torch.ones(2)]), features=((0, 5), (2, 3)))
    for probe in (places.probe, both):
        again = Probe.load(probe.save(tmp_path / "p.safetensors"))
        assert torch.equal(again.weight, probe.weight)
        assert replace(again, weight=probe.weight) == replace(probe, weight=probe.weight)
    again.check(model.parts, model.transcoders)
    data = bytearray((tmp_path / "p.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "p.safetensors").write_bytes(data)
    with pytest.raises(FileFormatError):
        Probe.load(tmp_path / "p.safetensors")
    with pytest.raises(FileFormatError, match="is no probe"):
        Probe.load(Path(TRANSCODER) / "W_enc_0.safetensors")


def test_a_probe_of_other_weights_is_refused(places: Fit, model: ReplacementModel) -> None:
    card = places.probe.card
    other = replace(places.probe, card={**card, "model": {**card["model"], "fingerprint": "0"}})
    with pytest.raises(CompatibilityError, match="fitted on other weights"):
        other.check(model.parts)
    reads = replace(other, card={**card, "dictionary": {**_named(card), "fingerprint": "0"}}, features=((0, 5),))
    reads = replace(reads, weight=torch.ones(129))
    with pytest.raises(CompatibilityError, match="fitted on another dictionary"):
        reads.check(model.parts, model.transcoders)
    with pytest.raises(CompatibilityError, match=r"reads features of a dictionary.*name it \(-t\)"):
        reads.check(model.parts)


def _named(card: dict[str, Any]) -> dict[str, Any]:
    return {"name": "demo", "version": card["model"]["version"], "dtype": "float32"}


@pytest.mark.parametrize("columns", ["stream", "both"])
def test_why_it_fired(columns: Any, places: Fit, model: ReplacementModel) -> None:
    probe = places.probe
    if columns == "both":
        generator = torch.Generator().manual_seed(0)
        weight, features = torch.randn(128 + 40, generator=generator), tuple((1, feature) for feature in range(40))
        probe = Probe("both", "hook_resid_post", 2, weight, 0.5, 0.0, "max", features)
    found = explain(model, probe, "Dallas is in", top=4, labels=load_labels(), seed=1)
    (text,) = score(model, probe, [Example("Dallas is in")]).texts
    assert found.score == pytest.approx(text.score)
    assert sum(found.direct.values()) == pytest.approx(found.score, rel=1e-4)
    assert found.fires == (text.score > probe.threshold)
    assert found.residual < 1e-5
    assert 0 < found.errors < 0.5
    assert found.tokens[0].what == "'Dallas'@1"
    assert (found.position, found.token) == ((3, "in") if columns == "stream" else (None, None))
    assert sum(each.influence for each in found.tokens) == pytest.approx(1)
    for carrier, test in zip(found.features, found.tests, strict=False):
        assert test.measured["constrained"] == pytest.approx(-carrier.direct, rel=1e-3, abs=1e-3)
    assert found.tests[-1].name == "all of them together"
    lines = "\n".join(found.lines())
    assert "Texas (places) at 'Dallas'@1" in lines
    assert "random sets of as many features" in lines
    assert len(found.to_json()["tests"]) == 5


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one class": ({"examples": [replace(each, label=True) for each in PLACES]}, "0 negative rows"),
    "one group": ({"examples": [replace(each, group="g") for each in PLACES]}, "in 1 groups"),
    "no examples": ({"examples": []}, "there are no examples"),
    "folds": ({"folds": 2}, "at least 3"),
    "rate": ({"rate": 1.0}, "rate is 1.0"),
    "layer": ({"layer": 4}, "layers 0 to 3"),
    "site": ({"site": "hook_middle"}, "'hook_middle' is unknown"),
    "site of many numbers": ({"site": "attn.hook_pattern"}, "reads one vector of d_model numbers a token"),
    "feature layers": ({"feature_layers": [7]}, r"layers \[7\] are asked for"),
    "negatives": ({"negatives": [Example("Austin is in", label=True)]}, "positive, and stands among the negatives"),
    "negatives of a group": (
        {"negatives": [Example("x is", label=False, group=PLACES[0].group)]},
        "which is learned from",
    ),
    "twice": ({"examples": [*PLACES, replace(PLACES[0], group="other")]}, "have one text"),
}


@pytest.mark.few
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_fitted_says_why(name: str, model: ReplacementModel) -> None:
    given, message = WRONG[name]
    with pytest.raises(CircuitTracerError, match=message):
        fit(model, **{"examples": PLACES, "layer": 1, "method": "mean", **FAST, **given})


def test_positions_and_dictionaries_that_do_not_fit(places: Fit, model: ReplacementModel) -> None:
    with pytest.raises(InputError, match="leave the position out"):
        explain(model, replace(places.probe, pool="mean"), "Dallas is in", position=1)
    with pytest.raises(InputError, match="that is not read"):
        explain(model, places.probe, "Dallas is in", position=0)
    off = Probe("off", "features", None, torch.ones(1), 0.5, 0.0, "last", ((3, 0),))
    text = next(each.text for each in PLACES if float(score(model, off, [each]).texts[0].score) == 0.5)
    with pytest.raises(InputError, match=r"its score is its bias, 0\.5"):
        explain(model, off, text)
    bare = Subject(model.parts, model.tokenizer)
    with pytest.raises(CompatibilityError, match="there is no dictionary"):
        fit(bare, PLACES, layer=1, columns="features", **FAST)
    alone = fit(bare, PLACES, layer=1, method="mean", **FAST)
    assert [each.name for each in alone.scores] == ["stream", "bag of words"]
    assert any("no dictionary" in note for note in alone.notes)
