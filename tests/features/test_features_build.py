"""Feature pages say what the model does on the text, however the text is cut into stretches and batches."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.features import FeatureFolder, build_features
from circuit_tracer.features import build as building
from circuit_tracer.features.segment import Segment
from circuit_tracer.text.corpus import SeparateDocuments
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.text.token_files import TokenFiles
from tests.support.feature_cases import LENGTH, N_FEATURES, SETTINGS, Active, Case, contents, slowly

CASES = [Case(), Case("plt", "relu", packed=False), Case("clt", "topk", packed=False, seed=1)]


def ids_of(example: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(text[1:-1]) for text in example["tokens"])


def best_first(active: list[Active]) -> list[float]:
    """Activations of the strongest examples: one a sequence, one a left context."""
    of_sequence: dict[int, Active] = {}
    for one in active:
        if one.sequence not in of_sequence or one.value > of_sequence[one.sequence].value:
            of_sequence[one.sequence] = one
    of_context: dict[tuple[int, ...], float] = {}
    for one in of_sequence.values():
        of_context[one.left] = max(one.value, of_context.get(one.left, -np.inf))
    return sorted(of_context.values(), reverse=True)[: SETTINGS.top]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_records_say_what_the_model_does(case: Case, tmp_path: Path) -> None:
    features = FeatureFolder(case.build(tmp_path, "out"))
    active, counted = slowly(case, tmp_path)
    assert list(features) == [(layer, index) for layer in range(2) for index in range(N_FEATURES)]
    assert len(active) > N_FEATURES / 2
    for place in features:
        record, here = features.get(place), active.get(place, [])
        assert (record["layer"], record["index"]) == place
        assert (record["n_active"], record["n_tokens"]) == (len(here), counted)
        assert record["activation_frequency"] == pytest.approx(len(here) / counted, rel=1e-3)
        if not here:
            assert record["examples_quantiles"] == record["histogram"] == record["quantile_values"] == []
            continue
        values = np.array([one.value for one in here])
        assert record["act_max"] == pytest.approx(values.max(), rel=1e-3)
        assert record["act_min"] == pytest.approx(min(0, values.min()), rel=1e-3)
        assert sum(record["histogram"]) == len(here)
        check_examples(record, here)


def check_examples(record: dict[str, Any], here: list[Active]) -> None:
    groups = [group["examples"] for group in record["examples_quantiles"]]
    for example in [example for group in groups for example in group]:
        same = [one.acts for one in here if (one.tokens, one.centre) == (ids_of(example), example["train_token_ind"])]
        assert any(example["tokens_acts_list"] == pytest.approx(acts, rel=1e-3, abs=1e-9) for acts in same)
    top, sample = groups[0], [example for group in groups[1:] for example in group]
    centre = [example["tokens_acts_list"][example["train_token_ind"]] for example in top]
    assert centre == pytest.approx(best_first(here), rel=1e-3)
    contexts = {one.left for one in here}
    drawn = [ids_of(example)[: example["train_token_ind"] + 1] for example in sample]
    assert len(drawn) == len(set(drawn)) == min(SETTINGS.sample, len(contexts))
    strengths = [example["tokens_acts_list"][example["train_token_ind"]] for example in sample]
    assert strengths == sorted(strengths, reverse=True)
    shown = {ids_of(example)[: example["train_token_ind"] + 1] for example in top}
    assert [example["is_repeated_datapoint"] for example in sample] == [left in shown for left in drawn]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logit_effects_are_those_of_the_decoder(case: Case, tmp_path: Path) -> None:
    features, model = FeatureFolder(case.build(tmp_path, "out")), case.model()
    gain, unembed = model.parts.final_norm.parameters.gain, model.parts.unembed.weight
    for layer, index in features:
        written = model.transcoders.decoder_rows(layer, torch.tensor([index]))[0].sum(0)
        effect = unembed @ (gain * written)
        effect = effect - effect.mean()
        record = features.get((layer, index))
        top, bottom = effect.topk(SETTINGS.logits), (-effect).topk(SETTINGS.logits)
        assert record["top_logits"] == [f"<{token}>" for token in top.indices.tolist()]
        assert record["bottom_logits"] == [f"<{token}>" for token in bottom.indices.tolist()]
        assert record["top_logit_values"] == pytest.approx(top.values.tolist(), rel=1e-3)
        assert record["bottom_logit_values"] == pytest.approx((-bottom.values).tolist(), rel=1e-3)


@pytest.mark.parametrize("entries", [1, 150, 900])
def test_the_cut_into_stretches_changes_nothing(entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, held = Case(), []
    whole = contents(case.build(tmp_path, "whole"))
    monkeypatch.setattr(building, "ENTRIES", entries)
    add = Segment.add

    def watched(self: Segment, *arguments: Any) -> None:
        before = self.n_entries
        add(self, *arguments)
        held.append((before, self.n_entries - before))

    monkeypatch.setattr(Segment, "add", watched)
    assert contents(case.build(tmp_path, "cut")) == whole
    # memory: never more than the limit and one batch
    assert all(before < entries for before, _ in held)
    assert len(held) > 5


def test_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    case = Case()
    first, second = (
        FeatureFolder(case.build(tmp_path, f"out-{tokens}", replace(SETTINGS, batch_tokens=tokens)))
        for tokens in (16, 200)
    )
    assert all(first.get(place) == second.get(place) for place in first)


def test_only_the_features_wanted(tmp_path: Path) -> None:
    case, wanted = Case(), {1: np.array([2, 7, 19])}
    some, all_of_them = (
        FeatureFolder(case.build(tmp_path, name, wanted=w)) for name, w in (("some", wanted), ("all", None))
    )
    assert list(some) == [(1, 2), (1, 7), (1, 19)]
    assert all(some.get(place) == all_of_them.get(place) for place in some)
    assert some.get((0, 2)) is None
    assert (0, 2) not in some


def test_as_many_tokens_as_asked_for(tmp_path: Path) -> None:
    case = Case(packed=False)
    path = case.build(tmp_path, "out", replace(SETTINGS, tokens=100))
    assert FeatureFolder(path).manifest["tokens"] == 100


def test_a_finished_build_is_not_made_again_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    before = contents(case.build(tmp_path, "out"))
    with pytest.raises(CompatibilityError, match="sample is 10 there and 3 here"):
        case.build(tmp_path, "out", replace(SETTINGS, sample=3))
    monkeypatch.setattr(building, "_read_corpus", lambda *_: pytest.fail("it read the text again"))
    assert contents(case.build(tmp_path, "out")) == before


def test_a_folder_belongs_to_one_decoder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    case.build(tmp_path, "out")
    model = case.model()
    model.transcoders.W_dec = [torch.randn_like(each) for each in model.transcoders.W_dec]
    monkeypatch.setattr(Case, "model", lambda _: model)
    with pytest.raises(CompatibilityError, match=r"dictionary is '.*' there and '.*' here"):
        case.build(tmp_path, "out")


def test_a_corpus_without_tokens_that_count(tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.full((3, 1), 5))
    corpus = SeparateDocuments(TokenFiles(str(tmp_path / "short.npy"), None), None, SpecialTokens.of(None), LENGTH)
    with pytest.raises(InputError, match="no token to look at"):
        build_features(Case().model(), corpus, tmp_path / "out", SETTINGS)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json\.gz is missing"):
        FeatureFolder(tmp_path)
    folder = Case().build(tmp_path, "out")
    data = bytearray((folder / "layer_0.bin").read_bytes())
    data[4:40] = bytes(36)
    (folder / "layer_0.bin").write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match=r"feature 0 in .*layer_0\.bin"):
        FeatureFolder(folder).get((0, 0))
    (folder / "index.json.gz").write_bytes(
        gzip.compress(json.dumps({"0": {"filename": "../x", "offsets": [0, 9]}}).encode())
    )
    with pytest.raises(FileFormatError, match="outside of its folder"):
        FeatureFolder(folder).get((0, 0))
    (folder / "index.json.gz").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="no index of features"):
        FeatureFolder(folder)
